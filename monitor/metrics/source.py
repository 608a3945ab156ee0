"""What a scrape reads from the kernel's counters and from disk, in the HTTP server's thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from monitor.evidence.severities import Severities
from monitor.evidence.workloads import Workloads
from monitor.kernel.abi import Bank, Counters
from monitor.kernel.counters import KernelState, missed_runs
from monitor.kernel.loader import AttachedProbe, Loaded
from monitor.kernel.ring import Ring
from monitor.metrics.reading import ProbeState

__all__ = ["NOTHING_REMOVED", "KernelSource", "store_bytes"]


NOTHING_REMOVED: Mapping[str, int] = {"info": 0, "warning": 0, "critical": 0}


class KernelSource:
    """The `reading.Source` of a running daemon."""

    def __init__(
        self,
        state: KernelState,
        loaded: Loaded,
        ring: Ring,
        workloads: Workloads,
        incident_store: Path | None,
        *,
        blind_spots: Callable[[], Mapping[str, bool]],
        severities: Severities,
        missed_before: Mapping[str, int] = MappingProxyType({}),
        removed: Mapping[str, int] = NOTHING_REMOVED,
        proc: Path = Path("/proc/self"),
    ) -> None:
        self._state = state
        self._loaded = loaded
        self._ring = ring
        self._workloads = workloads
        self._severities = severities
        self._incident_store = incident_store
        self._blind_spots = blind_spots
        self._missed_before = missed_before
        self._removed = removed
        self._proc = proc

    def counters(self) -> Counters:
        return self._state.counters()

    def announced(self) -> Counters:
        return self._state.counters(Bank.ANNOUNCED)

    def workload_denials(self) -> Mapping[str, tuple[int, int, int]]:
        return self._workloads.denials(self._state.counters())

    def violations(self) -> Mapping[tuple[str, str, str], int]:
        return self._severities.counts()

    def violating_programs(self) -> Mapping[tuple[str, str, str], float]:
        return self._severities.programs()

    def probes(self) -> list[ProbeState]:
        return [
            ProbeState(probe.probe, probe.mode, probe.attached, self._missed(probe))
            for probe in self._loaded.probes
            if probe.attached or probe.lost  # else it is a blind spot
        ]

    def blind_spots(self) -> Mapping[str, bool]:
        return self._blind_spots()

    def _missed(self, probe: AttachedProbe) -> int | None:
        before = self._missed_before.get(probe.probe, 0)
        try:
            return before + sum(missed_runs(program, self._proc) for program in probe.programs)
        except OSError:  # watch/losses.py reports why
            return None

    def ring_used_bytes(self) -> int:
        return self._ring.used_bytes

    def workloads_tracked(self) -> int:
        return self._workloads.tracked

    def workloads_maximum(self) -> int:
        return self._workloads.maximum

    def incidents_removed(self) -> Mapping[str, int]:
        return self._removed

    def incident_store_bytes(self) -> int:
        return 0 if self._incident_store is None else store_bytes(self._incident_store)


def store_bytes(database: Path) -> int:
    """Bytes on disk of an SQLite database with its log; 0 where it is not there or not readable."""
    total = 0
    for suffix in ("", "-wal", "-shm"):
        try:
            total += os.stat(f"{database}{suffix}").st_size
        except OSError:
            continue
    return total
