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
from typing import NamedTuple

from monitor.kernel.abi import Record

__all__ = ["Drained", "Ring"]

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1
_CHUNK = 256  # records copied at a time: limits what a drain allocates


class _Framed(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("page", ctypes.c_uint32), ("record", Record)]


_FRAME = ctypes.sizeof(_Framed)
_RECORD = ctypes.sizeof(Record)


class Drained(NamedTuple):
    records: list[Record]
    corrupt: int  # entries that are not records


class Ring:
    """The consumer. Not thread-safe: one reader."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page)
        self._producer = mmap.mmap(descriptor, page, prot=mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet read."""
        return self._produced[0] - self._consumed[0]

    def drain(self, most: int = _CHUNK) -> Drained:
        """Copies of the next records, at most `most`, in the order of their reservation.

        It stops at a record that its program has reserved and not yet submitted. Raises OSError
        when the data cannot be mapped; it then takes nothing.
        """
        position, end = self._consumed[0], self._produced[0]
        if not 0 <= end - position <= self.size or (position | end) % 8:
            self._consumed[0] = end  # no kernel does this; what was there is unknown
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
        self._consumed[0] = position + min(taken, end - position)
        return drained

    def close(self) -> None:
        for view in (self._consumed, self._produced):
            view.release()
        self._consumer.close()
        self._producer.close()


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
