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
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from monitor.commands.incident_list import Listing, clock, listed, programs
from monitor.configuration.config import ConfigError
from monitor.evidence.assessment import REASONING
from monitor.evidence.doubts import doubt, named
from monitor.evidence.events import timestamp
from monitor.evidence.stacks import place
from monitor.incidents.search import (
    SAME_PROCESS_NS,
    VIOLATIONS,
    Event,
    Filter,
    Incident,
    IncidentError,
    Incidents,
    Order,
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
from monitor.untrusted.terminal import paragraph, visible, width_of_output

__all__ = [
    "KINDS",
    "filters_given",
    "filters_of",
    "moment",
    "one",
    "order_of",
    "run",
    "shown",
    "timeline_lines",
    "write_output",
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
_SECOND_NS = 1_000_000_000
_READABLE = 98  # of a terminal's columns for sentences, however wide it is
KINDS = {
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


def _milliseconds(time: str) -> str:
    """A time of an event, cut to milliseconds."""
    return time[:23].replace("T", " ")


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


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{visible(value)} {count:,}" for value, count in values.items())


def _hosts(incident: Incident) -> str:
    """Of a fleet only how many; 'seal-monitor fleet hosts ID' lists them."""
    if incident.hosts is None:
        return _counted(incident.facets["host"])
    return f"{incident.hosts:,}"


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
    return f"{who}{visible(event['summary'])}"


def _runs(steps: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Times and words, those that follow each other with the same words as one."""
    found = []
    for words, run in groupby(steps, key=itemgetter(1)):
        first, *more = [time for time, _ in run]
        until = f"  ({len(more) + 1} times, the last at {more[-1][11:23]})" if more else ""
        found.append((first, f"{words}{until}"))
    return found


def _reasoning(event: Event) -> str | None:
    """The reason for the assessment of an event; None if it has no assessment."""
    return REASONING.get((event.get("assessment") or {}).get("name", ""))


def shown(
    incident: Incident,
    events: Sequence[Event],
    snapshots: Sequence[Snapshot] = (),
    width: int | None = None,
) -> list[str]:
    """The story of an incident; `events` and `snapshots` are the kept ones, in order.

    Sentences are wrapped at `width`, that of the terminal.
    """
    facets = incident.facets
    count = f"{incident.count:,}"
    if incident.suppressed:
        count += f" ({incident.events:,} reported singly, {incident.suppressed:,} suppressed)"
    rows = (
        ("count", count),
        ("first seen", f"{clock(incident.first_ns)} UTC"),
        ("last seen", f"{clock(incident.last_ns)} UTC"),
        ("severity", incident.severity),
        ("likely", _counted(facets["likely"])),
        ("verdicts", _counted(facets["verdict"])),
        ("dispositions", _counted(facets["disposition"])),
        ("executables", _counted(programs(incident))),
        ("workloads", _counted(facets["workload"])),
        ("hosts", _hosts(incident)),
        ("users", _counted(facets["user"])),
        ("program", visible(incident.executable)),
        ("caller", visible(incident.caller)),
        ("mapping", visible(incident.mapping)),
    )
    lines = [f"incident {incident.id}: {visible(incident.title)}"]
    for name, value in rows:
        if value:
            lines += paragraph(value, width, " " * 16, f"  {name:<12}  ")
    lines += ["", "the last event", *paragraph(visible(incident.summary), width, "  ")]
    steps = []
    for number, event in enumerate(events, 1):
        with _as_written(f"event {number} of incident {incident.id}"):
            words = _short(event)
            if incident.hosts is not None:
                words = f"{visible(event['host']['name'])}  {words}"
            steps.append((_milliseconds(event["time"]), words))
    kept = [paragraph(f"{time}  {words}", width, " " * 6, "  ") for time, words in _runs(steps)]
    if whole := [event for event in events if event.get("kind") != "suppression"]:
        with _as_written(f"the last event of incident {incident.id}"):
            lines += _explained(whole[-1], width)
    if snapshots:
        with _as_written(f"a snapshot of incident {incident.id}"):
            lines += ["", *summarized(snapshots, events)]
    if events:
        kept_are = "events that are kept" if incident.hosts is None else "the last events"
        lines += ["", f"{kept_are}: {len(events)}", *chain(*reversed(kept))]
    return lines


def _explained(event: Event, width: int | None) -> list[str]:
    lines = []
    if doubt(event["process"]):
        lines += paragraph(f"program: {visible(named(event['process']))}", width, "    ", "  ")
    if why := _reasoning(event):
        lines += paragraph(why, min(width or _READABLE, _READABLE), "  ")
    if stack := _stack(event):
        lines += ["", "its stack, the innermost frame first", *stack]
    return lines


def timeline_lines(
    pid: int,
    process: Process,
    timeline: Sequence[tuple[Event, str]],
    width: int | None = None,
) -> list[str]:
    """What a process did, in order: seconds since its start, what, in which incident."""
    steps = []
    for number, (event, incident) in enumerate(timeline, 1):
        with _as_written(f"event {number} of process {pid}"):
            after = (nanoseconds(event["time"]) - process.start_ns) / _SECOND_NS
            when = f"{_milliseconds(event['time'])}  {f'{after:+.3f} s':>10}"
            steps.append((when, f"{event['kind']:<11}  {incident}  {visible(event['summary'])}"))
    whole = [event for event, _ in timeline if event["kind"] != "suppression"]
    last = whole[-1] if whole else timeline[-1][0]
    with _as_written(f"the last event of process {pid}"):
        head = _heading(pid, process, last)
    after_all = "of each incident the last events are kept; 'incidents show ID' has its counts"
    lines = [paragraph(f"{when}  {what}", width, " " * 4, "") for when, what in _runs(steps)]
    return [*head, "", *chain(*lines), "", after_all]


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


_FILTERS = (
    *("since", "until", "operation", "executable", "workload", "host"),
    *("verdict", "likely", "severity"),
)


def filters_of(arguments: Namespace) -> Filter:
    now = time.time_ns()
    return Filter(
        kinds=KINDS[arguments.kind],
        since_ns=moment("--since", arguments.since, now),
        until_ns=moment("--until", arguments.until, now),
        operation=arguments.operation,
        executable=arguments.executable,
        workload=arguments.workload,
        verdict=arguments.verdict,
        likely=arguments.likely,
        host=arguments.host,
        severity=arguments.severity,
    )


def order_of(arguments: Namespace) -> Order:
    """A program that takes JSON relies on the order that it has always had."""
    default: Order = "last" if getattr(arguments, "json", False) else "worst"
    return arguments.sort or default


def filters_given(arguments: Namespace) -> str:
    """The filters as they were given; without any, what is listed by default."""
    given = [
        f"--{flag} {visible(getattr(arguments, flag))}"
        for flag in _FILTERS
        if getattr(arguments, flag) is not None
    ]
    return " ".join([f"--kind {arguments.kind}", *given])


def _list(arguments: Namespace, database: Path) -> int:
    wanted, order = filters_of(arguments), order_of(arguments)
    with _opened(arguments, database) as incidents:
        found = incidents.search(wanted, arguments.limit, order)
        totals = incidents.totals(wanted)
        kept = sum(incidents.totals(Filter(kinds=KINDS["all"])).values())
    listing = Listing(found, totals, order, filters_given(arguments), kept)
    return _print(listed(listing, width_of_output()), [as_object(i) for i in found], arguments.json)


def one(find: Callable[[str], Sequence[Incident]], given: str, command: str) -> Incident:
    """The one incident whose id begins with `given`; `command` lists them. Raises IncidentError."""
    prefix = given.lower()
    found = find(prefix) if re.fullmatch("[0-9a-f]{1,64}", prefix) else []
    if len(found) != 1:
        what = "more than one incident has" if found else "no incident has"
        raise IncidentError(
            f"{what} an id that begins with {printable(prefix)}; "
            f"'seal-monitor {command} list' shows the ids"
        )
    return found[0]


def _one(incidents: Incidents, given: str) -> Incident:
    return one(incidents.find, given, "incidents")


def _show(arguments: Namespace, database: Path) -> int:
    with _opened(arguments, database) as incidents:
        found = _one(incidents, arguments.id)
        kept = incidents.events(found)
        snapshots = incidents.snapshots(found)
    with Resolver(os.environ) as resolver, _as_written(f"an event of incident {found.id}"):
        events = [resolver.resolve(event) for event in kept]
    document = as_object(found) | {"events": events, "snapshots": snapshots}
    lines = shown(found, events, snapshots, width_of_output())
    return _print(lines, document, arguments.json)


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
    lines = timeline_lines(pid, process, timeline, width_of_output())
    return _print(lines, document, arguments.json)


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

    given = [flag for flag in (*_FILTERS, "sort") if getattr(arguments, flag) is not None]
    if arguments.id is not None and given:
        raise ConfigError(f"command line: --{given[0]} chooses incidents; leave it or the ID out")
    with (
        _as_owner(database),
        _opened(arguments, database) as incidents,
        Resolver(os.environ) as resolver,
    ):
        every = 1
        if arguments.id is None:
            wanted = filters_of(arguments)
            found = incidents.search(wanted, arguments.limit, order_of(arguments))
            every = sum(incidents.totals(wanted).values())
        else:
            found = [_one(incidents, arguments.id)]
        cases = gather(incidents, found, resolver)
    write_output(arguments.output_file, report.page(cases, every=every))
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
    write_output(arguments.output_file, export.archive(case, as_object(found), copied))
    return 0


def _backup(arguments: Namespace, database: Path) -> int:
    with _as_owner(database), _opened(arguments, database) as incidents:
        copied = incidents.copy()
    write_output(arguments.output_file, copied)
    return 0


def _check_output(file: str, database: Path) -> None:
    """A daemon would go on writing to the database that was replaced.

    Raises ConfigError.
    """
    own = {os.path.realpath(f"{database}{suffix}") for suffix in ("", "-wal", "-shm")}
    if file != "-" and os.path.realpath(file) in own:
        raise ConfigError(
            f"command line: -o: {file} is of the database that is read; name another file"
        )


def write_output(file: str, data: bytes) -> None:
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
        _check_output(arguments.output_file, database)
        return write(arguments, database)
    with _as_owner(database):
        return _COMMANDS[arguments.verb](arguments, database)
