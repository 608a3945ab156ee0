"""A list of checks with their status and remedy, and how it is shown to a person."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monitor.untrusted.printable import one_line

__all__ = ["STATUSES", "Row", "table", "verdict"]

STATUSES = ("ok", "degraded", "failed", "blind")
_COLOURS = {"ok": "\x1b[32m", "degraded": "\x1b[33m", "failed": "\x1b[1;31m", "blind": "\x1b[36m"}
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"


class Row(NamedTuple):
    """One check. Its status is one of STATUSES; blind: what happens there makes no event."""

    section: str
    check: str
    status: str
    finding: str
    remedy: str = ""


def verdict(found: Iterable[Row]) -> str:
    """The worst status. Blind spots do not count: they are not faults of the host."""
    statuses = {row.status for row in found}
    return next((status for status in ("failed", "degraded") if status in statuses), "ok")


def _summary(found: Sequence[Row]) -> str:
    count = {status: sum(row.status == status for row in found) for status in STATUSES}
    if count["failed"]:
        return f"This host cannot be monitored: {count['failed']} of {len(found)} checks failed."
    how = f"with limits: {count['degraded']} degraded" if count["degraded"] else "with full force"
    return f"This host can be monitored, {how}; {count['blind']} blind spots."


def table(found: Sequence[Row], width: int, colours: bool) -> str:
    """The rows for a person, by section; no line is longer than `width`."""
    checks = max(len(row.check) for row in found)
    statuses = max(map(len, STATUSES))
    indent = " " * (statuses + checks + 6)
    lines = []
    section = ""
    for row in found:
        if row.section != section:
            section = row.section
            lines += ["", f"{_BOLD}{section}{_RESET}" if colours else section]
        status = row.status.ljust(statuses)
        if colours:
            status = f"{_COLOURS[row.status]}{status}{_RESET}"
        texts = [row.finding, *([f"remedy: {row.remedy}"] if row.remedy else [])]
        wrapped = [
            line
            for text in texts
            for line in textwrap.wrap(one_line(text), width - len(indent), break_on_hyphens=False)
        ]
        lines.append(f"  {status}  {row.check.ljust(checks)}  {wrapped[0]}")
        lines += [indent + line for line in wrapped[1:]]
    return "\n".join([*lines[1:], "", _summary(found)])
