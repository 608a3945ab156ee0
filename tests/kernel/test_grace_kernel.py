"""What is waited for is over when the wait ends: a program that runs for milliseconds."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from monitor.kernel import bpf
from monitor.kernel.grace import Grace

MMAPABLE = 1 << 10
ROUNDS = 200_000  # of a loop, each of which asks for the time: what the verifier still follows
KTIME_GET_NS = 5
BEGUN, ENDED = range(2)  # words of the map


def counting(counts: int) -> bytes:
    """A program that says when it has begun and when it has ended."""
    rows = (
        (0x18, 0x27, 0, counts),  # r7 = the map's first value
        (0, 0, 0, 0),
        (0x7A, 0x07, 8 * BEGUN, 1),
        (0xB7, 0x06, 0, ROUNDS),
        (0x85, 0, 0, KTIME_GET_NS),
        (0x17, 0x06, 0, 1),
        (0x55, 0x06, -3, 0),
        (0x7A, 0x07, 8 * ENDED, 1),
        (0xB7, 0x00, 0, 0),
        (0x95, 0, 0, 0),
    )
    return b"".join(struct.pack("<BBhi", *row) for row in rows)


@pytest.fixture
def words(require_bpf: None) -> Iterator[tuple[memoryview, int]]:
    """What the program says, and its descriptor."""
    counts = bpf.create_map(bpf.ARRAY, "counts", key=4, value=16, entries=1, flags=MMAPABLE)
    program = bpf.load_program(bpf.RAW_TRACEPOINT, "long", counting(counts))
    with (
        mmap.mmap(counts, mmap.PAGESIZE) as mapped,
        memoryview(mapped) as data,
        data.cast("Q") as words,
    ):
        yield words, program
    os.close(program)
    os.close(counts)


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_run_that_has_begun_is_waited_for(
    words: tuple[memoryview, int], is_refused: bool
) -> None:
    """Whether membarrier(2) waits, or refuses as where a CPU has no tick."""
    said, program = words
    grace = Grace(lambda: False) if is_refused else Grace()
    run = bpf.libbpf().bpf_prog_test_run_opts
    caught = 0
    try:
        for _ in range(20):
            said[BEGUN] = said[ENDED] = 0
            thread = threading.Thread(target=lambda: run(program, options()))
            thread.start()
            while not said[BEGUN]:
                time.sleep(0)
            caught += not said[ENDED]
            grace.wait()
            assert said[ENDED]
            thread.join()
    finally:
        grace.close()
    assert caught  # else nothing is shown here


def options() -> ctypes.Array[ctypes.c_uint64]:
    """The start of libbpf's struct bpf_test_run_opts, whose first member is its size."""
    made = (ctypes.c_uint64 * 12)()
    made[0] = ctypes.sizeof(made)
    return made
