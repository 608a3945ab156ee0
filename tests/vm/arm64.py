"""What only arm64 has: 32-bit programs with registers of their own, tags and signatures."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness

from monitor.kernel.abi import Access, Cause, Disposition, Kind, RecordFlag, Verdict
from monitor.kernel.operations import OPERATIONS, decode_arguments
from monitor.kernel.syscalls import PAGE

# include/uapi/asm-generic/siginfo.h
SEGV_MAPERR, SEGV_ACCERR, SEGV_MTEAERR, SEGV_MTESERR = 1, 2, 8, 9
COPIES = 300  # of a siginfo, that aarch32.c sends
TAG = 0xAB << 56

# By the kernel's word, arch/arm64/include/uapi/asm/hwcap.h.
FEATURES = """
LIBC.getauxval.restype = ctypes.c_ulong
AT_HWCAP, AT_HWCAP2 = 16, 26
HAS_PAC, HAS_BTI = LIBC.getauxval(AT_HWCAP) >> 30 & 1, LIBC.getauxval(AT_HWCAP2) >> 17 & 1
def absent():
    print(json.dumps("absent"), flush=True)
    os._exit(0)
"""


def test_an_aarch32_caller(harness: Harness, compiled: Callable[[str], Path]) -> None:
    wait = ["bash", "-c", 'read -n 1; exec "$@"', "bash"]
    made = harness.run([*wait, str(compiled("aarch32"))])
    assert made.line["mprotect"] == made.line["mmap"] == errno.EPERM
    refused = ["mprotect", "mmap"]
    if made.line["process_madvise"] != errno.EINVAL:  # which it is before 6.16
        refused.append("process_madvise")
    assert made.counted["seals",] == 1
    records = made.of_kind(Kind.DENIAL)
    found = [
        (
            OPERATIONS[record.operation].name,
            Verdict(record.verdict),
            bool(record.flags & RecordFlag.COMPAT),
            record.mapping.start,
        )
        for record in records
    ]
    start = made.line["start"]
    assert found == [(name, Verdict.SEALED, True, start) for name in refused]
    arguments = decode_arguments(OPERATIONS[records[0].operation], records[0].arguments)
    assert arguments == {"addr": f"0x{start:x}", "size": PAGE, "prot": "rw-"}

    (fault,) = made.of_kind(Kind.FAULT)
    assert made.line["signals"] == 1 + COPIES
    assert (fault.address, fault.signal_code) == (start + 5, SEGV_ACCERR)
    assert (Cause(fault.cause), Access(fault.access)) == (Cause.SEALED, Access.WRITE)
    assert Disposition(fault.disposition) == Disposition.HANDLER


@pytest.mark.parametrize("when", ["at-once", "later"])
def test_a_tag_that_differs(harness: Harness, compiled: Callable[[str], Path], when: str) -> None:
    """The address has no tag, as siginfo gives it, or none is known; no page was the reason."""
    made = harness.run([compiled("mte"), when, "--wait"])
    if made.exits == [77]:
        pytest.skip("the memory of this machine has no tags")
    (record,) = made.of_kind(Kind.FAULT)
    assert made.exits == [-signal.SIGSEGV]
    expected = (
        (SEGV_MTESERR, made.line["address"], Access.WRITE)
        if when == "at-once"
        else (SEGV_MTEAERR, 0, Access.READ)
    )
    assert (record.signal_code, record.address, Access(record.access)) == expected
    assert Cause(record.cause) == Cause.OTHER


def test_a_tagged_address_of_a_call(harness: Harness) -> None:
    """The kernel takes a tag off an address, where it is no new one: so does the record."""
    made = harness.python(
        f"""
pages = lay("S")
tagged = pages.start | {TAG}
results = [call(name, tagged, PAGE, 0) for name in ("munmap", "mprotect")]
results += [call("madvise", tagged, PAGE, 4), call("mremap", tagged, PAGE, 2 * PAGE, 1, 0)]
print(json.dumps([pages.start, results]))
"""
    )
    start, results = made.line
    assert results == [-errno.EPERM] * 4
    records = made.of_kind(Kind.DENIAL)
    found = [(OPERATIONS[record.operation].name, Verdict(record.verdict)) for record in records]
    assert found == [(name, Verdict.SEALED) for name in ("munmap", "mprotect", "madvise", "mremap")]
    assert {record.mapping.start for record in records} == {start}
    assert {record.address for record in records} == {start}


@pytest.mark.parametrize(
    ("access", "kind"),
    [("value = 1", Access.WRITE), ("value", Access.READ)],
)
def test_a_tagged_address_of_a_fault(harness: Harness, access: str, kind: Access) -> None:
    made = harness.python(
        f"""
pages = lay("N")
print(pages.start, flush=True)
ctypes.c_ubyte.from_address(pages.start + 7 | {TAG}).{access}
"""
    )
    (record,) = made.of_kind(Kind.FAULT)
    assert (record.address, record.mapping.start) == (made.line + 7, made.line)
    assert (Cause(record.cause), Access(record.access)) == (Cause.SEALED, kind)


def test_execute_only_memory(harness: Harness) -> None:
    """It can be read, except on processors with EPAN; a write is a fault everywhere."""
    made = harness.python(
        """
pages = lay("ww")
need("mprotect", pages.start, 2 * PAGE, PROT_EXEC)
seal(pages.start + PAGE, PAGE)
child = os.fork()
if not child:
    ctypes.c_ubyte.from_address(pages.start).value
    os._exit(0)
_, status = os.waitpid(child, 0)
print(json.dumps([pages.start, status]), flush=True)
ctypes.c_ubyte.from_address(pages.start + PAGE).value = 1
"""
    )
    start, status = made.line
    read = [(start, SEGV_ACCERR, Cause.OTHER, Access.READ)] if status else []
    found = [
        (record.address, record.signal_code, Cause(record.cause), Access(record.access))
        for record in made.of_kind(Kind.FAULT)
    ]
    assert found == [*read, (start + PAGE, SEGV_ACCERR, Cause.SEALED, Access.WRITE)]


def test_a_wrong_branch_target_is_no_fault_of_memory(harness: Harness) -> None:
    """BTI: the processor says so by SIGILL."""
    made = harness.python(
        f"""{FEATURES}
if not HAS_BTI:
    absent()
PROT_BTI, RETURN = 0x10, (0xD65F03C0).to_bytes(4, "little")
code = machine_code(RETURN)
need("mprotect", code, PAGE, PROT_READ | PROT_EXEC | PROT_BTI)
ctypes.CFUNCTYPE(None)(code)()
"""
    )
    if made.lines:
        pytest.skip("this processor does not check where branches go")
    assert made.exits == [-signal.SIGILL]
    assert (made.records, made.counted) == ([], {})


# Takes a signature, changes a bit of it, has it checked and jumps: mov x9, x30; adr x17, end;
# mov x16, 1; pacia1716; eor x17, x17, 1 << 50; autia1716; br x17; end: ret x9
WRONG_SIGNATURE = (
    *(0xAA1E03E9, 0x100000D1, 0xD2800030, 0xD503211F),
    *(0xD24E0231, 0xD503219F, 0xD61F0220, 0xD65F0120),
)


def test_a_wrong_signature(harness: Harness) -> None:
    """PAC: SIGILL where the processor has FPAC; else a jump to an address that nobody has."""
    made = harness.python(
        f"""{FEATURES}
import struct
if not HAS_PAC:
    absent()
code = machine_code(struct.pack("<8I", *{WRONG_SIGNATURE}))
print(code, flush=True)
ctypes.CFUNCTYPE(None)(code)()
"""
    )
    if made.lines == ["absent"]:
        pytest.skip("this processor signs no addresses")
    records = made.of_kind(Kind.FAULT)
    if made.exits == [-signal.SIGILL]:
        assert records == []
        return
    (record,) = records
    assert made.exits == [-signal.SIGSEGV]
    assert (Cause(record.cause), Access(record.access)) == (Cause.OTHER, Access.EXECUTE)
    assert record.signal_code == SEGV_MAPERR
    target = made.line + 28
    assert record.address != target
    assert record.address & (1 << 48) - 1 == target & (1 << 48) - 1
