"""Reports what was lost since it last looked: runs that probes missed, events without room."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from monitor.keep.ledger import Counts, Ledger
from monitor.kernel.abi import Outcome
from monitor.kernel.counters import KernelState, missed_runs
from monitor.kernel.loader import AttachedProbe, Loaded

__all__ = ["Losses", "Report"]


class Report(Protocol):
    def __call__(
        self, name: str, message: str, *, details: dict[str, object] | None = None
    ) -> None:
        """`name` and `details` are those of a health event."""


class Losses:
    """Used by one thread."""

    def __init__(
        self,
        loaded: Loaded,
        state: KernelState,
        report: Report,
        proc: Path = Path("/proc/self"),
        ledger: Ledger | None = None,
    ) -> None:
        """`ledger` has what an earlier life reported."""
        ledger = ledger or Ledger()
        probes = dict.fromkeys(probe.probe for probe in loaded.probes)
        self._missed = Counts(ledger.words("missed"), probes)
        self._before = Counts(ledger.words("missed_before"), probes)
        self._dropped = ledger.words("dropped")
        self._loaded = loaded
        self._state = state
        self._report = report
        self._proc = proc
        with contextlib.suppress(OSError):  # look() says so
            self._allow_for_other_hooks()

    @property
    def missed_before(self) -> Mapping[str, int]:
        """By probe, the runs that were skipped at hooks that an earlier life had."""
        return self._before

    def _missed_now(self, probe: AttachedProbe) -> int:
        return sum(missed_runs(program, self._proc) for program in probe.programs)

    def _allow_for_other_hooks(self) -> None:
        """Where a probe has other hooks than in the life before, the kernel begins at 0."""
        for probe in self._loaded.probes:
            name, now = probe.probe, self._missed_now(probe)
            self._before[name] = max(self._before[name], self._missed[name] - now)

    def look(self) -> None:
        """Report what was lost since the last call. Raises OSError when a count cannot be read."""
        self._look_at_dropped_events()
        self._look_at_missed_runs()

    def _look_at_missed_runs(self) -> None:
        unknown: OSError | None = None
        for probe in self._loaded.probes:
            try:
                missed = self._before[probe.probe] + self._missed_now(probe)
            except OSError as error:
                unknown = error
                continue
            more = missed - self._missed[probe.probe]
            self._missed[probe.probe] = missed
            if more:
                self._report(
                    "runs_missed",
                    f"the kernel skipped {more} runs of probe {probe.probe}; counts are a lower "
                    "bound",
                    details={"probe": probe.probe, "missed_runs": missed},
                )
        if unknown:
            raise unknown

    def _look_at_dropped_events(self) -> None:
        counters = self._state.counters()
        dropped = sum(outcomes[Outcome.DROPPED] for outcomes in counters.events)
        before = self._dropped[0]
        if dropped > before:
            self._report(
                "events_dropped",
                f"{dropped - before} events found no room in the ring; all are counted",
                details={"dropped": dropped},
            )
            self._dropped[0] = dropped
