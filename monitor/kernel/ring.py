"""Reads the BPF ring buffer through mmap, in bulk.

kernel/bpf/ringbuf.c: page 0 holds the consumer's position, which this writes; page 1 holds the
producer's. The data follow, twice in a row, so that no record is cut at the end. Each record has a
header of two words: length with a busy and a discard bit, and a page offset.

Mapped data count as memory of the process, whether it reads them or not. So only the part that is
copied is mapped, and only while it is copied.

Where a ring of another size takes the place of one that still has records, the older one is read to
its end first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from monitor.kernel.abi import Kind, Record, RecordFlag
from monitor.kernel.syscalls import grace_period

__all__ = ["Drained", "Ring", "is_at"]

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1
_CHUNK = 256  # records copied at a time: limits what a drain allocates


class _Framed(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("page", ctypes.c_uint32), ("record", Record)]


_FRAME = ctypes.sizeof(_Framed)
_RECORD = ctypes.sizeof(Record)
# Words of one row of `taken`: how much was taken of each kind, up to which position of which ring.
_POSITION, _NUMBER = len(Kind), len(Kind) + 1
_ROW = len(Kind) + 2
_NOT_COUNTED = RecordFlag.CANARY | RecordFlag.SEALER


class Drained(NamedTuple):
    records: list[Record]
    corrupt: int  # entries that are not records


class Ring:
    """The consumer. Not thread-safe: one reader.

    `taken` are words that outlive the process: two rows of how many events of each kind were taken
    from all rings, up to a position of one. The row whose position is the consumer's is right, so
    both change by the same store. Where there is such a row of two rings, the newer one is read.

    `older`: the rings that are read before this one, the oldest first, until each is empty.
    """

    def __init__(
        self,
        descriptor: int,
        size: int,
        taken: memoryview | None = None,
        *,
        number: int = 1,
        older: Sequence[Ring] = (),
        wait: Callable[[], object] = grace_period,
    ) -> None:
        """`number`: no other ring's. `older` belong to this one, with their descriptors; `wait`
        returns when no program writes to them any more.
        """
        self.descriptor = descriptor
        self.size = size
        self.number = number
        self.older = list(older)
        self._wait = wait
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page)
        self._producer = mmap.mmap(descriptor, page, prot=mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._taken = taken

    def begin(self) -> None:
        """The first ring of all, from which nothing was taken."""
        if self._taken is not None:
            self._taken[:] = memoryview(bytes(len(self._taken) * 8)).cast("Q")
            self._write(0, dict.fromkeys(Kind, 0), self._consumed[0])

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet read."""
        used: int = self._produced[0] - self._consumed[0]
        return used + sum(ring.used_bytes for ring in tuple(self.older))

    @property
    def waiting(self) -> int:
        """Records that are not yet read, about: entries that are none have another size."""
        return int(self.used_bytes // _FRAME)

    def taken(self) -> dict[Kind, int]:
        """Events that were taken so far, by kind; those of earlier processes included."""
        if self.older:
            return self.older[0].taken()
        row = self._row()
        if row is None or self._taken is None:
            return dict.fromkeys(Kind, 0)
        return {kind: self._taken[row + kind] for kind in Kind}

    def _row(self) -> int | None:
        if self._taken is None:
            return None
        return _row(self._taken, self.number, self._consumed[0])

    def _write(self, row: int, counts: Mapping[Kind, int], position: int) -> None:
        """One that is not right now. It may be of another ring until its last word is written."""
        if self._taken is not None:
            for kind, count in counts.items():
                self._taken[row + kind] = count
            self._taken[row + _POSITION] = position
            self._taken[row + _NUMBER] = self.number

    def _move(self, position: int, records: Sequence[Record]) -> None:
        """Everything before this position is taken."""
        if self._taken is not None:
            before = self.taken()
            for record in records:
                if not record.flags & _NOT_COUNTED and record.kind in before:
                    before[Kind(record.kind)] += 1
            # The other row: this one is right until the position changes.
            self._write(_other(self._row()), before, position)
        self._consumed[0] = position

    def drain(self, most: int = _CHUNK) -> Drained:
        """Copies of the next records, at most `most`, in the order of their reservation.

        It stops at a record that its program has reserved and not yet submitted. Raises OSError
        when the data cannot be mapped; it then takes nothing.
        """
        while self.older:
            for prepare in (_at_once, self._wait):
                prepare()
                position = self.older[0].position
                drained = self.older[0].drain(most)
                if self.older[0].position != position:
                    return drained
            # Nobody is left who would submit what is not ready.
            is_whole = not self.older[0].used_bytes
            self._follow(self.older[0])
            if not is_whole:
                return Drained([], 1)
        return self._drain(most)

    @property
    def position(self) -> int:
        """Up to where it was read."""
        position: int = self._consumed[0]
        return position

    def _follow(self, before: Ring) -> None:
        """The oldest of the older rings is read to its end: the next one is read from now on."""
        following = self.older[1] if len(self.older) > 1 else self
        following._write(_other(before._row()), before.taken(), following.position)
        del self.older[0]  # and with it its memory, when no scrape looks at it any more
        os.close(before.descriptor)

    def _drain(self, most: int) -> Drained:
        position, end = self._consumed[0], self._produced[0]
        if not 0 <= end - position <= self.size or (position | end) % 8:
            self._move(end, ())  # no kernel does this; what was there is unknown
            return Drained([], 1)
        if position == end:
            return Drained([], 0)
        start = position & (self.size - 1)
        offset = start % mmap.PAGESIZE  # of the data in what is mapped
        length = offset + min(end - position, most * _FRAME)
        place = 2 * mmap.PAGESIZE + start - offset
        with (
            mmap.mmap(self.descriptor, length, prot=mmap.PROT_READ, offset=place) as mapped,
            memoryview(mapped) as data,
            data.cast("I") as words,
        ):
            drained, taken = _copy(data, words, offset, most)
        if taken:
            self._move(position + min(taken, end - position), drained.records)
        return drained

    def close(self) -> None:
        for ring in self.older:
            ring.close()
            os.close(ring.descriptor)
        self.older.clear()
        for view in (self._consumed, self._produced):
            view.release()
        self._consumer.close()
        self._producer.close()


def _at_once() -> None:
    """Nobody is waited for."""


def _other(row: int | None) -> int:
    return _ROW if row == 0 else 0


def _row(taken: memoryview, number: int, position: int) -> int | None:
    """Where the row of this position begins."""
    for row in (0, _ROW):
        if (taken[row + _NUMBER], taken[row + _POSITION]) == (number, position):
            return row
    return None


def is_at(descriptor: int, number: int, taken: memoryview) -> bool:
    """Whether the ring was read up to where `taken` says. Raises OSError."""
    with (
        mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ) as page,
        memoryview(page) as data,
        data[:8].cast("Q") as consumed,
    ):
        return _row(taken, number, consumed[0]) is not None


def _copy(data: memoryview, words: memoryview, start: int, most: int) -> tuple[Drained, int]:
    """The records from `start` on, and how many bytes they and an odd entry after them take."""
    # Read the header before the record is copied: once the header is ready, the record is, too.
    limit = min((len(data) - start) // _FRAME, most)
    count = 0
    while count < limit and words[(start + count * _FRAME) // 4] == _RECORD:
        count += 1
    copies = (_Framed * count).from_buffer_copy(data, start)
    taken = count * _FRAME
    corrupt = 0
    if count < most and start + taken < len(data):
        rest = len(data) - start - taken
        skipped, corrupt = _odd(words[(start + taken) // 4], rest)
        taken += skipped
    return Drained([framed.record for framed in copies], corrupt), taken


def _odd(length: int, rest: int) -> tuple[int, int]:
    """Bytes of an entry to skip, and 1 if it is corrupt. A busy one is not skipped: 0 bytes.

    `rest`: bytes up to the end. A whole record there has just become ready, and is not skipped.
    """
    if length & _BUSY or (length == _RECORD and rest >= _FRAME):
        return 0, 0
    return _HEADER + ((length & _LENGTH) + 7 & ~7), 0 if length & _DISCARDED else 1
