"""What a scrape asks of the kernel's side; answered in the HTTP server's thread."""

from __future__ import annotations

from collections.abc import Mapping

from monitor.abi import Counters
from monitor.counters import KernelState, missed_runs
from monitor.loader import Loaded
from monitor.metrics import ProbeState
from monitor.ring import Ring
from monitor.workloads import Workloads

__all__ = ["KernelSource"]


class KernelSource:
    """The `metrics.Source` of a running daemon."""

    def __init__(
        self, state: KernelState, loaded: Loaded, ring: Ring, workloads: Workloads
    ) -> None:
        self._state = state
        self._loaded = loaded
        self._ring = ring
        self._workloads = workloads

    def counters(self) -> Counters:
        return self._state.counters()

    def workload_denials(self) -> Mapping[str, tuple[int, int, int]]:
        return self._workloads.denials(self._state.counters())

    def probes(self) -> list[ProbeState]:
        return [
            ProbeState(
                probe.probe,
                probe.mode,
                probe.attached,
                sum(map(missed_runs, probe.programs)),
            )
            for probe in self._loaded.probes
        ]

    def ring_used_bytes(self) -> int:
        return self._ring.used_bytes

    def workloads_tracked(self) -> int:
        return self._workloads.tracked
