"""Tests bound a time only by at_most(), with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clocks import at_most

TESTS = Path(__file__).parent.parent
CLOCK = r"(?:time\.)?(?:monotonic|perf_counter|process_time|thread_time)\(\)"
# A measured time that is compared with a bound. A deadline of a wait is something else.
BOUND = re.compile(rf"assert .*{CLOCK} - \w+ <")


def test_a_test_that_bounds_a_time_says_why() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{number}"
        for folder in ("unit", "kernel")
        for path in sorted((TESTS / folder).glob("test_*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BOUND.search(line)
    ]
    assert found == []


def test_at_most() -> None:
    now = iter((10.0, 12.0, 20.0, 22.5))
    with at_most(2, "as it should be", lambda: next(now)):
        pass
    with (
        pytest.raises(AssertionError, match=r"^took 2\.50 s, and not at most 2 s: much more work"),
        at_most(2, "much more work", lambda: next(now)),
    ):
        pass
