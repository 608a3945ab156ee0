"""What reports are made of: facts, frames, and values as text. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from monitor.evidence.events import timestamp
from monitor.incidents.search import Event
from monitor.incidents.store import nanoseconds
from monitor.report.story import Extent, value

__all__ = [
    "SECOND_NS",
    "Fact",
    "FrameRow",
    "clock",
    "flat",
    "frame_at",
    "moment",
    "most",
    "range_of",
    "span",
    "stack_rows",
    "text",
]

SECOND_NS = 1_000_000_000


class Fact(NamedTuple):
    """`code`: as it stands in a program or a file; `note` explains it."""

    label: str
    text: str
    code: str = ""
    note: str = ""


class FrameRow(NamedTuple):
    """`mark`: why a person should look at it."""

    function: str
    place: str
    build_id: str
    mark: str
    in_no_file: bool


# ---- Values --------------------------------------------------------------------------------------


def text(event: object, *path: str) -> str:
    """The value at the path as text; empty if there is none, or it is not a text or number."""
    found = value(event, *path)
    return str(found) if isinstance(found, str | int | float) else ""


def clock(ns: int) -> str:
    return f"{timestamp(ns, 0)[:19].replace('T', ' ')} UTC"


def moment(event: Event) -> int | None:
    try:
        return nanoseconds(text(event, "time"))
    except (ValueError, OverflowError):
        return None


def span(ns: int) -> str:
    """A span of time in words, to follow how often something happened."""
    seconds = ns // SECOND_NS
    for unit, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= unit:
            number = seconds // unit
            return f"over {number} {name}{'s' if number != 1 else ''}"
    return "within a second"


def range_of(part: Extent) -> str:
    return f"{part.start:#x}-{part.end:#x}"


def most(values: Mapping[str, int]) -> str:
    first, *others = values or {"": 0}
    return f"{first} and {len(others)} more" if others else first


def flat(given: object) -> str:
    """The value of an unknown field, in one line."""
    if isinstance(given, bool) or given is None:
        return {True: "yes", False: "no", None: "not known"}[given]
    if isinstance(given, str | int | float):
        return str(given)
    if isinstance(given, Mapping) and all(not isinstance(v, dict | list) for v in given.values()):
        return ", ".join(f"{str(k).replace('_', ' ')} {flat(v)}" for k, v in given.items())
    return json.dumps(given, ensure_ascii=True)


# ---- The stack -----------------------------------------------------------------------------------


def frame_row(frame: object, mark: str = "") -> FrameRow:
    module, offset = value(frame, "module"), value(frame, "offset")
    in_file = isinstance(module, str) and bool(module)
    place = text(frame, "address")
    if in_file and isinstance(offset, int):
        place = f"{module}+{offset:#x}"
    return FrameRow(text(frame, "symbol"), place, text(frame, "build_id"), mark, not in_file)


def frame_at(event: Event, address: str) -> FrameRow | None:
    stack = event.get("stack")
    for frame in stack if isinstance(stack, list) else ():
        if address and text(frame, "address") == address:
            return frame_row(frame)
    return None


def stack_rows(event: Event) -> list[FrameRow]:
    stack = event.get("stack")
    rows = []
    for index, frame in enumerate(stack if isinstance(stack, list) else ()):
        mark = ""
        if event.get("kind") == "fault":
            mark = "the access" if index == 0 else ""
        elif text(frame, "address") == text(event, "caller"):
            mark = "the caller"
        rows.append(frame_row(frame, mark))
    return rows
