"""The tables of the database of incidents, version by version, and how an old one is brought up.

A database is one of ours only if its schema is the same, text by text: a table of that name may be
a view that never ends, or have triggers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from monitor.evidence.owner import owner_of
from monitor.incidents.stored import event_rank, rank_of

__all__ = [
    "READABLE",
    "SCHEMA",
    "VERSION",
    "OtherSchema",
    "prepare",
    "rows_of",
    "schema_of",
    "transaction",
]

VERSION = 4
READABLE = (1, 2, 3, 4)  # 1 had no snapshots, 2 no standing, 3 no owners

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
# Whose an incident is, by workload and user, and how much it matters (stored.py).
_ADDED_BY_3 = (
    "CREATE TABLE standing (incident INTEGER PRIMARY KEY, workload TEXT NOT NULL, "
    "user TEXT NOT NULL, rank INTEGER NOT NULL)",
    "CREATE INDEX standing_by_owner ON standing (workload, user)",
)
# Whose each kept event and snapshot is, and whose the place of each value (places.py). That of an
# event is in a row of its own: events are large, and an older database has many.
_ADDED_BY_4 = (
    "CREATE TABLE owners (seq INTEGER PRIMARY KEY, incident INTEGER NOT NULL, "
    "workload TEXT NOT NULL, user TEXT NOT NULL, rank INTEGER NOT NULL)",
    "CREATE INDEX owners_by_incident ON owners (incident)",
    *(
        f"ALTER TABLE {table} ADD COLUMN {column} TEXT NOT NULL DEFAULT ''"
        for table in ("facets", "snapshots")
        for column in ("workload", "user")
    ),
)
_ADDED = {1: _SCHEMA_1, 2: _ADDED_BY_2, 3: _ADDED_BY_3, 4: _ADDED_BY_4}
SCHEMA = tuple(statement for added in _ADDED.values() for statement in added)

_LAST_EVENT = "SELECT event FROM events WHERE incident = ? ORDER BY seq DESC LIMIT 1"

Row = tuple[str, str, str, str | None]


class OtherSchema(Exception):
    """A valid database with another schema."""


@functools.cache
def schema_of(version: int) -> tuple[Row, ...]:
    """The rows (type, name, table, SQL) of a database of this version, in order.

    Among them are the indexes that SQLite makes itself.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        for added in range(1, version + 1):
            for statement in _ADDED[added]:
                database.execute(statement)
        return rows_of(database)


def rows_of(database: sqlite3.Connection) -> tuple[Row, ...]:
    """The rows of its schema, sorted; of a foreign one a few more than ours has at most."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema LIMIT 64"
    return tuple(sorted(database.execute(query), key=repr))


def prepare(database: sqlite3.Connection) -> None:
    """Make the tables of a new database, or those that an older version lacks.

    Raises OtherSchema if the database has other tables.
    """
    found = rows_of(database)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, *READABLE):
        raise OtherSchema(f"its schema is of version {version}, not {VERSION}")
    if found != (schema_of(version) if version else ()):
        raise OtherSchema("it has other tables")
    if version == VERSION:
        return
    with transaction(database):
        for added in range(version + 1, VERSION + 1):
            for statement in _ADDED[added]:
                database.execute(statement)
        if version < 3:
            database.executemany("INSERT INTO standing VALUES (?, ?, ?, ?)", _standings(database))
        database.executemany("INSERT INTO owners VALUES (?, ?, ?, ?, ?)", _owners(database))
        database.execute(f"PRAGMA user_version = {VERSION}")


def _standings(database: sqlite3.Connection) -> Iterator[tuple[int, str, str, int]]:
    """Of each incident of an older version: its owner is that of the last event that is kept."""
    incidents = "SELECT number, severity FROM incidents ORDER BY number"
    verdicts = "SELECT value FROM facets WHERE incident = ? AND name = 'verdict'"
    for number, severity in database.execute(incidents).fetchall():
        found = database.execute(_LAST_EVENT, (number,)).fetchone()
        owner = owner_of(_event(found[0]) if found else {})
        of_it = [verdict for (verdict,) in database.execute(verdicts, (number,))]
        rank = max(rank_of(severity, verdict) for verdict in (*of_it, None))
        yield number, owner.workload, owner.user, rank


def _owners(database: sqlite3.Connection) -> Iterator[tuple[int, int, str, str, int]]:
    """Of each event of an older version. Whose its values and snapshots are is not known."""
    for seq, incident, text in database.execute("SELECT seq, incident, event FROM events"):
        event = _event(text)
        owner = owner_of(event)
        yield seq, incident, owner.workload, owner.user, event_rank(event)


def _event(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(text)
        if isinstance(event, dict):
            return event
    return {}


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
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
