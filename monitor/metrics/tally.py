"""What the daemon itself counts: what became of events, canary runs, look-ups, errors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal, get_args

from monitor.kernel.abi import Kind
from monitor.posture.scan import Figures

__all__ = [
    "CANARY_RESULTS",
    "DELAY_BUCKETS",
    "EVENT_KINDS",
    "LOOKUP_RESULTS",
    "SNAPSHOT_RESULTS",
    "Result",
    "SnapshotResult",
    "Tally",
]

Result = Literal["delivered", "failed", "filtered"]  # what the kernel counts is in accounts.py
SnapshotResult = Literal["taken", "partial", "gone", "dropped", "failed"]

EVENT_KINDS = (*(kind.label for kind in Kind), "suppression", "health")
LOOKUP_RESULTS = ("complete", "partial", "gone", "reused")
CANARY_RESULTS = ("success", "failure")
SNAPSHOT_RESULTS: tuple[SnapshotResult, ...] = get_args(SnapshotResult)
DELAY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Tally:
    """What the daemon itself counts.

    Only the thread that takes the events writes; others read, so the interpreter's own lock is
    enough. Unknown kinds, results and sinks raise KeyError.
    """

    def __init__(self, sinks: Iterable[str] = ()) -> None:
        self.events = {(kind, result): 0 for kind in EVENT_KINDS for result in get_args(Result)}
        self.delays = [0] * (len(DELAY_BUCKETS) + 1)
        self.delay_seconds = 0.0
        self.canary_runs = dict.fromkeys(CANARY_RESULTS, 0)
        self.canary_last_success = 0.0
        self.identity_lookups = dict.fromkeys(LOOKUP_RESULTS, 0)
        self.sink_errors = dict.fromkeys(sinks, 0)
        self.sink_queue_events = dict.fromkeys(self.sink_errors, 0)
        self.snapshots: dict[str, int] = dict.fromkeys(SNAPSHOT_RESULTS, 0)
        self.decode_errors = 0
        self.events_file_removed_bytes = 0
        self.reload_successful = False
        self.reload_last_success = 0.0
        self.posture = Figures()
        self.canary_interval = 0.0
        self.posture_interval = 0.0

    def event(self, kind: str, result: Result, count: int = 1) -> None:
        self.events[kind, result] += count

    def delay(self, seconds: float) -> None:
        """From the kernel's time stamp to the sink that took the event."""
        self.delays[bisect_left(DELAY_BUCKETS, seconds)] += 1
        self.delay_seconds += max(seconds, 0.0)

    def canary(self, result: Literal["success", "failure"], at: float) -> None:
        """A run that ended at this Unix time, in seconds."""
        self.canary_runs[result] += 1
        if result == "success":
            self.canary_last_success = at

    def identity(self, result: Literal["complete", "partial", "gone", "reused"]) -> None:
        self.identity_lookups[result] += 1

    def sink_error(self, sink: str) -> None:
        self.sink_errors[sink] += 1

    def sink_queue(self, sink: str, events: int) -> None:
        """Events that wait for the sink now."""
        self.sink_queue_events[sink] = events

    def snapshot(self, result: SnapshotResult) -> None:
        self.snapshots[result] += 1

    def decode_error(self, count: int = 1) -> None:
        self.decode_errors += count

    def posture_seen(self, figures: Figures) -> None:
        """Of the last look at all processes."""
        self.posture = figures

    def intervals(self, canary: float, posture: float) -> None:
        """From one canary, and from one look at all processes, to the next; 0: there is none."""
        self.canary_interval, self.posture_interval = canary, posture

    def reload(self, successful: bool, at: float) -> None:
        """The configuration was read, at start or again, at this Unix time, in seconds."""
        self.reload_successful = successful
        if successful:
            self.reload_last_success = at
