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
    cases = []
    for incident in chosen:
        events = [event for event in incidents.events(incident) if isinstance(event, dict)]
        timeline = _timeline(incidents, last_whole(events))
        if resolver is not None:
            events = [resolver.resolve(event) for event in events]
            timeline = [(resolver.resolve(event), number) for event, number in timeline]
        snapshots = [each for each in incidents.snapshots(incident) if isinstance(each, dict)]
        cases.append(Case(incident, events, snapshots, timeline, _similar(incident, among)))
    return cases


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
