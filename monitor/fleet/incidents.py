"""The incidents of all hosts, with the types of those of one host.

What the database says is checked against the types of its columns; nothing else is trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, get_args

from monitor.evidence import doubts
from monitor.evidence.events import Severity
from monitor.evidence.fingerprint import fingerprint
from monitor.fleet.answer import CentreError, Database, Row
from monitor.fleet.pattern import base_name, pattern
from monitor.incidents.search import Event, Filter, Incident, Order
from monitor.incidents.stored import incident_of
from monitor.report.cases import Hour, SeenOn
from monitor.untrusted.printable import printable

__all__ = ["Deed", "FleetIncidents"]

_SEVERITIES: tuple[str, ...] = get_args(Severity)  # the least first
_EVER = datetime(1970, 1, 2, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORDERS: Mapping[Order, str] = {
    "worst": "worst DESC, last_seen DESC, fingerprint",
    "last": "last_seen DESC, fingerprint",
    "count": "sum(events + suppressed) DESC, last_seen DESC, fingerprint",
}
_FACETS = (
    *("verdict", "disposition", "likely", "executable", "workload", "host", "user"),
    *doubts.FACETS,
)
FACET_LIMIT = 100  # values of each facet; how many hosts there are is exact all the same
EVENTS = 100  # that are read of an incident


class Deed(NamedTuple):
    """A row of a host's timeline."""

    time_ns: int
    kind: str
    severity: str
    incident: str
    summary: str


class FleetIncidents:
    """Every method raises CentreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> FleetIncidents:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def search(self, wanted: Filter, limit: int, order: Order = "worst") -> list[Incident]:
        """The incidents that match; of those that are equal by `order` the last seen first."""
        body, _, _ = self._database.text("incidents").partition("\nORDER BY")
        text = f"{body}\nORDER BY {_ORDERS[order]}\nLIMIT {int(limit)}"
        return self._incidents(self._database.ask(text, _values(wanted)))

    def totals(self, wanted: Filter) -> dict[str, int]:
        """How many incidents match, by severity, the worst first; "other": none of ours."""
        body, _, _ = self._database.text("incidents").partition("\nORDER BY")
        text = (
            f"SELECT worst, count(*) FROM (\n{body}\n) AS found GROUP BY worst ORDER BY worst DESC"
        )
        found = {}
        for row in self._database.ask(text, _values(wanted)):
            with self._as_columns():
                rank, count = row
                found[_severity(int(rank))] = int(count)
        return found

    def find(self, prefix: str) -> list[Incident]:
        """The incidents whose id begins with `prefix`, of hexadecimal digits; two at most."""
        wanted = Filter(kinds=("denial", "fault", "bypass", "seal", "health", "unreadable"))
        body, _, _ = self._database.text("incidents").partition("\nORDER BY")
        values = _values(wanted) | {"fingerprint": f"{prefix}%"}
        return self._incidents(self._database.ask(f"{body}\nORDER BY fingerprint\nLIMIT 2", values))

    def events(self, incident: Incident) -> list[Event]:
        """The last events, in the order of their time, without what is not seal-monitor's."""
        rows = self._ask("recent", fingerprint=incident.id, limit=2 * EVENTS)
        found: dict[str, Event] = {}
        for id, text in rows:
            if (event := _event(text)) is not None:
                found.setdefault(str(id), event)
        return [*reversed([*found.values()][:EVENTS])]

    def hosts(self, incident: Incident, limit: int) -> list[SeenOn]:
        """The hosts, the first one first."""
        found = []
        for row in self._ask("hosts", fingerprint=incident.id, limit=limit):
            with self._as_columns():
                host, host_id, first, last, delivered, held_back = row
                count = int(delivered) + int(held_back)
                found.append(SeenOn(str(host), str(host_id), _ns(first), _ns(last), count))
        return found

    def spread(self, incident: Incident, limit: int) -> list[Hour]:
        """The last hours in which it was seen, in order."""
        found = []
        for row in self._ask("spread", fingerprint=incident.id, limit=limit):
            with self._as_columns():
                hour, hosts, new_hosts, count = row
                found.append(Hour(_ns(hour), int(hosts), int(new_hosts), int(count)))
        return found[::-1]

    def similar(self, incident: Incident, limit: int) -> list[Incident]:
        """Other incidents of the same executables, those on most hosts first."""
        found = []
        for row in self._ask("similar", fingerprint=incident.id, limit=limit):
            with self._as_columns():
                id, kind, what, worst, hosts, count, first, last = row
                found.append((id, kind, what, worst, first, last, count, 0, hosts))
        return self._incidents(found)

    def timeline(
        self, host: str, since_ns: int | None, until_ns: int | None, limit: int
    ) -> list[Deed]:
        """What a host reported, in order."""
        since, until = _times(since_ns, until_ns)
        found = []
        for row in self._ask("timeline", host=host, since=since, until=until, limit=limit):
            with self._as_columns():
                time, kind, severity, incident = row[:4]
                summary = str(row[9])
                found.append(Deed(_ns(time), str(kind), str(severity), str(incident), summary))
        return found

    def _ask(self, question: str, **values: object) -> list[Row]:
        return self._database.ask(self._database.text(question), values)

    @contextlib.contextmanager
    def _as_columns(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            why = printable(f"{type(error).__name__}: {error}")
            raise CentreError(
                f"{self._database.name}: its tables are not those of dashboards/fleet ({why})"
            ) from error

    def _incidents(self, rows: Sequence[Row]) -> list[Incident]:
        ids = [str(row[0]) for row in rows]
        facets, last = self._facets(ids), self._last(ids)
        found = []
        for row in rows:
            with self._as_columns():
                id, kind, what, worst, first, last_seen, delivered, held_back, hosts = row
                texts = _texts(last.get(str(id)), str(kind), str(what))
                found.append(
                    Incident(
                        id=printable(str(id)),
                        kind=str(kind),
                        what=str(what),
                        **texts,
                        severity=_severity(int(worst)),
                        first_ns=_ns(first),
                        last_ns=_ns(last_seen),
                        events=int(delivered),
                        suppressed=int(held_back),
                        facets=facets[str(id)],
                        hosts=int(hosts),
                    )
                )
        return found

    def _facets(self, ids: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        found: dict[str, dict[str, dict[str, int]]] = {
            id: {name: {} for name in _FACETS} for id in ids
        }
        if ids:
            for row in self._ask("facets", fingerprints=ids, limit=FACET_LIMIT):
                with self._as_columns():
                    id, name, value, number = row
                    found[str(id)][str(name)][str(value)] = int(number)
        return found

    def _last(self, ids: Sequence[str]) -> dict[str, Event]:
        found = {}
        if ids:
            for id, text in self._ask("last", fingerprints=ids, limit=4 * len(ids)):
                if (event := _event(text)) is not None:
                    found[str(id)] = event
        return found


def _event(text: object) -> Event | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(str(text))
        if isinstance(found, dict):
            return found
    return None


def _texts(event: Event | None, kind: str, what: str) -> dict[str, Any]:
    """Texts of an incident, of its last event, which a stranger may have written."""
    if event is not None:
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            values = incident_of(fingerprint(event), event)
            names = ("executable", "caller", "mapping", "title", "summary")
            return {name: str(values[name]) for name in names}
    title = f"{what} {kind}s of unknown callers" if kind in ("denial", "fault", "bypass") else kind
    return {"executable": "", "caller": "", "mapping": "", "title": title, "summary": ""}


def _ns(time: datetime) -> int:
    span = time - _EPOCH
    return ((span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds) * 1000


def _severity(rank: int) -> str:
    return _SEVERITIES[min(max(rank, 0), len(_SEVERITIES) - 1)]


def _times(since_ns: int | None, until_ns: int | None) -> tuple[datetime, datetime]:
    first, last = _EVER
    since = first if since_ns is None else _time(since_ns)
    return since, last if until_ns is None else _time(until_ns)


def _time(ns: int) -> datetime:
    first, last = _EVER
    return min(max(_EPOCH + timedelta(microseconds=ns // 1000), first), last)


def _values(wanted: Filter) -> dict[str, object]:
    since, until = _times(wanted.since_ns, wanted.until_ns)
    program = wanted.executable
    return {
        "kinds": list(wanted.kinds),
        "fingerprint": "%",
        "operation": pattern(wanted.operation),
        "since": since,
        "until": until,
        "rank": _SEVERITIES.index(wanted.severity) if wanted.severity else 0,
        "host": pattern(wanted.host),
        "executable": pattern(program) if program is None or "/" in program else base_name(program),
        "workload": pattern(wanted.workload),
        "verdict": pattern(wanted.verdict),
        "likely": pattern(wanted.likely),
    }
