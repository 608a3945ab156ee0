"""Untrusted bytes -> text that is safe to show: names and paths that a monitored process chose."""

from __future__ import annotations

__all__ = ["LINE_LIMIT", "NAME_LIMIT", "joined", "one_line", "printable"]

NAME_LIMIT = 256
LINE_LIMIT = 1 << 16
TEXT_LIMIT = 300


def printable(raw: bytes | str, limit: int = NAME_LIMIT) -> str:
    r"""`raw` as at most `limit` characters that are safe on a terminal, in JSON and in a log.

    Quotes and what is not printable (control, format and bidi characters, odd spaces) become \xNN,
    \uNNNN or \UNNNNNNNN, bytes that are not UTF-8 \xNN; an ellipsis ends what was cut. Applied
    twice it changes nothing, so a backslash stays as it is.
    """
    # Four bytes make a character at most: what is cut off here is beyond the limit anyway.
    start = raw[: 4 * (limit + 1)]
    text = start.decode("utf-8", "surrogateescape") if isinstance(start, bytes) else start
    if len(text) <= limit and text.isprintable() and '"' not in text and "'" not in text:
        return text
    pieces = [_escaped(character) for character in text[: limit + 1]]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    kept = 0
    length = 1  # the ellipsis
    while length + len(pieces[kept]) <= limit:
        length += len(pieces[kept])
        kept += 1
    return "".join(pieces[:kept]) + "\N{HORIZONTAL ELLIPSIS}"


def one_line(text: str) -> str:
    """A finished line, bounded, that a terminal shows and does not obey; quotes may be ours."""
    if text.isprintable() and len(text) <= LINE_LIMIT:
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text[:LINE_LIMIT])


def joined(value: object, limit: int = TEXT_LIMIT) -> str:
    """The lines and words of a text of ours as one line."""
    return " ".join(str(value).split())[:limit]


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\"'":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape keeps it
        code -= 0xDC00
        return f"\\x{code:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
