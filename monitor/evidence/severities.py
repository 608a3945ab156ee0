"""Violations by workload and severity: what the alerts' severity is made of.

The kernel counts exactly, but cannot judge; a severity is an event's. So this counts where events
are made, whatever becomes of them, and what was suppressed as its summary is made. Names are
bounded as those of the kernel's counts by workload are (bpf/counters.h).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

from monitor.evidence.cgroups import Cgroups, alerted_workload
from monitor.evidence.events import Process, Severity
from monitor.evidence.programs import Programs
from monitor.evidence.workloads import OTHER, REMOVED_SECONDS
from monitor.keep.ledger import Joined, Ledger

__all__ = ["KINDS", "SEVERITIES", "Severities"]

KINDS = ("denial", "fault", "bypass")
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
SEARCH_SECONDS = 60.0  # from one search for removed cgroups to the next

Key = tuple[str, str, str]  # workload, kind, severity


class _Place(NamedTuple):
    cgroup_id: int
    owner: str | None
    used_at: float


class Severities:
    """Written by the thread that makes events, read by that of a scrape."""

    def __init__(
        self,
        cgroups: Cgroups,
        maximum: int,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        """`maximum`: names, besides `other`. `ledger` has the counts of an earlier life."""
        self._cgroups = cgroups
        self._maximum = maximum
        self._clock = clock
        self._counts = Joined((ledger or Ledger()).table("violations"))
        self._places: dict[str, _Place] = {}
        self._taken: Counter[str | None] = Counter()  # places, by owner
        self._search_at = float("-inf")
        self._programs = Programs()
        for name in {name for name, *_ in self._counts} - {OTHER}:  # of an earlier life
            self._places[name] = _Place(0, None, clock())
            self._taken[None] += 1

    def counts(self) -> Mapping[Key, int]:
        """By workload, kind and severity. Those of a name never go down while its cgroup exists,
        and those of a kind together never.
        """
        counts = self._counts.copy()
        return {(name, kind, severity): count for (name, kind, severity), count in counts.items()}

    def programs(self) -> Mapping[tuple[str, str, str], float]:
        """By workload, kind and program: when its last violation was, in Unix time."""
        return self._programs.times()

    def add(
        self,
        cgroup_id: int | None,
        kind: str,
        severity: str,
        count: int = 1,
        process: Process | None = None,
    ) -> None:
        """Count violations of one severity; of kinds that are no violations, nothing.

        `cgroup_id` is None where many workloads may have had a part.
        """
        if kind not in KINDS:
            return
        name = OTHER if cgroup_id is None else self._name(cgroup_id)
        key = name, kind, severity
        self._counts[key] = self._counts.get(key, 0) + count
        if cgroup_id is not None:
            self._programs.add(name, kind, process)

    def _name(self, cgroup_id: int) -> str:
        path = self._path(cgroup_id)
        name, owner = alerted_workload(path or cgroup_id), _owner(path)
        now = self._clock()
        known = self._places.get(name)
        if known is None:
            if not self._has_place(owner):
                self._search(now)
                if not self._has_place(owner):
                    return OTHER
            self._taken[owner] += 1
        else:
            owner = known.owner
        self._places[name] = _Place(cgroup_id, owner, now)
        return name

    def _path(self, cgroup_id: int) -> str | None:
        try:
            return self._cgroups.workload(cgroup_id).cgroup
        except OSError:  # cgroup2 is being unmounted
            return None

    def _has_place(self, owner: str | None) -> bool:
        """A quarter for each owner; the last quarter is for those who have none yet."""
        own, free = self._taken[owner], self._maximum - len(self._places)
        return own < max(self._maximum // 4, 1) and free > (self._maximum // 4 if own else 0)

    def _search(self, now: float) -> None:
        """Give back the places of cgroups that were removed and had no violation for an hour."""
        if now < self._search_at:
            return
        self._search_at = now + SEARCH_SECONDS
        for name, place in list(self._places.items()):
            if now - place.used_at > REMOVED_SECONDS and not self._cgroups.exists(place.cgroup_id):
                del self._places[name]
                self._taken[place.owner] -= 1
                self._programs.forget(name)
                for kind in KINDS:
                    past = sum(self._counts.get((name, kind, each), 0) for each in SEVERITIES)
                    if past:  # first, for a scrape may come between
                        self.add(None, kind, "info", past)
                    for severity in SEVERITIES:
                        self._counts.pop((name, kind, severity), None)


def _owner(path: str | None) -> str | None:
    """The ancestor that nobody but root can make: see Cgroups.subtree()."""
    return None if path is None else "/".join(path.split("/")[:3])
