"""Removes from the store of incidents what retention does not keep, and says so.

By age where the clock can be believed, and by the shares of retention where the size is reached.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from monitor.evidence.owner import Owner
from monitor.incidents.clock import DAY_NS, HOUR_NS, Clock
from monitor.incidents.retention import Kept, Retention, kept_incidents, to_remove
from monitor.incidents.schema import transaction
from monitor.incidents.stored import severity_of

__all__ = ["HALF", "Removal"]

_AS_OLD_AS_THE_LAST_EVENT = """
UPDATE incidents SET last_ns = coalesce(
    (SELECT time_ns FROM events WHERE incident = number ORDER BY seq DESC LIMIT 1), 0)
WHERE last_ns > :future
"""

_OLD = "WHERE time_ns < :oldest OR time_ns > :future AND seq < :last"

_LOOK_EVENTS, _LOOK_SECONDS = 64, 60.0  # retention is checked after so many events or seconds
_FULL, _ROOM = 0.9, 0.8  # shares of the size: above _FULL incidents are removed, down to _ROOM
HALF = 0.5  # the share where a batch did not fit: it may be as large as the rest of a small one
_AT_ONCE = 500  # incidents that one transaction removes
_LOG = 4 << 20  # bytes of the log beside the database, which count in its size


class Removal:
    """`removed` counts, by severity, the incidents that were removed; `notices` say which made room
    for others, for the caller to take out and report.
    """

    def __init__(self, path: Path, retention: Retention, clock: Clock) -> None:
        self._path = path
        self._retention = retention
        self._clock = clock
        self.removed: Counter[str] = Counter({"info": 0, "warning": 0, "critical": 0})
        self.notices: deque[str] = deque(maxlen=8)
        self._room = 0
        self._unsaid: Counter[tuple[str, Owner]] = Counter()
        self._said_hour = -1
        self._until_look = 0
        self._looked_at = 0.0

    def begin(self, database: sqlite3.Connection) -> None:
        """Let SQLite hold the size: the database and its log, which is copied back at half its
        share, together.
        """
        log, page = min(_LOG, self._retention.size // 8), _pragma(database, "page_size")
        self._room = self._retention.size - log
        for setting in (
            f"max_page_count = {self._room // page}",
            f"wal_autocheckpoint = {max(log // 2 // page, 1)}",
            f"journal_size_limit = {log}",
        ):
            database.execute(f"PRAGMA {setting}").fetchall()
        self._until_look = 0

    def look(self, database: sqlite3.Connection, events: int) -> None:
        """Called before so many events are written; removes what must go, once in a while."""
        self._until_look -= events
        if self._until_look > 0 and time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._until_look, self._looked_at = _LOOK_EVENTS, time.monotonic()
        now, is_settled = self._clock.now()
        if is_settled or self._is_witnessed(database, now):
            self.remove_old(database, now)
        if _used_bytes(database) > _FULL * self._room:
            self.make_room(database)

    def _is_witnessed(self, database: sqlite3.Connection, now_ns: int) -> bool:
        """Whether an event shows that the clock was near this time more than a day ago.

        A much older event is not enough: the clock may have jumped after it.
        """
        longest = max(2 * DAY_NS, self._retention.age * DAY_NS // 4)
        query = "SELECT 1 FROM events WHERE time_ns BETWEEN ? AND ? LIMIT 1"
        found = database.execute(query, (now_ns - longest, now_ns - DAY_NS)).fetchone()
        return found is not None

    def remove_old(self, database: sqlite3.Connection, now_ns: int) -> None:
        """Remove the rows that are older than retention allows.

        A row that came before one of these is even older: if its time lies in the future, the clock
        was ahead. An incident is as old as its last event.
        """
        times = {"oldest": now_ns - self._retention.age * DAY_NS, "future": now_ns + HOUR_NS}
        for table in ("events", "snapshots"):
            # With the plain max(seq) SQLite reads the table from its end, most often all of it.
            query = f"SELECT max(+seq) FROM {table} WHERE time_ns < :oldest"
            (last,) = database.execute(query, times).fetchone()
            if last is not None:
                times["last"] = last
                with transaction(database):
                    if table == "events":
                        query = f"DELETE FROM owners WHERE seq IN (SELECT seq FROM events {_OLD})"
                        database.execute(query, times)
                    database.execute(f"DELETE FROM {table} {_OLD}", times)
        if database.execute("SELECT 1 FROM incidents WHERE last_ns > :future", times).fetchone():
            with transaction(database):
                database.execute(_AS_OLD_AS_THE_LAST_EVENT, times)
        query = "SELECT incident, rank FROM standing JOIN incidents ON number = incident "
        query += "WHERE last_ns < ? LIMIT ?"
        while found := database.execute(query, (times["oldest"], _AT_ONCE)).fetchall():
            self._remove(database, found)

    def make_room(self, database: sqlite3.Connection, part: float = _ROOM) -> bool:
        """Remove the incidents that are beyond their owners' shares, down to this part of the size;
        whether any was removed.

        False where there is room within the size: then the disk is full.
        """
        if _used_bytes(database) <= part * self._room:
            return False
        has_removed = False
        while (used := _used_bytes(database)) > part * self._room:
            chosen = to_remove(kept_incidents(database), part * self._room / used)
            for start in range(0, len(chosen), _AT_ONCE):
                batch = chosen[start : start + _AT_ONCE]
                self._remove(database, [(each.number, each.rank) for each in batch])
            if not chosen:
                break
            has_removed = True
            self._say_removed(chosen)
        pages = _pragma(database, "page_count") - self._room // _pragma(database, "page_size")
        if pages > 0:  # an earlier configuration allowed it to be larger
            # As a script: as a statement it would free only one page.
            database.executescript(f"PRAGMA incremental_vacuum({pages})")
        return has_removed

    def _say_removed(self, chosen: Sequence[Kept]) -> None:
        """Once an hour, with all that was removed since: a flood would remove some each second."""
        self._unsaid.update(
            (severity_of(each.rank), Owner(each.workload, each.user)) for each in chosen
        )
        if (hour := self._clock.hour()) == self._said_hour:
            return
        self._said_hour = hour
        severities = Counter[str]()
        owners = Counter[Owner]()
        for (severity, owner), count in self._unsaid.items():
            severities[severity] += count
            owners[owner] += count
        self._unsaid.clear()
        counts = ", ".join(f"{count:,} {name}" for name, count in severities.most_common())
        ((most, number),) = owners.most_common(1)
        self.notices.append(
            f"incidents removed to make room for others: {counts}; {number:,} of them of "
            f"{most.words}. {self._path} holds what incidents.max_size allows: raise it, or look "
            "at who makes so many"
        )

    def _remove(self, database: sqlite3.Connection, found: Sequence[tuple[int, int]]) -> None:
        """Remove the incidents with these numbers and ranks, and count them."""
        numbers = [(number,) for number, _ in found]
        with transaction(database):
            for table in ("facets", "events", "owners", "snapshots", "standing"):
                database.executemany(f"DELETE FROM {table} WHERE incident = ?", numbers)
            database.executemany("DELETE FROM incidents WHERE number = ?", numbers)
        self.removed.update(severity_of(rank) for _, rank in found)


def _used_bytes(database: sqlite3.Connection) -> int:
    used = _pragma(database, "page_count") - _pragma(database, "freelist_count")
    return used * _pragma(database, "page_size")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    (number,) = database.execute(f"PRAGMA {name}").fetchone()
    return int(number)
