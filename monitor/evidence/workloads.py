"""Denials by workload: adds up the kernel's counts by cgroup id under names that people know."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from ctypes import c_uint64
from typing import NamedTuple

from monitor.evidence.cgroups import Cgroups, workload_name
from monitor.kernel.abi import Counters
from monitor.kernel.counters import KernelState

__all__ = ["OTHER", "Workloads"]

OTHER = "other"
REMOVED_SECONDS = 3600.0  # the series of a removed cgroup stays for an hour

Denials = tuple[int, int, int]


class _Known(NamedTuple):
    name: str
    removed_at: float | None


class Workloads:
    """Read at every scrape, by one thread at a time."""

    def __init__(
        self,
        state: KernelState,
        cgroups: Cgroups,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._cgroups = cgroups
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._counts: dict[int, Denials] = {}
        self._retired: dict[str, Denials] = {}
        self._seen = -1

    @property
    def tracked(self) -> int:
        return len(self._counts)

    def denials(self, counters: Counters) -> Mapping[str, Denials]:
        """Denials by workload name and verdict, `other` included.

        A name's figures never go down while a cgroup of that name is there. Raises OSError.
        """
        total = sum(sum(by_verdict) for by_verdict in counters.denials)
        # The programs write to the map first, so it has every denial that the counters have.
        if total != self._seen:
            self._counts = {
                key.value: (value.denials[0], value.denials[1], value.denials[2])
                for key, value in self._state.workloads.items()
            }
            self._seen = total
        self._look_at_cgroups()
        sums: dict[str, Counter[int]] = {OTHER: Counter()}
        for cgroup_id, denials in self._counts.items():
            sums.setdefault(self._known[cgroup_id].name, Counter()).update(dict(enumerate(denials)))
        self._retired = {name: past for name, past in self._retired.items() if name in sums}
        for name, past in self._retired.items():
            sums[name].update(dict(enumerate(past)))
        sums[OTHER].update(dict(enumerate(counters.other_workloads)))
        return {name: (count[0], count[1], count[2]) for name, count in sums.items()}

    def _look_at_cgroups(self) -> None:
        now = self._clock()
        for cgroup_id in list(self._counts):
            name = workload_name(self._cgroups.workload(cgroup_id).cgroup or cgroup_id)
            exists = self._cgroups.exists(cgroup_id)
            known = self._known.get(cgroup_id)
            # One that exists was never removed, whatever an earlier look found: ids are not reused.
            if exists or known is None:
                self._known[cgroup_id] = _Known(name, None if exists else now)
            elif known.removed_at is None:
                self._known[cgroup_id] = known._replace(removed_at=now)
            elif now - known.removed_at > REMOVED_SECONDS:
                self._forget(cgroup_id, known.name)

    def _forget(self, cgroup_id: int, name: str) -> None:
        self._state.workloads.remove(c_uint64(cgroup_id))
        past = self._retired.get(name, (0, 0, 0))
        gone = self._counts.pop(cgroup_id)
        self._retired[name] = (past[0] + gone[0], past[1] + gone[1], past[2] + gone[2])
        del self._known[cgroup_id]
