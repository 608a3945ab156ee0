"""What a soak prints: tables of the daemon's lives, and of what was checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from monitor.metrics.accounts import RESULTS

__all__ = ["Check", "Row", "checks", "lives"]

Check = tuple[str, str, str, bool]  # what, found, must be, ok


class Row(NamedTuple):
    """A row of the table: one life of the daemon."""

    name: str
    seconds: float
    counted: dict[str, int]
    results: Counter[str]
    matched: str
    scrapes: int
    slowest: float
    reloads: int
    canaries: int
    cpu: float
    ready: list[float]  # seconds, of each process that it consisted of


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _between(seconds: Sequence[float]) -> str:
    least, most = min(seconds), max(seconds)
    return f"{least:.2f} s" if least == most else f"{least:.2f} to {most:.2f} s"


def lives(rows: Sequence[Row]) -> str:
    return table(
        [
            *("life", "seconds", "denials", "faults", "seals", "bypasses", *RESULTS),
            *("as provoked", "scrapes", "slowest", "reloads", "canaries", "CPU"),
            *("processes", "ready after"),
        ],
        [
            [
                *(row.name, f"{row.seconds:.0f}", *row.counted.values()),
                *(row.results[result] for result in RESULTS),
                *(row.matched, row.scrapes, f"{1000 * row.slowest:.0f} ms"),
                *(row.reloads, row.canaries, f"{row.cpu:.1f} %"),
                *(len(row.ready), _between(row.ready)),
            ]
            for row in rows
        ],
    )


def checks(made: Sequence[Check]) -> str:
    return table(
        ["what", "found", "must be", ""],
        [[what, found, wanted, "ok" if ok else "WRONG"] for what, found, wanted, ok in made],
    )
