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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monitor.evidence.fingerprint import Event, fingerprint, unattributed, what_of
from monitor.evidence.owner import NOBODY, Owner, owner_of
from monitor.incidents.clock import Clock
from monitor.incidents.places import Row, Value, has_more, row_to_remove, value_to_remove
from monitor.incidents.removal import HALF, Removal
from monitor.incidents.retention import Newcomers, Retention
from monitor.incidents.schema import OtherSchema, prepare, transaction
from monitor.incidents.stored import (
    event_rank,
    facets_of,
    incident_of,
    many_places,
    nanoseconds,
    rank_of,
)
from monitor.sinks.outputs import SinkError, encode
from monitor.untrusted.recent import Recent, SharedRecent

__all__ = [
    "FILE",
    "NAME",
    "OTHERS",
    "SNAPSHOTS_KEPT",
    "IncidentStore",
    "Retention",
    "nanoseconds",
    "snapshot_data",
]

NAME = "incidents"  # of the sink
FILE = "incidents.db"
SNAPSHOTS_KEPT = 3  # of each incident, the last ones: one is as large as 20 events
OTHERS = "others"  # all values of a facet beyond the first VALUES_KEPT, counted together
VALUES_KEPT = 32

_SETTINGS = (
    "auto_vacuum = INCREMENTAL",  # only takes effect in a new database
    "journal_mode = WAL",
    "synchronous = NORMAL",  # a power failure may lose the last second, but damages nothing
    "cache_size = -256",  # KiB
    "temp_store = MEMORY",
    "trusted_schema = OFF",
    "cell_size_check = ON",
)

_COUNT = """
INSERT INTO incidents VALUES (NULL, :id, :kind, :what, :executable, :caller, :mapping, :title,
                              :severity, :summary, :first_ns, :last_ns, :events, :suppressed)
ON CONFLICT (id) DO UPDATE SET
    first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns),
    events = events + excluded.events, suppressed = suppressed + excluded.suppressed
RETURNING number
"""
# What is said of an incident only rises: a lesser event, of which its maker can add any number,
# changes counts and facets alone.
_STANDING = "SELECT workload, user, rank FROM standing WHERE incident = ?"
_NEW_STANDING = "INSERT INTO standing VALUES (:incident, :workload, :user, :rank)"
_RISE = "UPDATE incidents SET title = :title, severity = :severity WHERE number = :incident"
_RISEN = "UPDATE standing SET rank = :rank WHERE incident = :incident"
_SUMMARY = "UPDATE incidents SET summary = :summary WHERE number = :incident"
_OWN = "SELECT count(*) FROM standing WHERE workload = ? AND user = ?"
_GIVE = "UPDATE standing SET workload = :workload, user = :user WHERE incident = :incident"
_SUPPRESSED = """
UPDATE incidents SET last_ns = max(last_ns, :last_ns), suppressed = suppressed + :suppressed
WHERE id = :id RETURNING number
"""
_SEEN_VALUE = """
UPDATE facets SET count = count + 1
WHERE incident = :incident AND name = :name AND value = :value RETURNING workload, user
"""
_NEW_VALUE = """
INSERT INTO facets (incident, name, value, count, workload, user)
VALUES (:incident, :name, :value, :count, :workload, :user)
ON CONFLICT DO UPDATE SET count = count + :count
"""
_VALUES = """
SELECT workload, user, count, 1, value FROM facets
WHERE incident = :incident AND name = :name AND value <> :others
"""
_FORGET_VALUE = "DELETE FROM facets WHERE incident = :incident AND name = :name AND value = :value"
_PLACES = """
SELECT workload, user, count(*) FROM facets
WHERE incident = :incident AND name = :name AND value <> :others GROUP BY 1, 2
"""
_GIVE_PLACE = """
UPDATE facets SET workload = :workload, user = :user
WHERE incident = :incident AND name = :name AND value = :value
"""
_EVENT = """
INSERT INTO events (incident, time_ns, boot_id, pid, start_ns, event)
VALUES (:incident, :time_ns, :boot_id, :pid, :start_ns, :event)
"""
_OWNER = "INSERT INTO owners VALUES (:seq, :incident, :workload, :user, :rank)"
_EVENTS_KEPT = "SELECT seq, workload, user, rank FROM owners WHERE incident = ?"
_SNAPSHOT = """
INSERT INTO snapshots (incident, time_ns, snapshot, workload, user)
SELECT number, :time_ns, :snapshot, :workload, :user FROM incidents WHERE id = :incident
RETURNING incident
"""
_SNAPSHOTS_KEPT = "SELECT seq, workload, user, 0 FROM snapshots WHERE incident = ?"

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_CALLERS = 512  # whose suppressions find their incident: enough for a storm between two sweeps
_FOLDED = 1024  # incidents that became a part of one for many places


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


def snapshot_data(incident: str, time_ns: int, text: bytes, owner: Owner = NOBODY) -> bytes:
    """What the store is to write for a snapshot of the incident with this id.

    A line with the incident, the time and the owner, then the snapshot; an event is only one line.
    """
    return encode({"incident": incident, "time_ns": time_ns, **owner._asdict()}) + b"\n" + text


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

        The database is opened by the first event, not here. `removed` counts, by severity, the
        incidents that retention took; `notices` say which made room for others, for the caller to
        take out and report.
        """
        self.path = directory / FILE
        self._retention = retention
        self._report = report
        self._clock = Clock(clock_ns, boot_ns)
        self._newcomers = Newcomers(retention.new, self._clock)
        self._folded: Recent[str, str] = Recent(_FOLDED)
        self._helpers: Recent[tuple[str, Owner], bool] = Recent()
        self._removal = Removal(self.path, retention, self._clock)
        self.removed, self.notices = self._removal.removed, self._removal.notices
        self._database: sqlite3.Connection | None = None
        self._identity = (-1, -1)
        self._callers: SharedRecent[_Caller, _Seen] = SharedRecent(callers)

    def _make_room(self) -> bool:
        """Whether there is some now; False where it is the disk that is full."""
        return self._database is not None and self._removal.make_room(self._database, HALF)

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
            except (OtherSchema, sqlite3.DatabaseError) as error:
                if isinstance(error, OtherSchema) or _is_broken(error):
                    self._set_aside(str(error))
                elif not (_is_full(error) and self._make_room()):
                    raise
                self._write(texts)
        except (OtherSchema, sqlite3.Error, OSError) as error:
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
        """Raises OSError, sqlite3.Error, OtherSchema."""
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
            prepare(database)
            self._removal.begin(database)
        except BaseException:
            self.close()
            raise
        return database

    def _is_there(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _write(self, texts: Sequence[str]) -> None:
        database = self._open()
        self._removal.look(database, len(texts))
        with transaction(database):
            for text in texts:
                first, _, snapshot = text.partition("\n")
                if snapshot:
                    stored = json.loads(first)
                    place = self._folded.get(stored["incident"]) or stored["incident"]
                    _add_snapshot(database, stored | {"incident": place, "snapshot": snapshot})
                else:
                    self._take(database, json.loads(text), text)

    def _take(self, database: sqlite3.Connection, event: Event, text: str) -> None:
        owner = owner_of(event)
        if event["kind"] == "suppression":
            number, start_ns = self._add_suppressed(database, event)
        else:
            number, start_ns = self._add(database, event, owner)
        stored = {
            "incident": number,
            "time_ns": nanoseconds(event["time"]),
            "boot_id": event["host"]["boot_id"],
            "pid": (event["process"] or {}).get("pid"),
            "start_ns": start_ns,
            "event": text,
        }
        seq = database.execute(_EVENT, stored).lastrowid
        stored |= {"seq": seq, **owner._asdict(), "rank": event_rank(event)}
        database.execute(_OWNER, stored)
        rows = map(Row._make, database.execute(_EVENTS_KEPT, (number,)))
        if (loser := row_to_remove(list(rows), self._retention.events)) is not None:
            for table in ("events", "owners"):
                database.execute(f"DELETE FROM {table} WHERE seq = ?", (loser,))

    def _add(
        self, database: sqlite3.Connection, event: Event, owner: Owner
    ) -> tuple[int, int | None]:
        """The incident's number, and when the process started."""
        incident = self._place(database, event, owner)
        ((number,),) = database.execute(_COUNT, incident).fetchall()
        self._rank(database, number, incident, owner, event_rank(event))
        for name, value in facets_of(event):
            _count_value(database, number, name, value, owner)
        start = (event["process"] or {}).get("start")
        start_ns = nanoseconds(start) if start else None
        if event["kind"] != "health" and (caller := _caller(event)):
            self._callers.put(caller, _Seen(str(incident["id"]), start_ns), owner)
        return number, start_ns

    def _place(self, database: sqlite3.Connection, event: Event, owner: Owner) -> dict[str, object]:
        """The values of the event's own incident, or of the one for many places."""
        own = fingerprint(event)
        known = database.execute("SELECT 1 FROM incidents WHERE id = ?", (own.id,)).fetchone()
        fold = None if known or event["kind"] == "health" else self._newcomers.fold(owner)
        if fold is None:
            return incident_of(own, event)
        place = many_places(event, fold)
        self._folded.put(own.id, place.id)
        return incident_of(place, event, fold)

    def _rank(
        self,
        database: sqlite3.Connection,
        number: int,
        incident: Mapping[str, object],
        owner: Owner,
        rank: int,
    ) -> None:
        """Let what is said of the incident rise to this event, and see whose it is."""
        values = {**incident, **owner._asdict(), "incident": number, "rank": rank}
        found = database.execute(_STANDING, (number,)).fetchone()
        if found is None:
            database.execute(_NEW_STANDING, values)
            return
        if rank > found[2]:
            database.execute(_RISE, values)
            database.execute(_RISEN, values)
        if rank >= found[2]:
            database.execute(_SUMMARY, values)
        seen = (str(incident["id"]), owner)
        if owner == found[:2] or owner == NOBODY or self._helpers.get(seen):
            return
        # Of several owners it is that one's who has the fewest, and so loses it last.
        self._helpers.put(seen, True)
        (theirs,), (own,) = (database.execute(_OWN, each).fetchone() for each in (found[:2], owner))
        if own < theirs:
            database.execute(_GIVE, values)

    def _add_suppressed(self, database: sqlite3.Connection, event: Event) -> tuple[int, int | None]:
        """Count it for the last incident of the process at that caller, else as unattributed."""
        incident = incident_of(unattributed(event["of"], what_of(event)), event)
        caller = _caller(event)
        if caller and (seen := self._callers.get(caller)):
            found = database.execute(_SUPPRESSED, incident | {"id": seen.incident}).fetchall()
            if found:
                return found[0][0], seen.start_ns
        ((number,),) = database.execute(_COUNT, incident).fetchall()
        self._rank(database, number, incident, NOBODY, rank_of(str(event["severity"]), None))
        return number, None

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


def _add_snapshot(database: sqlite3.Connection, stored: Mapping[str, Any]) -> None:
    """Raises SinkError if the snapshot's incident is not stored."""
    found = database.execute(_SNAPSHOT, stored).fetchall()
    if not found:
        raise SinkError(f"no incident {stored['incident']} that a snapshot belongs to")
    rows = map(Row._make, database.execute(_SNAPSHOTS_KEPT, found[0]))
    if (loser := row_to_remove(list(rows), SNAPSHOTS_KEPT)) is not None:
        database.execute("DELETE FROM snapshots WHERE seq = ?", (loser,))


def _count_value(
    database: sqlite3.Connection, incident: int, name: str, value: str, owner: Owner
) -> None:
    """Count a value of a facet; where it has no place, among the others."""
    values = {"incident": incident, "name": name, "value": value, "count": 1, "others": OTHERS}
    values |= owner._asdict()
    found = database.execute(_SEEN_VALUE, values).fetchall()
    if found:
        holder = Owner(*found[0])
        if holder != owner:
            # Of several owners it is that one's who has the fewest, and so loses it last.
            places = {Owner(*row[:2]): row[2] for row in database.execute(_PLACES, values)}
            if has_more(holder, owner, places):
                database.execute(_GIVE_PLACE, values)
        return
    asked = Value(*owner, 1, False, value)
    held = [Value._make(row) for row in database.execute(_VALUES, values)]
    if len(held) < VALUES_KEPT:
        database.execute(_NEW_VALUE, values)
        return
    loser = value_to_remove([*held, asked])
    others = values | {"value": OTHERS, "count": loser.seen, **NOBODY._asdict()}
    if loser is not asked:
        database.execute(_FORGET_VALUE, values | {"value": loser.value})
        database.execute(_NEW_VALUE, values)
    database.execute(_NEW_VALUE, others)
