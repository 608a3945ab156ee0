"""The consumer of the ring buffer, on a file of the same layout as the kernel's."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.kernel.abi import Kind, Record
from monitor.kernel.ring import Ring, is_at

PAGE = mmap.PAGESIZE
SIZE = 1 << 16
LENGTH = ctypes.sizeof(Record)
FRAME = 8 + LENGTH
BUSY, DISCARDED = 1 << 31, 1 << 30
ROW = len(Kind) + 2  # words that are stored for a part that is taken


class KernelSide:
    """Writes what the kernel would."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * PAGE + 2 * SIZE)
        self.position = 0

    def seek(self, position: int) -> None:
        """Both positions, as after so many bytes."""
        self.position = position
        self._word(0, position)
        self._word(PAGE, position)

    def _word(self, offset: int, value: int) -> None:
        os.pwrite(self.descriptor, struct.pack("<Q", value), offset)

    @property
    def consumed(self) -> int:
        (value,) = struct.unpack("<Q", os.pread(self.descriptor, 8, 0))
        return int(value)

    def put(self, data: bytes, position: int | None = None) -> None:
        """Bytes into the ring, at its end or over what is there."""
        start = self.position if position is None else position
        for index in range(0, len(data), 8):
            offset = 2 * PAGE + (start + index) % SIZE
            for place in (offset, offset + SIZE):  # the data are there twice in a row
                os.pwrite(self.descriptor, data[index : index + 8], place)
        if position is None:
            self.position += len(data)
            self._word(PAGE, self.position)

    def record(self, pid: int, flags: int = 0) -> None:
        self.whole(Record(pid=pid), flags)

    def whole(self, record: Record, flags: int = 0) -> None:
        self.put(struct.pack("<II", LENGTH | flags, 0) + bytes(record))

    def entry(self, length: int, flags: int = 0) -> None:
        self.put(struct.pack("<II", length | flags, 0) + bytes(length + 7 & ~7))


@pytest.fixture
def kernel() -> Iterator[KernelSide]:
    side = KernelSide()
    yield side
    os.close(side.descriptor)


@pytest.fixture
def ring(kernel: KernelSide) -> Iterator[Ring]:
    ring = Ring(kernel.descriptor, SIZE)
    yield ring
    ring.close()


def pids(ring: Ring, most: int = 256) -> list[int]:
    return [record.pid for record in ring.drain(most).records]


def test_empty(kernel: KernelSide, ring: Ring) -> None:
    assert ring.drain() == ([], 0)
    assert ring.used_bytes == 0
    assert kernel.consumed == 0


def test_records_in_order(kernel: KernelSide, ring: Ring) -> None:
    for pid in (3, 1, 2):
        kernel.record(pid)
    assert ring.used_bytes == 3 * FRAME
    assert pids(ring) == [3, 1, 2]
    assert kernel.consumed == 3 * FRAME
    assert ring.used_bytes == 0
    assert pids(ring) == []


def test_at_most_so_many(kernel: KernelSide, ring: Ring) -> None:
    for pid in range(5):
        kernel.record(pid)
    assert [pids(ring, 2), pids(ring, 2), pids(ring, 2), pids(ring, 2)] == [[0, 1], [2, 3], [4], []]


def test_wrapped_record_is_whole(kernel: KernelSide, ring: Ring) -> None:
    kernel.seek(7 * SIZE - 64)
    kernel.record(11)
    kernel.record(12)
    assert pids(ring) == [11, 12]


def test_position_beyond_32_bits(kernel: KernelSide, ring: Ring) -> None:
    kernel.seek((1 << 40) + SIZE // 2)
    kernel.record(5)
    assert pids(ring) == [5]
    assert kernel.consumed == (1 << 40) + SIZE // 2 + FRAME


def test_busy_record_is_waited_for(kernel: KernelSide, ring: Ring) -> None:
    kernel.record(1)
    kernel.record(2, BUSY)
    kernel.record(3)
    assert pids(ring) == [1]
    assert pids(ring) == []
    assert kernel.consumed == FRAME
    kernel.put(struct.pack("<II", LENGTH, 0), position=FRAME)
    assert pids(ring) == [2, 3]


def test_busy_and_discarded_is_busy(kernel: KernelSide, ring: Ring) -> None:
    kernel.record(1, BUSY | DISCARDED)
    assert ring.drain() == ([], 0)
    assert kernel.consumed == 0


def test_discarded_record_is_passed(kernel: KernelSide, ring: Ring) -> None:
    kernel.record(1)
    kernel.record(2, DISCARDED)
    kernel.record(3)
    assert [pids(ring), pids(ring)] == [[1], [3]]


@pytest.mark.parametrize("length", [1, 8, LENGTH - 8, LENGTH + 8])
def test_entry_of_another_length_is_corrupt(kernel: KernelSide, ring: Ring, length: int) -> None:
    kernel.entry(length)
    kernel.record(9)
    first = ring.drain()
    assert (first.records, first.corrupt) == ([], 1)
    assert pids(ring) == [9]
    assert ring.used_bytes == 0


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def mapped_bytes(kernel: KernelSide) -> int:
    """Of the ring, in this process."""
    inode = str(os.fstat(kernel.descriptor).st_ino)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [line[0].split("-") for line in lines if line[4] == inode and "/memfd:ring" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ends)


def test_data_are_mapped_only_while_they_are_read(kernel: KernelSide, ring: Ring) -> None:
    for pid in range(20):
        kernel.record(pid)
    assert pids(ring) == list(range(20))
    assert mapped_bytes(kernel) == 2 * PAGE


def test_where_nothing_can_be_mapped_records_stay(kernel: KernelSide, ring: Ring) -> None:
    """mmap.mmap() opens the descriptor once more, and there may be none left."""
    kernel.record(6)
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        ring.drain()
    assert pids(ring) == [6]


def test_records_outlive_the_ring(kernel: KernelSide, ring: Ring) -> None:
    kernel.record(4)
    (record,) = ring.drain().records
    kernel.put(bytes(FRAME), position=0)
    assert record.pid == 4


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(
        st.one_of(
            st.integers(0, 2**32 - 1),
            st.sampled_from([LENGTH, LENGTH | BUSY, LENGTH | DISCARDED, 0, 8, BUSY, DISCARDED]),
        ),
        max_size=60,
    ),
    start=st.integers(0, 2 * SIZE // 8).map(lambda word: word * 8),
)
def test_any_bytes(data: list[int], start: int) -> None:
    """Whatever lies there: no crash, and each turn goes forward or waits for a busy entry."""
    kernel = KernelSide()
    kernel.seek(start)
    kernel.put(b"".join(struct.pack("<II", word, 0).ljust(64, b"\0") for word in data))
    end = start + 64 * len(data)
    ring = Ring(kernel.descriptor, SIZE)
    try:
        while ring.used_bytes:
            before = kernel.consumed
            drained = ring.drain()
            if kernel.consumed == before:
                assert drained == ([], 0)
                (header,) = struct.unpack(
                    "<I", os.pread(kernel.descriptor, 4, 2 * PAGE + before % SIZE)
                )
                assert header & BUSY
                break
            assert before < kernel.consumed <= end
    finally:
        ring.close()
        os.close(kernel.descriptor)


# ---- One ring after another ----------------------------------------------------------------------


class Killed(Exception):
    pass


class Words(list[int]):
    """Memory that outlives its process, which a kill ends at one of the stores."""

    left = 1 << 30

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.left == 0:
            raise Killed
        super().__setitem__(index, value)
        self.left -= 1


def nothing() -> None:
    pass


def chain(kernels: list[KernelSide], words: Words, wait: Callable[[], None] = nothing) -> Ring:
    """As a new life opens them: from the one that is being read on."""
    taken, most = cast("memoryview", words), len(kernels)
    reading = max(n + 1 for n in range(most) if is_at(kernels[n].descriptor, n + 1, taken))
    older = [
        Ring(os.dup(kernels[number - 1].descriptor), SIZE, taken, number=number)
        for number in range(reading, most)
    ]
    return Ring(kernels[-1].descriptor, SIZE, taken, number=most, older=older, wait=wait)


@contextmanager
def three() -> Iterator[list[KernelSide]]:
    """Of five records, three of which are taken; of none; of two."""
    sides = [KernelSide() for _ in range(3)]
    for pid in range(5):
        sides[0].record(pid)
    for pid in range(5, 7):
        sides[2].record(pid)
    yield sides
    for side in sides:
        os.close(side.descriptor)


@pytest.fixture
def kernels() -> Iterator[list[KernelSide]]:
    with three() as sides:
        yield sides


def begun(kernels: list[KernelSide]) -> Words:
    words = Words([0] * 16)
    first = Ring(kernels[0].descriptor, SIZE, cast("memoryview", words), number=1)
    first.begin()
    assert pids(first, 3) == [0, 1, 2]
    first.close()
    return words


def test_older_rings_are_read_first(kernels: list[KernelSide]) -> None:
    words = begun(kernels)
    ring = chain(kernels, words)
    assert (ring.waiting, len(ring.older)) == (4, 2)
    assert [pids(ring), len(ring.older)] == [[3, 4], 2]
    assert ring.taken()[Kind.DENIAL] == 5
    assert [pids(ring), len(ring.older), pids(ring)] == [[5, 6], 0, []]
    assert ring.taken()[Kind.DENIAL] == 7
    ring.close()
    again = chain(kernels, words)
    assert (again.older, again.taken()[Kind.DENIAL]) == ([], 7)
    again.close()


def test_what_is_still_written_to_an_older_ring_is_waited_for(kernels: list[KernelSide]) -> None:
    words = begun(kernels)
    late = iter(("late",))
    ring = chain(kernels, words, lambda: kernels[0].record(77) if next(late, "") else None)
    assert [pids(ring), pids(ring), pids(ring)] == [[3, 4], [77], [5, 6]]
    ring.close()


def test_what_is_never_submitted_does_not_hold_the_next_ring_up(kernels: list[KernelSide]) -> None:
    words = begun(kernels)
    kernels[0].record(78, BUSY)
    ring = chain(kernels, words)
    assert [pids(ring), ring.drain().corrupt, pids(ring)] == [[3, 4], 1, [5, 6]]
    ring.close()


@pytest.mark.parametrize("most", [1, 2, 256])
def test_a_kill_at_any_store_takes_each_record_once(most: int) -> None:
    stores = 0
    while lives(stores, most) > 1:
        stores += 1
    assert stores >= 4 * ROW


def lives(stores: int, most: int) -> int:
    """How many it takes, when the first can store so many words."""
    seen: list[int] = []
    life = 0
    with three() as kernels:
        words = begun(kernels)
        words.left = stores
        while True:
            life += 1
            ring = chain(kernels, words)
            try:
                while ring.used_bytes or ring.older:
                    seen += pids(ring, most)
                break
            except Killed:
                words.left = 1 << 30
            finally:
                ring.close()
        assert seen == [3, 4, 5, 6]
        last = chain(kernels, words)
        assert (last.taken()[Kind.DENIAL], last.older) == (7, [])
        last.close()
    return life
