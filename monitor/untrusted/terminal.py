"""Lines and tables for a terminal, without control characters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monitor.untrusted.printable import one_line, printable

__all__ = [
    "Column",
    "counted",
    "paragraph",
    "places",
    "plural",
    "shortened",
    "table",
    "text",
    "visible",
    "width_of_output",
]

TEXT_LIMIT = 1000
_NARROWEST = 12  # width of a column of names when the table must be narrow
_NARROWEST_TERMINAL = 40


def visible(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value that others chose, as part of a line."""
    return printable(str(value), limit)


def text(lines: Iterable[str]) -> str:
    """Finished lines as one text, safe to print: each stays one line."""
    return "\n".join(map(one_line, lines))


def width_of_output() -> int | None:
    """The columns of the terminal that standard output is; None: it is none, so cut nothing."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout else 0
    except (OSError, ValueError):  # no terminal, or closed
        return None
    return max(columns, _NARROWEST_TERMINAL) if columns else None


def _place(character: str) -> int:
    import unicodedata  # noqa: PLC0415 - the daemon has no tables to align

    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def places(name: str) -> int:
    """How many columns of a terminal a text takes: two for a wide character, none for an accent
    that combines with the one before it.
    """
    return len(name) if name.isascii() else sum(map(_place, name))


def shortened(name: str, width: int) -> str:
    """The name without its beginning when it is too long: the end of a path says more."""
    if places(name) <= width:
        return name
    kept, left = len(name), width - 1
    while kept and _place(name[kept - 1]) <= left:
        kept -= 1
        left -= _place(name[kept])
    return f"\N{HORIZONTAL ELLIPSIS}{name[kept:]}"


def paragraph(words: str, width: int | None, indent: str, first: str | None = None) -> list[str]:
    """A text as lines that are not wider; one line if `width` is None. `first` begins it."""
    begin = indent if first is None else first
    if width is None:
        return [f"{begin}{words}"]
    lines = [begin]
    is_empty = True
    for word in words.split(" "):
        rest = word
        if not is_empty and places(lines[-1]) + 1 + places(rest) > width:
            lines.append(indent)
            is_empty = True
        while is_empty and places(lines[-1]) + places(rest) > width:
            part = _fitting(rest, width - places(lines[-1]))
            lines[-1] += part
            rest = rest[len(part) :]
            if not rest:
                break
            lines.append(indent)
        lines[-1] += rest if is_empty else f" {rest}"
        is_empty = False
    return lines


def _fitting(word: str, width: int) -> str:
    """As much of its beginning as is not wider, and a character at least."""
    used, end = 0, 0
    while end < len(word) and (used + _place(word[end]) <= width or not end):
        used += _place(word[end])
        end += 1
    return word[:end]


def plural(word: str) -> str:
    return f"{word}{'es' if word.endswith('s') else 's'}"


def counted(number: int, word: str) -> str:
    return f"{number:,} {word if number == 1 else plural(word)}"


class Column(NamedTuple):
    """Numbers are aligned to the right. A name that is longer than `most` is shortened."""

    title: str
    cells: Sequence[str]
    is_number: bool = False
    most: int | None = None


def table(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """The titles and each row as a line.

    Columns of names are narrowed so that no line is longer than `width`. Numbers and titles are
    not cut, so a line may still be longer.
    """
    shown = [[column.title, *map(one_line, column.cells)] for column in columns]
    widths = [
        max(len(column.title), min(max(map(places, cells)), column.most or TEXT_LIMIT))
        for column, cells in zip(columns, shown, strict=True)
    ]
    if width is not None:
        _narrow(widths, [n for n, column in enumerate(columns) if not column.is_number], width)
    return [_line(columns, row, widths) for row in zip(*shown, strict=True)]


def _narrow(widths: list[int], names: Sequence[int], width: int) -> None:
    over = sum(widths) + 2 * (len(widths) - 1) - width
    while over > 0 and names and max(widths[index] for index in names) > _NARROWEST:
        widest = max(names, key=lambda index: widths[index])
        widths[widest] -= 1
        over -= 1


def _line(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        cell.rjust(width) if column.is_number else _padded(shortened(cell, width), width)
        for column, cell, width in zip(columns, row, widths, strict=True)
    )
    return "  ".join(cells).rstrip()


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - places(cell))
