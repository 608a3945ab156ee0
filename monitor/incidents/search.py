"""Searches in the store of incidents, whether or not a daemon is writing to it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

from monitor.evidence import doubts
from monitor.evidence.events import Severity, timestamp
from monitor.incidents.reader import IncidentError, Reader
from monitor.incidents.stored import ALERTED
from monitor.untrusted.printable import printable

__all__ = [
    "SAME_PROCESS_NS",
    "VIOLATIONS",
    "Event",
    "Filter",
    "Incident",
    "IncidentError",
    "Incidents",
    "Order",
    "Process",
    "Snapshot",
    "as_object",
]

VIOLATIONS = ("denial", "fault", "bypass")
SAME_PROCESS_NS = 1_000_000_000  # two runs of the daemon may differ in when a process started
_COLUMNS = (
    *("number", "id", "kind", "what", "executable", "caller", "mapping", "title", "severity"),
    *("summary", "first_ns", "last_ns", "events", "suppressed"),
)
_TEXTS = _COLUMNS.index("first_ns")  # texts up to here, then numbers
_FACETS = (
    *("verdict", "disposition", "likely", "executable", "workload", "host", "user"),
    *doubts.FACETS,
)


_RARE = 2000
_FEW = "number IN (SELECT incident FROM facets WHERE name = ? AND value GLOB ?)"
_MANY = "EXISTS (SELECT 1 FROM facets WHERE incident = +number AND name = ? AND value GLOB ?)"


Order = Literal["worst", "last", "count"]
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the least first
_WORST = " ".join(f"WHEN '{each}' THEN {rank}" for rank, each in enumerate(_SEVERITIES))
_LAST = "last_ns DESC, number DESC"
_ORDERS: Mapping[Order, str] = {
    "worst": f"CASE severity {_WORST} ELSE -1 END DESC, {_LAST}",
    "last": _LAST,
    "count": f"events + suppressed DESC, {_LAST}",
}


class Filter(NamedTuple):
    """All that are given must hold. Texts are globs; times are Unix times in ns."""

    kinds: Sequence[str] = VIOLATIONS
    since_ns: int | None = None
    until_ns: int | None = None
    operation: str | None = None  # or cause, or method
    executable: str | None = None  # with a slash the path, else the base name
    workload: str | None = None  # as in events, or as alerts name it
    verdict: str | None = None
    likely: str | None = None
    host: str | None = None
    severity: Severity | None = None  # at least


@dataclass(frozen=True)
class Incident:
    """Times are Unix times in ns. `facets`: by name, how many of the `events` had which value.

    `hosts`: on how many hosts, where it is of a fleet; the facet has only some of them.
    """

    id: str
    kind: str
    what: str
    executable: str
    caller: str
    mapping: str
    title: str
    severity: str
    summary: str
    first_ns: int
    last_ns: int
    events: int
    suppressed: int
    facets: Mapping[str, Mapping[str, int]]
    hosts: int | None = None

    @property
    def count(self) -> int:
        return self.events + self.suppressed


def as_object(incident: Incident) -> dict[str, object]:
    """Ready for JSON. `facets` count the delivered events.

    "told" is the old name of `delivered`, printed until 1.0.
    """
    fleet = {} if incident.hosts is None else {"hosts": incident.hosts}
    return {
        "id": incident.id,
        "kind": incident.kind,
        "operation": incident.what if incident.kind == "denial" else None,
        "cause": incident.what if incident.kind == "fault" else None,
        "method": incident.what if incident.kind == "bypass" else None,
        "title": incident.title,
        "severity": incident.severity,
        "summary": incident.summary,
        "first_seen": timestamp(incident.first_ns, 0),
        "last_seen": timestamp(incident.last_ns, 0),
        "count": incident.count,
        "delivered": incident.events,
        "told": incident.events,
        "suppressed": incident.suppressed,
        "program": incident.executable,
        "caller": incident.caller,
        "mapping": incident.mapping,
        "facets": {name: dict(values) for name, values in incident.facets.items()},
        **fleet,
    }


class Process(NamedTuple):
    """A process with stored events."""

    boot_id: str
    start_ns: int


Event = dict[str, Any]
Snapshot = dict[str, Any]


# ---- What it holds -------------------------------------------------------------------------------


class Incidents:
    """The database, read-only. Every method raises IncidentError.

    The database may come from a stranger: values are checked against the types of the schema.
    """

    def __init__(self, path: Path, own: bool = False) -> None:
        """`own`: the database is the daemon's, and may be removed."""
        self._path = path
        self._reader = Reader(path, own)

    def __enter__(self) -> Incidents:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._reader.close()

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        return self._reader.rows(query, values)

    def search(self, wanted: Filter, limit: int, order: Order = "last") -> list[Incident]:
        """The incidents that match. Of those that are equal by `order` the last seen first."""
        conditions, values = self._conditions(wanted)
        rows = self._rows(
            f"SELECT {', '.join(_COLUMNS)} FROM incidents WHERE {' AND '.join(conditions)} "
            f"ORDER BY {_ORDERS[order]} LIMIT ?",
            (*values, limit),
        )
        return [self._incident(row) for row in rows]

    def totals(self, wanted: Filter) -> dict[str, int]:
        """How many incidents match, by severity, the worst first; "other": none of ours."""
        conditions, values = self._conditions(wanted)
        known = ", ".join("?" * len(_SEVERITIES))
        rows = self._rows(
            f"SELECT CASE WHEN severity IN ({known}) THEN severity ELSE 'other' END AS rank, "
            f"count(*) FROM incidents WHERE {' AND '.join(conditions)} GROUP BY rank",
            (*_SEVERITIES, *values),
        )
        found = {str(severity): int(count) for severity, count in rows}
        return {each: found[each] for each in (*reversed(_SEVERITIES), "other") if each in found}

    def find(self, prefix: str) -> list[Incident]:
        """The incidents whose id begins with `prefix`, two at most."""
        end = prefix + "g"  # sorts after every hexadecimal digit
        rows = self._rows(
            f"SELECT {', '.join(_COLUMNS)} FROM incidents WHERE id >= ? AND id < ? LIMIT 2",
            (prefix, end),
        )
        return [self._incident(row) for row in rows]

    def events(self, incident: Incident) -> list[Event]:
        """The events that are kept, in the order in which they came."""
        rows = self._rows(
            "SELECT seq, event FROM events WHERE incident = "
            "(SELECT number FROM incidents WHERE id = ?) ORDER BY seq",
            (incident.id,),
        )
        return [self._object("event", *row) for row in rows]

    def snapshots(self, incident: Incident) -> list[Snapshot]:
        """The snapshots that are kept, in the order in which they were taken.

        A database of an older version has none until a daemon upgrades it.
        """
        if "snapshots" not in self._reader.tables:
            return []
        rows = self._rows(
            "SELECT seq, snapshot FROM snapshots WHERE incident = "
            "(SELECT number FROM incidents WHERE id = ?) ORDER BY seq",
            (incident.id,),
        )
        return [self._object("snapshot", *row) for row in rows]

    def processes(self, pid: int) -> list[Process]:
        """The processes that have had this pid, in the order in which they started."""
        rows = self._rows(
            "SELECT DISTINCT boot_id, start_ns FROM events "
            "WHERE pid = ? AND start_ns IS NOT NULL ORDER BY start_ns",
            (pid,),
        )
        found: list[Process] = []
        for boot_id, start_ns in rows:
            if not isinstance(boot_id, str) or not isinstance(start_ns, int):
                raise self._strange(f"an event of pid {pid}")
            last = found[-1] if found else None
            if not (last and last.boot_id == boot_id and _is_near(last.start_ns, start_ns)):
                found.append(Process(boot_id, start_ns))
        return found

    def timeline(self, pid: int, process: Process) -> list[tuple[Event, str]]:
        """The kept events of a process, in order, each with the id of its incident."""
        rows = self._rows(
            "SELECT seq, event, id FROM events JOIN incidents ON number = incident "
            "WHERE pid = ? AND boot_id = ? AND start_ns BETWEEN ? AND ? ORDER BY time_ns, seq",
            (pid, process.boot_id, process.start_ns, process.start_ns + SAME_PROCESS_NS),
        )
        return [(self._object("event", seq, text), str(number)) for seq, text, number in rows]

    def copy(self) -> bytes:
        """The bytes of a file with the whole database, and with what is still in its log."""
        return self._reader.copy()

    def _object(self, what: str, seq: object, text: object) -> dict[str, Any]:
        found = None
        if isinstance(text, str):
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(text)
        if not isinstance(found, dict):
            raise self._strange(f"{what} {printable(str(seq))}")
        return found

    def _strange(self, what: str) -> IncidentError:
        return IncidentError(f"{self._path}: {what} is not one of seal-monitor's")

    def stored(self, table: str, incident: Incident) -> list[tuple[Any, ...]]:
        """The rows of an incident in a table; none where an older database has no such table."""
        if table not in self._reader.tables:
            return []
        key = "number" if table == "incidents" else "incident"
        return self._rows(
            f"SELECT * FROM {table} WHERE {key} = (SELECT number FROM incidents WHERE id = ?) "
            "ORDER BY 1, 2, 3",
            (incident.id,),
        )

    def _conditions(self, wanted: Filter) -> tuple[list[str], list[object]]:
        """Conditions of an SQL query, and the values for their placeholders."""
        conditions = [f"kind IN ({', '.join('?' * len(wanted.kinds))})"]
        values: list[object] = list(wanted.kinds)
        is_pattern = wanted.operation is not None and any(c in wanted.operation for c in "*?[")
        columns = (
            ("last_ns >= ?", wanted.since_ns),
            ("first_ns <= ?", wanted.until_ns),
            ("+what GLOB ?" if is_pattern else "what = ?", wanted.operation),
        )
        for condition, value in columns:
            if value is not None:
                conditions.append(condition)
                values.append(value)
        if wanted.severity is not None:
            enough = _SEVERITIES[_SEVERITIES.index(wanted.severity) :]
            conditions.append(f"severity IN ({', '.join('?' * len(enough))})")
            values += enough
        program = "executable" if "/" in (wanted.executable or "") else "program"
        facets = (
            ((program,), wanted.executable),
            (("workload", ALERTED), wanted.workload),
            (("verdict",), wanted.verdict),
            (("likely",), wanted.likely),
            (("host",), wanted.host),
        )
        for names, value in facets:
            if value is not None:
                each = [_FEW if self._is_rare(name, value) else _MANY for name in names]
                conditions.append(f"({' OR '.join(each)})")
                values += [word for name in names for word in (name, value)]
        return conditions, values

    def _is_rare(self, name: str, value: str) -> bool:
        """Whether so few incidents have the value that the query is faster when it begins there.

        Otherwise it begins with the incidents that were seen last.
        """
        query = "SELECT 1 FROM facets WHERE name = ? AND value GLOB ? LIMIT ?"
        return len(self._rows(query, (name, value, _RARE))) < _RARE

    def _incident(self, row: Sequence[Any]) -> Incident:
        facets: dict[str, dict[str, int]] = {name: {} for name in _FACETS}
        for name, value, count in self._rows(
            "SELECT name, value, count FROM facets WHERE incident = ? ORDER BY count DESC, value",
            (row[0],),
        ):
            if name in facets:
                if not isinstance(value, str) or not isinstance(count, int):
                    raise self._strange(f"a facet of incident {printable(str(row[0]))}")
                facets[name][value] = count
        found = Incident(**dict(zip(_COLUMNS[1:], row[1:], strict=True)), facets=facets)
        texts, numbers = row[1:_TEXTS], row[_TEXTS:]
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(isinstance(number, int) for number in numbers)
            or not re.fullmatch("[0-9a-f]{12}", found.id)
        ):
            raise self._strange(f"incident {printable(str(row[0]))}")
        return found


def _is_near(one_ns: int, other_ns: int) -> bool:
    return abs(one_ns - other_ns) <= SAME_PROCESS_NS
