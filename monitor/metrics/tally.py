"""What the daemon itself counts: what became of events, canary runs, look-ups, errors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, get_args

from monitor.keep.ledger import Counts, Ledger, Numbers, restored
from monitor.kernel.abi import Kind
from monitor.posture.scan import Figures

__all__ = [
    "CANARY_RESULTS",
    "DELAY_BUCKETS",
    "EVENT_KINDS",
    "LOOKUP_RESULTS",
    "SENT_RESULTS",
    "SEVERITIES",
    "SNAPSHOT_RESULTS",
    "STARTS",
    "Result",
    "SnapshotResult",
    "Spooled",
    "Tally",
]

Result = Literal["delivered", "failed", "filtered"]  # what the kernel counts is in accounts.py
SnapshotResult = Literal["taken", "partial", "gone", "dropped", "failed"]

EVENT_KINDS = (*(kind.label for kind in Kind), "suppression", "health")
LOOKUP_RESULTS = ("complete", "partial", "gone", "reused")
CANARY_RESULTS = ("success", "failure")
STARTS = ("fresh", "resumed", "replaced")
SNAPSHOT_RESULTS: tuple[SnapshotResult, ...] = get_args(SnapshotResult)
SENT_RESULTS = ("accepted", "refused")
SEVERITIES = ("info", "warning", "critical")
DELAY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Spooled(Protocol):
    """What waits on disk for a collector; read by other threads, without waiting for the disk."""

    @property
    def used_bytes(self) -> int: ...

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest event has waited; 0 if none does."""


class Tally:
    """What the daemon itself counts.

    Only the thread that takes the events writes; others read, so the interpreter's own lock is
    enough. Unknown kinds, results and sinks raise KeyError.

    `ledger` has all that is exported as a counter: with one of an earlier life they go on.
    """

    def __init__(self, sinks: Iterable[str] = (), ledger: Ledger | None = None) -> None:
        ledger = ledger or Ledger()
        self._ledger = ledger
        events = [(kind, result) for kind in EVENT_KINDS for result in get_args(Result)]
        self.events: Mapping[tuple[str, str], int]
        self.events = self._events = Counts(ledger.words("events"), events)
        self._made = Counts(ledger.words("made"), EVENT_KINDS)
        self._gaps = Counts(ledger.words("gaps"), Kind)
        self._judged = Counts(ledger.words("judged"), [kind.label for kind in Kind])
        self.delays = ledger.words("delays")[: len(DELAY_BUCKETS) + 1]
        self._delay_seconds = ledger.words("delay_seconds").cast("B").cast("d")
        self.canary_runs = Counts(ledger.words("canary"), CANARY_RESULTS)
        self.canary_last_success = 0.0
        self.identity_lookups = Counts(ledger.words("lookups"), LOOKUP_RESULTS)
        self.sink_errors = Numbers(ledger.table("sinks"))
        restored(self.sink_errors, dict.fromkeys(sinks, 0))
        self.sink_queue_events = dict.fromkeys(self.sink_errors, 0)
        self.snapshots: Counts[str] = Counts(ledger.words("snapshots"), SNAPSHOT_RESULTS)
        self.sent: Counts[str] = Counts(ledger.words("sent"), SENT_RESULTS)
        self.spool_dropped: Counts[str] = Counts(ledger.words("spool_dropped"), SEVERITIES)
        self.spools: dict[str, Spooled] = {}  # by sink
        self._decode_errors = ledger.words("decode_errors")
        self._removed_bytes = ledger.words("removed_bytes")
        self._removed_before = self._removed_bytes[0]
        self.sequence = ledger.words("sequence")
        self.starts = Counts(ledger.words("starts"), STARTS)
        self.since = 0.0
        self._unread_ms = ledger.words("unread_ms")
        self._records_found = ledger.words("records_found")
        self.reload_successful = False
        self.reload_last_success = 0.0
        self.posture = Figures()
        self.canary_interval = 0.0
        self.posture_interval = 0.0

    @property
    def delay_seconds(self) -> float:
        return float(self._delay_seconds[0])

    @property
    def decode_errors(self) -> int:
        return int(self._decode_errors[0])

    @property
    def events_file_removed_bytes(self) -> int:
        return int(self._removed_bytes[0])

    def removed_from_file(self, size: int) -> bool:
        """Bytes that this process has removed so far; whether that is more than before."""
        before = self._removed_bytes[0]
        self._removed_bytes[0] = self._removed_before + size
        return bool(self._removed_bytes[0] > before)

    def started(
        self,
        kind: Literal["fresh", "resumed", "replaced"],
        since: float,
        unread: float = 0.0,
        found: int = 0,
    ) -> None:
        """A life has begun. `since`: Unix time at which the counters began; `unread`: seconds for
        which nobody read the ring; `found`: records that waited there.
        """
        self.starts[kind] += 1
        self.since = since
        self._unread_ms[0] += round(unread * 1000)
        self._records_found[0] += found

    @property
    def unread_seconds(self) -> float:
        return float(self._unread_ms[0] / 1000)

    @property
    def records_found(self) -> int:
        return int(self._records_found[0])

    def lost(self, taken: Mapping[Kind, int]) -> int:
        """Count as failed what an earlier life has begun and not ended; returns how many.

        `taken`: from the ring, by kind.
        """
        begun = {**self._made, **{kind.label: number for kind, number in taken.items()}}
        missing = 0
        for kind, number in begun.items():
            ended = sum(self._events[kind, result] for result in get_args(Result))
            if number > ended:
                self._events[kind, "failed"] += number - ended
                missing += number - ended
        return missing

    def unjudged(self, taken: Mapping[Kind, int]) -> dict[str, int]:
        """Of what an earlier life has taken from the ring, and of what it found suppressed: how
        many it did not come to judge, by kind. They count as judged from now on.
        """
        found = {}
        for kind in Kind:
            missing = taken[kind] + self._gaps[kind] - self._judged[kind.label]
            if missing > 0:
                self._judged[kind.label] += missing
                found[kind.label] = missing
        return found

    def judged(self, kind: str, count: int = 1) -> None:
        """Events whose severity is counted."""
        self._judged[kind] += count

    def made(self, kind: str) -> None:
        """An event that is not the kernel's begins: once it ends, it has a result."""
        self._made[kind] += 1

    def event(self, kind: str, result: Result, count: int = 1) -> None:
        self._events[kind, result] += count

    def delay(self, seconds: float) -> None:
        """From the kernel's time stamp to the sink that took the event."""
        self.delays[bisect_left(DELAY_BUCKETS, seconds)] += 1
        self._delay_seconds[0] += max(seconds, 0.0)

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
        self._decode_errors[0] += count

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
