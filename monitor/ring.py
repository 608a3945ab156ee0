"""Reads the BPF ring buffer through mmap, in bulk.

kernel/bpf/ringbuf.c: page 0 holds the consumer's position and is ours to write, page 1 the
producer's; the data follow, mapped twice in a row, so no record is ever cut at the end. Each
record has a header of two words: length with a busy and a discard bit, and a page offset.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from monitor.abi import Record

__all__ = ["Ring"]

_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1
_CHUNK = 256  # records copied at a time: bounds what a drain allocates


class _Framed(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("page", ctypes.c_uint32), ("record", Record)]


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
        self._producer = mmap.mmap(
            descriptor, page + 2 * size, prot=mmap.PROT_READ, offset=page
        )
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._data = memoryview(self._producer)[page:]

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet read."""
        return self._produced[0] - self._consumed[0]

    def drain(self, most: int = _CHUNK) -> Drained:
        """Copies of the next records, at most `most`, in the order of their reservation.

        Ends early at a record that its program has reserved and not yet submitted.
        """
        position, end = self._consumed[0], self._produced[0]
        frame = ctypes.sizeof(_Framed)
        count = min((end - position) // frame, most)
        start = position & (self.size - 1)
        frames = (_Framed * count).from_buffer_copy(self._data[start : start + count * frame])
        records: list[Record] = []
        for framed in frames:
            if framed.length != ctypes.sizeof(Record):
                break
            records.append(framed.record)
        position += len(records) * frame
        corrupt = 0
        if len(records) < count or (count < most and position < end):
            position, corrupt = self._skip_odd(position)
        self._consumed[0] = position
        return Drained(records, corrupt)

    def _skip_odd(self, position: int) -> tuple[int, int]:
        """Past one entry that is not a whole record: busy stays, discarded goes, other is corrupt."""
        start = position & (self.size - 1)
        length = int.from_bytes(self._data[start : start + 4], "little")
        if length & _BUSY or length == ctypes.sizeof(Record):
            return position, 0
        corrupt = 0 if length & _DISCARDED else 1
        return position + _HEADER + ((length & _LENGTH) + 7 & ~7), corrupt

    def close(self) -> None:
        for view in (self._consumed, self._produced, self._data):
            view.release()
        self._consumer.close()
        self._producer.close()
