"""Reads the BPF ring buffer through mmap, in bulk.

kernel/bpf/ringbuf.c: page 0 holds the consumer's position and is ours to write, page 1 the
producer's; the data follow, and may be mapped twice in a row, so that no record is cut at the end.
Mapped once they take half the memory here. Each record has a header of two words, which is never
cut: length with a busy and a discard bit, and a page offset.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from monitor.kernel.abi import Record

__all__ = ["Ring"]

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1
_CHUNK = 256  # records copied at a time: bounds what a drain allocates


class _Framed(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("page", ctypes.c_uint32), ("record", Record)]


_FRAME = ctypes.sizeof(_Framed)
_RECORD = ctypes.sizeof(Record)


class Drained(NamedTuple):
    records: list[Record]
    corrupt: int  # entries that are no record of ours


class Ring:
    """The consumer. Not thread-safe: one reader."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page)
        self._producer = mmap.mmap(descriptor, page + size, prot=mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._data = memoryview(self._producer)[page:]
        self._lengths = self._data.cast("I")

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet read."""
        return self._produced[0] - self._consumed[0]

    def drain(self, most: int = _CHUNK) -> Drained:
        """Copies of the next records, at most `most`, in the order of their reservation.

        Ends early at a record that its program has reserved and not yet submitted.
        """
        position, end = self._consumed[0], self._produced[0]
        if not 0 <= end - position <= self.size or (position | end) % 8:
            self._consumed[0] = end  # nothing that a kernel does; what was there is unknown
            return Drained([], 1)
        limit = min((end - position) // _FRAME, most)
        # A header is read before its record is copied: once it is ready, so is what follows it.
        count = 0
        while count < limit and self._header(position + count * _FRAME) == _RECORD:
            count += 1
        copies = (_Framed * count).from_buffer_copy(self._bytes(position, count * _FRAME))
        position += count * _FRAME
        corrupt = 0
        if count < most and position < end:
            position, corrupt = self._skip_odd(position, end)
        self._consumed[0] = position
        return Drained([framed.record for framed in copies], corrupt)

    def _header(self, position: int) -> int:
        return self._lengths[(position & (self.size - 1)) // 4]

    def _bytes(self, position: int, length: int) -> memoryview | bytes:
        start = position & (self.size - 1)
        beyond = start + length - self.size
        if beyond <= 0:
            return self._data[start : start + length]
        return b"".join((self._data[start:], self._data[:beyond]))

    def _skip_odd(self, position: int, end: int) -> tuple[int, int]:
        """Past an entry that is no record: busy stays, discarded goes, other is corrupt."""
        length = self._header(position)
        if length & _BUSY or (length == _RECORD and end - position >= _FRAME):
            return position, 0
        corrupt = 0 if length & _DISCARDED else 1
        return min(position + _HEADER + ((length & _LENGTH) + 7 & ~7), end), corrupt

    def close(self) -> None:
        for view in (self._consumed, self._produced, self._lengths, self._data):
            view.release()
        self._consumer.close()
        self._producer.close()
