"""The store of incidents: events grouped by their fingerprint, in SQLite in the state directory.

A sink like the others: an error is counted, and the monitor goes on. A file that is not a database,
or has the schema of another version, is set aside and a new database begun. Values of an event
reach SQL as parameters, never as a part of a statement.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from monitor.evidence.cgroups import workload_name
from monitor.evidence.memory_map import DELETED
from monitor.incidents.fingerprint import Event, Fingerprint, fingerprint, unattributed, what_of
from monitor.sinks.outputs import SinkError, encode
from monitor.untrusted.printable import printable
from monitor.untrusted.recent import Recent
from monitor.untrusted.terminal import plural

__all__ = [
    "FILE",
    "NAME",
    "OTHERS",
    "READABLE",
    "SCHEMA",
    "SNAPSHOTS_KEPT",
    "VERSION",
    "IncidentStore",
    "Retention",
    "nanoseconds",
    "snapshot_data",
]

NAME = "incidents"  # of the sink
FILE = "incidents.db"
VERSION = 2
READABLE = (1, 2)  # version 1 had no snapshots
SNAPSHOTS_KEPT = 3  # of each incident, the last ones: one is as large as 20 events
OTHERS = "others"  # all values of a facet beyond the first VALUES_KEPT, counted together
VALUES_KEPT = 32
TEXT_LIMIT = 4096

# `events` counts the delivered events of an incident, `suppressed` those that the rate limit held
# back. A facet counts the events of an incident that have a value in common. `number` and `seq`
# only grow, so new rows lie together and a small cache is enough.
_SCHEMA_1 = (
    "CREATE TABLE incidents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
    "kind TEXT NOT NULL, what TEXT NOT NULL, "
    "executable TEXT NOT NULL, caller TEXT NOT NULL, mapping TEXT NOT NULL, title TEXT NOT NULL, "
    "severity TEXT NOT NULL, summary TEXT NOT NULL, first_ns INTEGER NOT NULL, "
    "last_ns INTEGER NOT NULL, events INTEGER NOT NULL, suppressed INTEGER NOT NULL)",
    "CREATE INDEX incidents_by_time ON incidents (last_ns)",
    "CREATE INDEX incidents_by_what ON incidents (what, last_ns)",
    "CREATE TABLE facets (incident INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, "
    "count INTEGER NOT NULL, PRIMARY KEY (incident, name, value)) WITHOUT ROWID",
    "CREATE INDEX facets_by_value ON facets (name, value)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, incident INTEGER NOT NULL, "
    "time_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, pid INTEGER, start_ns INTEGER, "
    "event TEXT NOT NULL)",
    "CREATE INDEX events_by_incident ON events (incident)",
    "CREATE INDEX events_by_process ON events (pid, start_ns)",
    "CREATE INDEX events_by_time ON events (time_ns)",
)
_ADDED_BY_2 = (
    "CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, incident INTEGER NOT NULL, "
    "time_ns INTEGER NOT NULL, snapshot TEXT NOT NULL)",
    "CREATE INDEX snapshots_by_incident ON snapshots (incident)",
    "CREATE INDEX snapshots_by_time ON snapshots (time_ns)",
)
SCHEMA = (*_SCHEMA_1, *_ADDED_BY_2)

_SETTINGS = (
    "auto_vacuum = INCREMENTAL",  # only takes effect in a new database
    "journal_mode = WAL",
    "synchronous = NORMAL",  # a power failure may lose the last second, but damages nothing
    "wal_autocheckpoint = 1000",
    "journal_size_limit = 4194304",
    "cache_size = -256",  # KiB
    "temp_store = MEMORY",
    "trusted_schema = OFF",
)

_COUNT = """
INSERT INTO incidents VALUES (NULL, :id, :kind, :what, :executable, :caller, :mapping, :title,
                              :severity, :summary, :first_ns, :last_ns, :events, :suppressed)
ON CONFLICT (id) DO UPDATE SET
    title = excluded.title, severity = excluded.severity, summary = excluded.summary,
    first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns),
    events = events + excluded.events, suppressed = suppressed + excluded.suppressed
RETURNING number
"""
_SUPPRESSED = """
UPDATE incidents SET last_ns = max(last_ns, :last_ns), suppressed = suppressed + :suppressed
WHERE id = :id RETURNING number
"""
_FACET = """
INSERT INTO facets SELECT :incident, :name, iif(
    EXISTS (SELECT 1 FROM facets WHERE incident = :incident AND name = :name AND value = :value)
    OR (SELECT count(*) FROM facets WHERE incident = :incident AND name = :name) < :kept,
    :value, :others), 1
WHERE true ON CONFLICT DO UPDATE SET count = count + 1
"""
_EVENT = """
INSERT INTO events (incident, time_ns, boot_id, pid, start_ns, event)
VALUES (:incident, :time_ns, :boot_id, :pid, :start_ns, :event)
"""
_ONLY_THE_LAST = """
DELETE FROM events WHERE incident = :incident AND seq <= (
    SELECT seq FROM events WHERE incident = :incident ORDER BY seq DESC LIMIT 1 OFFSET :kept)
"""
_AS_OLD_AS_THE_LAST_EVENT = """
UPDATE incidents SET last_ns = coalesce(
    (SELECT time_ns FROM events WHERE incident = number ORDER BY seq DESC LIMIT 1), 0)
WHERE last_ns > :future
"""
_SNAPSHOT = """
INSERT INTO snapshots (incident, time_ns, snapshot)
SELECT number, :time_ns, :snapshot FROM incidents WHERE id = :incident RETURNING incident
"""
_ONLY_THE_LAST_SNAPSHOTS = """
DELETE FROM snapshots WHERE incident = :incident AND seq <= (
    SELECT seq FROM snapshots WHERE incident = :incident ORDER BY seq DESC LIMIT 1 OFFSET :kept)
"""

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_CALLERS = 512  # whose suppressions find their incident: enough for a storm between two sweeps
_LOOK_EVENTS, _LOOK_SECONDS = 64, 60.0  # retention is checked after so many events or seconds
_FULL, _ROOM = 0.9, 0.8  # shares of the size: above _FULL incidents are removed, down to _ROOM
_AT_ONCE = 500  # incidents that one transaction removes
_HOUR_NS = 3600 * 1_000_000_000
_DAY_NS = 24 * _HOUR_NS


class Retention(NamedTuple):
    """`age` in days, `size` in bytes, `events` kept of each incident."""

    age: int
    size: int
    events: int


class _Caller(NamedTuple):
    """What a suppression has in common with the events that came before it."""

    boot_id: str
    pid: int
    kind: str
    what: str | None
    address: str | None


class _Seen(NamedTuple):
    """`incident` is an id: after a rollback another incident may get the same number."""

    incident: str
    start_ns: int | None


class _OtherSchema(Exception):
    """A valid database with another schema."""


def nanoseconds(time: str) -> int:
    """Unix time in ns of an event's time: RFC 3339, in UTC, with nine digits after the point."""
    return int(datetime.fromisoformat(f"{time[:19]}+00:00").timestamp()) * 1_000_000_000 + int(
        time[20:29]
    )


def snapshot_data(incident: str, time_ns: int, text: bytes) -> bytes:
    """What the store is to write for a snapshot of the incident with this id.

    A line with the incident and the time, then the snapshot; an event is only one line.
    """
    return encode({"incident": incident, "time_ns": time_ns}) + b"\n" + text


# ---- What is stored of an event ------------------------------------------------------------------


def _title(event: Event) -> str:
    """What happened in a few words, without what differs from one event to the next."""
    if event["kind"] == "suppression":
        what = what_of(event) or ""
        return f"{what} {plural(event['of'])} of unknown callers".strip()
    if event["kind"] == "seal":
        return "mseal"
    return str(event["summary"]).partition(" at 0x" if event["kind"] == "fault" else ": ")[0]


def _facets(event: Event) -> Iterator[tuple[str, str]]:
    process, workload = event["process"] or {}, event["workload"] or {}
    path = process.get("executable")
    values = {
        "host": event["host"]["name"],
        "verdict": event.get("verdict"),
        "disposition": event.get("disposition"),
        "likely": (event.get("assessment") or {}).get("likely"),
        "workload": workload_name(workload["cgroup"]) if workload.get("cgroup") else None,
        "executable": path,
        "program": path.removesuffix(DELETED).rpartition("/")[2] if path else None,
        "user": process.get("user_name"),
    }
    for name, value in values.items():
        if value:
            yield name, printable(value, TEXT_LIMIT)


def _caller(event: Event) -> _Caller | None:
    """None of an event without a process."""
    process = event["process"]
    if process is None:
        return None
    return _Caller(
        event["host"]["boot_id"],
        process["pid"],
        event.get("of", event["kind"]),
        what_of(event),
        event["instruction_pointer"] if event["kind"] == "fault" else event["caller"],
    )


def _incident(place: Fingerprint, event: Event) -> dict[str, object]:
    now, number = nanoseconds(event["time"]), event.get("count")
    return {
        "id": place.id,
        **{name: printable(text, TEXT_LIMIT) for name, text in place._asdict().items()},
        "title": printable(_title(event), TEXT_LIMIT),
        "severity": event["severity"],
        "summary": printable(event["summary"], TEXT_LIMIT),
        "first_ns": now if number is None else nanoseconds(event["first"]),
        "last_ns": now if number is None else nanoseconds(event["last"]),
        "events": 1 if number is None else 0,
        "suppressed": number or 0,
    }


# ---- Whether the clock is to be believed ---------------------------------------------------------


class _Clock:
    """The real-time clock, which somebody may set: a year ahead, and everything kept is too old.

    It is settled when this process has not seen it set for a day.
    """

    def __init__(self, real_ns: Callable[[], int], boot_ns: Callable[[], int]) -> None:
        self._real_ns = real_ns
        self._boot_ns = boot_ns
        self._offset = real_ns() - boot_ns()
        self._since = boot_ns()

    def now(self) -> tuple[int, bool]:
        """Unix time in ns, and whether it is settled."""
        real, boot = self._real_ns(), self._boot_ns()
        if abs(real - boot - self._offset) > _HOUR_NS:
            self._offset, self._since = real - boot, boot
        return real, boot - self._since >= _DAY_NS


# ---- The database --------------------------------------------------------------------------------


def _is_broken(error: sqlite3.Error) -> bool:
    # Errors of Python's module have no code; the lowest byte is the primary code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


class IncidentStore:
    """A sink that groups events into incidents."""

    name = NAME

    def __init__(
        self,
        directory: Path,
        retention: Retention,
        report: Callable[[str], None],
        clock_ns: Callable[[], int] = time.time_ns,
        *,
        callers: int = _CALLERS,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        """`report` is called, in the writer's thread, when a database was set aside. A suppression
        finds its incident if its caller is one of the last `callers` that had an event.

        The database is opened by the first event, not here.
        """
        self.path = directory / FILE
        self._retention = retention
        self._report = report
        self._clock = _Clock(clock_ns, boot_ns)
        self._database: sqlite3.Connection | None = None
        self._identity = (-1, -1)
        self._callers: Recent[_Caller, _Seen] = Recent(callers)
        self._until_look = 0
        self._looked_at = 0.0

    def render(self, event: dict[str, object]) -> bytes:
        return encode(event)

    def write(self, data: bytes) -> None:
        """Raises SinkError when nothing of the event is in the database."""
        self.write_all([data])

    def write_all(self, batch: Sequence[bytes]) -> None:
        """One transaction: raises SinkError when nothing of the events is in the database."""
        texts = [data.decode() for data in batch]
        try:
            try:
                self._write(texts)
            except (_OtherSchema, sqlite3.DatabaseError) as error:
                if isinstance(error, _OtherSchema) or _is_broken(error):
                    self._set_aside(str(error))
                elif not (_is_full(error) and self._make_room()):
                    raise
                self._write(texts)
        except (_OtherSchema, sqlite3.Error, OSError) as error:
            if not (isinstance(error, sqlite3.Error) and _is_full(error)):
                self.close()  # a fresh start at the next event
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise SinkError(f"{self.path}: {why}; not stored") from error

    def reopen(self) -> None:
        """The next event opens the database again."""
        self.close()

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):  # it may be what is broken
                database.close()

    def _open(self) -> sqlite3.Connection:
        """Raises OSError, sqlite3.Error, _OtherSchema."""
        if self._database is not None and self._is_there():
            return self._database
        self.close()
        # Made here for its mode, which SQLite also gives to the files beside it.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(self.path, flags, 0o640))
        status = os.stat(self.path)
        self._identity = (status.st_dev, status.st_ino)
        database = sqlite3.connect(
            self.path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        self._database = database
        try:
            for setting in _SETTINGS:
                database.execute(f"PRAGMA {setting}").fetchall()
            _prepare(database)
            pages = self._retention.size // self._pragma("page_size")
            database.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        except BaseException:
            self.close()
            raise
        self._until_look = 0
        return database

    def _is_there(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _write(self, texts: Sequence[str]) -> None:
        database = self._open()
        self._look_at_retention(len(texts))
        with _transaction(database):
            for text in texts:
                first, _, snapshot = text.partition("\n")
                if snapshot:
                    _add_snapshot(database, json.loads(first) | {"snapshot": snapshot})
                else:
                    self._take(database, json.loads(text), text)

    def _take(self, database: sqlite3.Connection, event: Event, text: str) -> None:
        if event["kind"] == "suppression":
            number, start_ns = self._add_suppressed(database, event)
        else:
            number, start_ns = self._add(database, event)
        stored = {
            "incident": number,
            "time_ns": nanoseconds(event["time"]),
            "boot_id": event["host"]["boot_id"],
            "pid": (event["process"] or {}).get("pid"),
            "start_ns": start_ns,
            "event": text,
        }
        database.execute(_EVENT, stored)
        database.execute(_ONLY_THE_LAST, {"incident": number, "kept": self._retention.events})

    def _add(self, database: sqlite3.Connection, event: Event) -> tuple[int, int | None]:
        """The incident's number, and when the process started."""
        incident = _incident(fingerprint(event), event)
        ((number,),) = database.execute(_COUNT, incident).fetchall()
        common = {"incident": number, "kept": VALUES_KEPT, "others": OTHERS}
        database.executemany(
            _FACET, [common | {"name": name, "value": value} for name, value in _facets(event)]
        )
        start = (event["process"] or {}).get("start")
        start_ns = nanoseconds(start) if start else None
        if event["kind"] != "health" and (caller := _caller(event)):
            self._callers.put(caller, _Seen(str(incident["id"]), start_ns))
        return number, start_ns

    def _add_suppressed(self, database: sqlite3.Connection, event: Event) -> tuple[int, int | None]:
        """Count it for the last incident of the process at that caller, else as unattributed."""
        incident = _incident(unattributed(event["of"], what_of(event)), event)
        caller = _caller(event)
        if caller and (seen := self._callers.get(caller)):
            found = database.execute(_SUPPRESSED, incident | {"id": seen.incident}).fetchall()
            if found:
                return found[0][0], seen.start_ns
        ((number,),) = database.execute(_COUNT, incident).fetchall()
        return number, None

    # ---- retention -------------------------------------------------------------------------------

    def _look_at_retention(self, events: int) -> None:
        self._until_look -= events
        now = time.monotonic()
        if self._until_look > 0 and now - self._looked_at < _LOOK_SECONDS:
            return
        self._until_look, self._looked_at = _LOOK_EVENTS, now
        now, is_settled = self._clock.now()
        if is_settled or self._is_witnessed(now):
            self._remove_old(now)
        if self._used_bytes() > _FULL * self._retention.size:
            self._make_room()

    def _is_witnessed(self, now_ns: int) -> bool:
        """Whether an event shows that the clock was near this time more than a day ago.

        A much older event is not enough: the clock may have jumped after it.
        """
        longest = max(2 * _DAY_NS, self._retention.age * _DAY_NS // 4)
        query = "SELECT 1 FROM events WHERE time_ns BETWEEN ? AND ? LIMIT 1"
        found = self._open().execute(query, (now_ns - longest, now_ns - _DAY_NS)).fetchone()
        return found is not None

    def _remove_old(self, now_ns: int) -> None:
        """Remove the rows that are older than retention allows.

        A row that came before one of these is even older: if its time lies in the future, the clock
        was ahead. An incident is as old as its last event.
        """
        database = self._open()
        times = {"oldest": now_ns - self._retention.age * _DAY_NS, "future": now_ns + _HOUR_NS}
        for table in ("events", "snapshots"):
            # With the plain max(seq) SQLite reads the table from its end, most often all of it.
            query = f"SELECT max(+seq) FROM {table} WHERE time_ns < :oldest"
            (last,) = database.execute(query, times).fetchone()
            if last is not None:
                with _transaction(database):
                    database.execute(
                        f"DELETE FROM {table} WHERE time_ns < :oldest "
                        "OR time_ns > :future AND seq < :last",
                        times | {"last": last},
                    )
        if database.execute("SELECT 1 FROM incidents WHERE last_ns > :future", times).fetchone():
            with _transaction(database):
                database.execute(_AS_OLD_AS_THE_LAST_EVENT, times)
        while self._remove(
            "SELECT number FROM incidents WHERE last_ns < ? ORDER BY last_ns LIMIT ?",
            (times["oldest"], _AT_ONCE),
        ):
            pass

    def _make_room(self) -> bool:
        """Remove the incidents that were seen the longest ago; whether any was removed.

        False where there is room within the size: then the disk is full.
        """
        if self._database is None or self._used_bytes() <= _ROOM * self._retention.size:
            return False
        has_removed = False
        while self._used_bytes() > _ROOM * self._retention.size:
            some = min(max(self._number_of_incidents() // 20, 1), _AT_ONCE)
            if not self._remove("SELECT number FROM incidents ORDER BY last_ns LIMIT ?", (some,)):
                break
            has_removed = True
        pages = self._pragma("page_count") - self._retention.size // self._pragma("page_size")
        if pages > 0:  # an earlier configuration allowed it to be larger
            # As a script: as a statement it would free only one page.
            self._database.executescript(f"PRAGMA incremental_vacuum({pages})")
        return has_removed

    def _remove(self, which: str, values: tuple[int, ...]) -> int:
        database = self._open()
        found = database.execute(which, values).fetchall()
        if found:
            with _transaction(database):
                database.executemany("DELETE FROM facets WHERE incident = ?", found)
                database.executemany("DELETE FROM events WHERE incident = ?", found)
                database.executemany("DELETE FROM snapshots WHERE incident = ?", found)
                database.executemany("DELETE FROM incidents WHERE number = ?", found)
        return len(found)

    def _number_of_incidents(self) -> int:
        (number,) = self._open().execute("SELECT count(*) FROM incidents").fetchone()
        return int(number)

    def _used_bytes(self) -> int:
        used = self._pragma("page_count") - self._pragma("freelist_count")
        return used * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        assert self._database is not None
        (number,) = self._database.execute(f"PRAGMA {name}").fetchone()
        return int(number)

    # ---- a database that cannot be used ----------------------------------------------------------

    def _set_aside(self, why: str) -> None:
        """Rename the database, and remove those set aside before. Raises OSError."""
        self.close()
        for old in self.path.parent.glob(f"{FILE}.bad-*"):
            old.unlink()
        bad = f"{self.path}.bad-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        os.rename(self.path, bad)
        with contextlib.suppress(FileNotFoundError):  # the rows that are only in the log
            os.rename(f"{self.path}-wal", f"{bad}-wal")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}-shm")
        self._report(f"{self.path} cannot be used: {why}; set aside as {Path(bad).name}")


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commits everything that is done in it; after an exception nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # Some errors have already rolled it back.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _add_snapshot(database: sqlite3.Connection, stored: Mapping[str, Any]) -> None:
    """Raises SinkError if the snapshot's incident is not stored."""
    found = database.execute(_SNAPSHOT, stored).fetchall()
    if not found:
        raise SinkError(f"no incident {stored['incident']} that a snapshot belongs to")
    database.execute(_ONLY_THE_LAST_SNAPSHOTS, {"incident": found[0][0], "kept": SNAPSHOTS_KEPT})


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables of a new database, or those that an older version lacks.

    Raises _OtherSchema if the database has other tables.
    """
    query = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"
    found = {text for (text,) in database.execute(query)}
    (version,) = database.execute("PRAGMA user_version").fetchone()
    lacking = {
        (0, frozenset[str]()): SCHEMA,
        (1, frozenset(_SCHEMA_1)): _ADDED_BY_2,
        (VERSION, frozenset(SCHEMA)): (),
    }.get((version, frozenset(found)))
    if lacking is None:
        if version in READABLE:
            raise _OtherSchema("it has other tables")
        raise _OtherSchema(f"its schema is of version {version}, not {VERSION}")
    if lacking:
        with _transaction(database):
            for statement in lacking:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
