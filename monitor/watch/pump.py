"""From the ring and the counters of the kernel to the pipeline, as long as a monitor watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from monitor.evidence.suppression import Suppressions
from monitor.kernel.abi import Record
from monitor.kernel.ring import Drained, Ring
from monitor.watch.losses import Losses
from monitor.watch.pipeline import Pipeline

__all__ = ["SWEEP_SECONDS", "Pump"]

SWEEP_SECONDS = 1.0
TURN_SECONDS = 0.5  # what a storm leaves in the ring after so long waits for the next turn


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
        trouble: Callable[[str], None],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`take` gets the records; None: the pipeline does. `corrupt` is told how many entries of
        the ring were no records, `trouble` once what cannot be read, until it can again. While
        `has_room` is false the rest stays in the ring.
        """
        self._ring = ring
        self._pipeline = pipeline
        self._suppressions = suppressions
        self._losses = losses
        self._take = take or pipeline.take
        self._corrupt = corrupt
        self._trouble = trouble
        self._has_room = has_room
        self._told: set[str] = set()
        self._sweep_at = 0.0

    def drain(self) -> int:
        """Take the records that are in the ring, for half a second at most; how many."""
        taken = corrupt = 0
        deadline = time.monotonic() + TURN_SECONDS
        while self._has_room():
            drained = Drained([], 0)
            with self._survived("cannot read the ring"):
                drained = self._ring.drain()
            self._take(drained.records)
            taken += len(drained.records)
            corrupt += drained.corrupt
            is_empty = not drained.records and not drained.corrupt
            if is_empty or time.monotonic() > deadline:
                break
        if corrupt:
            self._corrupt(corrupt)
        return taken

    def sweep_when_due(self, now: float) -> None:
        """Tell what was suppressed, every SWEEP_SECONDS. `now` is of the monotonic clock."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep()

    def _sweep(self, final: bool = False) -> None:
        with self._survived("cannot read what was suppressed"):
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for gap in self._suppressions.sweep(now, final):
                self._pipeline.suppression(gap)

    def look_at_losses(self) -> None:
        """Tell what was lost since the last look."""
        with self._survived("cannot read the runs that probes missed"):
            self._losses.look()

    def finish(self, seconds: float) -> None:
        """Once the programs are detached: take all that there is, wait so long for a record that is
        not whole yet, tell what was lost, and close every gap.
        """
        deadline = time.monotonic() + seconds
        # A program that was running when it was detached may still have a record to submit.
        while self.drain() or (self._ring.used_bytes and time.monotonic() < deadline):
            time.sleep(0.001)
        self.look_at_losses()
        self._sweep(final=True)

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """An OSError (no memory, no descriptor left) is told once; the next time tries again."""
        try:
            yield
        except OSError as error:
            if what not in self._told:
                self._told.add(what)
                self._trouble(f"{what}: {error}")
        else:
            self._told.discard(what)
