"""Which of an incident's events its page is about: the worst one, and how the others differ.

Pure functions of events as they are stored; any field may be missing, or of another type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitor.evidence.memory_map import DELETED
from monitor.incidents.search import Event
from monitor.incidents.stored import rank_of
from monitor.report import story
from monitor.report.story import value
from monitor.report.text import flat, text

__all__ = ["Others", "others", "whole", "worst"]

_ADDRESSES = frozenset({"addr", "start", "size", "len", "length"})
_KILLED = ("default", "handler_failed")


class Others(NamedTuple):
    """How the kept events compare with the worst one: `alike` of `kept` are like it.

    `most` others have the most in common with each other, and differ from the worst one in
    `differences`: label, their value, the worst one's value. None if all are alike.
    """

    kept: int
    alike: int
    most: int
    differences: Sequence[tuple[str, str, str]]


def whole(events: Sequence[Event]) -> list[Event]:
    """Those that are not suppressions, which say nothing of what was done."""
    return [event for event in events if event.get("kind") != "suppression"]


def worst(events: Sequence[Event]) -> Event | None:
    """By severity, proof, change and death; of equal ones the last. A suppression if all are."""
    found = whole(events) or list(events)
    return max(reversed(found), key=_weight) if found else None


def _weight(event: Event) -> tuple[int, bool, bool]:
    return (
        rank_of(text(event, "severity"), text(event, "verdict")),
        story.changed(event) is not None,
        text(event, "disposition") in _KILLED,
    )


def others(events: Sequence[Event], hosts: bool = True) -> Others | None:
    """None where there is nothing to compare. `hosts`: whether another host is a difference."""
    found, first = whole(events), worst(events)
    if first is None or len(found) < 2:
        return None
    shapes = Counter(_shape(event, hosts) for event in reversed(found))
    own = _shape(first, hosts)
    alike = shapes.pop(own, 0)
    if not shapes:
        return Others(len(found), alike, 0, ())
    ((other, most),) = shapes.most_common(1)
    differences = [
        (label, theirs or "not known", its or "not known")
        for (label, theirs), (_, its) in zip(other, own, strict=True)
        if theirs != its
    ]
    return Others(len(found), alike, most, differences)


def _shape(event: Event, hosts: bool) -> tuple[tuple[str, str], ...]:
    """What a person would compare: no address, no number of a process."""
    arguments = value(event, "arguments")
    given = {
        name: each
        for name, each in (arguments if isinstance(arguments, Mapping) else {}).items()
        if story.address(each) is None and name not in _ADDRESSES
    }
    mapping = event.get("sealed") or event.get("mapping")
    words = (story.assessment(event) or ("", ""))[0]
    program = text(event, "process", "executable") or text(event, "process", "name")
    changed = story.changed(event)
    return (
        ("Severity", text(event, "severity")),
        ("What it probably is", words),
        ("Verdict", " ".join(filter(None, (text(event, "verdict"), text(event, "reason"))))),
        ("Asked for", ", ".join(f"{name} {flat(each)}" for name, each in given.items())),
        ("Access", text(event, "access")),
        ("Memory", f"{story.place(mapping)} {text(mapping, 'permissions')}" if mapping else ""),
        ("Changed", "a part of it" if changed else "nothing"),
        ("What became of the process", story.ending(event) or ""),
        ("Program", program.removesuffix(DELETED).rpartition("/")[2]),
        ("User", text(event, "process", "user_name") or text(event, "process", "uid")),
        ("Belongs to", text(event, "workload", "unit") or text(event, "workload", "cgroup")),
        *((("Host", text(event, "host", "name")),) if hosts else ()),
    )
