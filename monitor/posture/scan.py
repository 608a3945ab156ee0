"""Which processes have sealed memory, and how much of what should be sealed: from /proc.

Only the flag `sl` in smaps shows a seal; PROCMAP_QUERY (ioctl on /proc/PID/maps) does not report
it. For smaps the kernel walks the page tables, a few mappings at a time, under the lock that mmap()
and munmap() in that process need: 8 us for a mapping, and 6 ms for a MiB of page tables, which is
512 MiB of 4 KiB pages. So a process with more page tables than PAGE_TABLES_LIMIT is not read unless
somebody asks for it.

Its own user can hold that lock for as long as they like: see smaps.py.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from monitor.evidence.cgroups import top_workload, unified_path, workload_name
from monitor.evidence.memory_map import DELETED, bounded_lines, parse_smaps
from monitor.evidence.memory_map import Mapping as MemoryMapping
from monitor.evidence.waiting import SYSTEM_USERS, Held, Reads, TooLong, Waiting
from monitor.posture.smaps import opened, patience
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import KERNEL_THREAD, find, read_at, stat_of
from monitor.untrusted.recent import Recent
from monitor.untrusted.segments import NOTHING, Relro, Segments, read_mapped

__all__ = [
    "PAGE_TABLES_LIMIT",
    "STATES",
    "Figures",
    "Group",
    "Memory",
    "Process",
    "Reader",
    "State",
    "grouped",
    "measure",
    "pids",
    "total",
]

State = Literal["sealing", "not_sealing", "unreadable", "too_large", "timed_out"]
STATES: tuple[State, ...] = get_args(State)

PAGE_TABLES_LIMIT = 4 << 20  # bytes: 2 GiB of small pages, 25 ms
MAPPINGS_LIMIT = 1 << 18  # vm.max_map_count is 65,530 by default, 2^20 on some distributions
UNKNOWN_WORKLOAD = "unknown"
TEXT_LIMIT = 512
_FILE_LIMIT = 1 << 40  # only a few KiB are read
_PAUSE_MAPPINGS = 256

# The kernel maps these, and seals them where CONFIG_MSEAL_SYSTEM_MAPPINGS is set
# (Documentation/userspace-api/mseal.rst): they show nothing about a program.
_SYSTEM = frozenset((b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"))
_TICKS = os.sysconf("SC_CLK_TCK")


# ---- What mappings add up to ---------------------------------------------------------------------


class Memory(NamedTuple):
    """Sums over mappings, in bytes; a sealed range has no gap.

    RELRO is what the dynamic linker makes read-only after relocation: private read-only mappings
    of a file, as far as its PT_GNU_RELRO covers them.
    """

    sealed_ranges: int = 0
    sealed_bytes: int = 0
    executable_bytes: int = 0
    executable_sealed_bytes: int = 0
    relro_bytes: int = 0
    relro_sealed_bytes: int = 0

    def plus(self, other: Memory) -> Memory:
        return Memory(*(one + more for one, more in zip(self, other, strict=True)))


def total(memories: Iterable[Memory]) -> Memory:
    sums = Memory()
    for memory in memories:
        sums = sums.plus(memory)
    return sums


def _covered(mapping: MemoryMapping, relro: Relro) -> int:
    """Bytes of a mapping of RELRO's file that are RELRO."""
    low, high = max(mapping.start, relro.start), min(mapping.end, relro.end)
    if low >= high or mapping.offset is None:
        return 0
    # Other parts of the file may be mapped there, too.
    is_same = mapping.offset + low - mapping.start == relro.offset + low - relro.start
    return high - low if is_same else 0


def measure(
    mappings: Iterable[MemoryMapping], segments_of: Callable[[MemoryMapping], Segments]
) -> Memory:
    """What the mappings of one process, in their order, add up to.

    `segments_of` is asked for each mapping of a file's code: linkers place code before RELRO.
    """
    ranges = sealed_bytes = executable = executable_sealed = relro = relro_sealed = 0
    sealed_until = -1
    places: dict[tuple[str | None, int | None], Relro] = {}
    for mapping in mappings:
        if mapping.name in _SYSTEM:
            continue
        size = mapping.size
        if mapping.sealed:
            ranges += mapping.start != sealed_until
            sealed_bytes += size
            sealed_until = mapping.end
        if mapping.permissions[2] == "x":
            executable += size
            executable_sealed += size if mapping.sealed else 0
            if mapping.path is not None and mapping.offset is not None:
                place = segments_of(mapping).relro_of(mapping.start, mapping.offset)
                if place is not None:
                    places[mapping.device, mapping.inode] = place
        elif mapping.permissions == "r--p":
            place = places.get((mapping.device, mapping.inode))
            covered = _covered(mapping, place) if place is not None else 0
            relro += covered
            relro_sealed += covered if mapping.sealed else 0
    return Memory(ranges, sealed_bytes, executable, executable_sealed, relro, relro_sealed)


# ---- One process ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """`executable` is None where it could not be read, `memory` where the mappings could not; the
    state `timed_out`: not in time.

    `age` is in seconds. `build_id` is the executable's. `sealed` are its first sealed mappings, at
    most the reader's `keep`. `owner` is the outermost workload and the real uid.
    """

    pid: int
    parent_pid: int
    name: str
    age: float
    executable: str | None
    build_id: str | None
    workload: str
    state: State
    memory: Memory | None
    sealed: tuple[MemoryMapping, ...]
    owner: tuple[str, int | None] = ("", None)


def pids(proc: Path = Path("/proc")) -> list[int]:
    """The pids of all processes that there are now, in order. Raises OSError."""
    with os.scandir(proc) as entries:
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())


def _executable(directory: int) -> bytes | None:
    try:
        return os.readlink(b"exe", dir_fd=directory)
    except OSError as error:
        if _is_hidden(error):
            return None
        raise


def _is_hidden(error: OSError) -> bool:
    """Whether it is one part of the process that cannot be read: the kernel shows no path that is
    longer than a page, and one process must not end the look at all.
    """
    return error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def _cgroup(directory: int) -> str | None:
    try:
        path = unified_path(read_at("cgroup", directory, 1 << 16))
    except FileNotFoundError:  # a kernel without cgroups
        return None
    except OSError as error:
        if _is_hidden(error):
            return None
        raise
    return None if path is None else os.fsdecode(path)


def _uid(directory: int) -> int | None:
    """The real one. That of the directory is root's where the process is not dumpable."""
    lines = read_at("status", directory, 1 << 14).splitlines()
    found = next((line.split() for line in lines if line.startswith(b"Uid:")), None)
    return None if found is None else int(found[1])


def _page_tables(directory: int) -> int:
    """Bytes of page tables that a read of smaps would walk."""
    lines = read_at("status", directory, 1 << 14).splitlines()
    found = next((line.split() for line in lines if line.startswith(b"VmPTE:")), None)
    return 0 if found is None else int(found[1]) * 1024


class _Own:
    """A process that is being read."""

    def __init__(self, executable: bytes | None) -> None:
        self.executable = executable
        self.segments = NOTHING
        self.count = 0
        self.sealed: list[MemoryMapping] = []


class Reader:
    """Reads processes. What it learns about a file it uses for other processes that map it."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        page_tables_limit: int | None = PAGE_TABLES_LIMIT,
        keep: int = 0,
        pause: Callable[[], None] = lambda: None,
        waiting: Waiting | None = None,
    ) -> None:
        """`keep`: how many sealed mappings of a process to keep. `pause` is called between reads,
        while no lock is held. `waiting` reads what others can hold up.
        """
        self._proc = proc
        self._page_tables_limit = page_tables_limit
        self._keep = keep
        self._pause = pause
        self._waiting = waiting or patience()
        self._files: Recent[tuple[str | None, int | None], Segments] = Recent()

    def processes(self) -> Iterator[Process]:
        """All processes. Raises OSError."""
        for pid in pids(self._proc):
            process = self.process(pid)
            if process is not None:
                yield process
            self._pause()

    def process(self, pid: int) -> Process | None:
        """The process; None where it has no memory: a kernel thread, or one that ends or is gone.

        Raises OSError.
        """
        try:
            found = find(self._proc, pid)
            return self._process(pid, Held(found.descriptor), found.number)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except PermissionError:  # /proc mounted with hidepid (proc(5)) does not even show its name
            return Process(
                *(pid, 0, "", 0.0, None, None, UNKNOWN_WORKLOAD),
                *("unreadable", None, ()),
            )

    def _process(self, pid: int, directory: Held, number: int) -> Process | None:
        entry = directory.descriptor
        stat = stat_of(entry, pid)
        if stat.state in (b"Z", b"X") or stat.flags & KERNEL_THREAD:
            return None
        own = _Own(_executable(entry))
        path, uid = _cgroup(entry), _uid(entry)
        workload = UNKNOWN_WORKLOAD if path is None else workload_name(path)
        top = "" if path is None else top_workload(printable(path))
        reads = Reads(self._waiting, SYSTEM_USERS if uid is None else uid, top)
        state, memory = self._memory(number, directory, own, reads)
        return Process(
            pid=pid,
            parent_pid=stat.parent,
            name=printable(stat.name),
            age=time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start_ticks / _TICKS,
            executable=None if own.executable is None else _as_path(own.executable),
            build_id=own.segments.build_id,
            workload=workload,
            state=state,
            memory=memory,
            sealed=tuple(own.sealed),
            owner=(top, uid),
        )

    def _memory(
        self, number: int, directory: Held, own: _Own, reads: Reads
    ) -> tuple[State, Memory | None]:
        """What its mappings add up to. Raises ProcessLookupError where it is gone."""
        try:
            limit = self._page_tables_limit
            if limit is not None and _page_tables(directory.descriptor) > limit:
                return "too_large", None
            with opened(directory, reads) as file:
                mappings = self._watched(parse_smaps(bounded_lines(file)), own)
                memory = measure(mappings, lambda each: self._segments(number, each, own, reads))
        except PermissionError:
            return "unreadable", None
        except TooLong:
            return "timed_out", None
        if not own.count:
            raise ProcessLookupError
        if own.count > MAPPINGS_LIMIT:
            return "too_large", None
        return "sealing" if memory.sealed_ranges else "not_sealing", memory

    def _watched(self, mappings: Iterable[MemoryMapping], own: _Own) -> Iterator[MemoryMapping]:
        for mapping in mappings:
            own.count += 1
            if own.count > MAPPINGS_LIMIT:
                return
            if own.count % _PAUSE_MAPPINGS == 0:
                self._pause()
            if mapping.sealed and len(own.sealed) < self._keep and mapping.name not in _SYSTEM:
                own.sealed.append(mapping)
            yield mapping

    def _segments(self, number: int, mapping: MemoryMapping, own: _Own, reads: Reads) -> Segments:
        key = (mapping.device, mapping.inode)
        found = self._files.get(key)
        if found is None:
            found = reads.run(lambda: self._read_segments(number, mapping))
            self._files.put(key, found)
        if mapping.path == own.executable:
            own.segments = found
        return found

    def _read_segments(self, number: int, mapping: MemoryMapping) -> Segments:
        """The segments of the mapped file, through map_files (proc_pid_map_files(5)) or, where that
        is not allowed, by path.

        Without any where the file cannot be read any more.
        """
        process = self._proc / str(number)
        paths = [process / "map_files" / f"{mapping.start:x}-{mapping.end:x}"]
        if mapping.path is not None and not mapping.path.endswith(DELETED.encode()):
            paths.append(process / "root" / os.fsdecode(mapping.path)[1:])
        return read_mapped(paths, mapping.inode, _FILE_LIMIT)


def _as_path(executable: bytes) -> str:
    """The path of an executable; a file that was replaced, as by an update, keeps its path."""
    return printable(executable.removesuffix(DELETED.encode()), TEXT_LIMIT)


# ---- Many processes ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """What a look at all processes found, for the metrics. `finished` is in Unix seconds."""

    processes: Mapping[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    sealed_bytes: Mapping[str, int] = field(default_factory=dict)  # by workload
    memory: Memory = field(default_factory=Memory)
    sealing_executables: int = 0
    stopped_executables: int = 0
    duration: float = 0.0
    finished: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Processes with the same key; `memory` is the sum of those that could be read."""

    name: str
    states: Mapping[State, int]
    memory: Memory


def grouped(processes: Iterable[Process], key: Callable[[Process], str]) -> list[Group]:
    """The groups, those with the most sealed memory first."""
    states: dict[str, Counter[State]] = {}
    sums: dict[str, Memory] = {}
    for process in processes:
        name = key(process)
        states.setdefault(name, Counter(dict.fromkeys(STATES, 0)))[process.state] += 1
        sums[name] = sums.get(name, Memory()).plus(process.memory or Memory())
    groups = [Group(name, counts, sums[name]) for name, counts in states.items()]
    return sorted(groups, key=lambda group: (-group.memory.sealed_bytes, group.name))
