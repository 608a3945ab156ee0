"""What only arm64 has: 32-bit programs with registers and calls of their own, tags of memory."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness

from monitor.kernel.abi import Access, Cause, Kind, RecordFlag, Verdict
from monitor.kernel.operations import OPERATIONS, decode_arguments
from monitor.kernel.syscalls import PAGE

SEGV_MTESERR = 9  # include/uapi/asm-generic/siginfo.h


def test_an_aarch32_caller(harness: Harness, compiled: Callable[[str], Path]) -> None:
    wait = ["bash", "-c", 'read -n 1; exec "$@"', "bash"]
    made = harness.run([*wait, str(compiled("aarch32"))])
    assert made.line["mprotect"] == made.line["mmap"] == errno.EPERM
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
    expected = (Verdict.SEALED, True, start)
    assert found == [("mprotect", *expected), ("mmap", *expected)]
    arguments = decode_arguments(OPERATIONS[records[0].operation], records[0].arguments)
    assert arguments == {"addr": f"0x{start:x}", "size": PAGE, "prot": "rw-"}


def test_a_tag_that_differs(harness: Harness, compiled: Callable[[str], Path]) -> None:
    """The address has no tag, as siginfo gives it; no page was the reason."""
    made = harness.run([compiled("mte"), "--wait"])
    if made.exits == [77]:
        pytest.skip("the memory of this machine has no tags")
    (record,) = made.of_kind(Kind.FAULT)
    assert made.exits == [-11]
    assert (record.signal_code, record.address) == (SEGV_MTESERR, made.line["address"])
    assert (Cause(record.cause), Access(record.access)) == (Cause.OTHER, Access.READ)
