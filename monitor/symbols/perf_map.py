"""Names of code that a process made itself: /tmp/perf-PID.map, which JITs write for perf.

The format: tools/perf/Documentation/jit-interface.txt in the kernel's sources.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from monitor.evidence.identity import TICK_NS
from monitor.untrusted.process_stat import parse_stat
from monitor.untrusted.regular import open_regular

__all__ = ["Jit", "perf_map_names"]

SIZE_LIMIT = 1 << 25
LINE_LIMIT = 4096


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
            stat = (proc / str(self.pid) / "stat").read_bytes()
        except OSError:
            return False
        ticks = parse_stat(stat).start_ticks
        # The start time in the event is rounded.
        return True if abs(ticks - self.start_boot_ns // TICK_NS) <= 1 else None


def perf_map_names(
    jit: Jit, addresses: Collection[int], root: Path, proc: Path
) -> dict[int, tuple[bytes, int]]:
    """Name and start of the code at these addresses, as the last fitting line of the map has it.

    The map must belong to the process's user and be no older than the process. Raises OSError,
    ValueError.
    """
    alive = jit.alive(proc)
    if alive is None:
        raise ValueError(f"pid {jit.pid} is another process now")
    base = proc / str(jit.pid) / "root" if alive else root
    number = jit.vpid if alive else jit.pid
    found: dict[int, tuple[bytes, int]] = {}
    with open_regular(base / f"tmp/perf-{number}.map", SIZE_LIMIT, jit.uid) as file:
        if not alive and os.fstat(file.fileno()).st_mtime < jit.start.timestamp():
            raise ValueError("the map is older than the process")
        read = 0
        while read < SIZE_LIMIT and (line := file.readline(LINE_LIMIT)):
            read += len(line)
            start_text, _, rest = line.partition(b" ")
            size_text, _, name = rest.strip().partition(b" ")
            try:
                start, size = int(start_text, 16), int(size_text, 16)
            except ValueError:
                continue
            for address in addresses:
                if start <= address < start + size and name:
                    found[address] = (name, start)
    return found
