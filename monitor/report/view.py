"""What a report says about an incident, in the order in which a person asks: pure functions.

They return plain values; only the templates make HTML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monitor.evidence.doubts import marked
from monitor.incidents.search import Event, Incident
from monitor.report import story
from monitor.report.cases import Case
from monitor.report.facts import lead, other_facts, what_facts, who_facts
from monitor.report.occurrences import Others, others
from monitor.report.picture import Picture, picture
from monitor.report.snapshot_view import SnapshotView, of_memory, of_process, snapshot_view
from monitor.report.spread import SpreadView, spread_view
from monitor.report.story import value
from monitor.report.text import (
    SECOND_NS,
    Fact,
    FrameRow,
    clock,
    flat,
    moment,
    most,
    stack_rows,
    text,
)

__all__ = ["Overview", "View", "overview", "view"]

TIMELINE_LIMIT = 200
FACET_LIMIT = 8
RAW_LIMIT = 1 << 16  # characters of an event, ten times as many as seal-monitor writes


class Step(NamedTuple):
    """A row of a timeline: an event, or several that say the same. `is_here`: the event belongs to
    this incident.
    """

    time: str
    after: str
    summary: str
    incident: str
    is_here: bool
    times: int = 1
    until: str = ""


@dataclass(frozen=True)
class View:
    id: str
    kind: str
    title: str
    severity: str
    lead: Sequence[str]
    figures: Sequence[Fact]
    spread: SpreadView | None
    others: Others | None
    time: str
    facts: Sequence[Fact]
    who: Sequence[Fact]
    picture: Picture | None
    stack: Sequence[FrameRow]
    stack_complete: bool
    steps: Sequence[Step]
    steps_left_out: int
    facets: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    similar: Sequence[tuple[Overview, str]]
    snapshot: SnapshotView | None
    raw: Sequence[str]
    raw_left_out: int


@dataclass(frozen=True)
class Overview:
    """A line of a table."""

    id: str
    title: str
    severity: str
    count: str
    last: str
    executable: str
    workload: str


# ---- The process over time -----------------------------------------------------------------------


def later_events(case: Case) -> list[Event]:
    then = text(case.event, "time")
    return [event for event, _ in case.timeline if text(event, "time") > then]


def _steps(case: Case) -> list[Step]:
    start = moment({"time": text(case.event, "process", "start")})
    steps: list[Step] = []
    for event, number in case.timeline:
        then = moment(event)
        after = ""
        if start is not None and then is not None:
            after = f"{(then - start) / SECOND_NS:+.3f} s"
        time, summary = _clock(event), _deed(event)
        last = steps[-1] if steps else None
        if last and (last.summary, last.incident) == (summary, number):
            steps[-1] = last._replace(times=last.times + 1, until=time[11:])
        else:
            steps.append(Step(time, after, summary, number, number == case.incident.id))
    return steps


def _deed(event: Event) -> str:
    """Its summary without what it probably is, which its own page explains."""
    words = (story.assessment(event) or ("", ""))[0].removesuffix(".")
    return text(event, "summary").removesuffix(f"; {words[:1].lower()}{words[1:]}")


def _clock(event: Event) -> str:
    """Its time in UTC, to the millisecond."""
    return text(event, "time")[:23].replace("T", " ")


# ---- All of it -----------------------------------------------------------------------------------

_FACETS = (
    *(("executable", "Programs"), ("workload", "Workloads"), ("user", "Users"), ("host", "Hosts")),
    *(("verdict", "Verdicts"), ("disposition", "Dispositions"), ("likely", "What it probably is")),
)


def _programs(incident: Incident) -> dict[str, int]:
    """How often which program, each with its marks."""
    facets = incident.facets
    return {marked(path, facets): number for path, number in facets["executable"].items()}


def _facets(incident: Incident) -> list[tuple[str, list[tuple[str, str]]]]:
    """The delivered events, counted by the values in which they differ."""
    found = []
    facets = {**incident.facets, "executable": _programs(incident)}
    for name, title in _FACETS:
        values = list(facets.get(name, {}).items())
        if len(values) > 1:
            shown = [(text, f"{number:,}") for text, number in values[:FACET_LIMIT]]
            rest = sum(number for _, number in values[FACET_LIMIT:])
            if rest:
                shown.append((f"{len(values) - FACET_LIMIT} more", f"{rest:,}"))
            found.append((title, shown))
    return found


def overview(incident: Incident) -> Overview:
    """A line of a table."""
    return Overview(
        incident.id,
        incident.title,
        incident.severity,
        f"{incident.count:,}",
        clock(incident.last_ns),
        most(_programs(incident)),
        most(incident.facets["workload"]),
    )


def _figures(incident: Incident) -> list[Fact]:
    held = ""
    if incident.suppressed:
        held = f"exact; {incident.suppressed:,} of them held back by the rate limit"
    count, first = Fact("Count", f"{incident.count:,}", "", held), clock(incident.first_ns)
    hosts = [] if incident.hosts is None else [Fact("Hosts", f"{incident.hosts:,}")]
    if incident.count == 1:
        return [count, *hosts, Fact("Seen", first)]
    return [count, *hosts, Fact("First seen", first), Fact("Last seen", clock(incident.last_ns))]


def _probably(event: Event) -> Fact:
    """What the assessment means; the story has its words, if this version knows them."""
    known, given = story.assessment(event), event.get("assessment")
    if known is None:
        return Fact("What it probably is", flat(given) if given else "")
    return Fact("What that means", known[1])


def view(case: Case, *, raw_limit: int, map_limit: int) -> View:
    """Everything that the page shows of an incident; of the raw events the last `raw_limit`."""
    incident, event = case.incident, case.event
    snapshot = of_memory(case)
    later = later_events(case)
    memory_map = value(snapshot, "memory_map")
    steps = _steps(case)
    if [(step.is_here, step.times) for step in steps] == [(True, 1)]:
        steps = []  # nothing but what the story says
    drawn = picture(
        event,
        memory_map if isinstance(memory_map, list) else (),
        value(snapshot, "memory_map_complete") is True,
    )
    what = [
        _probably(event),
        *what_facts(case),
        *other_facts(event),
    ]
    return View(
        id=incident.id,
        kind=text(event, "kind"),
        title=incident.title,
        severity=incident.severity,
        lead=[*lead(case, later)],
        figures=_figures(incident),
        spread=spread_view(incident, case.spread),
        others=others(case.events, hosts=case.spread is None),
        time=_clock(event),
        facts=[fact for fact in what if fact.text or fact.code],
        who=[fact for fact in who_facts(case, of_process(case)) if fact.text or fact.code],
        picture=drawn if drawn and len(drawn.bands) > 1 else None,  # one band shows nothing
        stack=stack_rows(event),
        stack_complete=event.get("stack_complete") is True,
        steps=steps[-TIMELINE_LIMIT:],
        steps_left_out=max(len(steps) - TIMELINE_LIMIT, 0),
        facets=_facets(incident),
        similar=[(overview(other), why) for other, why in case.similar],
        snapshot=snapshot_view(case, map_limit),
        raw=[
            json.dumps(each, indent=2, ensure_ascii=True)[:RAW_LIMIT]
            for each in reversed(case.events[-raw_limit:])
        ],
        raw_left_out=max(len(case.events) - raw_limit, 0),
    )
