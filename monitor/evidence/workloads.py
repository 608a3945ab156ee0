"""Denials by workload: adds up the kernel's counts by cgroup id under names that people know."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from monitor.evidence.cgroups import Cgroups, workload_name
from monitor.keep.ledger import Ledger
from monitor.kernel.abi import Counters
from monitor.kernel.counters import KernelState

__all__ = ["OTHER", "Workloads"]

OTHER = "other"
_ODD = "surrogateescape"  # names of cgroups may be no UTF-8
REMOVED_SECONDS = 3600.0  # the series of a removed cgroup stays for an hour

Denials = tuple[int, int, int]


class _Counted(NamedTuple):
    denials: Denials
    quota: int  # see KernelState.remove_workload()


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
        maximum: int = 0,
        ledger: Ledger | None = None,
    ) -> None:
        """`maximum`: places that the kernel's map has. `ledger` has the names of an earlier life,
        and what was counted of cgroups that are gone.
        """
        self._state = state
        self._cgroups = cgroups
        self._clock = clock
        self.maximum = maximum
        ledger = ledger or Ledger()
        self._names, self._gone = ledger.table("workloads"), ledger.table("retired")
        self._known = dict(_known(*row) for row in self._names.items())
        self._counts: dict[int, _Counted] = {}
        self._retired: dict[str, Denials] = {
            key.decode("utf-8", _ODD): (a, b, c) for key, (a, b, c) in self._gone.items()
        }
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
                key.value: _Counted(
                    (value.denials[0], value.denials[1], value.denials[2]), value.quota
                )
                for key, value in self._state.workloads.items()
            }
            self._seen = total
        self._look_at_cgroups()
        sums: dict[str, Counter[int]] = {OTHER: Counter()}
        for cgroup_id, counted in self._counts.items():
            name = self._known[cgroup_id].name
            sums.setdefault(name, Counter()).update(dict(enumerate(counted.denials)))
        for name in [name for name in self._retired if name not in sums]:
            del self._retired[name], self._gone[name.encode("utf-8", _ODD)]
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
                self._know(cgroup_id, _Known(name, None if exists else now))
            elif known.removed_at is None:
                self._know(cgroup_id, known._replace(removed_at=now))
            elif now - known.removed_at > REMOVED_SECONDS:
                self._forget(cgroup_id, known.name)

    def _know(self, cgroup_id: int, known: _Known) -> None:
        before = self._known.get(cgroup_id)
        if known == before:
            return
        self._known[cgroup_id] = known
        if before and before.name != known.name:
            self._names.pop(_key(cgroup_id, before.name), None)
        removed_ms = 0 if known.removed_at is None else int(known.removed_at * 1000) + 1
        self._names[_key(cgroup_id, known.name)] = (removed_ms,)

    def _forget(self, cgroup_id: int, name: str) -> None:
        self._state.remove_workload(cgroup_id, self._counts[cgroup_id].quota)
        past = self._retired.get(name, (0, 0, 0))
        gone = self._counts.pop(cgroup_id).denials
        self._retired[name] = (past[0] + gone[0], past[1] + gone[1], past[2] + gone[2])
        self._gone[name.encode("utf-8", _ODD)] = self._retired[name]
        del self._known[cgroup_id]
        self._names.pop(_key(cgroup_id, name), None)


def _key(cgroup_id: int, name: str) -> bytes:
    return f"{cgroup_id} {name}".encode("utf-8", _ODD)


def _known(key: bytes, values: tuple[int, ...]) -> tuple[int, _Known]:
    """A row of the ledger: a cgroup's id, its name, and when it was removed."""
    cgroup_id, _, name = key.decode("utf-8", _ODD).partition(" ")
    return int(cgroup_id), _Known(name, (values[0] - 1) / 1000 if values[0] else None)
