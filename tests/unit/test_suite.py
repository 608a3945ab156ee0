"""What make test prints of what its sessions report."""

from __future__ import annotations

import json

import pytest
from suite import Results, failed_once, outcome, read, slowest


def step(test: str, seconds: float, failed: bool = False) -> str:
    return json.dumps({"test": test, "seconds": seconds, "failed": failed}) + "\n"


def test_the_steps_of_a_test_are_added() -> None:
    steps = [step("a", 1), step("b", 0.5), step("a", 2, failed=True), step("a", 0.25, failed=True)]
    assert read(steps) == ({"a": 3.25, "b": 0.5}, ["a"])


def test_the_ten_slowest() -> None:
    shown = slowest({f"t{number}": float(number) for number in range(15)})
    assert len(shown) == 10
    assert (shown[0], shown[-1]) == ("   14.0 s  t14", "    5.0 s  t5")


NOTHING = Results({}, [], True)
FAILED = Results({}, ["a", "b"], False)


@pytest.mark.parametrize(
    ("first", "again", "lines", "code"),
    [
        (NOTHING, None, ["failed: 0"], 0),
        (FAILED, None, ["failed: 2", "a", "b"], 1),
        (Results({}, [], False), None, ["failed: 0"], 1),  # a process was left behind
        (FAILED, NOTHING, ["flaky: 2:", "a", "b"], 0),
        (FAILED, Results({}, ["b"], False), ["failed twice: 1", "b", "flaky: 1:", "a"], 1),
        (FAILED, Results({}, ["a", "b"], False), ["failed twice: 2", "a", "b", "flaky: 0"], 1),
    ],
)
def test_the_last_lines(first: Results, again: Results | None, lines: list[str], code: int) -> None:
    assert outcome(first, again) == (lines, code)


def test_what_failed_once_is_flaky() -> None:
    assert failed_once(FAILED, Results({}, ["b"], False)) == ["a"]
