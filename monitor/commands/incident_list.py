"""What `seal-monitor incidents list` prints: a table where it fits, else two lines an incident."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

from monitor.evidence.doubts import marked
from monitor.evidence.events import Likely, timestamp
from monitor.incidents.search import Incident
from monitor.untrusted.terminal import (
    Column,
    counted,
    paragraph,
    places,
    plural,
    shortened,
    table,
    visible,
)

__all__ = ["Listing", "clock", "listed", "programs"]

_ORDERS = {"worst": "worst first", "last": "last seen first", "count": "most frequent first"}
_LEAST = 16  # of a terminal's columns that a name keeps in a table
_INDENT = " " * 4


class Listing(NamedTuple):
    """What was found. `totals`: how many match, by severity; `filters`: the flags that were given;
    `kept`: how many incidents there are without any of them.
    """

    incidents: Sequence[Incident]
    totals: Mapping[str, int]
    order: str
    filters: str
    kept: int


def clock(ns: int) -> str:
    """A time in UTC, to the second."""
    return timestamp(ns, 0)[:19].replace("T", " ")


def programs(incident: Incident) -> Mapping[str, int]:
    """How often which program, each with its marks."""
    facets = incident.facets
    return {marked(path, facets): count for path, count in facets["executable"].items()}


def _worst(likely: Mapping[str, int]) -> str:
    """Not the most common one: whoever makes an attack can make any number of lesser ones."""
    return next((name for name in get_args(Likely) if name in likely), "-")


def _most(values: Mapping[str, int]) -> str:
    """The most frequent value, and how many others there are."""
    first, *others = values or {"-": 0}
    return f"{visible(first)}{f' +{len(others)}' if others else ''}"


# ---- As a table ----------------------------------------------------------------------------------

# Title, whether it is a number, the cell.
_FACTS: Sequence[tuple[str, bool, Callable[[Incident], str]]] = (
    ("ID", False, lambda incident: incident.id),
    ("LAST SEEN (UTC)", False, lambda incident: clock(incident.last_ns)),
    ("COUNT", True, lambda incident: f"{incident.count:,}"),
    ("SEVERITY", False, lambda incident: incident.severity),
    ("LIKELY", False, lambda incident: _worst(incident.facets["likely"])),
)
_NAMES: Sequence[tuple[str, Callable[[Incident], Mapping[str, int]]]] = (
    ("EXECUTABLE", programs),
    ("WORKLOAD", lambda incident: incident.facets["workload"]),
    ("HOST", lambda incident: incident.facets["host"]),
)


def _facts(incidents: Sequence[Incident]) -> list[Column]:
    columns = [
        Column(title, [visible(cell(incident)) for incident in incidents], is_number)
        for title, is_number, cell in _FACTS
    ]
    numbers = [incident.hosts for incident in incidents if incident.hosts is not None]
    if len(numbers) == len(incidents):
        columns.insert(3, Column("HOSTS", [f"{number:,}" for number in numbers], True))
    return columns


def _names(incidents: Sequence[Incident]) -> list[Column]:
    """Columns of names; the hosts only where there are several, and of a fleet their number."""
    hosts = {host for incident in incidents for host in incident.facets["host"]}
    if any(incident.hosts is not None for incident in incidents):
        hosts.clear()
    return [
        Column(title, [_most(values(incident)) for incident in incidents])
        for title, values in _NAMES
        if title != "HOST" or len(hosts) > 1
    ]


def _narrowed(names: Sequence[Column], over: int) -> list[Column]:
    """The columns with `over` fewer of the terminal's columns, taken from the widest ones."""
    widths = [max(places(column.title), *map(places, column.cells)) for column in names]
    while over > 0 and max(widths) > _LEAST:
        widest = max(widths)
        rest = [width for width in widths if width < widest]
        many = len(widths) - len(rest)
        less = min(widest - max([_LEAST, *rest]), -(-over // many))
        widths = [width - less if width == widest else width for width in widths]
        over -= less * many
    return [column._replace(most=width) for column, width in zip(names, widths, strict=True)]


def _rows(incidents: Sequence[Incident], width: int | None) -> list[str]:
    """Titles and incidents, no line wider than `width`. A title is never cut."""
    facts, names = _facts(incidents), _names(incidents)
    what = Column("WHAT", [visible(incident.title) for incident in incidents])
    lines = table([*facts, what, *names])
    if width is None or max(map(places, lines)) <= width:
        return lines
    fixed = max(map(places, table([*facts, what])))
    wanted = sum(2 + max(places(c.title), *map(places, c.cells)) for c in names)
    lines = table([*facts, what, *_narrowed(names, fixed + wanted - width)])
    if max(map(places, lines)) <= width:
        return lines
    return _in_two_lines(table(facts), what, names, width)


def _in_two_lines(
    facts: Sequence[str], what: Column, names: Sequence[Column], width: int
) -> list[str]:
    """The facts in a line, and below it in words what happened, and where."""
    lines = [facts[0]]
    where = [column.cells for column in names]
    longest = width - len(_INDENT) - 1  # before a comma
    for line, title, *cells in zip(facts[1:], what.cells, *where, strict=True):
        known = [shortened(name, longest) for name in cells if name != "-"]
        words = ": ".join(filter(None, (title, ", ".join(known))))
        lines += [line, *paragraph(words, width, _INDENT)]
    return lines


# ---- All of it -----------------------------------------------------------------------------------


def _by_severity(totals: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {severity}" for severity, number in totals.items())


def _none(listing: Listing) -> str:
    if not listing.kept:
        return "no incident is kept"
    return f"no incident matches {listing.filters}; {listing.kept:,} of all kinds are kept"


def _footer(listing: Listing) -> str:
    shown, every = len(listing.incidents), sum(listing.totals.values())
    by = f" ({_by_severity(listing.totals)})" if len(listing.totals) > 1 else ""
    if shown == every:
        return f"{counted(every, 'incident')}{by}, {_ORDERS[listing.order]}"
    return (
        f"{shown:,} of {every:,} {plural('incident')}{by}, {_ORDERS[listing.order]}; "
        f"--limit {every} shows the rest"
    )


def listed(listing: Listing, width: int | None) -> list[str]:
    """The incidents, and how many there are; `width` is that of the terminal, None for no limit."""
    if not listing.incidents:
        return paragraph(_none(listing), width, "")
    return [*_rows(listing.incidents, width), "", *paragraph(_footer(listing), width, "")]
