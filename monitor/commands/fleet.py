"""`seal-monitor fleet`: the incidents of all hosts, from the database of the centre.

What is printed, and the page, are those of `seal-monitor incidents`. The database holds what
processes on many hosts say of themselves: every value passes `printable` on its way to a terminal,
and every finished line again.
"""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monitor.commands.incident_list import Listing, clock, listed
from monitor.commands.incidents import (
    KINDS,
    filters_given,
    filters_of,
    moment,
    one,
    order_of,
    shown,
    write_output,
)
from monitor.configuration.config import ConfigError
from monitor.evidence.events import timestamp
from monitor.fleet.database import opened
from monitor.fleet.incidents import FleetIncidents
from monitor.incidents.search import Event, Filter, Incident, IncidentError, as_object
from monitor.report.cases import Case, SeenOn, Spread
from monitor.symbols.resolver import Resolver
from monitor.untrusted import terminal
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import Column, counted, table, visible, width_of_output

__all__ = ["run"]

URL, PASSWORD = "SEAL_MONITOR_FLEET", "SEAL_MONITOR_FLEET_PASSWORD"
_PASSWORD_LIMIT = 4096
_HOURS = 24 * 14
_PAGE_HOSTS = 100
_SIMILAR = 8


def _password(file: Path | None) -> str | None:
    """The first line of the file, else of the environment; None where neither has one."""
    if file is None:
        return os.environ.get(PASSWORD)
    with file.open("rb") as opened_file:
        line = opened_file.read(_PASSWORD_LIMIT).partition(b"\n")[0]
    return line.decode("utf-8", "surrogateescape")


def _connect(arguments: Namespace) -> FleetIncidents:
    url = arguments.url or os.environ.get(URL)
    if not url:
        raise ConfigError(
            f"command line: no database is named; write --from URL, or set {URL} in the environment"
        )
    password = _password(arguments.password_file)
    return FleetIncidents(opened(url, password, on_command_line=arguments.url is not None))


def _one(incidents: FleetIncidents, given: str) -> Incident:
    return one(incidents.find, given, "fleet")


def _print(lines: Sequence[str], document: object, as_json: bool) -> int:
    print(json.dumps(document, indent=2) if as_json else terminal.text(lines))
    return 0


# ---- Text ----------------------------------------------------------------------------------------


def _host_object(seen: SeenOn) -> dict[str, object]:
    return {
        "host": seen.host,
        "host_id": seen.host_id,
        "first_seen": timestamp(seen.first_ns, 0),
        "last_seen": timestamp(seen.last_ns, 0),
        "count": seen.violations,
    }


def _hosts_lines(incident: Incident, hosts: Sequence[SeenOn], width: int | None) -> list[str]:
    rows = table(
        [
            Column("FIRST SEEN (UTC)", [clock(seen.first_ns) for seen in hosts]),
            Column("LAST SEEN (UTC)", [clock(seen.last_ns) for seen in hosts]),
            Column("COUNT", [f"{seen.violations:,}" for seen in hosts], True),
            Column("HOST", [visible(seen.host) for seen in hosts]),
            Column("ID", [visible(seen.host_id) for seen in hosts]),
        ],
        width,
    )
    every = incident.hosts or 0
    more = "" if len(hosts) >= every else f"; --limit {every} shows the rest"
    return [*rows, "", f"{len(hosts):,} of {counted(every, 'host')}, the first one first{more}"]


# ---- The commands --------------------------------------------------------------------------------


def _list(arguments: Namespace, incidents: FleetIncidents) -> int:
    filters, by = filters_of(arguments), order_of(arguments)
    found = incidents.search(filters, arguments.limit, by)
    totals = incidents.totals(filters)
    kept = sum(incidents.totals(Filter(kinds=KINDS["all"])).values()) if not found else 1
    listing = Listing(found, totals, by, filters_given(arguments), kept)
    return _print(listed(listing, width_of_output()), [as_object(i) for i in found], arguments.json)


def _show(arguments: Namespace, incidents: FleetIncidents) -> int:
    found = _one(incidents, arguments.id)
    every = incidents.events(found)
    events = [event for event in every if _is_shown(found, event)]
    lines = shown(found, events, (), width_of_output())
    if others := len(every) - len(events):
        lines += ["", f"{counted(others, 'event')} of this incident: not written by seal-monitor"]
    return _print(lines, as_object(found) | {"events": every}, arguments.json)


def _is_shown(incident: Incident, event: Event) -> bool:
    """Whether an event is as seal-monitor writes it: one host may not hide what others report."""
    try:
        shown(incident, [event])
    except IncidentError:
        return False
    return True


def _hosts(arguments: Namespace, incidents: FleetIncidents) -> int:
    found = _one(incidents, arguments.id)
    hosts = incidents.hosts(found, arguments.limit)
    document = as_object(found) | {"on": [*map(_host_object, hosts)]}
    return _print(_hosts_lines(found, hosts, width_of_output()), document, arguments.json)


def _timeline(arguments: Namespace, incidents: FleetIncidents) -> int:
    now = time.time_ns()
    since = moment("--since", arguments.since, now)
    until = moment("--until", arguments.until, now)
    deeds = incidents.timeline(arguments.host, since, until, arguments.limit)
    if not deeds:
        raise IncidentError(f"no event of host {printable(arguments.host)} is there")
    document = [
        {
            "time": timestamp(deed.time_ns, 0),
            "kind": deed.kind,
            "severity": deed.severity,
            "incident": deed.incident,
            "summary": deed.summary,
        }
        for deed in deeds
    ]
    lines = [
        f"{clock(deed.time_ns)}  {visible(deed.severity):<8}  {visible(deed.kind):<8}  "
        f"{visible(deed.incident):<12}  "
        f"{visible(deed.summary)}"
        for deed in deeds
    ]
    if len(deeds) == arguments.limit:
        lines += ["", f"the first {counted(len(deeds), 'event')}; --limit and --since show others"]
    return _print(lines, document, arguments.json)


def _case(incidents: FleetIncidents, found: Incident, resolver: Resolver) -> Case:
    events = [resolver.resolve(event) for event in incidents.events(found)]
    similar = [(other, "program") for other in incidents.similar(found, _SIMILAR)]
    spread = Spread(incidents.hosts(found, _PAGE_HOSTS), incidents.spread(found, _HOURS))
    return Case(found, events, (), (), similar, spread)


def _report(arguments: Namespace, incidents: FleetIncidents) -> int:
    from monitor.report import page as report  # noqa: PLC0415 - only this command needs templates

    if arguments.id is None:
        filters = filters_of(arguments)
        found = incidents.search(filters, arguments.limit, order_of(arguments))
        every = sum(incidents.totals(filters).values())
    else:
        found, every = [_one(incidents, arguments.id)], 1
    with Resolver(os.environ) as resolver:
        cases = [_case(incidents, each, resolver) for each in found]
    write_output(arguments.output_file, report.page(cases, every=every))
    return 0


_COMMANDS: Mapping[str, Callable[[Namespace, FleetIncidents], int]] = {
    "list": _list,
    "show": _show,
    "hosts": _hosts,
    "timeline": _timeline,
    "report": _report,
}


def run(arguments: Namespace) -> int:
    """Print or write what `arguments` ask for; returns 0.

    Raises IncidentError, ConfigError, OSError.
    """
    with _connect(arguments) as incidents:
        return _COMMANDS[arguments.verb](arguments, incidents)
