"""What one scrape reads, and from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from monitor.kernel.abi import Counters
from monitor.metrics.tally import Tally

__all__ = ["KernelFacts", "ProbeState", "Reading", "Source"]


@dataclass(frozen=True, slots=True)
class ProbeState:
    """A probe, how it is attached (fexit, tracepoint, raw_tracepoint), and the runs it missed.

    `missed_runs` is None where the kernel does not say.
    """

    probe: str
    mode: str
    attached: bool
    missed_runs: int | None


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What calibration found on the running kernel. Operations left out leave nothing changed."""

    release: str
    seal_supported: bool
    partial_update_possible: Mapping[str, bool]


class Source(Protocol):
    """What the collector reads from the daemon at every scrape: in other threads, but in one at a
    time.
    """

    def counters(self) -> Counters:
        """The host's bank, all CPUs added up."""

    def announced(self) -> Counters:
        """The bank of our own trials that were announced."""

    def workload_denials(self) -> Mapping[str, tuple[int, int, int]]:
        """Denials by Verdict for each workload's name; `other` is for those beyond the limit."""

    def violating_programs(self) -> Mapping[tuple[str, str, str], float]:
        """By workload, kind and program: when its last violation was, in Unix time."""

    def violations(self) -> Mapping[tuple[str, str, str], int]:
        """By workload, kind and severity, as far as their events were judged."""

    def probes(self) -> Sequence[ProbeState]: ...

    def blind_spots(self) -> Mapping[str, bool]:
        """By name in kernel/sight.py: whether it is one."""

    def ring_used_bytes(self) -> int: ...

    def workloads_tracked(self) -> int: ...

    def workloads_maximum(self) -> int: ...

    def incident_store_bytes(self) -> int: ...

    def incidents_removed(self) -> Mapping[str, int]:
        """By severity."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one scrape exports, read once."""

    counters: Counters
    announced: Counters
    handled: Sequence[int]  # by Cause, faults whose handler was invoked
    workload_denials: Mapping[str, tuple[int, int, int]]
    violations: Mapping[tuple[str, str, str], int]
    violating_programs: Mapping[tuple[str, str, str], float]
    probes: Sequence[ProbeState]
    blind_spots: Mapping[str, bool]
    ring_used_bytes: int
    workloads_tracked: int
    workloads_maximum: int
    incident_store_bytes: int
    incidents_removed: Mapping[str, int]
    tally: Tally
    facts: KernelFacts
    version: str
    revision: str
