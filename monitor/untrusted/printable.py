"""Makes untrusted bytes, as names and paths that a monitored process chose, safe to show."""

from __future__ import annotations

__all__ = ["LINE_LIMIT", "NAME_LIMIT", "joined", "one_line", "printable"]

NAME_LIMIT = 256
LINE_LIMIT = 1 << 16
TEXT_LIMIT = 300


def printable(raw: bytes | str, limit: int = NAME_LIMIT) -> str:
    r"""`raw` as at most `limit` characters that are safe on a terminal, in JSON and in a log.

    Quotes and unprintable characters (control, format and bidi characters, odd spaces) become \xNN,
    \uNNNN or \UNNNNNNNN; bytes that are not UTF-8 become \xNN. A text that was cut ends with an
    ellipsis. A second call changes nothing, so a backslash stays as it is.
    """
    # A character has at most four bytes, so all that is cut off here is beyond the limit.
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
    """A finished line, cut to a limit and without control characters; it may contain quotes."""
    if text.isprintable() and len(text) <= LINE_LIMIT:
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text[:LINE_LIMIT])


def joined(value: object, limit: int = TEXT_LIMIT) -> str:
    """A text with lines and runs of spaces, as one line."""
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
