"""The look-up in the caller's mappings against /proc/PID/smaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Harness

from monitor.kernel.abi import Kind, Reason, Record, Role, Verdict
from monitor.kernel.operations import OPERATIONS

LIMIT = 256  # mappings that one look-up reads, the sealed one included
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


def expected(trial: dict[str, Any], at_seal: bool) -> dict[str, Any]:
    wanted = {key: trial[key] for key in ("operation", "role")}
    if trial["walked"] > LIMIT and not at_seal:
        nothing = {"sealed_start": 0, "sealed_end": 0, "inode": 0}
        return wanted | {"verdict": "unverified", "reason": "range_too_long"} | nothing
    found = {key: trial[key] for key in ("sealed_start", "sealed_end", "inode")}
    return wanted | {"verdict": "sealed", "reason": "none"} | found


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("mappings", [1, 3, 6, 12, 24, 500, 5000])
def test_as_smaps_has_it(
    harness: Harness, compiled: Callable[[str], Path], mappings: int, seed: int
) -> None:
    made = harness.run([compiled("mappings"), str(mappings), str(TRIALS), str(seed), "--wait"])
    records = made.of_kind(Kind.DENIAL)
    assert len(made.lines) == TRIALS
    assert [facts_of(record) for record in records] == [
        expected(trial, harness.at_seal(trial["operation"])) for trial in made.lines
    ]
    offsets = [
        (record.mapping.page_offset * 4096, trial["offset"])
        for record, trial in zip(records, made.lines, strict=True)
        if trial["inode"] and trial["walked"] <= LIMIT
    ]
    assert [found for found, _ in offsets] == [there for _, there in offsets]


# One sealed page behind `before` mappings, with holes between them or none, in a process that has
# many others: its tree is deeper.
BEHIND = """
before, holes, others = (int(word) for word in sys.argv[1:])
for _ in range(others // 1000):
    lay("rw" * 500)
step = 2 if holes else 1
letters = ["n"] * (step * before)
letters[::step] = ("rw" * before)[:before]
pages = lay("".join(letters) + "S")
if holes:
    for index in range(before):
        need("munmap", pages.start + (2 * index + 1) * PAGE, PAGE)
print(json.dumps([call("munmap", pages.start, pages.end - pages.start), pages.sealed_start]))
"""


@pytest.mark.parametrize("others", [0, 20000])
@pytest.mark.parametrize("holes", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 254, 255, 256, 257])
def test_limit_is_exact(harness: Harness, before: int, holes: int, others: int) -> None:
    with harness.configured(emit_seals=0):
        made = harness.python(BEHIND, str(before), str(holes), str(others))
    result, sealed = made.line
    assert result == -1
    (record,) = made.of_kind(Kind.DENIAL)
    # The function was stopped by the mapping itself: there is nothing to look for.
    if before < LIMIT or harness.at_seal("munmap"):
        assert Verdict(record.verdict) == Verdict.SEALED
        assert record.mapping.start == sealed
    else:
        assert Verdict(record.verdict) == Verdict.UNVERIFIED
        assert Reason(record.reason) == Reason.RANGE_TOO_LONG
        assert record.mapping.start == 0


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
