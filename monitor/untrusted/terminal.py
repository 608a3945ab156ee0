"""Lines and tables for a terminal, without control characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monitor.untrusted.printable import one_line, printable

__all__ = ["Column", "counted", "plural", "shortened", "table", "text", "visible"]

TEXT_LIMIT = 1000
_NARROWEST = 12  # width of a column of names when the table must be narrow


def visible(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value that others chose, as part of a line."""
    return printable(str(value), limit)


def text(lines: Iterable[str]) -> str:
    """Finished lines as one text, safe to print: each stays one line."""
    return "\n".join(map(one_line, lines))


def shortened(name: str, width: int) -> str:
    """The name without its beginning when it is too long: the end of a path says more."""
    return name if len(name) <= width else f"\N{HORIZONTAL ELLIPSIS}{name[1 - width :]}"


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
        max(len(column.title), min(max(map(len, cells)), column.most or TEXT_LIMIT))
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
        cell.rjust(width) if column.is_number else shortened(cell, width).ljust(width)
        for column, cell, width in zip(columns, row, widths, strict=True)
    )
    return "  ".join(cells).rstrip()
