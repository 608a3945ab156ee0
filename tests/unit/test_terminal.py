from __future__ import annotations

import pytest

from monitor.untrusted.terminal import (
    Column,
    counted,
    paragraph,
    places,
    shortened,
    table,
    text,
    visible,
)

HOSTILE = "\x1b]0;x\x07\n\u202e"
ESCAPED = r"\x1b]0;x\x07\x0a\u202e"


def test_a_line_stays_one_and_keeps_its_quotes() -> None:
    assert text([f"'a' {HOSTILE}", "b"]) == f"'a' {ESCAPED}\nb"
    assert len(text(["x" * 100_000])) == 65536


def test_what_others_chose_has_no_quotes() -> None:
    assert visible(f"'{HOSTILE}") == rf"\x27{ESCAPED}"
    assert visible(7) == "7"
    assert visible("x" * 2000) == f"{'x' * 999}…"


def test_a_table() -> None:
    columns = [
        Column("PID", ["1", "12345"], is_number=True),
        Column("NAME", ["/usr/bin/true", HOSTILE], most=9),
        Column("LAST", ["a", ""]),
    ]
    assert table(columns) == [
        "  PID  NAME       LAST",
        "    1  …bin/true  a",
        r"12345  …0a\u202e",
    ]
    assert table([column._replace(cells=[]) for column in columns]) == ["PID  NAME  LAST"]


def test_names_give_way_to_a_narrow_terminal() -> None:
    columns = [
        Column("SIZE", ["1" * 30], is_number=True),
        Column("PATH", [f"/{'a' * 60}/end"]),
        Column("UNIT", ["some.service"]),
    ]
    title, row = table(columns, 80)
    assert len(row) == 80
    assert row.endswith("a/end  some.service")
    assert title.index("UNIT") == row.index("some")
    assert len(table(columns, 10)[1]) == 30 + 2 + 12 + 2 + 12


@pytest.mark.parametrize(
    ("number", "word", "expected"),
    [
        (0, "range", "0 ranges"),
        (1, "bypass", "1 bypass"),
        (1234, "bypass", "1,234 bypasses"),
    ],
)
def test_counted(number: int, word: str, expected: str) -> None:
    assert counted(number, word) == expected


def test_shortened() -> None:
    assert shortened("12345", 5) == "12345"
    assert shortened("123456", 5) == "…3456"
    assert shortened("\u65e5\u672c\u8a9e", 6) == "\u65e5\u672c\u8a9e"
    assert shortened("\u65e5\u672c\u8a9e", 5) == "\N{HORIZONTAL ELLIPSIS}\u672c\u8a9e"
    assert shortened("\u65e5\u672c\u8a9e", 4) == "\N{HORIZONTAL ELLIPSIS}\u8a9e"


def test_columns_of_wide_and_combining_characters() -> None:
    names = ["\u65e5\u672c", "e\u0301a", "abcd"]
    assert [places(name) for name in names] == [4, 2, 4]
    lines = table([Column("A", names), Column("B", ["x", "y", "z"])])
    assert [places(line) for line in lines] == [7, 7, 7, 7]
    assert lines[1:3] == ["\u65e5\u672c  x", "e\u0301a    y"]


def test_a_paragraph_is_no_wider_than_it_may_be() -> None:
    assert paragraph("one two", None, "    ") == ["    one two"]
    assert paragraph("one two three", 9, "  ") == ["  one two", "  three"]
    assert paragraph("one two", 9, "  ", "") == ["one two"]
    assert paragraph("", 9, "  ") == ["  "]
    long = "a" * 10 + " \u65e5\u672c\u8a9e x"
    assert paragraph(long, 7, "  ") == [
        *("  aaaaa", "  aaaaa", "  \u65e5\u672c", "  \u8a9e x"),
    ]
    assert paragraph("\u65e5", 1, "") == ["\u65e5"]  # a character at least
