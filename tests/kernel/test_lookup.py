"""The look-up in the caller's mappings against /proc/PID/smaps."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Harness

from monitor.kernel.abi import Kind, Reason, Record, Role, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.syscalls import PAGE

TRIALS = 60


def facts_of(record: Record) -> dict[str, Any]:
    return {
        "operation": OPERATIONS[record.operation].name,
        "role": Role(record.role).label,
        "verdict": Verdict(record.verdict).label,
        "reason": Reason(record.reason).label,
        "sealed_start": record.mapping.start,
        "sealed_end": record.mapping.end,
        "inode": record.mapping.inode,
    }


def expected(trial: dict[str, Any]) -> dict[str, Any]:
    known = ("operation", "role", "sealed_start", "sealed_end", "inode")
    return {key: trial[key] for key in known} | {"verdict": "sealed", "reason": "none"}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("mappings", [1, 3, 6, 12, 24, 500, 5000])
def test_as_smaps_has_it(
    harness: Harness, compiled: Callable[[str], Path], mappings: int, seed: int
) -> None:
    made = harness.run([compiled("mappings"), str(mappings), str(TRIALS), str(seed), "--wait"])
    records = made.of_kind(Kind.DENIAL)
    assert len(made.lines) == TRIALS
    assert [facts_of(record) for record in records] == [expected(trial) for trial in made.lines]
    offsets = [
        (record.mapping.page_offset * PAGE, trial["offset"])
        for record, trial in zip(records, made.lines, strict=True)
        if trial["inode"]
    ]
    assert [found for found, _ in offsets] == [there for _, there in offsets]


# In a process that has many other mappings the kernel's tree of them is deeper.
@pytest.mark.parametrize("others", [0, 20000])
@pytest.mark.parametrize("holes", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 255, 256, 20000])
def test_a_seal_is_found_behind_as_many_mappings_as_there_may_be(
    harness: Harness, compiled: Callable[[str], Path], before: int, holes: int, others: int
) -> None:
    with harness.configured(emit_seals=0):
        made = harness.run([compiled("behind"), before, holes, others, "--wait"])
    assert made.line["error"] == errno.EPERM
    (record,) = made.of_kind(Kind.DENIAL)
    assert Verdict(record.verdict) == Verdict.SEALED
    assert record.mapping.start == made.line["sealed"]


def test_changing_mappings_give_no_wrong_proof(harness: Harness) -> None:
    """While another thread maps and unmaps inside the range: found, or said to be unverified."""
    made = harness.python(
        """
import threading
pages = lay("www" * 20 + "S")
stop = False
def change():
    while not stop:
        for index in range(0, 60, 3):
            call("mprotect", pages.start + index * PAGE, PAGE, 1)
        for index in range(0, 60, 3):
            call("mprotect", pages.start + index * PAGE, PAGE, 3)
thread = threading.Thread(target=change)
thread.start()
for _ in range(3000):
    call("munmap", pages.start, pages.end - pages.start)
stop = True
thread.join()
print(json.dumps(pages.sealed_start))
"""
    )
    records = made.of_kind(Kind.DENIAL)
    assert len(records) == 3000
    assert any(record.verdict == Verdict.SEALED for record in records)
    for record in records:
        verdict, reason = Verdict(record.verdict), Reason(record.reason)
        if verdict == Verdict.SEALED:
            assert record.mapping.start == made.line
        else:
            assert (verdict, reason) == (Verdict.UNVERIFIED, Reason.CHANGED_MEANWHILE)
