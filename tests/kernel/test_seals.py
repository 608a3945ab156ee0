"""mseal itself: calls and bytes, and events when asked for."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness

from monitor.kernel.abi import Kind, RecordFlag, Verdict
from monitor.kernel.arch import THIS, X86_64
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.syscalls import PAGE

SEALS = 1009


def test_counts_are_exact(harness: Harness, compiled: Callable[[str], Path]) -> None:
    made = harness.run([compiled("seals"), str(SEALS), "--wait"])
    assert made.line == {"seals": SEALS, "bytes": SEALS * PAGE}
    assert made.counted == {
        ("seals",): SEALS,
        ("sealed_bytes",): SEALS * PAGE,
        ("event", "seal", "submitted"): SEALS,
    }
    starts = [record.address for record in made.of_kind(Kind.SEAL)]
    assert starts == [starts[0] + index * PAGE for index in range(SEALS)]


def test_no_events_unless_asked_for(harness: Harness, compiled: Callable[[str], Path]) -> None:
    with harness.configured(emit_seals=0):
        made = harness.run([compiled("seals"), str(SEALS), "--wait"])
    assert made.counted == {
        ("seals",): SEALS,
        ("sealed_bytes",): SEALS * PAGE,
        ("event", "seal", "filtered"): SEALS,
    }
    assert made.records == []


def test_a_process_that_seals_is_reported_once(
    harness: Harness, compiled: Callable[[str], Path]
) -> None:
    with harness.configured(emit_seals=0):
        made = harness.run([compiled("seals"), str(SEALS), "--wait"])
    (sealer,) = (record for record in harness.sealers if record.pid == made.child.pid)
    assert (sealer.kind, sealer.flags, sealer.uid) == (Kind.SEAL, RecordFlag.SEALER, os.getuid())
    assert sealer.executable == b"seals"


def test_event(harness: Harness) -> None:
    made = harness.provoke("seal")
    (record,) = made.records
    assert Kind(record.kind) == Kind.SEAL
    assert (record.address, record.length) == (made.line["address"], PAGE)
    assert list(record.arguments[:3]) == made.line["arguments"][:3]
    assert (record.mapping.start, record.mapping.end) == (record.address, record.address + PAGE)
    assert record.mapping.flags & harness.config.sealed_mask
    assert record.pid == made.child.pid
    caller = made.child.area(record.caller)
    assert caller is not None
    assert "libc" not in Path(caller.path).name


def test_bytes_are_whole_pages(harness: Harness) -> None:
    made = harness.python('pages = lay("www")\nneed("mseal", pages.start, PAGE + 1, 0)')
    assert made.counted["seals",] == 1
    assert made.counted["sealed_bytes",] == 2 * PAGE


def test_an_mseal_that_fails_counts_nothing(harness: Harness) -> None:
    made = harness.python(
        """
pages = lay("w")
results = [
    call("mseal", pages.start, PAGE, 1),
    call("mseal", pages.start + 1, PAGE, 0),
    call("mseal", pages.start, -2 * PAGE % 2**64, 0),
    call("mseal", 1 << 46, PAGE, 0),
]
print(json.dumps(results))
"""
    )
    assert made.line == [-22, -22, -22, -12]
    assert made.counted == {}
    assert made.records == []


# A page like one of RELRO is discarded, sealed by int 0x80, and discarded again.
SEALED_BY_INT80 = """
from monitor.provoke.indirect import MAP_32BIT, _int80, _require_int80
try:
    _require_int80()
except Unsupported:
    print(json.dumps(None))
    raise SystemExit from None
file = os.memfd_create("seal-monitor")
os.write(file, bytes(PAGE))
start = need("mmap", 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_32BIT, file, 0)
ctypes.memset(start, 1, PAGE)
need("mprotect", start, PAGE, PROT_READ)
for _ in range(3):
    need("madvise", start, PAGE, 4)
assert _int80("mseal", start, PAGE, 0) == 0
need("madvise", start, PAGE, 4)
print(json.dumps(start))
"""


def test_a_32_bit_caller(harness: Harness) -> None:
    made = harness.python(SEALED_BY_INT80)
    if made.line is None:
        pytest.skip("int 0x80: this kernel takes no such call")
    assert made.counted == {
        ("seals",): 1,
        ("sealed_bytes",): PAGE,
        ("event", "seal", "submitted"): 1,
        ("bypass", "madvise_discard"): 1,
        ("event", "bypass", "submitted"): 1,
    }
    (record,) = made.of_kind(Kind.SEAL)
    assert record.flags == RecordFlag.COMPAT
    assert tuple(record.arguments[:3]) == (made.line, PAGE, 0)
    assert (record.mapping.start, record.mapping.end) == (made.line, made.line + PAGE)


# Of i386, whose whole address space is below 4 GiB: a page, sealed, is refused to become writable.
I386 = bytes.fromhex(
    "b8c0000000 31db b900100000 ba01000000 be22000000 83cfff 31ed cd80"  # mmap2(0, 4096, r, ...)
    "89c3 b8ce010000 31d2 cd80"  # mseal(page, 4096, 0)
    "b87d000000 ba03000000 cd80"  # mprotect(page, 4096, rw)
    "f7d8 89c3 b801000000 cd80"  # exit(its error)
)
START = 0x10000


def i386_program(path: Path) -> Path:
    """An ELF file of one segment, which is headers and code."""
    begin = 52 + 32
    end = begin + len(I386)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    # executable, 386; entry and program header; sizes, and their number
    elf = struct.pack("<2H5I6H", 2, 3, 1, START + begin, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    load = struct.pack("<8I", 1, 0, START, START, end, end, 5, PAGE)
    path.write_bytes(identity + elf + load + I386)
    path.chmod(0o755)
    return path


def test_a_32_bit_program(harness: Harness, tmp_path: Path) -> None:
    if THIS != X86_64:
        pytest.skip("a program of i386")
    program = i386_program(tmp_path / "i386")
    made = harness.run(["bash", "-c", 'read -n 1; exec "$@"', "bash", str(program)])
    if made.exits == [126]:  # bash could not start it
        pytest.skip("this kernel runs no program of i386")
    assert made.exits == [errno.EPERM]
    assert (made.counted["seals",], made.counted["sealed_bytes",]) == (1, PAGE)
    seal, denial = made.records
    assert (seal.kind, denial.kind) == (Kind.SEAL, Kind.DENIAL)
    assert (OPERATIONS[denial.operation].name, denial.verdict) == ("mprotect", Verdict.SEALED)
    assert seal.flags & denial.flags & RecordFlag.COMPAT
    assert tuple(denial.arguments[:3]) == (denial.mapping.start, PAGE, 3)
    assert seal.mapping.start == denial.mapping.start < 1 << 32
    assert START + 52 + 32 < denial.instruction_pointer < START + PAGE
