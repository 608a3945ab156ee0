"""`seal-monitor incidents`: what the store holds, as text for a person or JSON for a program.

Pure functions make the text. The database may come from a stranger: every value passes `printable`
on its way to a terminal, and every finished line again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from monitor.configuration.config import ConfigError
from monitor.evidence.assessment import REASONING
from monitor.evidence.doubts import doubt, marked, named
from monitor.evidence.events import Likely, timestamp
from monitor.evidence.stacks import place
from monitor.incidents.search import (
    SAME_PROCESS_NS,
    VIOLATIONS,
    Event,
    Filter,
    Incident,
    IncidentError,
    Incidents,
    Process,
    Snapshot,
    as_object,
)
from monitor.incidents.snapshot_text import summarized
from monitor.incidents.store import nanoseconds
from monitor.report.cases import gather
from monitor.report.private_file import write_private
from monitor.symbols.resolver import Resolver
from monitor.untrusted import terminal
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import Column, table, visible

__all__ = ["listed", "moment", "run", "shown", "timeline_lines"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
_SECOND_NS = 1_000_000_000
_KINDS = {
    "violation": VIOLATIONS,
    "denial": ("denial",),
    "fault": ("fault",),
    "seal": ("seal",),
    "bypass": ("bypass",),
    "health": ("health",),
    "all": ("denial", "fault", "seal", "bypass", "health"),
}


# ---- Values --------------------------------------------------------------------------------------


def moment(flag: str, text: str | None, now_ns: int) -> int | None:
    """Unix time in ns of a date, a time (UTC unless it has a zone) or a span before now.

    Raises ConfigError, which names the flag.
    """
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text, re.ASCII):
        return now_ns - int(found[1]) * _UNITS[found[2]] * _SECOND_NS
    try:
        then = datetime.fromisoformat(text)
        seconds = int((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() // 1)
        return seconds * _SECOND_NS + then.microsecond * 1000
    except (ValueError, OverflowError):
        raise ConfigError(
            f"command line: {flag}: {printable(text)} is not a time; write a date or time in UTC "
            "as in 2026-11-21 or 2026-11-21T17:07:52, or how long ago as in 90m, 24h or 7d"
        ) from None


def _clock(ns: int) -> str:
    """A time in UTC, to the second."""
    return timestamp(ns, 0)[:19].replace("T", " ")


def _milliseconds(time: str) -> str:
    """A time of an event, cut to milliseconds."""
    return time[:23].replace("T", " ")


def _most(values: Mapping[str, int]) -> str:
    """The most frequent value, and how many others there are."""
    first, *others = values or {"": 0}
    return f"{first} +{len(others)}" if others else first


def _programs(incident: Incident) -> Mapping[str, int]:
    """How often which program, each with its marks."""
    facets = incident.facets
    return {marked(path, facets): count for path, count in facets["executable"].items()}


@contextlib.contextmanager
def _as_written(what: str) -> Iterator[None]:
    """Around code that reads `what` as written by seal-monitor; else raises IncidentError."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        why = printable(f"{type(error).__name__}: {error}")
        raise IncidentError(f"{what} is not one of seal-monitor's ({why})") from error


# ---- As text -------------------------------------------------------------------------------------

# Title, whether it is a number, the greatest width, the cell.
_COLUMNS: Sequence[tuple[str, bool, int, Callable[[Incident], str]]] = (
    ("ID", False, 12, lambda incident: incident.id),
    ("LAST SEEN (UTC)", False, 19, lambda incident: _clock(incident.last_ns)),
    ("COUNT", True, 15, lambda incident: f"{incident.count:,}"),
    ("SEVERITY", False, 8, lambda incident: incident.severity),
    ("LIKELY", False, 8, lambda incident: _worst(incident.facets["likely"])),
    ("WHAT", False, 48, lambda incident: incident.title),
    ("EXECUTABLE", False, 40, lambda incident: _most(_programs(incident)) or "-"),
    ("WORKLOAD", False, 40, lambda incident: _most(incident.facets["workload"]) or "-"),
)


def _worst(likely: Mapping[str, int]) -> str:
    """Not the most common one: whoever makes an attack can make any number of lesser ones."""
    return next((name for name in get_args(Likely) if name in likely), "-")


def listed(incidents: Sequence[Incident], more: bool) -> list[str]:
    """A table with a line for each incident; `more`: there are others."""
    if not incidents:
        return ["no incident matches"]
    lines = table(
        [
            Column(title, [visible(cell(incident)) for incident in incidents], is_number, most)
            for title, is_number, most, cell in _COLUMNS
        ]
    )
    if more:
        lines.append(f"the last {len(incidents)}; --limit shows more")
    return lines


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{visible(value)} {count:,}" for value, count in values.items())


def _frame(frame: Mapping[str, Any]) -> str:
    where = place(frame)
    return visible(f"{frame['symbol']} ({where})" if frame["symbol"] else where)


def _stack(event: Event) -> list[str]:
    stack = event.get("stack") or []
    lines = [f"  #{number:<3}{_frame(frame)}" for number, frame in enumerate(stack)]
    if stack and not event["stack_complete"]:
        lines.append("  ...")
    return lines


def _short(event: Event) -> str:
    process = event["process"] or {}
    who = f"pid {process['pid']}  " if process else ""
    return f"{_milliseconds(event['time'])}  {who}{visible(event['summary'])}"


def _reasoning(event: Event) -> str | None:
    """The reason for the assessment of an event; None if it has no assessment."""
    return REASONING.get((event.get("assessment") or {}).get("name", ""))


def shown(
    incident: Incident, events: Sequence[Event], snapshots: Sequence[Snapshot] = ()
) -> list[str]:
    """The story of an incident; `events` and `snapshots` are the kept ones, in order."""
    facets = incident.facets
    count = f"{incident.count:,}"
    if incident.suppressed:
        count += f" ({incident.events:,} reported singly, {incident.suppressed:,} suppressed)"
    rows = (
        ("count", count),
        ("first seen", f"{_clock(incident.first_ns)} UTC"),
        ("last seen", f"{_clock(incident.last_ns)} UTC"),
        ("severity", incident.severity),
        ("likely", _counted(facets["likely"])),
        ("verdicts", _counted(facets["verdict"])),
        ("dispositions", _counted(facets["disposition"])),
        ("executables", _counted(_programs(incident))),
        ("workloads", _counted(facets["workload"])),
        ("hosts", _counted(facets["host"])),
        ("users", _counted(facets["user"])),
        ("program", visible(incident.executable)),
        ("caller", visible(incident.caller)),
        ("mapping", visible(incident.mapping)),
    )
    lines = [
        f"incident {incident.id}: {visible(incident.title)}",
        *(f"  {name:<12}  {value}" for name, value in rows if value),
        "",
        "the last event",
        f"  {visible(incident.summary)}",
    ]
    kept = []
    for number, event in enumerate(events, 1):
        with _as_written(f"event {number} of incident {incident.id}"):
            kept.append(f"  {_short(event)}")
    if whole := [event for event in events if event.get("kind") != "suppression"]:
        with _as_written(f"the last event of incident {incident.id}"):
            lines += _explained(whole[-1])
    if snapshots:
        with _as_written(f"a snapshot of incident {incident.id}"):
            lines += ["", *summarized(snapshots, events)]
    if events:
        lines += ["", f"events that are kept: {len(events)}", *reversed(kept)]
    return lines


def _explained(event: Event) -> list[str]:
    lines = []
    if doubt(event["process"]):
        lines.append(f"  program: {visible(named(event['process']))}")
    if why := _reasoning(event):
        lines += textwrap.wrap(why, 98, initial_indent="  ", subsequent_indent="  ")
    if stack := _stack(event):
        lines += ["", "its stack, the innermost frame first", *stack]
    return lines


def timeline_lines(pid: int, process: Process, timeline: Sequence[tuple[Event, str]]) -> list[str]:
    """What a process did, in order: seconds since its start, what, in which incident."""
    steps = []
    for number, (event, incident) in enumerate(timeline, 1):
        with _as_written(f"event {number} of process {pid}"):
            after = (nanoseconds(event["time"]) - process.start_ns) / _SECOND_NS
            when = f"{_milliseconds(event['time'])}  {f'+{after:.3f} s':>14}"
            steps.append(f"{when}  {event['kind']:<11}  {incident}  {visible(event['summary'])}")
    whole = [event for event, _ in timeline if event["kind"] != "suppression"]
    last = whole[-1] if whole else timeline[-1][0]
    with _as_written(f"the last event of process {pid}"):
        head = _heading(pid, process, last)
    after_all = "of each incident the last events are kept; 'incidents show ID' has its counts"
    return [*head, "", *steps, "", after_all]


def _heading(pid: int, process: Process, last: Event) -> list[str]:
    who, workload = last["process"] or {}, last["workload"] or {}
    facts = (
        ("started", f"{_milliseconds(timestamp(process.start_ns, 0))} UTC"),
        ("executable", named(who) if who.get("executable") else None),
        ("command line", who.get("command_line")),
        ("user", who.get("user_name")),
        ("workload", workload.get("unit") or workload.get("cgroup")),
        ("host", last["host"]["name"]),
    )
    return [
        f"process {pid}, {visible(who.get('name', ''))}",
        *(f"  {name:<12}  {visible(value)}" for name, value in facts if value),
    ]


# ---- The commands --------------------------------------------------------------------------------


def _print(lines: Sequence[str], document: object, as_json: bool) -> int:
    print(json.dumps(document, indent=2) if as_json else terminal.text(lines))
    return 0


def _opened(arguments: Namespace, database: Path) -> Incidents:
    """Raises IncidentError."""
    return Incidents(database, own=arguments.database is None)


_FILTERS = ("since", "until", "operation", "executable", "workload", "verdict", "likely")


def _wanted(arguments: Namespace) -> Filter:
    now = time.time_ns()
    return Filter(
        kinds=_KINDS[arguments.kind],
        since_ns=moment("--since", arguments.since, now),
        until_ns=moment("--until", arguments.until, now),
        operation=arguments.operation,
        executable=arguments.executable,
        workload=arguments.workload,
        verdict=arguments.verdict,
        likely=arguments.likely,
    )


def _list(arguments: Namespace, database: Path) -> int:
    wanted = _wanted(arguments)
    with _opened(arguments, database) as incidents:
        found = incidents.search(wanted, arguments.limit + 1)
    kept = found[: arguments.limit]
    return _print(
        listed(kept, more=len(found) > len(kept)), [as_object(i) for i in kept], arguments.json
    )


def _one(incidents: Incidents, given: str) -> Incident:
    """The one incident whose id begins with `given`. Raises IncidentError."""
    prefix = given.lower()
    found = incidents.find(prefix) if re.fullmatch("[0-9a-f]{1,12}", prefix) else []
    if len(found) != 1:
        what = "more than one incident has" if found else "no incident has"
        raise IncidentError(
            f"{what} an id that begins with {printable(prefix)}; "
            "'seal-monitor incidents list' shows the ids"
        )
    return found[0]


def _show(arguments: Namespace, database: Path) -> int:
    with _opened(arguments, database) as incidents:
        found = _one(incidents, arguments.id)
        kept = incidents.events(found)
        snapshots = incidents.snapshots(found)
    with Resolver(os.environ) as resolver, _as_written(f"an event of incident {found.id}"):
        events = [resolver.resolve(event) for event in kept]
    document = as_object(found) | {"events": events, "snapshots": snapshots}
    return _print(shown(found, events, snapshots), document, arguments.json)


def _timeline(arguments: Namespace, database: Path) -> int:
    start_ns = moment("START", arguments.start, time.time_ns())
    pid = arguments.pid
    with _opened(arguments, database) as incidents:
        processes = [
            process
            for process in incidents.processes(pid)
            if start_ns is None or abs(process.start_ns - start_ns) <= SAME_PROCESS_NS
        ]
        if not processes:
            then = "" if start_ns is None else " that started then"
            raise IncidentError(f"no event is kept of a process {pid}{then}")
        if len(processes) > 1:
            starts = ", ".join(timestamp(process.start_ns, 0)[:23] for process in processes)
            raise IncidentError(
                f"{len(processes)} processes had the pid {pid}; name the start of one: {starts}"
            )
        (process,) = processes
        timeline = incidents.timeline(pid, process)
    document = {
        "pid": pid,
        "start": timestamp(process.start_ns, 0),
        "boot_id": process.boot_id,
        "events": [{"incident": number, "event": event} for event, number in timeline],
    }
    return _print(timeline_lines(pid, process, timeline), document, arguments.json)


_COMMANDS: Mapping[str, Callable[[Namespace, Path], int]] = {
    "list": _list,
    "show": _show,
    "timeline": _timeline,
}


@contextlib.contextmanager
def _as_owner(database: Path) -> Iterator[None]:
    """Root reads the database as its owner: SQLite parses it, and makes files beside it.

    So somebody who has taken over the daemon's user cannot attack root through it.
    """
    try:
        status = database.stat()
    except OSError:  # reported where the database is opened
        status = None
    if os.geteuid() != 0 or status is None or status.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _report(arguments: Namespace, database: Path) -> int:
    from monitor.report import page as report  # noqa: PLC0415 - only this command needs templates

    given = [flag for flag in _FILTERS if getattr(arguments, flag) is not None]
    if arguments.id is not None and given:
        raise ConfigError(f"command line: --{given[0]} chooses incidents; leave it or the ID out")
    with (
        _as_owner(database),
        _opened(arguments, database) as incidents,
        Resolver(os.environ) as resolver,
    ):
        if arguments.id is None:
            found = incidents.search(_wanted(arguments), arguments.limit + 1)
        else:
            found = [_one(incidents, arguments.id)]
        cases = gather(incidents, found[: arguments.limit], resolver)
    _output(arguments.output_file, report.page(cases, more=len(found) > len(cases)))
    return 0


def _export(arguments: Namespace, database: Path) -> int:
    from monitor.report import export  # noqa: PLC0415

    with (
        _as_owner(database),
        _opened(arguments, database) as incidents,
        Resolver(os.environ) as resolver,
    ):
        found = _one(incidents, arguments.id)
        (case,) = gather(incidents, [found], resolver)
        copied = export.database_of(incidents, found)
    _output(arguments.output_file, export.archive(case, as_object(found), copied))
    return 0


def _backup(arguments: Namespace, database: Path) -> int:
    with _as_owner(database), _opened(arguments, database) as incidents:
        copied = incidents.copy()
    _output(arguments.output_file, copied)
    return 0


def _output(file: str, data: bytes) -> None:
    if file == "-":
        sys.stdout.buffer.write(data)
    else:
        write_private(Path(file), data)


# The files that these write belong to the caller, not to the owner of the database.
_FILES: Mapping[str, Callable[[Namespace, Path], int]] = {
    "report": _report,
    "export": _export,
    "backup": _backup,
}


def run(arguments: Namespace, database: Path) -> int:
    """Print or write what `arguments` ask for; returns 0.

    Raises IncidentError, ConfigError, OSError.
    """
    if write := _FILES.get(arguments.verb):
        return write(arguments, database)
    with _as_owner(database):
        return _COMMANDS[arguments.verb](arguments, database)
