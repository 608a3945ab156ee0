"""A 32-bit program on an arm64 kernel: it has registers and a table of calls of its own."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from harness import Harness

from monitor.kernel.abi import Kind, RecordFlag, Verdict
from monitor.kernel.operations import OPERATIONS, decode_arguments
from monitor.kernel.syscalls import PAGE


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
