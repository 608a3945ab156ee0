"""One incident as an archive for somebody else: everything that is kept of it, and how to read it.

The same incident gives the same bytes. The archive has nothing of other incidents, or of processes
that had no part in this one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace

from monitor.evidence.doubts import named
from monitor.incidents.schema import SCHEMA, VERSION
from monitor.incidents.search import Event, Incident, IncidentError, Incidents
from monitor.report.cases import Case
from monitor.report.page import page
from monitor.report.story import value
from monitor.sizes import rounded
from monitor.untrusted.printable import printable
from monitor.version import version

__all__ = ["archive", "database_of"]

SIZE_LIMIT = 256 << 20  # before it is compressed

_README = """\
Incident {id} of seal-monitor
{rule}

{summary}

    host          {host}
    kernel        {kernel}
    program       {program}
    count         {count:,} ({events:,} delivered, {suppressed:,} held back by the rate limit)
    seal-monitor  {version}

report.html      the story, for a browser; it needs no network and runs no script
incident.json    the counts, in all and by program, workload, verdict and so on
events.jsonl     the events that are kept, one JSON object a line, their stacks with names
timeline.jsonl   what the process of the worst event did, in order
snapshots.json   what that process looked like: memory map, limits, parents
modules.json     the files whose code was on the stacks, by build id, with the functions
incidents.db     the same as the monitor stores it; with seal-monitor installed:
                 seal-monitor incidents show {id} --database incidents.db
SHA256SUMS       sha256sum -c SHA256SUMS checks that no file has changed

The processes themselves chose the names of programs, paths and command lines. Command lines may
hold secrets.
"""


def database_of(incidents: Incidents, incident: Incident) -> bytes:
    """The bytes of a database with only this incident. Raises IncidentError."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")
        query = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid"
        for (table,) in database.execute(query).fetchall():
            rows = incidents.stored(table, incident)
            if rows:
                places = ", ".join("?" * len(rows[0]))
                database.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        return database.serialize()
    except sqlite3.Error as error:
        raise IncidentError(f"cannot copy incident {incident.id}: {error}") from error
    finally:
        database.close()


def archive(
    case: Case, facts: Mapping[str, object], database: bytes, limit: int = SIZE_LIMIT
) -> bytes:
    """A gzip-compressed tar archive; `facts` are those of the incident, ready for JSON.

    Raises IncidentError for one that would be too large.
    """
    alone = replace(case, similar=())
    files = {
        "README.txt": _readme(case),
        "report.html": page([alone]),
        "incident.json": _json(facts),
        "events.jsonl": _lines(case.events),
        "timeline.jsonl": _lines([event for event, _ in case.timeline]),
        "snapshots.json": _json(case.snapshots),
        "modules.json": _json(_modules(case)),
        "incidents.db": database,
    }
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    files["SHA256SUMS"] = "".join(sums).encode()
    total = sum(map(len, files.values()))
    if total > limit:
        raise IncidentError(
            f"incident {case.incident.id} takes {rounded(total)}, more than the "
            f"{rounded(limit)} of an archive; copy the database instead"
        )
    # As old as the incident: nothing in the archive depends on when it was made.
    modified = max(case.incident.last_ns // 1_000_000_000, 0)
    return _packed(f"seal-monitor-incident-{case.incident.id}", files, modified)


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _lines(events: Sequence[Event]) -> bytes:
    return "".join(f"{json.dumps(event, separators=(',', ':'))}\n" for event in events).encode()


def _readme(case: Case) -> bytes:
    incident, title = case.incident, f"Incident {case.incident.id} of seal-monitor"
    text = _README.format(
        rule="=" * len(title),
        id=incident.id,
        summary=printable(incident.summary, 4096),
        host=printable(str(value(case.event, "host", "name"))),
        kernel=printable(str(value(case.event, "host", "kernel_release"))),
        program=printable(named(case.event.get("process")) or "not known", 4096),
        count=incident.count,
        events=incident.events,
        suppressed=incident.suppressed,
        version=version(),
    )
    return text.encode("utf-8", "backslashreplace")


def _modules(case: Case) -> list[dict[str, object]]:
    """The files of the stacks, in the order of their first frame; functions by their offset."""
    found: dict[tuple[str, str | None], dict[str, str]] = {}
    for event in (*case.events, *(event for event, _ in case.timeline)):
        stack = event.get("stack")
        for frame in stack if isinstance(stack, list) else ():
            module, build_id = value(frame, "module"), value(frame, "build_id")
            offset, symbol = value(frame, "offset"), value(frame, "symbol")
            if isinstance(module, str) and isinstance(build_id, str | None):
                functions = found.setdefault((module, build_id), {})
                if isinstance(offset, int) and isinstance(symbol, str):
                    functions[f"{offset:#x}"] = symbol
    return [
        {"module": module, "build_id": build_id, "functions": functions}
        for (module, build_id), functions in found.items()
    ]


def _packed(folder: str, files: Mapping[str, bytes], modified: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), modified, 0o600
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)
