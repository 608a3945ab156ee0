"""What a report says of an incident, in the order in which a person asks: pure functions.

Plain values for the templates, which alone make HTML of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitor import story
from monitor.address_picture import Picture, picture
from monitor.cases import Case
from monitor.events import timestamp
from monitor.incident_search import Event, Incident
from monitor.incidents import nanoseconds
from monitor.story import Extent, extent, size, value

__all__ = ["Overview", "View", "overview", "view"]

TIMELINE_LIMIT = 200
FACET_LIMIT = 8
RAW_LIMIT = 1 << 16  # characters of an event; one of our own has a tenth
_SECOND_NS = 1_000_000_000


class Fact(NamedTuple):
    """`code`: as it stands in a program or a file; `note` explains it."""

    label: str
    text: str
    code: str = ""
    note: str = ""


class Step(NamedTuple):
    """Of a timeline. `is_here`: of this incident."""

    time: str
    after: str
    kind: str
    summary: str
    incident: str
    is_here: bool


class FrameRow(NamedTuple):
    """`mark`: why a person should look at it."""

    function: str
    place: str
    build_id: str
    mark: str
    in_no_file: bool


class MapRow(NamedTuple):
    range: str
    permissions: str
    size: str
    what: str
    marks: str
    is_hit: bool


@dataclass(frozen=True)
class SnapshotView:
    time: str
    rows: Sequence[MapRow]
    left_out: int
    is_complete: bool
    facts: Sequence[Fact]
    limits: Sequence[tuple[str, str, str]]
    modules: Sequence[tuple[str, str, str]]
    others: int


@dataclass(frozen=True)
class View:
    id: str
    kind: str
    title: str
    severity: str
    lead: Sequence[str]
    figures: Sequence[Fact]
    is_repeated: bool
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


# ---- Values --------------------------------------------------------------------------------------


def _text(event: object, *path: str) -> str:
    """What lies there as text; empty for nothing, and for what is no text or number."""
    found = value(event, *path)
    return str(found) if isinstance(found, str | int | float) else ""


def _time(ns: int) -> str:
    return f"{timestamp(ns, 0)[:19].replace('T', ' ')} UTC"


def _moment(event: Event) -> int | None:
    try:
        return nanoseconds(_text(event, "time"))
    except (ValueError, OverflowError):
        return None


def _span(ns: int) -> str:
    seconds = ns // _SECOND_NS
    for unit, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= unit:
            number = seconds // unit
            return f"{number} {name}{'s' if number != 1 else ''}"
    return "less than a second"


def _range(part: Extent) -> str:
    return f"{part.start:#x}-{part.end:#x}"


def _most(values: Mapping[str, int]) -> str:
    first, *others = values or {"": 0}
    return f"{first} and {len(others)} more" if others else first


def _flat(given: object) -> str:
    """A field of which nothing is known, in one line."""
    if isinstance(given, bool) or given is None:
        return {True: "yes", False: "no", None: "not known"}[given]
    if isinstance(given, str | int | float):
        return str(given)
    if isinstance(given, Mapping) and all(not isinstance(v, dict | list) for v in given.values()):
        return ", ".join(f"{str(k).replace('_', ' ')} {_flat(v)}" for k, v in given.items())
    return json.dumps(given, ensure_ascii=True)


# ---- Who -----------------------------------------------------------------------------------------


def _user(event: Event) -> str:
    name, uid = _text(event, "process", "user_name"), _text(event, "process", "uid")
    return f"{name} (uid {uid})" if name and uid else name or (f"uid {uid}" if uid else "")


def _workload(event: Event) -> str:
    parts = (
        ("unit", _text(event, "workload", "unit")),
        ("pod", _text(event, "workload", "pod_uid")),
        ("container", _text(event, "workload", "container_id")),
    )
    told = [f"{name} {text}" for name, text in parts if text]
    return ", ".join(told) or _text(event, "workload", "cgroup")


def _program(event: Event) -> str:
    path = _text(event, "process", "executable")
    name = path.removesuffix(" (deleted)").rpartition("/")[2]
    return name or _text(event, "process", "name") or "a process"


def _who(event: Event) -> str:
    pid, user = _text(event, "process", "pid"), _text(event, "process", "user_name")
    unit = _text(event, "workload", "unit")
    words = [_program(event), f"(pid {pid})" if pid else "", f"of {unit}" if unit else ""]
    return " ".join(filter(None, words)) + (f", run by {user}," if user else "")


def _parents(case: Case, snapshot: Mapping[str, Any] | None) -> str:
    chain = value(snapshot, "parents")
    if isinstance(chain, list) and chain:
        return " ← ".join(
            f"{_text(each, 'executable') or _text(each, 'name')} (pid {_text(each, 'pid')})"
            for each in chain
        )
    parent = _text(case.event, "process", "parent_pid")
    return f"pid {parent}" if parent else ""


def _who_facts(case: Case, snapshot: Mapping[str, Any] | None) -> Iterator[Fact]:
    event = case.event
    if not isinstance(event.get("process"), Mapping):
        return
    tid, pid = _text(event, "process", "tid"), _text(event, "process", "pid")
    thread = f", thread {tid}" if tid and tid != pid else ""
    inner = _text(event, "process", "vpid")
    within = f", {inner} in its own namespace" if inner and inner != pid else ""
    started = _text(event, "process", "start")[:19].replace("T", " ")
    yield Fact(
        "Process",
        f"{_text(event, 'process', 'name')}, pid {pid}{thread}{within}"
        + (f", started {started} UTC" if started else ""),
    )
    yield Fact("Program", "", _text(event, "process", "executable"))
    yield Fact("Command line", "", _text(event, "process", "command_line"))
    yield Fact("User", _user(event))
    yield Fact("Belongs to", _workload(event))
    yield Fact("Started by", _parents(case, snapshot))
    release = _text(event, "host", "kernel_release")
    yield Fact("Host", _text(event, "host", "name") + (f", Linux {release}" if release else ""))


# ---- What ----------------------------------------------------------------------------------------

_ACCESS = {"read": "read from", "write": "wrote to", "execute": "tried to execute"}
_FATE = {
    "default": "and was killed by SIGSEGV",
    "handler": "and got SIGSEGV in a handler of its own",
    "handler_failed": "and was killed by SIGSEGV: its handler could not run",
}


def _did(case: Case) -> str:
    """The first sentence."""
    event = case.event
    host = _text(event, "host", "name")
    on = f"On {host}, " if host else ""
    match event.get("kind"):
        case "denial":
            operation = _text(event, "operation")
            sealed = event.get("sealed")
            memory = f"sealed memory ({_short_place(sealed)})" if sealed else "memory"
            outcome = {
                "sealed": "was refused",
                "unverified": "was refused, perhaps by a seal",
            }.get(_text(event, "verdict"), "was refused, but not by a seal")
            hidden = " without being told" if event.get("hidden") else ""
            deed = f"called {operation} on {memory} and {outcome}{hidden}"
        case "fault":
            access = _ACCESS.get(_text(event, "access"), "touched")
            hit = story.hit(event)
            fate = _FATE.get(_text(event, "disposition"), "")
            deed = f"{access} {hit} {fate}"
        case "seal":
            about = story.asked(event)
            length = f"{size(about.end - about.start)} of " if about else ""
            memory = f"its memory ({_short_place(event.get('mapping'))})"
            deed = f"sealed {length}{memory} for the rest of its life"
        case "suppression":
            name = _text(event, "process", "name")
            by = f" of {name} (pid {_text(event, 'process', 'pid')})" if name else ""
            return (
                f"{on}{case.incident.count:,} {_text(event, 'of')}s{by} were counted while the "
                "rate limit held back their events. No event of theirs is kept."
            )
        case _:
            return case.incident.summary
    return f"{on}{_who(event)} {deed}."


def _short_place(mapping: object) -> str:
    return story.place(mapping).rpartition("/")[2]


def _lead(case: Case, later: Sequence[Event]) -> list[str]:
    """The story in a few sentences, a paragraph each."""
    event, incident = case.event, case.incident
    deed = story.would(event) or ""
    if part := story.changed(event):
        deed += (
            f" The {size(part.end - part.start)} before the seal were changed all the same, before "
            "the kernel came to the seal."
        )
    elif event.get("kind") == "denial":
        deed += " Nothing was changed."
    after = story.ending(event, later) if event.get("kind") == "denial" else None
    sentences = [_did(case), deed.strip(), after if after and "killed" in after else ""]
    if incident.count > 1:
        span = _span(incident.last_ns - incident.first_ns)
        sentences.append(f"It has happened {incident.count:,} times, over {span}.")
    return [sentence for sentence in sentences if sentence]


def _mapping_text(mapping: object) -> tuple[str, str]:
    """What it is, and its range and permissions."""
    where = extent(mapping)
    path, offset = value(mapping, "file", "path"), value(mapping, "file", "offset")
    kind = story.place(mapping)
    if isinstance(path, str) and isinstance(offset, int):
        kind = f"{kind}, from offset {offset:#x}"
    length = f" ({size(where.end - where.start)})" if where else ""
    span = _range(where) if where else f"{_text(mapping, 'start')}-{_text(mapping, 'end')}"
    return kind, f"{span} {_text(mapping, 'permissions')}{length}"


def _sealed_when(case: Case) -> str:
    """When, and by whom, what refused the call was sealed."""
    sealed = extent(case.event.get("sealed") or case.event.get("mapping"))
    if sealed is None:
        return ""
    for event, _ in reversed(case.timeline):
        where = story.asked(event) if event.get("kind") == "seal" else None
        if where and where.start < sealed.end and sealed.start < where.end:
            began, then = _text(event, "process", "start"), _moment(event)
            after = ""
            if then is not None and (start := _moment({"time": began})) is not None:
                after = f", {(then - start) / _SECOND_NS:.3f} s after its start"
            frame = _frame_at(event, _text(event, "caller"))
            by = f", by {frame.function or frame.place}" if frame else ""
            return f"Sealed at {_text(event, 'time')[:23].replace('T', ' ')} UTC{after}{by}."
    return (
        "No event tells when it was sealed: that takes events.seals, or it was sealed before the "
        "monitor ran, by the kernel, or in the process that this one was forked from."
    )


def _what_facts(case: Case, later: Sequence[Event]) -> Iterator[Fact]:
    event = case.event
    kind = event.get("kind")
    if kind == "denial":
        yield Fact("Asked for", "", story.call(event), story.would(event) or "")
        yield Fact("Was told", story.result(event))
        yield _by_whom("Called by", event, _text(event, "caller"))
        if event.get("sealed"):
            what, where = _mapping_text(event["sealed"])
            yield Fact("The seal", what, where, _sealed_when(case))
        yield Fact("How it is known", story.proof(event) or "", "", _verdict(event))
        part = story.changed(event)
        yield Fact(
            "Changed before the refusal",
            f"{size(part.end - part.start)}: this part stays changed although the call failed."
            if part
            else "Nothing.",
            _range(part) if part else "",
        )
        if event.get("compat"):
            yield Fact("Caller", "A 32-bit program, or a 32-bit call of a 64-bit one.")
    elif kind == "fault":
        yield Fact("Hit", story.what(event) or "", _text(event, "address"), _text(event, "access"))
        yield _by_whom("By", event, _text(event, "instruction_pointer"))
        mapping = event.get("mapping")
        if mapping:
            what, where = _mapping_text(mapping)
            note = _sealed_when(case) if value(mapping, "sealed") is True else ""
            yield Fact("What lies there", what, where, note)
        else:
            yield Fact("What lies there", "Nothing is mapped at this address.")
        yield Fact("How it is known", story.proof(event) or "")
    elif kind == "seal":
        about = story.asked(event)
        what, where = _mapping_text(event.get("mapping"))
        yield Fact("Sealed", what, _range(about) if about else where)
    elif kind == "health":
        yield Fact("Told", _text(event, "message"))
        yield Fact(
            "Blind for",
            f"{_text(event, 'blind_seconds')} s" if _text(event, "blind_seconds") else "",
        )
    yield Fact("What became of the process", story.ending(event, later) or "")


def _by_whom(label: str, event: Event, address: str) -> Fact:
    """The code that did it."""
    frame = _frame_at(event, address)
    if frame is None:
        return Fact(label, "")
    if frame.in_no_file:
        return Fact(label, "", frame.place, "Code in no file: of a JIT, or put there by somebody.")
    return Fact(label, "", frame.function or frame.place, frame.place if frame.function else "")


def _verdict(event: Event) -> str:
    reason = _text(event, "reason")
    return f"verdict {_text(event, 'verdict')}" + (f", reason {reason}" if reason else "")


# Fields that are told elsewhere on the page.
_TOLD = frozenset(
    (
        *("schema", "id", "time", "time_boot_ns", "kind", "severity", "summary", "host", "process"),
        *("workload", "operation", "arguments", "verdict", "reason", "role", "sealed", "hidden"),
        *("partial_update", "compat", "instruction_pointer", "caller", "stack", "stack_complete"),
        *("cause", "inferred", "access", "address", "mapping", "disposition", "start", "length"),
        *("pkey", "signal_code", "assessment", "message", "blind_seconds", "event"),
    )
)


def _other_facts(event: Event) -> Iterator[Fact]:
    """Fields that this version knows nothing of."""
    for name, given in event.items():
        if name not in _TOLD:
            yield Fact(str(name).replace("_", " ").capitalize(), _flat(given))


# ---- The stack -----------------------------------------------------------------------------------


def _row(frame: object, mark: str = "") -> FrameRow:
    module, offset = value(frame, "module"), value(frame, "offset")
    in_file = isinstance(module, str) and bool(module)
    place = _text(frame, "address")
    if in_file and isinstance(offset, int):
        place = f"{module}+{offset:#x}"
    return FrameRow(_text(frame, "symbol"), place, _text(frame, "build_id"), mark, not in_file)


def _frame_at(event: Event, address: str) -> FrameRow | None:
    stack = event.get("stack")
    for frame in stack if isinstance(stack, list) else ():
        if address and _text(frame, "address") == address:
            return _row(frame)
    return None


def _stack(event: Event) -> list[FrameRow]:
    stack = event.get("stack")
    rows = []
    for index, frame in enumerate(stack if isinstance(stack, list) else ()):
        mark = ""
        if event.get("kind") == "fault":
            mark = "the access" if index == 0 else ""
        elif _text(frame, "address") == _text(event, "caller"):
            mark = "the caller"
        rows.append(_row(frame, mark))
    return rows


# ---- The process over time -----------------------------------------------------------------------


def _later(case: Case) -> list[Event]:
    then = _text(case.event, "time")
    return [event for event, _ in case.timeline if _text(event, "time") > then]


def _steps(case: Case) -> list[Step]:
    start = _moment({"time": _text(case.event, "process", "start")})
    steps = []
    for event, number in case.timeline:
        then = _moment(event)
        after = ""
        if start is not None and then is not None:
            after = f"+{(then - start) / _SECOND_NS:.3f} s"
        steps.append(
            Step(
                _text(event, "time")[:23].replace("T", " "),
                after,
                _text(event, "kind"),
                _text(event, "summary"),
                number,
                number == case.incident.id,
            )
        )
    return steps


# ---- The snapshot --------------------------------------------------------------------------------


_MARKS = {"sealed": "sealed", "guard": "may hold guard pages"}


def _marks(row: object) -> str:
    return ", ".join(text for name, text in _MARKS.items() if value(row, name) is True)


def _map_rows(
    snapshot: Mapping[str, Any], hits: Sequence[Extent], limit: int
) -> tuple[list[MapRow], int]:
    """Around what was hit when there are too many; how many are left out."""
    found = snapshot.get("memory_map")
    rows: list[MapRow] = []
    first_hit = 0
    for row in found if isinstance(found, list) else ():
        where = extent(row)
        is_hit = where is not None and any(
            h.start < where.end and where.start < h.end for h in hits
        )
        first_hit = first_hit or (len(rows) if is_hit else 0)
        what = story.place(row) if value(row, "file") or value(row, "name") else ""
        rows.append(
            MapRow(
                f"{_text(row, 'start')}-{_text(row, 'end')}",
                _text(row, "permissions"),
                size(where.end - where.start) if where else "",
                what,
                _marks(row),
                is_hit,
            )
        )
    begin = max(min(first_hit - limit // 2, len(rows) - limit), 0)
    return rows[begin : begin + limit], max(len(rows) - limit, 0)


_SECCOMP = {
    "disabled": "no filter",
    "strict": "strict mode",
    "filter": "a filter",
}


def _limit(given: object, is_there: bool) -> str:
    return "unlimited" if given is None and is_there else _flat(given)


def _snapshot(case: Case, map_limit: int) -> SnapshotView | None:
    if not case.snapshots:
        return None
    snapshot = _nearest(case)
    told = (case.event.get("sealed"), case.event.get("mapping"), case.event.get("partial_update"))
    hits = [part for part in (*map(extent, told), story.asked(case.event)) if part]
    rows, left_out = _map_rows(snapshot, hits, map_limit)
    seccomp, missing = snapshot.get("seccomp"), snapshot.get("missing")
    facts = []
    if isinstance(seccomp, Mapping):
        mode = _SECCOMP.get(_text(seccomp, "mode"), _text(seccomp, "mode"))
        number = value(seccomp, "filters")
        text = (
            f"{mode}, {number} in all" if mode == "a filter" and isinstance(number, int) else mode
        )
        privileges = " No new privileges." if value(seccomp, "no_new_privileges") is True else ""
        facts.append(Fact("Seccomp", f"{text[:1].upper()}{text[1:]}.{privileges}"))
    if isinstance(missing, Mapping):
        facts += [
            Fact("Not read", f"{str(part).replace('_', ' ')}: {_flat(why)}")
            for part, why in missing.items()
        ]
    limits = value(snapshot, "limits")
    modules = value(snapshot, "modules")
    return SnapshotView(
        _text(snapshot, "time")[:23].replace("T", " "),
        rows,
        left_out,
        snapshot.get("memory_map_complete") is not False,
        facts,
        [
            (
                str(name).replace("_", " "),
                _limit(value(each, "soft"), isinstance(each, Mapping)),
                _limit(value(each, "hard"), isinstance(each, Mapping)),
            )
            for name, each in (limits if isinstance(limits, Mapping) else {}).items()
        ],
        [
            (_text(each, "path"), _text(each, "build_id"), _text(each, "start"))
            for each in (modules if isinstance(modules, list) else ())
        ],
        len(case.snapshots) - 1,
    )


def _nearest(case: Case) -> Mapping[str, Any]:
    """That of the event told; else the last."""
    own = [each for each in case.snapshots if each.get("event") == case.event.get("id")]
    return (own or case.snapshots)[-1]


# ---- All of it -----------------------------------------------------------------------------------

_FACETS = (
    *(("executable", "Programs"), ("workload", "Workloads"), ("user", "Users"), ("host", "Hosts")),
    *(("verdict", "Verdicts"), ("disposition", "Dispositions")),
)


def _facets(incident: Incident) -> list[tuple[str, list[tuple[str, str]]]]:
    """The events told one by one, by what they have in common."""
    found = []
    for name, title in _FACETS:
        values = list(incident.facets.get(name, {}).items())
        if values:
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
        _time(incident.last_ns),
        _most(incident.facets["executable"]),
        _most(incident.facets["workload"]),
    )


def _figures(incident: Incident) -> list[Fact]:
    held = ""
    if incident.suppressed:
        held = f"exact; {incident.suppressed:,} of them held back by the rate limit"
    return [
        Fact("Count", f"{incident.count:,}", "", held),
        Fact("First seen", _time(incident.first_ns)),
        Fact("Last seen", _time(incident.last_ns)),
    ]


def view(case: Case, *, raw_limit: int, map_limit: int) -> View:
    """Everything that the page tells of an incident. Of the raw events the last `raw_limit`."""
    incident, event = case.incident, case.event
    snapshot = _nearest(case) if case.snapshots else None
    later = _later(case)
    memory_map = value(snapshot, "memory_map")
    steps = _steps(case)
    what = [
        Fact("What it probably is", story.assessment(event) or ""),
        *_what_facts(case, later),
        *_other_facts(event),
        Fact("In one line", incident.summary),
    ]
    return View(
        id=incident.id,
        kind=incident.kind,
        title=incident.title,
        severity=incident.severity,
        lead=[*_lead(case, later)],
        figures=_figures(incident),
        is_repeated=incident.count > 1,
        facts=[fact for fact in what if fact.text or fact.code],
        who=[fact for fact in _who_facts(case, snapshot) if fact.text or fact.code],
        picture=picture(event, memory_map if isinstance(memory_map, list) else None),
        stack=_stack(event),
        stack_complete=event.get("stack_complete") is True,
        steps=steps[-TIMELINE_LIMIT:],
        steps_left_out=max(len(steps) - TIMELINE_LIMIT, 0),
        facets=_facets(incident),
        similar=[(overview(other), why) for other, why in case.similar],
        snapshot=_snapshot(case, map_limit),
        raw=[
            json.dumps(each, indent=2, ensure_ascii=True)[:RAW_LIMIT]
            for each in reversed(case.events[-raw_limit:])
        ],
        raw_left_out=max(len(case.events) - raw_limit, 0),
    )
