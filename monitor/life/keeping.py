"""How a life of the daemon begins: with what an earlier one left, or fresh; and what it leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Literal

from monitor.attach.attached import Attached, Replacing, Resumed
from monitor.attach.calibrate import Findings
from monitor.evidence.severities import Severities
from monitor.keep import record
from monitor.keep.identify import IdentityError
from monitor.keep.ledger import Ledger
from monitor.keep.record import Facts
from monitor.kernel.abi import Counters
from monitor.kernel.loaded import Loaded
from monitor.kernel.ring import Ring
from monitor.metrics import accounts
from monitor.metrics.tally import Tally
from monitor.start import Start

__all__ = ["Keeping"]


class Keeping:
    """Has the attached programs kept, and reports what became of the last ones.

    `goes_on`: whether what an earlier life attached has counted ever since. `is_kept`: whether the
    programs go on when the daemon ends. `notes` are for the event `started`.
    """

    def __init__(self, start: Start | None, ledger: Ledger, tally: Tally) -> None:
        self._start = start
        self._ledger = ledger
        self._tally = tally
        self._read_ns = ledger.words("read_boot_ns")
        self.goes_on = start is not None and isinstance(start.programs, Resumed | Replacing)
        self.is_kept = self.goes_on
        self.unread_seconds = 0.0
        self._dropped_before = ledger.number("dropped")
        self._found: dict[str, object] = {}
        self._changed, self._handed_over = "", 0.0
        self._attached: Attached | None = None
        self.notes: list[str] = start.notes if start else []

    def begin(self, attached: Attached, findings: Findings, severities: Severities) -> None:
        """The programs are attached and calibrated. Needs CAP_PERFMON.

        Raises OSError and CalibrationError when programs cannot be replaced.
        """
        self._attached = attached
        start = self._start
        programs = start.programs if start else None
        if start and isinstance(programs, Resumed):
            self._go_on("resumed", programs.found, attached.ring, severities)
            start.forget()
        elif start and isinstance(programs, Replacing):
            self._replace(start, programs.found, attached)
            self._go_on("replaced", programs.found, attached.ring, severities)
        else:
            since = time.time()
            self._tally.started("fresh", since)
            if start:
                facts = Facts(*findings, attached.without, since)
                if self._ledger.descriptor >= 0:
                    self._keep(start, attached.loaded, facts)
                start.forget()
        self.turned()

    def _replace(self, start: Start, found: record.Found, attached: Attached) -> None:
        """Kept first: a life that is killed from now on leaves what the next one can replace."""
        dropped = self._keep(start, attached.loaded, found.facts, found)
        self._handed_over = attached.hand_over()
        start.forget(dropped)
        self._changed = found.changed

    def _go_on(
        self,
        kind: Literal["resumed", "replaced"],
        found: record.Found,
        ring: Ring,
        severities: Severities,
    ) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.unread_seconds = max(boot_ns - self._read_ns[0], 0) / 1e9
        waiting = ring.waiting
        self._tally.started(kind, found.facts.since, self.unread_seconds, waiting)
        taken = ring.taken()
        failed = self._tally.lost(taken)
        for violation, count in self._tally.unjudged(taken).items():
            # Nobody knows whose they were, and how bad: they weigh most.
            severities.add(None, violation, "critical", count)
        self._found = {
            "unread_seconds": round(self.unread_seconds, 3),
            "records_found": waiting,
            "events_interrupted": failed,
            "counters_since": found.facts.since,
        }
        if kind == "replaced":
            self._found |= {
                "replaced": self._changed,
                "handover_seconds": round(self._handed_over, 6),
            }

    def _keep(
        self, start: Start, loaded: Loaded, facts: Facts, before: record.Found | None = None
    ) -> Sequence[str]:
        """Names of what is kept and no part of it any more."""
        self.is_kept = False
        try:
            written = record.write(
                loaded,
                self._ledger,
                start.wanted,
                facts,
                generation=start.generation,
                before=before,
            )
            try:
                start.keeper.keep(written.groups)
            finally:
                os.close(written.groups[-1][1][0])
        except (OSError, IdentityError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = start.keeper.name
            self.notes.append(f"{name} cannot keep the programs: {why}; a restart is blind")
            return ()
        self.is_kept = True
        return written.dropped

    def stop(self) -> None:
        """The daemon is about to end, and nobody asks for another. Raises OSError."""
        if self._start:
            self._start.let_go()
            self.is_kept = self.is_kept and self._start.keeper.outlives_stop

    @property
    def kept_by(self) -> str | None:
        """Who keeps the programs when the daemon ends: "systemd", or a directory."""
        return self._start.keeper.name if self._start and self.is_kept else None

    @property
    def outlook(self) -> str:
        """What becomes of the programs when the daemon has ended, for a person."""
        if self._start and self.is_kept:
            return f"the programs count until {self._start.keeper.until}"
        return "nothing is seen from now on"

    def turned(self) -> None:
        """The ring was read just now."""
        if self._start and self._attached and (names := self._attached.read_out()):
            self._start.forget(names)
        self._read_ns[0] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def details(self, counters: Counters) -> dict[str, object] | None:
        """For the event `started`; None for a fresh one."""
        dropped = accounts.dropped(counters) - self._dropped_before
        return {**self._found, "events_dropped": dropped} if self.goes_on else None

    def words(self, counters: Counters) -> str:
        """The same for a person."""
        dropped = accounts.dropped(counters) - self._dropped_before
        found, failed = self._found.get("records_found"), self._found.get("events_interrupted")
        said = f"programs replaced ({self._changed})" if self._changed else "resumed"
        said += f": nobody read for {self.unread_seconds:.1f} s, in which all was counted"
        said += f"; {found} events waited"
        if dropped:
            said += f", {dropped} found no room"
        if failed:
            said += f"; {failed} that were on their way to the sinks count as failed"
        return said
