"""Two records of one fault become one; no other records do."""

from __future__ import annotations

import pytest

from monitor.kernel.abi import Disposition, Kind, Record, RecordFlag
from monitor.watch.handled import SETTLE_NS, settled_at, without_first

FIRST = {
    "kind": Kind.FAULT,
    "disposition": Disposition.HANDLER,
    "pid": 7,
    "tid": 8,
    "instruction_pointer": 0x401000,
    "stack_pointer": 0x7FFE0000,
    "address": 0x7FFDFFF8,
    "time_boot_ns": 1000,
}
SECOND = {**FIRST, "disposition": Disposition.HANDLER_FAILED, "time_boot_ns": 36_000}
OTHER = {**FIRST, "tid": 9, "time_boot_ns": 2000}


def left(*rows: dict[str, int]) -> list[int]:
    """Places of those that are left."""
    records = [Record(**row) for row in rows]
    places = {id(record): place for place, record in enumerate(records)}
    return [places[id(record)] for record in without_first(records)]


def test_the_first_of_two_goes_whatever_others_do_between() -> None:
    assert left(FIRST, SECOND) == [1]
    assert left(FIRST, OTHER, SECOND) == [1, 2]
    assert left(FIRST, SECOND, FIRST, SECOND) == [1, 3]
    assert left(FIRST, OTHER, {**SECOND, "tid": 9}, SECOND) == [2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 6},
        {"tid": 9},
        {"instruction_pointer": 0x401004},
        {"stack_pointer": 0x7FFE0008},
        {"address": 0},
        {"disposition": Disposition.DEFAULT},
        {"disposition": Disposition.HANDLER},
        {"kind": Kind.DENIAL},
        {"flags": RecordFlag.CANARY},
    ],
)
def test_what_is_no_second_record_leaves_the_first(change: dict[str, int]) -> None:
    assert left(FIRST, {**SECOND, **change}) == [0, 1]


def test_what_the_thread_did_in_between_leaves_both() -> None:
    assert left(FIRST, {**FIRST, "kind": Kind.DENIAL}, SECOND) == [0, 1, 2]
    assert left(SECOND) == [0]
    assert left() == []


def test_until_when_a_second_record_may_come() -> None:
    def until(*rows: dict[str, int]) -> int:
        return settled_at([Record(**row) for row in rows])

    assert until() == until(SECOND) == until(FIRST, SECOND) == 0
    assert until(FIRST) == 1000 + SETTLE_NS
    assert until(OTHER, FIRST) == 2000 + SETTLE_NS
    assert until(FIRST, OTHER, SECOND) == 2000 + SETTLE_NS
    assert until({**FIRST, "kind": Kind.DENIAL}) == 0
    assert until({**FIRST, "flags": RecordFlag.CANARY}) == 0
