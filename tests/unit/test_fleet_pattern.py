"""Globs as regular expressions: the same texts match as by SQLite's GLOB."""

from __future__ import annotations

import re
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.fleet.pattern import base_name, pattern

SQLITE = sqlite3.connect(":memory:")
LETTERS = "ab*?[]^-.\\/ ()+$|{}\nä'"


def by_sqlite(glob: str, text: str) -> bool:
    (found,) = SQLITE.execute("SELECT ? GLOB ?", (text, glob)).fetchone()
    return bool(found)


@pytest.mark.parametrize(
    ("glob", "text"),
    [
        ("nginx.service", "nginx.service"),
        ("nginx.service", "nginxxservice"),
        ("svc-*", "svc-1/x\ny"),
        ("web-?", "web-3"),
        ("web-?", "web-33"),
        ("web-[1-3]", "web-2"),
        ("web-[^1-3]", "web-2"),
        ("web-[^1-3]", "web-9"),
        ("a(b|c)+$", "a(b|c)+$"),
        ("*.dc[0-9].example", "node-1.dc3.example"),
    ],
)
def test_a_glob_matches_the_same(glob: str, text: str) -> None:
    assert bool(re.search(pattern(glob), text)) == by_sqlite(glob, text)


@given(st.text(LETTERS.replace("[", "").replace("]", ""), max_size=8), st.text(LETTERS, max_size=8))
def test_any_glob_without_a_set_matches_the_same(glob: str, text: str) -> None:
    # $ also matches before the last line end in Python, but not in the databases.
    assert bool(re.fullmatch(pattern(glob)[1:-1], text)) == by_sqlite(glob, text)


@given(st.text(LETTERS, max_size=12))
def test_no_glob_is_a_wrong_expression(glob: str) -> None:
    if "[" in glob:  # an empty or reversed set is wrong in both
        return
    re.compile(pattern(glob))


def test_a_base_name_is_the_last_part() -> None:
    found = re.compile(base_name("svc*"))
    assert found.search("/srv/svc-1 (deleted)")
    assert found.search("svc-1")
    assert not found.search("/svc/nginx")


def test_none_matches_anything() -> None:
    assert pattern(None) == ""
