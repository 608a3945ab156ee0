"""What was measured, as one structure, and how it is shown: on a terminal, and as docs/cost.md."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

__all__ = [
    "Budget",
    "Report",
    "Section",
    "Table",
    "budget_table",
    "markdown",
    "replaced",
    "spread",
    "terminal",
]

WIDTH = 110


class Table(NamedTuple):
    """The first column is text, the others are figures. `note` stands below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Section(NamedTuple):
    heading: str
    text: Sequence[str]  # paragraphs
    tables: Sequence[Table]


class Report(NamedTuple):
    title: str
    text: Sequence[str]
    sections: Sequence[Section]


class Budget(NamedTuple):
    """A figure to hold. `why` explains it where it is missed.

    `slower`: of a time, how much slower this machine is than the one that set the limit; else 0.
    """

    what: str
    limit: float
    measured: float
    form: str  # of every figure
    why: str = ""
    slower: float = 0

    @property
    def scaled(self) -> float:
        return self.measured / self.slower if self.slower else self.measured

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit

    @property
    def result(self) -> str:
        if self.is_met:
            return "met"
        return "met when scaled" if self.scaled <= self.limit else "**missed**"


def spread(values: Sequence[float]) -> str:
    """Median, and half of the range that holds the middle half; `-` for less than two values."""
    if len(values) < 2:
        return "-"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.0f} ±{(high - low) / 2:,.0f}"


def budget_table(budgets: Iterable[Budget]) -> Table:
    """Budgets and what became of them; below, why some are missed."""
    rows, reasons = [], []
    for budget in budgets:
        limit, measured = budget.form.format(budget.limit), budget.form.format(budget.measured)
        scaled = budget.form.format(budget.scaled) if budget.slower else ""
        rows.append((budget.what, limit, measured, scaled, budget.result))
        if not budget.is_met and budget.why and budget.why not in reasons:
            reasons.append(budget.why)
    return Table("", ("", "at most", "measured", "scaled", ""), rows, "\n\n".join(reasons))


# ---- Terminal ------------------------------------------------------------------------------------


def _columns(table: Table) -> Iterator[str]:
    cells = [[cell.replace("**", "") for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table.header))]
    header, *rows = (
        "  ".join((row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:])))).rstrip()
        for row in cells
    )
    yield header
    yield "  ".join("-" * width for width in widths)
    yield from rows


def _paragraphs(text: Iterable[str]) -> Iterator[str]:
    for paragraph in filter(None, text):
        yield ""
        yield textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def terminal(section: Section) -> str:
    lines = ["", f"== {section.heading} =="]
    lines += [line.replace("`", "") for line in _paragraphs(section.text)]
    for table in section.tables:
        lines += ["", table.title] if table.title else []
        lines += ["", *_columns(table)]
        lines += [line.replace("`", "") for line in _paragraphs(table.note.split("\n\n"))]
    return "\n".join(lines)


# ---- Markdown ------------------------------------------------------------------------------------


def _row(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from ("", f"### {table.title}")
    yield ""
    yield _row(table.header)
    yield "|---" + "|---:" * (len(table.header) - 1) + "|"
    yield from map(_row, table.rows)
    yield from _paragraphs(table.note.split("\n\n"))


def _section(section: Section) -> str:
    lines = [f"## {section.heading}", *_paragraphs(section.text)]
    for table in section.tables:
        lines += _table(table)
    return "\n".join(lines) + "\n"


def markdown(report: Report) -> str:
    """The whole page."""
    head = "\n".join([f"# {report.title}", *_paragraphs(report.text)]) + "\n"
    return "\n".join([head, *map(_section, report.sections)])


def replaced(page: str, section: Section) -> str:
    """The page with this section in place of the one with its heading. Raises ValueError."""
    start = page.index(f"## {section.heading}\n")
    end = page.find("\n## ", start)
    return page[:start] + _section(section) + (page[end:] if end >= 0 else "")
