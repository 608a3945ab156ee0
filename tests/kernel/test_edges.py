"""Calls with a range or a refusal that is not what their arguments say at first sight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness
from machine_code import function_of_call

from monitor.kernel.abi import Access, Cause, Kind, Verdict
from monitor.kernel.arch import NUMBERS
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.syscalls import PAGE

PREPARED = """
import resource, struct
def advise(advice, *ranges):
    vector = ctypes.create_string_buffer(b"".join(struct.pack("=QQ", *one) for one in ranges))
    pidfd = os.pidfd_open(os.getpid())
    return call(
        "process_madvise", pidfd, ctypes.addressof(vector), len(ranges), advice, 0
    )
def segment(pages):
    name = need("shmget", 0, pages * PAGE, 0o600)
    start = need("shmat", name, 0, 0)
    need("shmctl", name, 0, 0)
    return start
NORESERVE, FIXED, HUGETLB = 0x4022, 0x10, 0x40000
"""

# What a refusal that hides itself looks like, and is not: nothing may be counted.
NO_REFUSALS = {
    "vector cut at 2 GiB": """
start, sealed = need("mmap", 0, 3 << 30, 0, NORESERVE, -1, 0), lay("S").start
result = advise(4, (start, 3 << 30), (sealed, PAGE))
if result != 0x7FFFF000:
    raise SystemExit(f"process_madvise: {result}")
""",
    "range not aligned": """
start, sealed = lay("w").start, lay("SS").start
result = advise(4, (start, PAGE), (sealed + 1, PAGE))
if result != PAGE:
    raise SystemExit(f"process_madvise: {result}")
""",
    "sealed mapping in a segment's place": """
start = segment(2)
need("mmap", start, PAGE, 1, 2 | FIXED | 0x20, -1, 0)
seal(start, PAGE)
need("shmdt", start)
""",
}


@pytest.mark.parametrize("code", NO_REFUSALS.values(), ids=NO_REFUSALS)
def test_no_refusal(harness: Harness, code: str) -> None:
    made = harness.python(f'{PREPARED}{code}\nprint("1")')
    if made.lines != [1]:
        pytest.skip("process_madvise: this kernel takes no destructive advice by it")
    assert made.of_kind(Kind.DENIAL) == []
    assert not [cell for cell in made.counted if cell[0] == "denial"]


# A seal is in the range, and the call ended before the kernel came to it.
OTHER_CAUSES = {
    "process_madvise": """
file = os.open("/proc/self/exe", os.O_RDONLY)
start, pages = lay("w").start, lay("rS")
need("mmap", pages.start, PAGE, 1, 2 | FIXED, file, 0)
result = advise(8, (start, PAGE), (pages.start, 2 * PAGE))
""",
    "brk": """
top = need("brk", need("brk", 0) // PAGE * PAGE + 16 * PAGE)
seal(top - 4 * PAGE, PAGE)
resource.setrlimit(resource.RLIMIT_DATA, (PAGE, PAGE))
result = call("brk", top - 8 * PAGE)
""",
    "mremap": """
pages = lay("wS")
os.setresuid(65534, 65534, 65534)
result = call("mremap", pages.start, 2 * PAGE, 2 * PAGE, 3, 0)
""",
}


@pytest.mark.parametrize("operation", OTHER_CAUSES)
def test_other_cause(harness: Harness, operation: str) -> None:
    made = harness.python(
        f"{PREPARED}{OTHER_CAUSES[operation]}\nprint(result, flush=True)\nos._exit(0)"
    )
    if made.lines[0] in (-14, -22):
        pytest.skip(f"{operation}: this kernel refuses it for another reason")
    seen = [] if harness.at_seal(operation) else [(operation, "unverified", "other_cause")]
    assert made.denials() == seen


def test_nothing_moved_when_the_tail_is_cut_first(harness: Harness) -> None:
    made = harness.python(
        """
pages, target = lay("wrS"), lay("n")
print(call("mremap", pages.start, 3 * PAGE, PAGE, 3, target.start))
"""
    )
    assert made.lines == [-1]
    (record,) = made.of_kind(Kind.DENIAL)
    assert record.verdict == Verdict.SEALED
    assert (record.partial_start, record.partial_end) == (0, 0)
    assert ("partial_update", "mremap") not in made.counted


def test_huge_page_reaches_the_seal(harness: Harness) -> None:
    """mmap(2) rounds the length up to the huge page."""
    made = harness.python(
        f"""{PREPARED}
start = need("mmap", 0, 4 << 20, 0, NORESERVE, -1, 0)
start += -start % (2 << 20)
seal(start + (1 << 20), PAGE)
print(call("mmap", start, PAGE, 3, NORESERVE | FIXED | HUGETLB | 21 << 26, -1, 0))
"""
    )
    if made.lines != [-1]:
        pytest.skip("mmap: this kernel has no huge pages of 2 MiB")
    (record,) = made.of_kind(Kind.DENIAL)
    assert (record.verdict, record.length) == (Verdict.SEALED, 2 << 20)


def test_high_half_of_the_number_is_no_disguise(harness: Harness) -> None:
    """The kernel takes the call's number from the low half of its register."""
    code = function_of_call((1 << 32) + NUMBERS["munmap"])
    made = harness.python(
        f"""
pages = lay("S")
munmap = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)(machine_code({code!r}))
print(munmap(pages.start, PAGE))
"""
    )
    assert made.lines == [-1]
    (record,) = made.of_kind(Kind.DENIAL)
    assert (OPERATIONS[record.operation].name, record.length) == ("munmap", PAGE)


def test_vector_of_a_32_bit_caller(harness: Harness) -> None:
    made = harness.python(
        f"""{PREPARED}
from monitor.provoke.indirect import _int80_mprotect
_int80_mprotect()
low = 0x40
sealed, plain = lay("S", low).start, lay("w", low).start
need("mprotect", plain, PAGE, 3)
ctypes.memmove(plain, struct.pack("=IIII", plain + 0, 0, sealed, PAGE), 16)
pidfd = os.pidfd_open(os.getpid())
code = b"\\x53\\x56" + b"".join(
    bytes([register]) + value.to_bytes(4, "little")
    for register, value in ((0xB8, 440), (0xBB, pidfd), (0xB9, plain), (0xBA, 2), (0xBE, 4))
) + b"\\x31\\xff\\xcd\\x80\\x5e\\x5b\\x48\\x98\\xc3"
print(ctypes.CFUNCTYPE(ctypes.c_long)(machine_code(code))())
"""
    )
    if made.lines != [-1]:
        pytest.skip("int 0x80: this kernel takes no such call")
    record = made.of_kind(Kind.DENIAL)[-1]
    assert OPERATIONS[record.operation].name == "process_madvise"
    assert record.verdict == Verdict.SEALED
    assert (record.mapping.end - record.mapping.start, record.length) == (PAGE, PAGE)


# Five-level paging, or 52 bits on arm64: the kernel maps there only where it is asked to.
AT_A_HINT = """
for hint in (1 << 55, 1 << 51):
    start = need("mmap", hint, 3 * PAGE, 3, 0x4022, -1, 0)
    if start == hint:
        break
"""


def test_addresses_that_only_a_hint_gives(harness: Harness) -> None:
    made = harness.python(
        f"""{PREPARED}{AT_A_HINT}seal(start + PAGE, PAGE)
print(json.dumps([start, start == hint, call("mprotect", start, 3 * PAGE, 1)]))
"""
    )
    ((start, is_high, result),) = made.lines
    if not is_high:
        pytest.skip("no five-level paging: no address has more than 48 bits")
    (record,) = made.of_kind(Kind.DENIAL)
    assert (result, record.verdict, record.address) == (-1, Verdict.SEALED, start)
    assert record.mapping.start == start + PAGE


def test_a_fault_at_an_address_that_only_a_hint_gives(harness: Harness) -> None:
    made = harness.python(
        f"""{PREPARED}{AT_A_HINT}need("mprotect", start + PAGE, PAGE, 0)
print(json.dumps([start, start == hint]), flush=True)
ctypes.memset(start + PAGE + 1, 1, 1)
"""
    )
    ((start, is_high),) = made.lines
    if not is_high:
        pytest.skip("no five-level paging: no address has more than 48 bits")
    (record,) = made.of_kind(Kind.FAULT)
    assert made.exits == [-11]
    assert (record.address, Access(record.access)) == (start + PAGE + 1, Access.WRITE)
    assert Cause(record.cause) == Cause.PROT_NONE
    assert (record.mapping.start, record.mapping.end) == (start + PAGE, start + 2 * PAGE)


@pytest.mark.parametrize("mappings", [1, 2, 101])
def test_a_process_that_has_hardly_more_than_its_code(
    harness: Harness, compiled: Callable[[str], Path], mappings: int
) -> None:
    """One of one mapping has its stack in the sealed page that it runs on."""
    made = harness.run([compiled("bench_mappings"), 1, 503, mappings, "--wait"])
    assert (made.line["mappings"], made.line["denied"]) == (mappings, 2 * 503)
    assert made.counted["denial", "mprotect", "sealed"] == 2 * 503
    records = made.of_kind(Kind.DENIAL)
    assert len(records) == 2 * 503
    (mapping,) = {(record.mapping.start, record.mapping.end) for record in records}
    assert mapping[1] - mapping[0] == PAGE
    assert all(mapping[0] <= record.caller < mapping[1] for record in records)
