"""Moves records from the kernel's ring to the pipeline, and reports suppressions and losses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from monitor.evidence.suppression import Suppressions
from monitor.kernel.abi import Record
from monitor.kernel.ring import Drained, Ring
from monitor.watch import handled
from monitor.watch.backlog import Backlog
from monitor.watch.losses import Losses
from monitor.watch.pipeline import Pipeline

__all__ = ["SWEEP_SECONDS", "Pump"]

SWEEP_SECONDS = 1.0
TURN_SECONDS = 0.5  # of one drain; in a storm the rest stays in the ring for the next one


class Pump:
    """Used by one thread."""

    def __init__(
        self,
        ring: Ring,
        pipeline: Pipeline,
        suppressions: Suppressions,
        losses: Losses,
        *,
        take: Callable[[Sequence[Record]], None] | None = None,
        corrupt: Callable[[int], None],
        merged: Callable[[int], None],
        trouble: Callable[[str], None],
        has_room: Callable[[], bool] = lambda: True,
        backlog: Backlog | None = None,
    ) -> None:
        """`take` gets the records; None: the pipeline does. `corrupt` gets the number of entries
        of the ring that were not records, `merged` that of records whose fault has another one.
        `trouble` gets a message when something cannot be read:
        one, until it can be read again. While `has_room` is false, records stay in the ring.
        `backlog` learns how late they are read.
        """
        self._ring = ring
        self._pipeline = pipeline
        self._suppressions = suppressions
        self._losses = losses
        self._take = take or pipeline.take
        self._corrupt = corrupt
        self._merged = merged
        self._trouble = trouble
        self._has_room = has_room
        self._backlog = backlog
        self._failing: set[str] = set()
        self._sweep_at = 0.0

    def drain(self) -> int:
        """Take records out of the ring, for TURN_SECONDS at most; returns how many."""
        taken = corrupt = 0
        deadline = time.monotonic() + TURN_SECONDS
        while self._has_room():
            drained = Drained([], 0)
            with self._survived("cannot read the ring"):
                drained = self._read()
            if self._backlog and drained.records:
                now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                self._backlog.look(drained.records[0].time_boot_ns, now)
            records = handled.without_first(drained.records)
            if len(records) < len(drained.records):
                self._merged(len(drained.records) - len(records))
            self._take(records)
            taken += len(drained.records)
            corrupt += drained.corrupt
            is_empty = not drained.records and not drained.corrupt
            if is_empty or time.monotonic() > deadline:
                break
        if corrupt:
            self._corrupt(corrupt)
        return taken

    def _read(self) -> Drained:
        """The next records, with the second one of a fault that may have two. Raises OSError."""
        drained = self._ring.drain()
        settled_ns = handled.settled_at(drained.records)
        if not settled_ns:
            return drained
        early_ns = settled_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time.sleep(min(max(early_ns, 0), handled.SETTLE_NS) / 1e9)
        try:
            more = self._ring.drain()
        except OSError:  # it takes nothing then, and the next call reports it
            return drained
        return Drained(drained.records + more.records, drained.corrupt + more.corrupt)

    def sweep_when_due(self, now: float) -> None:
        """Report what was suppressed, every SWEEP_SECONDS. `now` is of the monotonic clock."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep()

    def _sweep(self, final: bool = False) -> None:
        with self._survived("cannot read what was suppressed"):
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for gap in self._suppressions.sweep(now, final):
                self._pipeline.suppression(gap)

    def look_at_losses(self) -> None:
        """Report what was lost since the last call."""
        with self._survived("cannot read the runs that probes missed"):
            self._losses.look()

    def finish(self, seconds: float, detached: bool = True) -> None:
        """Call it once the programs are `detached`: takes all records, waits up to `seconds` for
        one that is not complete yet, reports what was lost, and reports every gap.

        Programs that go on may never let it come to an end: it takes what is there for `seconds`,
        and leaves the rest to the next life.
        """
        deadline = time.monotonic() + seconds
        # A program that was running when it was detached may still have a record to submit.
        while (self.drain() and (detached or time.monotonic() < deadline)) or (
            self._ring.used_bytes and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        self.look_at_losses()
        self._sweep(final=True)

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """An OSError (no memory, no descriptor left) is reported, but not again while it lasts."""
        try:
            yield
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                self._trouble(f"{what}: {error}")
        else:
            self._failing.discard(what)
