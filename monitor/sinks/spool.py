"""What waits for a collector, on disk and bounded: it outlives the process and a full disk.

A segment is a file with the events of one severity, and is sent as one batch: once the collector
has taken it, it is removed. Its name is when it was begun, in nanoseconds, and the severity. An
event is a line: CRC-32 of the rest, a space, the data. Nothing is appended to a file of an earlier
life, so that a line cut off by a kill is the last one of its file.

While the disk takes nothing, segments are kept in memory, up to MEMORY bytes, and are written as
soon as it does. Beyond the bound, the least severe events go first, of those the oldest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from monitor.sinks.outputs import SinkError
from monitor.untrusted import state_file

__all__ = [
    "DIRECTORY",
    "MEMORY",
    "RANKS",
    "SEGMENT_BYTES",
    "SEGMENT_EVENTS",
    "Batch",
    "Segment",
    "Spool",
    "size",
]

DIRECTORY = "otlp"  # in the state directory
RANKS = ("info", "warning", "critical")  # severities, the first to go first
SEGMENT_BYTES = 256 << 10  # less than any collector refuses
SEGMENT_EVENTS = 512
MEMORY = 4 << 20
_READ_LIMIT = SEGMENT_BYTES + (4 << 20)  # its last event may be larger than all others
AGAIN = 60.0  # seconds until a segment that could not be read is tried again
_BLOCK = 4096  # what a file takes at least
_NAME = re.compile(rf"([0-9]{{19}})\.({'|'.join(RANKS)})")
_LATEST = 9 * 10**18  # Linux refuses a clock beyond the year 2232: 8.3e18
_CHECK = 9  # bytes of a line before the data


@dataclass(eq=False, slots=True)
class Segment:
    """`lines`: those that are in memory alone; None: they are in the file. `begun` and `again` are
    on the monotonic clock.
    """

    severity: str
    number: int  # Unix time in nanoseconds at which it was begun; none is used twice
    events: int | None = None  # None: of an earlier life, not counted yet
    size: int = 0
    lines: list[bytes] | None = None
    begun: float = 0.0
    again: float = 0.0  # it could not be read, and is not tried before

    @property
    def name(self) -> str:
        return f"{self.number:019d}.{self.severity}"

    @property
    def room(self) -> int:
        """Bytes that it takes, in whole blocks."""
        return _in_blocks(self.size)

    @property
    def is_full(self) -> bool:
        return self.size >= SEGMENT_BYTES or (self.events or 0) >= SEGMENT_EVENTS


def _in_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@dataclass(frozen=True, slots=True)
class Batch:
    """`damaged`: lines of the segment that are not what was written; they are lost."""

    segment: Segment
    events: list[bytes]
    damaged: int = 0


@dataclass(slots=True)
class _Open:
    segment: Segment
    descriptor: int = -1  # -1: in memory


@dataclass(slots=True)
class _Waiting:
    """The segments by rank, the oldest first."""

    by_rank: tuple[dict[int, Segment], ...] = field(default_factory=lambda: ({}, {}, {}))

    def add(self, segment: Segment) -> None:
        self.by_rank[RANKS.index(segment.severity)][segment.number] = segment

    def remove(self, segment: Segment) -> None:
        self.by_rank[RANKS.index(segment.severity)].pop(segment.number, None)

    def least_first(self, most: int) -> Iterator[Segment]:
        """Of the ranks up to `most`: the least severe first, of those the oldest."""
        for rank in range(most + 1):
            yield from list(self.by_rank[rank].values())

    def worst_first(self) -> Iterator[Segment]:
        for segments in reversed(self.by_rank):
            yield from segments.values()

    def __iter__(self) -> Iterator[Segment]:
        return self.worst_first()


class Spool:
    """One thread adds, one takes. Whoever else calls anything but `close` waits for no disk."""

    def __init__(
        self,
        directory: Path,
        most: int,
        *,
        dropped: MutableMapping[str, int] | None = None,
        gather: float = 0.0,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """`most`: bytes on disk. `dropped` counts lost events by severity. `gather`: seconds for
        which the events of a moment are kept for one request. A directory that cannot be used is
        tried again with each new segment; `problem` says why.
        """
        self._path = directory
        self._clock = clock
        self._monotonic = monotonic
        self._gather = gather
        self._write_some = write
        self.most = most
        self.dropped = Counter[str]() if dropped is None else dropped
        self.problem: OSError | None = None
        self._directory = -1
        self._waiting = _Waiting()
        self._open: dict[str, _Open] = {}
        self._taken: Segment | None = None
        self._sent: list[Segment] = []  # those that could not be removed yet
        self._bytes = self._memory = 0
        self._last = 0
        self._lock = threading.Lock()  # held while the disk is waited for
        self._changed = threading.Event()
        self._is_ending = False
        with self._lock, contextlib.suppress(OSError):
            self._use_directory()
            self._keep_within(self.most)

    # ---- the directory ---------------------------------------------------------------------------

    def _use_directory(self) -> None:
        """Open and lock it, and find what an earlier life left. Raises OSError."""
        if self._directory >= 0:
            return
        try:
            self._directory, found = _opened(self._path)
        except OSError as error:
            self.problem = error
            raise
        for segment in found:
            if segment.number < _LATEST:  # else the next would have a digit more, and no name
                self._last = max(self._last, segment.number)
            self._bytes += segment.room
            self._waiting.add(segment)

    # ---- what the writer calls -------------------------------------------------------------------

    def add(self, severity: str, data: bytes) -> None:
        """Keep an event: one line without an end. Raises SinkError when there is no room; it is
        counted as dropped then.
        """
        line = b"%08x %s\n" % (crc32(data), data)
        with self._lock:
            kept = self._open.get(severity)
            if kept is None or kept.segment.is_full:
                self._end(severity)
                kept = self._begin(severity)
            if not self._make_room(severity, len(line), kept.segment):
                self.dropped[severity] += 1
                raise SinkError(f"the spool is full: {self._bytes} bytes in {self._path}")
            if kept.segment.lines is None:
                kept = self._append_to_file(kept, line)
            if kept.segment.lines is not None:
                self._append_to_memory(kept.segment, line)
            if kept.segment.events == 1 or kept.segment.is_full:
                self._changed.set()

    def _begin(self, severity: str) -> _Open:
        """A new segment, in memory if the disk does not take it."""
        begun = self._new(severity)
        try:
            self._use_directory()
            self._save()
            kept = _Open(begun, _created(self._directory, begun.name))
        except OSError as error:
            self.problem = error
            begun.lines = []
            kept = _Open(begun)
        else:
            self.problem = None
        self._open[severity] = kept
        self._waiting.add(begun)
        return kept

    def _new(self, severity: str) -> Segment:
        self._last = max(self._last + 1, self._clock())
        return Segment(severity, self._last, 0, begun=self._monotonic())

    def _append_to_file(self, kept: _Open, line: bytes) -> _Open:
        """Returns where the line is to go instead, in memory, when the disk does not take it."""
        segment = kept.segment
        try:
            self._write(kept.descriptor, line, segment.size)
        except OSError as error:
            self.problem = error
            severity = segment.severity
            self._end(severity)
            if not segment.events:
                self._remove(segment)
            kept = _Open(self._new(severity))
            kept.segment.lines = []
            self._open[severity] = kept
            self._waiting.add(kept.segment)
        else:
            self._grow(segment, len(line))
        return kept

    def _append_to_memory(self, segment: Segment, line: bytes) -> None:
        assert segment.lines is not None
        segment.lines.append(line)
        self._memory += len(line)
        self._grow(segment, len(line))

    def _grow(self, segment: Segment, size: int) -> None:
        before = segment.room
        segment.size += size
        segment.events = (segment.events or 0) + 1
        self._bytes += segment.room - before

    def _save(self) -> None:
        """Write what is in memory to files. Raises OSError."""
        for segment in list(self._waiting):
            if not segment.lines or segment is self._taken:
                continue
            data = b"".join(segment.lines)
            with contextlib.suppress(FileNotFoundError):  # a part, of when it failed before
                os.unlink(segment.name, dir_fd=self._directory)
            descriptor = _created(self._directory, segment.name)
            try:
                self._write(descriptor, data, 0)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(segment.name, dir_fd=self._directory)
                raise
            finally:
                os.close(descriptor)
            self._memory -= len(data)
            segment.lines = None
            if (kept := self._open.get(segment.severity)) and kept.segment is segment:
                del self._open[segment.severity]

    def _write(self, descriptor: int, data: bytes, size: int) -> None:
        """Append all of it or nothing to a file of this size. Raises OSError."""
        written = 0
        try:
            while written < len(data):
                written += self._write_some(descriptor, data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise

    def _end(self, severity: str) -> None:
        """Append no more to the open segment of this severity."""
        kept = self._open.pop(severity, None)
        if kept and kept.descriptor >= 0:
            os.close(kept.descriptor)

    # ---- bounds ----------------------------------------------------------------------------------

    def _make_room(self, severity: str, size: int, into: Segment) -> bool:
        """Whether an event of this severity may be added; drops what is less severe, or older."""
        rank = RANKS.index(severity)
        if into.lines is not None:
            for segment in self._waiting.least_first(rank):
                if self._memory + size <= MEMORY:
                    break
                if segment.lines and segment not in (self._taken, into):
                    self._drop(segment)
            if self._memory + size > MEMORY:
                return False
        return self._keep_within(self.most - _in_blocks(into.size + size) + into.room, rank, into)

    def _keep_within(
        self, most: int, rank: int = len(RANKS) - 1, but: Segment | None = None
    ) -> bool:
        for segment in self._waiting.least_first(rank):
            if self._bytes <= most:
                break
            if segment not in (self._taken, but):
                self._drop(segment)
        return self._bytes <= most

    def _drop(self, segment: Segment) -> None:
        self.dropped[segment.severity] += self._events_of(segment)
        self._remove(segment)

    def _events_of(self, segment: Segment) -> int:
        if segment.events is None:
            try:
                segment.events = _read(self._directory, segment.name).count(b"\n")
            except (OSError, ValueError):
                segment.events = 1  # at least
        return segment.events

    def _remove(self, segment: Segment) -> None:
        if (kept := self._open.get(segment.severity)) and kept.segment is segment:
            self._end(segment.severity)
        self._waiting.remove(segment)
        self._bytes -= segment.room
        if segment.lines is not None:
            self._memory -= sum(map(len, segment.lines))
            return
        self._sent.append(segment)
        for each in self._sent[:]:
            try:
                os.unlink(each.name, dir_fd=self._directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.problem = error
                continue
            self._sent.remove(each)

    # ---- what the sender calls -------------------------------------------------------------------

    def take(self, wait: float) -> Batch | None:
        """The worst events that wait, of those the oldest; None if there are none for `wait`
        seconds, or once the spool was woken.

        They stay until `done`; `put_back` returns them to the others.
        """
        self._changed.clear()
        with self._lock:
            segment, seconds = self._next()
        if segment is None and not self._is_ending:
            self._changed.wait(wait if seconds is None else min(wait, seconds))
        while True:
            with self._lock:
                segment, _ = self._next()
                if segment is None:
                    return None
                if (kept := self._open.get(segment.severity)) and kept.segment is segment:
                    self._end(segment.severity)
                self._taken = segment
                lines = segment.lines
            if lines is not None:
                return Batch(segment, [line[_CHECK:-1] for line in lines])
            try:
                return self._read_batch(segment)
            except OSError as error:  # no descriptors, or a broken disk: it stays, others go on
                self.problem = error
                segment.again = self._monotonic() + AGAIN

    def _next(self) -> tuple[Segment | None, float | None]:
        """A segment to send; else the seconds until one is due, None if there is none."""
        soonest = None
        now = self._monotonic()
        for segment in self._waiting.worst_first():
            if segment.events == 0:
                continue
            left = max(segment.again, self._gathered_at(segment)) - now
            if left <= 0:
                return segment, None
            soonest = left if soonest is None else min(soonest, left)
        return None, soonest

    def _gathered_at(self, segment: Segment) -> float:
        """When it may be sent: an open one has a moment to grow."""
        kept = self._open.get(segment.severity)
        is_open = kept is not None and kept.segment is segment
        is_growing = is_open and not segment.is_full and not self._is_ending
        return segment.begun + self._gather if is_growing else 0.0

    def _read_batch(self, segment: Segment) -> Batch:
        """Raises OSError for what may be read another time."""
        try:
            data = _read(self._directory, segment.name)
        except (FileNotFoundError, ValueError):
            return Batch(segment, [], segment.events or 1)
        events, damaged = [], 0
        *lines, _ = data.split(b"\n")  # what follows the last end was never taken
        for line in lines:
            if _is_whole(line):
                events.append(line[_CHECK:])
            else:
                damaged += 1
        if segment.events is not None:  # of this life: also those whose ends are gone
            damaged = max(damaged, segment.events - len(events))
        return Batch(segment, events, damaged)

    def done(self, batch: Batch, unusable: int = 0) -> None:
        """The collector has the batch, or will never have it: remove it. `unusable` of its events
        were lost, besides the damaged lines.
        """
        with self._lock:
            self._taken = None
            if lost := batch.damaged + unusable:
                self.dropped[batch.segment.severity] += lost
            self._remove(batch.segment)

    def put_back(self) -> None:
        """The collector does not take it: it waits, and what is in memory had better be on disk."""
        with self._lock:
            self._taken = None
            if not self._memory:
                return
            try:
                self._use_directory()
                self._save()
            except OSError as error:
                self.problem = error
            else:
                self.problem = None

    def wake(self, *, for_the_end: bool = False) -> None:
        """Have `take` return; at the end, it waits for nothing any more."""
        self._is_ending = self._is_ending or for_the_end
        self._changed.set()

    # ---- others ----------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Of all that waits, in whole blocks."""
        return self._bytes

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest of the waiting segments has waited; 0 if there is none."""
        waiting = [number for segments in self._waiting.by_rank for number in list(segments)]
        return max((self._clock() - min(waiting)) / 1e9, 0.0) if waiting else 0.0

    def close(self, seconds: float = -1.0) -> int:
        """Write what is in memory, as far as the disk takes it; returns how many events it did not
        take, which are counted as dropped.

        `seconds` to wait at most for a thread that waits for the disk; negative: without end.
        """
        if not self._lock.acquire(timeout=seconds):
            return 0
        try:
            self._taken = None
            with contextlib.suppress(OSError):
                self._use_directory()
                self._save()
            lost = [segment for segment in self._waiting if segment.lines]
            for segment in lost:
                self.dropped[segment.severity] += segment.events or 0
            for severity in RANKS:
                self._end(severity)
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1
        finally:
            self._lock.release()
        return sum(segment.events or 0 for segment in lost)


def size(directory: Path) -> int:
    """Bytes of the segments there; 0 where it is not there or not readable."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as found:
        for entry in found:
            if _NAME.fullmatch(entry.name):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _is_whole(line: bytes) -> bool:
    return line[_CHECK - 1 : _CHECK] == b" " and line[: _CHECK - 1] == b"%08x" % crc32(
        line[_CHECK:]
    )


def _opened(path: Path) -> tuple[int, list[Segment]]:
    """A descriptor of the directory, locked, and what is there; it is made if it is not there.

    Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not state_file.is_owned(os.fstat(directory)):
            raise SinkError(f"{path}: others may write to it")
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(f"{path}: another seal-monitor uses it") from None
        return directory, list(_found(directory))
    except OSError:
        os.close(directory)
        raise


def _found(directory: int) -> Iterator[Segment]:
    for name in sorted(os.listdir(directory)):
        if found := _NAME.fullmatch(name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield Segment(found[2], int(found[1]), None, status.st_size)


def _created(directory: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=directory)


def _read(directory: int, name: str) -> bytes:
    """The contents of a segment. Raises OSError, ValueError for what is no segment."""
    try:
        data = state_file.read(directory, name, _READ_LIMIT)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a link") from None
        raise
    if data is None:
        raise FileNotFoundError(name)
    return data
