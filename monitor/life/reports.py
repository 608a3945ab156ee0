"""What a daemon says of its own life: that it started, and what it had counted when it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitor.kernel.abi import Counters
from monitor.kernel.loaded import Loaded
from monitor.life.keeping import Keeping
from monitor.life.last_run import LastRun, as_details, blind_seconds, ended
from monitor.metrics import accounts
from monitor.metrics.tally import Tally

__all__ = ["Said", "started", "status", "stopped"]


class Said(NamedTuple):
    """Message, `blind_seconds` and `details` of a health event: docs/events.md."""

    message: str
    blind_seconds: float | None
    details: dict[str, object]


def started(
    *,
    ready_seconds: float,
    metrics_url: str,
    loaded: Loaded,
    partial_updates: Mapping[str, bool],
    keeping: Keeping,
    counters: Counters,
    last_run: LastRun,
    boot_id: str,
    watching_since: tuple[float, float],
    notes: Sequence[str],
) -> Said:
    """It watches, and the canary has shown it. `watching_since`: by the boot clock and by the
    real-time clock. `notes`: of this start, besides those of `loaded` and `keeping`.
    """
    modes = {probe.probe: probe.mode for probe in loaded.probes if probe.attached}
    message = (
        f"ready after {ready_seconds:.2f} s, attached by {', '.join(sorted(set(modes.values())))}, "
        f"metrics on {metrics_url}"
    )
    past, blind = last_run.past, None
    if keeping.goes_on:
        blind = 0.0
        message += f", {keeping.words(counters)}"
    elif past is not None:
        blind = blind_seconds(past, boot_id, *watching_since)
        message += f", blind for {blind:.1f} s: the last run was {ended(past, boot_id)}"
    all_notes = [*loaded.notes, *notes, *keeping.notes]
    if not last_run.is_kept:
        all_notes.append("no state directory is used: the next start will not know of this run")
    details = {
        "metrics": metrics_url,
        "ready_seconds": round(ready_seconds, 3),
        "probes": modes,
        "partial_updates": dict(partial_updates),
        "notes": all_notes,
        "kept_by": keeping.kept_by,
        "resumed": keeping.details(counters),
        "last_run": as_details(past, boot_id) if past else None,
    }
    return Said(message, blind, details)


def stopped(counters: Counters, tally: Tally, keeping: Keeping, seconds: float, by: str) -> Said:
    """Its final counts, after so many seconds. `by`: the signal that asked for it, if one did."""
    asked = f", stopped by {by}" if by else ""
    message = f"{accounts.in_words(counters)} in {seconds:.0f} s{asked}; {keeping.outlook}"
    return Said(message, None, accounts.final(counters, tally, keeping.is_kept))


def status(not_ready: Sequence[str], counters: Counters) -> str:
    """The line for `systemctl status`."""
    state = "; ".join(f"not ready: {reason}" for reason in not_ready) or "watching"
    return f"{state}; {accounts.in_words(counters)}"
