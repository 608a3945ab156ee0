"""What /proc shows of a process just after its violation: mappings, modules, limits, parents.

Everything is read through a descriptor of the process's directory in /proc, which never leads to
another process that gets the same pid. The process chooses what is in there, so it is bounded and
escaped here. Reading costs the process little: its mmap lock is held for a few mappings at a time.
The process, in turn, can hold that lock: what needs it is read in threads that can be given up, and
then missing.
"""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from monitor.evidence.events import timestamp
from monitor.evidence.identity import is_image, state_of
from monitor.evidence.memory_map import Mapping, bounded_lines, parse_smaps
from monitor.evidence.waiting import Held, Reads, Waiting
from monitor.incidents.snapshot_facts import PATH_LIMIT, parents, seccomp, status
from monitor.incidents.snapshot_facts import limits as resource_limits
from monitor.sinks.outputs import encode
from monitor.sizes import kibibytes
from monitor.symbols.modules import find_modules
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import find

__all__ = ["LIMITS", "Limits", "Request", "Snapshot", "Taken", "patience", "take"]

READ_SECONDS = 0.5  # for the mappings, the modules, and their build ids

Snapshot = dict[str, Any]
_T = TypeVar("_T")


class Limits(NamedTuple):
    """What one snapshot may cost.

    A mapping takes 230 bytes of the text on average, 700 in smaps, and 12 us to read there. The
    kernel holds the mmap lock while it walks the page tables of one mapping, 7 ms for a MiB of
    them, which map 512 MiB in small pages: with more than `page_tables_kib` smaps is not read.
    """

    text_bytes: int = 256 << 10
    mappings: int = 1024
    smaps_bytes: int = 4 << 20
    maps_bytes: int = 8 << 20  # 65,530 mappings, as many as there are by default
    read_seconds: float = 0.25
    page_tables_kib: int = 2048
    modules: int = 256
    parents: int = 16


LIMITS = Limits()


def patience() -> Waiting:
    """What snapshots may wait for: the processes of one user can delay those of others by a second
    and a half, and after that by a fifth of the time.
    """
    return Waiting(seconds=READ_SECONDS, at_once=2 * READ_SECONDS)


class Request(NamedTuple):
    """`base_name` is the kernel's name of the executable, `touched` the address in question;
    `uid` and `workload` are those of the process, for whom the reads are.
    """

    event: str
    pid: int
    tid: int
    start_boot_ns: int
    start: str
    base_name: bytes
    touched: int
    uid: int = 0
    workload: str = ""


class Taken(NamedTuple):
    """`partial`: some part could not be read, which `missing` explains. `gone` has no text."""

    result: Literal["taken", "partial", "gone"]
    time_ns: int  # Unix time
    text: bytes = b""


def take(
    request: Request,
    waiting: Waiting,
    *,
    start_offset_ns: int,
    reports_guards: bool,
    proc: Path = Path("/proc"),
    limits: Limits = LIMITS,
) -> Taken:
    """The snapshot as JSON text, or `gone`: the process ended, or executed another program.

    `start_offset_ns` is the real-time clock minus the boot clock, for start times. Raises OSError
    if nothing can be read at all.
    """
    now, began = time.time_ns(), time.monotonic()
    gone = Taken("gone", now)
    try:
        held = Held(find(proc, request.pid).descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return gone
    directory = held.descriptor
    reads = Reads(waiting, request.uid, request.workload)
    try:
        if state_of(directory, request.pid, request.start_boot_ns) != "complete":
            return gone
        snapshot: Snapshot = {
            "time": timestamp(now, 0),
            "event": request.event,
            "pid": request.pid,
            "start": request.start,
        }
        missing: dict[str, str] = {}
        part = functools.partial(_part, missing)
        # First the parts that change soonest.
        found = part("memory_map", lambda: _memory_map(held, request, limits, reads))
        if found is not None and not found.blocks:
            return gone
        thread = f"task/{request.tid}/status"
        filters = part("seccomp", lambda: seccomp(status(directory, thread)))
        rlimits = part("limits", lambda: resource_limits(directory))
        above = part("parents", lambda: parents(proc, directory, start_offset_ns, limits.parents))
        modules = part(
            "modules", lambda: find_modules(held, reads, limits.modules, limits.maps_bytes)
        )
    except (FileNotFoundError, ProcessLookupError):
        return gone
    finally:
        waiting.rest()
    mappings = None
    if found is not None:
        lines = (line for block in found.blocks for line in block)
        mappings = [_mapping(each) for each in parse_smaps(lines, reports_guards)]
        if found.problem:
            missing["memory_map"] = found.problem
    if modules is not None and modules.problem:
        missing["modules"] = modules.problem
    snapshot |= {
        "memory_map": mappings,
        "memory_map_complete": found is not None and found.is_complete,
        "limits": rlimits,
        "seccomp": filters,
        "modules": modules and modules.found,
        "parents": above,
        "missing": missing,
        "duration_ms": round((time.monotonic() - began) * 1e3, 3),
    }
    text = _fitting(snapshot, request.touched, limits.text_bytes)
    return Taken("partial" if missing else "taken", now, text)


def _part(missing: dict[str, str], name: str, reader: Callable[[], _T]) -> _T | None:
    """What the reader returns; None if it cannot read, with the reason in `missing`."""
    try:
        return reader()
    except OSError as error:
        if name == "memory_map" and isinstance(error, FileNotFoundError | ProcessLookupError):
            raise  # the process is gone
        missing[name] = error.strerror or str(error)
        return None


def _fitting(snapshot: Snapshot, touched: int, limit: int) -> bytes:
    """The snapshot as JSON text of at most `limit` bytes: halves its longest part until it fits."""
    while len(text := encode(snapshot)) > limit:
        part = max(("memory_map", "modules"), key=lambda name: len(snapshot[name] or ()))
        entries = snapshot[part] or []
        half = len(entries) // 2
        if not half:
            break
        first = 0
        if part == "memory_map":
            snapshot["memory_map_complete"] = False
            below = sum(int(entry["start"], 16) <= touched for entry in entries)
            first = min(max(below - half // 2, 0), len(entries) - half)
        else:
            snapshot["missing"][part] = "there are more"
        snapshot[part] = entries[first : first + half]
    return text


# ---- Mappings ------------------------------------------------------------------------------------

_Block = list[bytes]  # the lines of one mapping
_ENDED = "it ended or executed another program meanwhile"


class _TooMuch(Exception):
    """A bound on reading was reached; the text says which."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The mappings around an address. With a `problem` some of them may be missing."""

    blocks: list[_Block]
    is_complete: bool
    problem: str = ""


def _memory_map(directory: Held, request: Request, limits: Limits, reads: Reads) -> _Found:
    """The mappings around the violation; none if the process now runs another program.

    Raises OSError, TooLong where the process lets it wait.
    """
    kib = int(status(directory.descriptor, "status").get(b"VmPTE", b"0").split()[0])
    why = f"{kib} KiB of page tables, more than {limits.page_tables_kib}"
    if kib <= limits.page_tables_kib:
        size = limits.smaps_bytes
        found = reads.run(lambda: _read_map("smaps", size, directory, request, limits))
        if found.problem in ("", _ENDED):
            return found
        why = found.problem
    size = limits.maps_bytes
    found = reads.run(lambda: _read_map("maps", size, directory, request, limits))
    return _Found(found.blocks, found.is_complete, f"seals not read: {why}")


def _read_map(name: str, size: int, directory: Held, request: Request, limits: Limits) -> _Found:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.descriptor)
    try:
        # Checked after the open: the file belongs to the memory that the process had then, and is
        # empty once the process executes another program.
        if not is_image(_base_name(directory.descriptor), request.base_name):
            return _Found([], False)
        with open(fd, "rb", 1 << 16, closefd=False) as file:
            lines = bounded_lines(file)
            blocks = _blocks(lines, size, time.monotonic() + limits.read_seconds)
            found = _nearest(blocks, request.touched, limits.mappings)
        os.lseek(fd, 0, os.SEEK_SET)
        return found if os.read(fd, 1) else _Found(found.blocks, False, _ENDED)
    finally:
        os.close(fd)


def _base_name(directory: int) -> bytes:
    """The base name of the executable; empty if it cannot be read."""
    try:
        return os.path.basename(os.readlink(b"exe", dir_fd=directory))
    except OSError:
        return b""


def _blocks(lines: Iterator[bytes], limit: int, deadline: float) -> Iterator[_Block]:
    """The lines of each mapping. Raises _TooMuch after `limit` bytes or at the deadline."""
    block: _Block = []
    size = 0
    for line in lines:
        if block and not line[:1].isupper():
            yield block
            block = []
            if size > limit:
                raise _TooMuch(f"more than {kibibytes(limit)} to read")
            if time.monotonic() > deadline:
                raise _TooMuch("it took too long")
        block.append(line)
        size += len(line)
    if block:
        yield block


def _nearest(blocks: Iterator[_Block], touched: int, limit: int) -> _Found:
    """The `limit` mappings around `touched`, half of them below it, in the order of addresses.

    If one side has fewer, the other gets more.
    """
    below: deque[_Block] = deque(maxlen=limit)
    above: list[_Block] = []
    passed = 0
    problem, is_whole = "", True
    try:
        for block in blocks:
            if int(block[0].partition(b"-")[0], 16) <= touched:
                below.append(block)
                passed += 1
            elif len(above) < limit - min(len(below), limit // 2):
                above.append(block)
            else:
                is_whole = False
                break
    except _TooMuch as error:
        # With mappings above the address only those further away are missing.
        problem, is_whole = "" if above else str(error), False
    kept = list(below)[-(limit - len(above)) :]
    return _Found(
        [*kept, *above],
        is_complete=is_whole and passed == len(kept),
        problem=problem,
    )


def _mapping(mapping: Mapping) -> dict[str, object]:
    label = mapping.path or mapping.name
    text = None if label is None else printable(label, PATH_LIMIT)
    file = None
    if mapping.device is not None:
        file = {
            "path": text,
            "device": mapping.device,
            "inode": mapping.inode,
            "offset": mapping.offset,
        }
    return {
        "start": f"0x{mapping.start:x}",
        "end": f"0x{mapping.end:x}",
        "permissions": mapping.permissions,
        "sealed": mapping.sealed,
        "file": file,
        "name": text if file is None else None,
        "guard": mapping.guard,
        "rss_kib": mapping.rss_kib,
    }
