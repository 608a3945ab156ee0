"""All that the store has about an incident, in one object: for a report and for an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitor.incidents.search import (
    SAME_PROCESS_NS,
    Event,
    Filter,
    Incident,
    Incidents,
)
from monitor.incidents.store import nanoseconds
from monitor.report.occurrences import worst
from monitor.report.story import value
from monitor.symbols.resolver import Resolver

__all__ = ["Case", "Hour", "SeenOn", "Spread", "gather"]

SIMILAR = 8
_AMONG = 2000  # incidents to compare with, the last seen
_KINDS = ("denial", "fault", "seal", "bypass")


class SeenOn(NamedTuple):
    """A host of an incident. Times are Unix times in ns."""

    host: str
    host_id: str
    first_ns: int
    last_ns: int
    violations: int


class Hour(NamedTuple):
    """An hour of an incident's spread. `new_hosts`: on which it was seen for the first time."""

    start_ns: int
    hosts: int
    new_hosts: int
    violations: int


class Spread(NamedTuple):
    """Where an incident of a fleet was seen: its first hosts, and the last hours, both in order."""

    hosts: Sequence[SeenOn]
    hours: Sequence[Hour]


@dataclass(frozen=True)
class Case:
    """`timeline` is that of the worst event's process, each event with the id of its incident.

    `similar`: other incidents, each with what it has in common with this one.
    """

    incident: Incident
    events: Sequence[Event]
    snapshots: Sequence[Mapping[str, Any]]
    timeline: Sequence[tuple[Event, str]]
    similar: Sequence[tuple[Incident, str]]
    spread: Spread | None = None

    @property
    def event(self) -> Event:
        """The worst of the events that are kept, the last of several; empty if there is none."""
        return worst(self.events) or {}


def gather(
    incidents: Incidents, chosen: Sequence[Incident], resolver: Resolver | None = None
) -> list[Case]:
    """A case for each incident; a `resolver` adds names to the stacks.

    Raises IncidentError.
    """
    among = incidents.search(Filter(kinds=_KINDS), _AMONG)
    paths = _paths(among)
    cases = []
    for incident in chosen:
        events = [event for event in incidents.events(incident) if isinstance(event, dict)]
        timeline = _timeline(incidents, worst(events) or {})
        if resolver is not None:
            events = [_named(event, resolver, paths) for event in events]
            timeline = [(_named(event, resolver, paths), number) for event, number in timeline]
        snapshots = [each for each in incidents.snapshots(incident) if isinstance(each, dict)]
        cases.append(Case(incident, events, snapshots, timeline, _similar(incident, among)))
    return cases


def _paths(among: Sequence[Incident]) -> dict[str, str]:
    """The paths of the programs of these incidents, by base name; the last seen counts."""
    paths: dict[str, str] = {}
    for incident in among:
        for path in incident.facets["executable"]:
            if path.startswith("/"):
                paths.setdefault(path.rpartition("/")[2], path)
    return paths


def _named(event: Event, resolver: Resolver, paths: Mapping[str, str]) -> Event:
    """The event with names in its stack.

    Of a process that ended too soon only the base name is known. Then another run of the program
    shows where its file is, and the build id whether that is the same file.
    """
    name = value(event, "process", "executable")
    path = paths.get(name) if isinstance(name, str) else None
    if path is None:
        return resolver.resolve(event)
    found = resolver.resolve(event | {"process": event["process"] | {"executable": path}})
    return found | {"process": event["process"]}


def _timeline(incidents: Incidents, event: Event) -> list[tuple[Event, str]]:
    pid, start = value(event, "process", "pid"), value(event, "process", "start")
    if not isinstance(pid, int) or not isinstance(start, str):
        return []
    try:
        start_ns = nanoseconds(start)
    except (ValueError, OverflowError):  # not written by seal-monitor
        return []
    for process in incidents.processes(pid):
        same_boot = process.boot_id == value(event, "host", "boot_id")
        if same_boot and abs(process.start_ns - start_ns) <= SAME_PROCESS_NS:
            timeline = incidents.timeline(pid, process)
            return [(event, number) for event, number in timeline if isinstance(event, dict)]
    return []


def _similar(incident: Incident, among: Sequence[Incident]) -> list[tuple[Incident, str]]:
    """Similar incidents, those of the same program first."""
    programs = set(incident.facets["executable"])
    by_program, by_deed = [], []
    for other in among:
        if other.id == incident.id:
            continue
        if programs & set(other.facets["executable"]):
            by_program.append((other, "program"))
        elif (other.kind, other.what, other.mapping) == (
            *(incident.kind, incident.what, incident.mapping),
        ):
            by_deed.append((other, "violation, kind of memory"))
    return [*by_program[:SIMILAR], *by_deed[: max(SIMILAR - len(by_program), 0)]]
