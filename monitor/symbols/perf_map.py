"""Names of code that a process made itself: /tmp/perf-PID.map, which JITs write for perf.

The format: tools/perf/Documentation/jit-interface.txt in the kernel's sources.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from monitor.evidence.identity import TICK_NS
from monitor.untrusted.process_directory import find, number_of, stat_of
from monitor.untrusted.recent import Recent
from monitor.untrusted.regular import open_regular

__all__ = ["Jit", "PerfMaps"]

SIZE_LIMIT = 1 << 25
LINE_LIMIT = 4096
FUNCTIONS_LIMIT = 1 << 19
MAPS_KEPT = 2
_OVERLAPS_LIMIT = 1024  # lines before an address that may reach as far as it
_ADDRESS_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class Jit:
    """A process: its pid here and in its namespace, its user, and its start (boot clock)."""

    pid: int
    vpid: int
    uid: int
    start: datetime
    start_boot_ns: int

    def alive(self, proc: Path) -> bool | None:
        """Whether the process lives; None where its pid now belongs to another process."""
        try:
            found = find(proc, self.pid)
        except OSError:
            return False
        try:
            ticks = stat_of(found.descriptor, self.pid).start_ticks
        except OSError:
            return False
        finally:
            os.close(found.descriptor)
        # The start time in the event is rounded.
        return True if abs(ticks - self.start_boot_ns // TICK_NS) <= 1 else None


class _Map:
    """The functions of one map, by address."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError for one with too many."""
        starts, sizes, places = array("Q"), array("Q"), array("L")
        self._text = file.read(SIZE_LIMIT)
        place = 0
        while place < len(self._text):
            end = self._text.find(b"\n", place)
            end = len(self._text) if end < 0 else end
            found = _numbers(self._text[place : min(end, place + LINE_LIMIT)])
            if found is not None:
                starts.append(found[0])
                sizes.append(found[1])
                places.append(place)
            place = end + 1
            if len(starts) > FUNCTIONS_LIMIT:
                raise ValueError(f"the map has more than {FUNCTIONS_LIMIT} functions")
        # Stable: of those that begin at the same address the last line comes last.
        order = sorted(range(len(starts)), key=starts.__getitem__)
        self._starts = array("Q", (starts[index] for index in order))
        self._sizes = array("Q", (sizes[index] for index in order))
        self._places = array("L", (places[index] for index in order))

    def find(self, address: int) -> tuple[bytes, int] | None:
        """Name and start of the code there: of several lines the last one counts."""
        index = bisect_right(self._starts, address) - 1
        best = -1
        for other in range(index, max(index - _OVERLAPS_LIMIT, -1), -1):
            reaches = address - self._starts[other] < self._sizes[other]
            if reaches and (best < 0 or self._places[other] > self._places[best]):
                best = other
        if best < 0:
            return None
        place = self._places[best]
        line = self._text[place : place + LINE_LIMIT].partition(b"\n")[0]
        return line.partition(b" ")[2].strip().partition(b" ")[2], self._starts[best]


def _numbers(line: bytes) -> tuple[int, int] | None:
    """Start and size of the function that a line names; None where it is no such line."""
    start, _, rest = line.partition(b" ")
    size, _, name = rest.strip().partition(b" ")
    try:
        numbers = int(start, 16), int(size, 16)
    except ValueError:
        return None
    return numbers if name and all(0 <= n < _ADDRESS_LIMIT for n in numbers) else None


class PerfMaps:
    """Maps, read once for as long as the file stays the same: a process may be named in any number
    of events.
    """

    def __init__(self) -> None:
        self._known: Recent[tuple[object, ...], _Map | str] = Recent(MAPS_KEPT)

    def names(
        self, jit: Jit, addresses: Collection[int], root: Path, proc: Path
    ) -> dict[int, tuple[bytes, int]]:
        """Name and start of the code at these addresses, where the map has it.

        Its own file only: the user's, of this very process. Raises OSError, ValueError.
        """
        alive = jit.alive(proc)
        if alive is None:
            raise ValueError(f"pid {jit.pid} is another process now")
        base = proc / str(number_of(proc, jit.pid)) / "root" if alive else root
        number = jit.vpid if alive else jit.pid
        with open_regular(base / f"tmp/perf-{number}.map", SIZE_LIMIT, jit.uid) as file:
            status = os.fstat(file.fileno())
            if not alive and status.st_mtime < jit.start.timestamp():
                raise ValueError("the map is older than the process")
            # Not the start: the events of one process may differ in it by a tick.
            key = jit.pid, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            known = self._known.get(key)
            if known is None:
                known = _read(file)
                self._known.put(key, known)
        if isinstance(known, str):
            raise ValueError(known)  # noqa: TRY004 - what it says is why there is no map
        found = ((address, known.find(address)) for address in addresses)
        return {address: name for address, name in found if name is not None}


def _read(file: BinaryIO) -> _Map | str:
    """The map, or why it is none."""
    try:
        return _Map(file)
    except ValueError as error:
        return str(error)
