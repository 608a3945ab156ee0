"""Reads the BPF ring buffer through mmap, in bulk.

kernel/bpf/ringbuf.c: page 0 holds the consumer's position, which this writes; page 1 holds the
producer's. The data follow, twice in a row, so that no record is cut at the end. Each record has a
header of two words: length with a busy and a discard bit, and a page offset.

Mapped data count as memory of the process, whether it reads them or not. So only the part that is
copied is mapped, and only while it is copied.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import NamedTuple

from monitor.kernel.abi import Kind, Record, RecordFlag

__all__ = ["Drained", "Ring", "is_at"]

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1
_CHUNK = 256  # records copied at a time: limits what a drain allocates


class _Framed(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("page", ctypes.c_uint32), ("record", Record)]


_FRAME = ctypes.sizeof(_Framed)
_RECORD = ctypes.sizeof(Record)
_ROW = 1 + len(Kind)  # words of one row of `taken`: a position, and what was taken up to there
_NOT_COUNTED = RecordFlag.CANARY | RecordFlag.SEALER


class Drained(NamedTuple):
    records: list[Record]
    corrupt: int  # entries that are not records


class Ring:
    """The consumer. Not thread-safe: one reader.

    `taken` are words that outlive the process: two rows of a position, and how many events of each
    kind were taken up to there. The one whose position is the consumer's is right, so both change
    by the same store.
    """

    def __init__(self, descriptor: int, size: int, taken: memoryview | None = None) -> None:
        """With `taken` that is of another ring, its counts begin at 0."""
        self.descriptor = descriptor
        self.size = size
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page)
        self._producer = mmap.mmap(descriptor, page, prot=mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._taken = taken
        if taken is not None and _row(taken, self._consumed[0]) is None:
            taken[:] = memoryview(bytes(len(taken) * 8)).cast("Q")
            taken[0] = self._consumed[0]

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet read."""
        return self._produced[0] - self._consumed[0]

    @property
    def waiting(self) -> int:
        """Records that are not yet read, about: entries that are none have another size."""
        return int(self.used_bytes // _FRAME)

    def taken(self) -> dict[Kind, int]:
        """Events that were taken so far, by kind; those of earlier processes included."""
        row = None if self._taken is None else _row(self._taken, self._consumed[0])
        if row is None or self._taken is None:
            return dict.fromkeys(Kind, 0)
        return {kind: self._taken[row + 1 + kind] for kind in Kind}

    def _move(self, position: int, records: Sequence[Record]) -> None:
        """Everything before this position is taken."""
        if self._taken is not None:
            before = self.taken()
            for record in records:
                if not record.flags & _NOT_COUNTED and record.kind in before:
                    before[Kind(record.kind)] += 1
            # The other row: this one is right until the position changes.
            row = _ROW if _row(self._taken, self._consumed[0]) == 0 else 0
            for kind, count in before.items():
                self._taken[row + 1 + kind] = count
            self._taken[row] = position
        self._consumed[0] = position

    def drain(self, most: int = _CHUNK) -> Drained:
        """Copies of the next records, at most `most`, in the order of their reservation.

        It stops at a record that its program has reserved and not yet submitted. Raises OSError
        when the data cannot be mapped; it then takes nothing.
        """
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
        for view in (self._consumed, self._produced):
            view.release()
        self._consumer.close()
        self._producer.close()


def _row(taken: memoryview, position: int) -> int | None:
    """Where the row of this position begins."""
    return next((row for row in (0, _ROW) if taken[row] == position), None)


def is_at(descriptor: int, taken: memoryview) -> bool:
    """Whether the ring was read up to where `taken` says. Raises OSError."""
    with (
        mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ) as page,
        memoryview(page) as data,
        data[:8].cast("Q") as consumed,
    ):
        return _row(taken, consumed[0]) is not None


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
