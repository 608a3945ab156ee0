"""All that the store knows of an incident, in one place: for a report and for an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.incident_search import (
    SAME_PROCESS_NS,
    Event,
    Filter,
    Incident,
    Incidents,
)
from monitor.incidents import nanoseconds
from monitor.story import value
from monitor.symbols import Resolver

__all__ = ["Case", "gather"]

SIMILAR = 8
_AMONG = 2000  # incidents, those last seen
_KINDS = ("denial", "fault", "seal", "bypass")


@dataclass(frozen=True)
class Case:
    """`timeline` is that of the last event's process, each event with the id of its incident.

    `similar`: other incidents, each with what it has in common with this one.
    """

    incident: Incident
    events: Sequence[Event]
    snapshots: Sequence[Mapping[str, Any]]
    timeline: Sequence[tuple[Event, str]]
    similar: Sequence[tuple[Incident, str]]

    @property
    def event(self) -> Event:
        """The last that is whole; else the last suppression; empty when none is kept."""
        return last_whole(self.events)


def last_whole(events: Sequence[Event]) -> Event:
    whole = [event for event in events if event.get("kind") != "suppression"]
    return (whole or [*events] or [{}])[-1]


def gather(
    incidents: Incidents, chosen: Sequence[Incident], resolver: Resolver | None = None
) -> list[Case]:
    """A case for each, its stacks with names where a `resolver` finds them.

    Raises IncidentError.
    """
    among = incidents.search(Filter(kinds=_KINDS), _AMONG)
    paths = _paths(among)
    cases = []
    for incident in chosen:
        events = [event for event in incidents.events(incident) if isinstance(event, dict)]
        timeline = _timeline(incidents, last_whole(events))
        if resolver is not None:
            events = [_named(event, resolver, paths) for event in events]
            timeline = [(_named(event, resolver, paths), number) for event, number in timeline]
        snapshots = [each for each in incidents.snapshots(incident) if isinstance(each, dict)]
        cases.append(Case(incident, events, snapshots, timeline, _similar(incident, among)))
    return cases


def _paths(among: Sequence[Incident]) -> dict[str, str]:
    """Where programs lay that have been seen, by base name; the last seen first."""
    paths: dict[str, str] = {}
    for incident in among:
        for path in incident.facets["executable"]:
            if path.startswith("/"):
                paths.setdefault(path.rpartition("/")[2], path)
    return paths


def _named(event: Event, resolver: Resolver, paths: Mapping[str, str]) -> Event:
    """With names in its stack.

    Of a process that was gone too soon only the base name is known: another run of the program
    tells where its file lies. The build id tells whether it is the same file.
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
    except (ValueError, OverflowError):  # none of our own making
        return []
    for process in incidents.processes(pid):
        same_boot = process.boot_id == value(event, "host", "boot_id")
        if same_boot and abs(process.start_ns - start_ns) <= SAME_PROCESS_NS:
            timeline = incidents.timeline(pid, process)
            return [(event, number) for event, number in timeline if isinstance(event, dict)]
    return []


def _similar(incident: Incident, among: Sequence[Incident]) -> list[tuple[Incident, str]]:
    """The same program's come first."""
    programs = set(incident.facets["executable"])
    by_program, by_deed = [], []
    for other in among:
        if other.id == incident.id:
            continue
        if programs & set(other.facets["executable"]):
            by_program.append((other, "same program"))
        elif (other.kind, other.what, other.mapping) == (
            *(incident.kind, incident.what, incident.mapping),
        ):
            by_deed.append((other, "same deed, same kind of memory"))
    return [*by_program[:SIMILAR], *by_deed[: max(SIMILAR - len(by_program), 0)]]
