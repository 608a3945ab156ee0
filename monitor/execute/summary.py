"""The report on a watched command: each incident as it happens, a table at the end, JSON.

Pure functions. Every value of an event passes `visible` on its way to the terminal.
"""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.evidence.assessment import REASONING
from monitor.evidence.fingerprint import UNKNOWN
from monitor.evidence.stacks import place
from monitor.execute.cgroup import Member
from monitor.incidents.search import Incident, as_object
from monitor.kernel.abi import Cause, Counters, Disposition, Method, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.sinks.console import COLOURS, DIM, RESET, program_items
from monitor.untrusted.terminal import Column, counted, plural, table, visible

__all__ = ["Result", "counts", "document", "live", "summary", "violations"]

FRAMES_SHOWN = 8
ROWS_SHOWN = 40
PREFIX = "seal-monitor:"
SCHEMA = 1

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """All that is known when the command has ended.

    `status`: its exit code, or minus the number of the signal that ended it; `code`: the exit code
    for the caller. `incidents`: each with its kept events, their functions named. `left`: its
    processes that live on. `failed_on`: the kinds of --fail-on that happened.
    """

    words: Sequence[str]
    status: int
    code: int
    failed_on: Sequence[str]
    seconds: float
    counters: Counters
    incidents: Sequence[tuple[Incident, Sequence[Event]]]
    left: Sequence[Member]
    notes: Sequence[str]


# ---- Counts --------------------------------------------------------------------------------------


def counts(counters: Counters) -> dict[str, dict[str, int]]:
    """Violations by kind and by operation, cause or method, without zeros.

    These are the denials that a seal explains or may explain, all faults but those of cause
    `other`, and all bypasses.
    """
    denials = {
        operation.name: row[Verdict.SEALED] + row[Verdict.UNVERIFIED]
        for operation, row in zip(OPERATIONS, counters.denials, strict=True)
    }
    faults = {c.label: sum(counters.faults[c]) for c in Cause if c is not Cause.OTHER}
    bypasses = {method.label: counters.bypasses[method] for method in Method}
    found = {"denial": denials, "fault": faults, "bypass": bypasses}
    return {
        kind: {what: number for what, number in by_what.items() if number}
        for kind, by_what in found.items()
    }


def violations(counters: Counters) -> dict[str, int]:
    """How many violations of each kind."""
    return {kind: sum(by_what.values()) for kind, by_what in counts(counters).items()}


def _only_counted(result: Result) -> dict[tuple[str, str], int]:
    """The violations that were counted but are in no incident: the ring was full."""
    left = {
        (kind, what): number
        for kind, by_what in counts(result.counters).items()
        for what, number in by_what.items()
    }
    for incident, _ in result.incidents:
        if (incident.kind, incident.what) in left:
            left[incident.kind, incident.what] -= incident.count
    return {key: number for key, number in left.items() if number > 0}


# ---- As text -------------------------------------------------------------------------------------


def _paint(text: str, colour: str, colours: bool) -> str:
    return f"{colour}{text}{RESET}" if colours and text else text


def live(event: Event, *, colours: bool, width: int = 100) -> str:
    """An incident at its first event: what happened, and the innermost frames."""
    rank = f"{event['severity']}: "
    text = f"{rank}{visible(event['summary'])}"
    lines = textwrap.wrap(
        text,
        max(width - len(PREFIX) - 1, 40),
        break_long_words=False,
        break_on_hyphens=False,
        subsequent_indent="  ",
    )
    lines[0] = lines[0].replace(rank, _paint(rank, COLOURS[event["severity"]], colours), 1)
    shown = [f"{_paint(PREFIX, DIM, colours)} {line}" for line in lines]
    program = visible(" ".join(program_items(event.get("process") or {})))
    for line in textwrap.wrap(program, max(width - len(PREFIX) - 3, 40), break_on_hyphens=False):
        shown.append(f"{_paint(PREFIX, DIM, colours)}   {line}")
    stack = event["stack"][:FRAMES_SHOWN]
    names = [visible(frame["symbol"] or "?", 60) for frame in stack]
    wide = max(map(len, names), default=0)
    for number, (name, frame) in enumerate(zip(names, stack, strict=True)):
        where = _paint(visible(place(frame), 80), DIM, colours)
        shown.append(f"{_paint(PREFIX, DIM, colours)}   #{number:<2} {name:<{wide}}  {where}")
    return "\n".join(shown) + "\n"


def _frame_in_question(incident: Incident, event: Event) -> Event | None:
    """The frame that made the call or, of a fault, the frame of the instruction."""
    wanted = event["instruction_pointer"] if incident.kind == "fault" else event["caller"]
    return next((frame for frame in event["stack"] if frame["address"] == wanted), None)


def _row(incident: Incident, events: Sequence[Event]) -> list[str]:
    whole = [event for event in events if "stack" in event]
    frame = _frame_in_question(incident, whole[-1]) if whole else None
    if frame is None:
        where = ["-", "-" if incident.executable == UNKNOWN else incident.executable]
    else:
        where = [frame["symbol"] or "?", place(frame)]
    return [f"{incident.count:,}", incident.severity, incident.title, *where]


# Title, width at most.
_COLUMNS = (("COUNT", 15), ("SEVERITY", 8), ("WHAT", 60), ("FUNCTION", 48), ("PLACE", 48))


def _table(result: Result, colours: bool) -> list[str]:
    # Processes that found no bucket of the rate limit share one, of which not even the operation
    # is known. Their violations are in the last rows.
    known = [row for row in result.incidents if row[0].what != UNKNOWN]
    incidents = sorted(known, key=lambda row: (-row[0].count, row[0].first_ns))
    rows = [_row(*row) for row in incidents[:ROWS_SHOWN]]
    rows += [
        [
            f"{number:,}",
            "-",
            f"{what} {plural(kind)} that were only counted",
            "-",
            "-",
        ]
        for (kind, what), number in _only_counted(result).items()
    ]
    if len(incidents) > ROWS_SHOWN:
        others = incidents[ROWS_SHOWN:]
        number = sum(incident.count for incident, _ in others)
        rows.append([f"{number:,}", "-", f"others, in {len(others):,} places", "-", "-"])
    columns = [
        Column(title, [visible(row[index]) for row in rows], is_number=not index, most=most)
        for index, (title, most) in enumerate(_COLUMNS)
    ]
    heads, *lines = table(columns)
    shown = [_paint(f"  {heads}", DIM, colours)]
    for (_, rank, *_), line in zip(rows, lines, strict=True):
        colour = COLOURS.get(rank, "")
        painted = line.replace(rank, _paint(rank, colour, colours and bool(colour)), 1)
        shown.append(f"  {painted}")
    return shown


def _meanings(result: Result) -> list[str]:
    """The reasons for the assessments: once for each row of the table of assessments."""
    events = [event for _, kept in result.incidents for event in kept]
    names = dict.fromkeys((event.get("assessment") or {}).get("name") for event in events)
    return [
        line
        for name in names
        if name in REASONING
        for line in textwrap.wrap(
            f"{name.replace('_', ' ')}: {REASONING[name]}",
            98,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    ]


def _ended(result: Result) -> str:
    words = {kind: number for kind, number in violations(result.counters).items() if number}
    if words:
        *others, last = (counted(n, kind) for kind, n in words.items())
        return f"{', '.join(others)} and {last}" if others else last
    seals = result.counters.seals
    return f"no violations, {counted(seals, 'mseal call')}"


def summary(result: Result, *, colours: bool) -> str:
    """Text for a person, when the command has ended."""

    def line(text: str) -> str:
        return f"{_paint(PREFIX, DIM, colours)} {text}"

    ended = line(f"{_ended(result)}, in {result.seconds:.1f} s")
    after = [line(note) for note in result.notes]
    if result.left:
        some = ", ".join(f"{member.name} ({member.pid})" for member in result.left[:5])
        more = f" and {len(result.left) - 5} more" if len(result.left) > 5 else ""
        number = counted(len(result.left), "process")
        after.append(
            line(f"{number} of the command still running, no longer watched: {some}{more}")
        )
    if result.failed_on:
        after.append(line(f"exit code {result.code}, for --fail-on {','.join(result.failed_on)}"))
    parts = [[ended, *after]]
    if any(violations(result.counters).values()):
        parts = [[ended], _table(result, colours), _meanings(result), after]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


# ---- As JSON -------------------------------------------------------------------------------------


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def document(result: Result) -> dict[str, object]:
    """Ready for JSON: the kernel's counts, and each incident with its kept events."""
    counters, status = result.counters, result.status
    return {
        "schema": SCHEMA,
        "command": [visible(word) for word in result.words],
        "exit_code": status if status >= 0 else None,
        "signal": _signal_name(-status) if status < 0 else None,
        "seconds": round(result.seconds, 3),
        "failed_on": list(result.failed_on),
        "violations": violations(counters),
        "denials": {
            operation.name: {verdict.label: row[verdict] for verdict in Verdict if row[verdict]}
            for operation, row in zip(OPERATIONS, counters.denials, strict=True)
            if any(row)
        },
        "faults": {
            cause.label: {each.label: row[each] for each in Disposition if row[each]}
            for cause, row in zip(Cause, counters.faults, strict=True)
            if any(row)
        },
        "bypasses": counts(counters)["bypass"],
        "seals": counters.seals,
        "sealed_bytes": counters.sealed_bytes,
        "notes": list(result.notes),
        "still_running": [member._asdict() for member in result.left],
        "incidents": [
            as_object(incident) | {"events": list(events)} for incident, events in result.incidents
        ],
    }
