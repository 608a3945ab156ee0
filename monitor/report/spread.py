"""On which hosts of a fleet an incident was seen, and on how many new ones when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monitor.incidents.search import Incident
from monitor.report.cases import Hour, Spread
from monitor.report.text import clock
from monitor.untrusted.terminal import counted

__all__ = ["HEIGHT", "WIDTH", "SpreadView", "spread_view"]

WIDTH, HEIGHT = 720, 96  # of the drawing, without what is written below it
HOSTS_SHOWN = 10
_BARS = 72
_HOUR_NS = 3_600_000_000_000


class Bar(NamedTuple):
    """`title`: what a pointer over it shows."""

    x: int
    y: int
    width: int
    height: int
    title: str


class HostRow(NamedTuple):
    host: str
    first: str
    last: str
    violations: str


@dataclass(frozen=True)
class SpreadView:
    """`most`: the number of hosts that the highest bar stands for."""

    lead: str
    hosts: Sequence[HostRow]
    left_out: int
    bars: Sequence[Bar]
    most: str
    start: str
    end: str


def spread_view(incident: Incident, spread: Spread | None) -> SpreadView | None:
    """None where the incident is of one host's own store."""
    if spread is None or not spread.hosts:
        return None
    first, every = spread.hosts[0], incident.hosts or len(spread.hosts)
    lead = f"First on {first.host}, at {clock(first.first_ns)}"
    lead += f"; by now on {counted(every, 'host')}." if every > 1 else ", and on no other host."
    shown = spread.hosts[:HOSTS_SHOWN]
    rows = [
        HostRow(seen.host, clock(seen.first_ns), clock(seen.last_ns), f"{seen.violations:,}")
        for seen in shown
    ]
    bars, most, start, end = _bars(spread.hours)
    return SpreadView(lead, rows, max(every - len(shown), 0), bars, f"{most:,}", start, end)


def _bars(hours: Sequence[Hour]) -> tuple[list[Bar], int, str, str]:
    """A bar for each period of as many hours as it takes to show all of them; none of one hour, and
    none where the new hosts were all before.
    """
    if len(hours) < 2 or not any(hour.new_hosts for hour in hours):
        return [], 0, "", ""
    begin, end = hours[0].start_ns, hours[-1].start_ns + _HOUR_NS
    periods = min((end - begin) // _HOUR_NS, _BARS)
    length = -(-(end - begin) // periods // _HOUR_NS) * _HOUR_NS
    new = [0] * periods
    for hour in hours:
        new[min((hour.start_ns - begin) // length, periods - 1)] += hour.new_hosts
    most = max(new)
    step = WIDTH // periods
    bars = []
    for place, number in enumerate(new):
        if number:
            height = max(HEIGHT * number // most, 2)
            title = f"{clock(begin + place * length)}: {counted(number, 'new host')}"
            bars.append(Bar(place * step, HEIGHT - height, max(step - 1, 1), height, title))
    return bars, most, clock(begin), clock(end)
