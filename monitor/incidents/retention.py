"""Which incidents are kept: by whose they are and how much they matter, before how old they are.

Each workload has its share of the room, and in it each user; whoever asks for more than his share
loses his own incidents, the least severe first, then those seen the longest ago. Critical ones have
a reserve, shared in the same way, before all others.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from monitor.evidence.owner import NOBODY, Owner
from monitor.incidents.clock import Clock
from monitor.incidents.stored import CRITICAL
from monitor.untrusted.recent import Recent
from monitor.untrusted.shares import keep_fairly

__all__ = ["Kept", "Newcomers", "Retention", "kept_incidents", "to_remove"]

_RESERVE = 4  # a quarter of the room is for critical ones
_WORKLOAD = 4  # a workload may have as many new incidents an hour as so many of its users

_KEPT = """
SELECT number, workload, user, rank, last_ns, 1024
    + (SELECT coalesce(sum(length(event)), 0) FROM events WHERE incident = number)
    + (SELECT coalesce(sum(length(snapshot)), 0) FROM snapshots WHERE incident = number)
FROM incidents JOIN standing ON incident = number
"""


class Retention(NamedTuple):
    """`age` in days, `size` in bytes, `events` kept of each incident; `new` incidents of one user
    in an hour, before the rest is one incident, None: as many as there are.
    """

    age: int
    size: int
    events: int
    new: int | None = None


class Kept(NamedTuple):
    """An incident; `size` is about what it takes, in bytes."""

    number: int
    workload: str
    user: str
    rank: int
    last_ns: int
    size: int


def kept_incidents(database: sqlite3.Connection) -> list[Kept]:
    """All of them. Raises sqlite3.Error."""
    return [Kept(*row) for row in database.execute(_KEPT)]


def to_remove(incidents: Sequence[Kept], part: float) -> list[Kept]:
    """Those to remove, so that about this part of their size is left."""
    room = int(sum(each.size for each in incidents) * part)
    best = sorted(incidents, key=lambda each: (-each.rank, -each.last_ns, -each.number))
    owners = (lambda each: each.workload, lambda each: each.user)

    def size(each: Kept) -> int:
        return each.size

    critical = [each for each in best if each.rank >= CRITICAL]
    reserved = keep_fairly(critical, room // _RESERVE, owners, size)
    safe = {each.number for each in reserved}
    others = [each for each in best if each.number not in safe]
    room -= sum(map(size, reserved))
    safe.update(each.number for each in keep_fairly(others, room, owners, size))
    return [each for each in incidents if each.number not in safe]


class Newcomers:
    """How many new incidents each owner has made in this hour of the boot clock."""

    def __init__(self, limit: int | None, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._counted: Recent[Owner, Counter[int]] = Recent()

    def fold(self, owner: Owner) -> Owner | None:
        """Count a new incident. None: it may be one of its own; else the owner of that for many
        places: the workload alone where all its users together make too many.
        """
        if self._limit is None or owner == NOBODY:
            return None
        if self._count(owner) > self._limit:
            return owner
        whole = Owner(owner.workload, "")
        return whole if self._count(whole) > _WORKLOAD * self._limit else None

    def _count(self, owner: Owner) -> int:
        hour = self._clock.hour()
        counted = Counter({hour: (self._counted.get(owner) or Counter())[hour] + 1})
        self._counted.put(owner, counted)
        return counted[hour]
