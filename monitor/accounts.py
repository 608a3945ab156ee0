"""What was counted, and what became of it: counted = delivered + suppressed + filtered + dropped +
failed, for every kind, once the monitor has stopped.
"""

from __future__ import annotations

from monitor.abi import Counters, Disposition, Kind, Outcome, Verdict
from monitor.tally import Tally

__all__ = ["final", "in_words", "totals"]


def totals(counters: Counters) -> dict[str, int]:
    """What the kernel counted, by kind."""
    return {
        Kind.DENIAL.label: sum(sum(verdicts) for verdicts in counters.denials),
        Kind.FAULT.label: sum(sum(dispositions) for dispositions in counters.faults),
        Kind.SEAL.label: counters.seals,
        Kind.BYPASS.label: sum(counters.bypasses),
    }


def final(counters: Counters, tally: Tally) -> dict[str, object]:
    """By kind: counted, and what became of the events. The latter add up to the former."""
    counted = totals(counters)
    made = tally.events
    return {
        kind.label: {
            "counted": counted[kind.label],
            "delivered": made[kind.label, "delivered"],
            "suppressed": counters.events[kind][Outcome.SUPPRESSED],
            "filtered": counters.events[kind][Outcome.FILTERED] + made[kind.label, "filtered"],
            "dropped": counters.events[kind][Outcome.DROPPED],
            "failed": made[kind.label, "failed"],
        }
        for kind in Kind
    }


def in_words(counters: Counters) -> str:
    """Seal denials, faults and, where there were any, ways around a seal, for a person."""
    denials = sum(verdicts[Verdict.SEALED] for verdicts in counters.denials)
    failed_handlers = sum(row[Disposition.HANDLER_FAILED] for row in counters.faults)
    faults = sum(sum(row) for row in counters.faults) - failed_handlers
    bypasses = sum(counters.bypasses)
    around = f", and {bypasses} changes around a seal" if bypasses else ""
    return f"{denials} seal denials and {faults} faults{around}"
