from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.untrusted.printable import printable


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", ""),
        (b"python3", "python3"),
        (b"two words", "two words"),
        ("Käse 日本".encode(), "Käse 日本"),
        (b"a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"\0\x7f", "\\x00\\x7f"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"caf\xc3", "caf\\xc3"),
        (b'"it\'s"', "\\x22it\\x27s\\x22"),
        ("\x85".encode(), "\\u0085"),
        ("a\u202eb".encode(), "a\\u202eb"),
        ("a\u200bb\ufeff".encode(), "a\\u200bb\\ufeff"),
        ("a\u2028b\u00a0c".encode(), "a\\u2028b\\u00a0c"),
        ("\U000e0041".encode(), "\\U000e0041"),
        (b"C:\\x0a", "C:\\x0a"),
        ("\udcff\ud800", "\\xff\\ud800"),
        (b"x" * 16, "x" * 16),
        (b"x" * 17, "x" * 15 + "…"),
        (b"x" * 13 + b"\n", "x" * 13 + "…"),
        (b"x" * 12 + b"\n", "x" * 12 + "\\x0a"),
        (b"\n" * 1_000_000, "\\x0a\\x0a\\x0a…"),
    ],
)
def test_printable(raw: bytes | str, expected: str) -> None:
    assert printable(raw, 16) == expected


@given(st.binary() | st.text(), st.integers(min_value=1, max_value=40))
def test_printable_is_safe_and_bounded(raw: bytes | str, limit: int) -> None:
    text = printable(raw, limit)
    assert len(text) <= limit
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)
    assert "'" not in text
    assert '"' not in text
    text.encode("utf-8")
    assert printable(text, limit) == text
    assert printable(text.encode(), limit) == text
