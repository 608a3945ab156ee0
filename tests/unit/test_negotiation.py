from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.metrics.negotiation import Preference, preferences, wants_gzip


def test_preferences() -> None:
    found = list(preferences('A/b;Version="1.0";q=0.25, ;,c;d;q=x, e;q=1.7'))
    assert found == [Preference("a/b", {"version": "1.0"}, 0.25), Preference("e", {}, 1.0)]


@pytest.mark.parametrize(
    ("accept_encoding", "wanted"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=1.0, br", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("*", True),
        ("*;q=0, identity", False),
        ("gzip;q=0, *", False),
        ("gzip;q=0.1", True),
        ("gzip;q=0.5, identity;q=0.8", False),
        ("identity;q=0.5, *;q=0.6", True),
        ("gzip;q=?", False),
        ("zip", False),
    ],
)
def test_gzip(accept_encoding: str, wanted: bool) -> None:
    assert wants_gzip(accept_encoding) == wanted


@given(st.text(st.characters(max_codepoint=255)))
def test_any_header_has_preferences(header: str) -> None:
    assert all(0 <= item.quality <= 1 and item.value for item in preferences(header))
    assert wants_gzip(header) in (True, False)
