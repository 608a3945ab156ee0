"""Which skips pass where BPF is required."""

from __future__ import annotations

import pytest
from conftest import allowed, allowed_skips

ENTRIES = [{"test": "tests/*[[]*pkey*]", "reason": "pkey_alloc: *", "why": "no keys"}]


@pytest.mark.parametrize(
    ("test", "reason", "expected"),
    [
        ("tests/unit/test_provoke.py::test_fault[pkey]", "pkey_alloc: Invalid argument", True),
        ("tests/unit/test_provoke.py::test_fault[munmap]", "pkey_alloc: Invalid argument", False),
        ("tests/unit/test_provoke.py::test_fault[pkey]", "not root", False),
    ],
)
def test_allowed(test: str, reason: str, expected: bool) -> None:
    assert allowed(test, reason, ENTRIES) == expected


def test_every_entry_says_why() -> None:
    assert all(entry["why"] for entry in allowed_skips())
