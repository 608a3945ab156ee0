"""What glibc keeps of memory that was freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

THREADS = """
import sys, threading
from monitor import heap
if sys.argv[1] == "small":
    heap.keep_small()
together = threading.Barrier(5)
def allocate():
    kept = [bytes(2000) for _ in range(500)]  # too large for the interpreter's own allocator
    together.wait()
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
together.wait()
arenas = 0
for line in open("/proc/self/maps"):
    start, protection, *_ = line.split()
    # glibc's new_heap(): aligned to its largest size.
    arenas += protection == "rw-p" and int(start.partition("-")[0], 16) % (64 << 20) == 0
print(arenas)
together.wait()
"""

BLOCKS = """
import sys
from monitor import heap
if sys.argv[1] == "small":
    heap.keep_small()
large = bytes(8 << 20)
del large
large = bytes(4 << 20)
(heap,) = [line.split()[0] for line in open("/proc/self/maps") if line.endswith("[heap]\\n")]
start, end = (int(address, 16) for address in heap.split("-"))
print(start <= id(large) < end)
"""


@pytest.mark.parametrize(("how", "in_heap"), [("small", False), ("as usual", True)])
def test_large_blocks_never_come_from_the_heap(how: str, in_heap: bool) -> None:
    output = subprocess.run(
        [sys.executable, "-c", BLOCKS, how], stdout=subprocess.PIPE, check=True, timeout=30
    ).stdout
    assert output.decode().strip() == str(in_heap)


@pytest.mark.parametrize(("how", "arenas"), [("small", 0), ("as usual", 4)])
def test_all_threads_allocate_from_one_arena(how: str, arenas: int) -> None:
    output = subprocess.run(
        [sys.executable, "-c", THREADS, how], stdout=subprocess.PIPE, check=True, timeout=30
    ).stdout
    assert int(output) == arenas
