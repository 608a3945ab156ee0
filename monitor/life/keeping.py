"""How a life of the daemon begins: with what an earlier one left, or fresh; and what it leaves."""

from __future__ import annotations

import os
import time

from monitor.attach.attached import Resumed
from monitor.attach.calibrate import Findings
from monitor.evidence.severities import Severities
from monitor.keep import record
from monitor.keep.identify import IdentityError
from monitor.keep.ledger import Ledger
from monitor.kernel.abi import Counters
from monitor.kernel.loaded import Loaded
from monitor.kernel.ring import Ring
from monitor.metrics import accounts
from monitor.metrics.tally import Tally
from monitor.start import Start

__all__ = ["Keeping"]


class Keeping:
    """Has the attached programs kept, and reports what became of the last ones.

    `is_resumed`: whether the programs are those of an earlier life. `is_kept`: whether they go on
    when the daemon ends. `notes` are for the event `started`.
    """

    def __init__(self, start: Start | None, ledger: Ledger, tally: Tally) -> None:
        self._start = start
        self._ledger = ledger
        self._tally = tally
        self._read_ns = ledger.words("read_boot_ns")
        self.is_resumed = start is not None and isinstance(start.programs, Resumed)
        self.is_kept = self.is_resumed
        self.unread_seconds = 0.0
        self._dropped_before = ledger.number("dropped")
        self._found: dict[str, object] = {}
        self.notes: list[str] = [*start.notes] if start else []

    def begin(self, loaded: Loaded, ring: Ring, findings: Findings, severities: Severities) -> None:
        """The programs are attached and calibrated. Needs CAP_PERFMON."""
        if self._start and isinstance(self._start.programs, Resumed):
            self._resume(self._start.programs.found, ring, severities)
        else:
            since = time.time()
            self._tally.started("fresh", since)
            if self._start and self._ledger.descriptor >= 0:
                self._keep(self._start, loaded, findings, since)
        self.turned()

    def _resume(self, found: record.Found, ring: Ring, severities: Severities) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.unread_seconds = max(boot_ns - self._read_ns[0], 0) / 1e9
        waiting = ring.waiting
        self._tally.started("resumed", found.since, self.unread_seconds, waiting)
        taken = ring.taken()
        failed = self._tally.lost(taken)
        for kind, count in self._tally.unjudged(taken).items():
            # Nobody knows whose they were, and how bad: they weigh most.
            severities.add(None, kind, "critical", count)
        self._found = {
            "unread_seconds": round(self.unread_seconds, 3),
            "records_found": waiting,
            "events_interrupted": failed,
            "counters_since": found.since,
        }

    def _keep(self, start: Start, loaded: Loaded, findings: Findings, since: float) -> None:
        try:
            groups = record.write(
                loaded,
                self._ledger,
                start.wanted,
                guard_regions=findings.guard_regions,
                partial_updates=findings.partial_updates,
                since=since,
            )
            try:
                start.keeper.keep(groups)
            finally:
                os.close(groups[-1][1][0])
        except (OSError, IdentityError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = start.keeper.name
            self.notes.append(f"{name} cannot keep the programs: {why}; a restart is blind")
            return
        self.is_kept = True

    def stop(self) -> None:
        """The daemon is about to end, and nobody asks for another. Raises OSError."""
        if self._start:
            self._start.let_go()
            self.is_kept = self.is_kept and self._start.keeper.outlives_stop

    def turned(self) -> None:
        """The ring was read just now."""
        self._read_ns[0] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def details(self, counters: Counters) -> dict[str, object] | None:
        """For the event `started`; None for a fresh one."""
        dropped = accounts.dropped(counters) - self._dropped_before
        return {**self._found, "events_dropped": dropped} if self.is_resumed else None

    def words(self, counters: Counters) -> str:
        """The same for a person."""
        dropped = accounts.dropped(counters) - self._dropped_before
        found, failed = self._found.get("records_found"), self._found.get("events_interrupted")
        said = f"resumed: nobody read for {self.unread_seconds:.1f} s, in which all was counted"
        said += f"; {found} events waited"
        if dropped:
            said += f", {dropped} found no room"
        if failed:
            said += f"; {failed} that were on their way to the sinks count as failed"
        return said
