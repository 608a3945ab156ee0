"""What was counted, and what became of it.

Once the monitor has stopped, this holds for every kind that the kernel counts: its total equals the
sum over its RESULTS.
"""

from __future__ import annotations

from monitor.kernel.abi import COUNTED_AGAIN, Counters, Kind, Outcome, Verdict
from monitor.metrics.tally import EVENT_KINDS, Tally
from monitor.untrusted.terminal import counted

__all__ = ["RESULTS", "dropped", "final", "in_words", "results", "totals", "violations"]

# What they mean is said at events_total in table.py.
RESULTS = ("delivered", "suppressed", "filtered", "dropped", "failed")
_IN_THE_KERNEL = (Outcome.SUPPRESSED, Outcome.FILTERED, Outcome.DROPPED)


def totals(counters: Counters) -> dict[str, int]:
    """What the kernel counted, by kind."""
    return {
        Kind.DENIAL.label: sum(sum(verdicts) for verdicts in counters.denials),
        Kind.FAULT.label: sum(sum(dispositions) for dispositions in counters.faults),
        Kind.SEAL.label: counters.seals,
        Kind.BYPASS.label: sum(counters.bypasses),
    }


def violations(counters: Counters) -> dict[str, int]:
    """As totals(), without the seals."""
    return {kind: number for kind, number in totals(counters).items() if kind != Kind.SEAL.label}


def results(counters: Counters, tally: Tally) -> dict[tuple[str, str], int]:
    """What became of the events, by kind and result: in the kernel and in the daemon."""
    found = {
        (kind, result): tally.events.get((kind, result), 0)
        for kind in EVENT_KINDS
        for result in RESULTS
    }
    for kind in Kind:
        for outcome in _IN_THE_KERNEL:
            found[kind.label, outcome.label] += counters.events[kind][outcome]
    return found


def dropped(counters: Counters) -> int:
    """Events of all kinds that found no room in the ring."""
    return sum(outcomes[Outcome.DROPPED] for outcomes in counters.events)


def final(counters: Counters, tally: Tally, goes_on: bool = False) -> dict[str, object]:
    """By kind: the number counted, and what became of the events, which adds up to that number.

    Where the programs go on, what waits in the ring is for the next life, and is left out.
    """
    kinds, became = totals(counters), results(counters, tally)
    if goes_on:
        for kind in Kind:
            kinds[kind.label] = sum(became[kind.label, result] for result in RESULTS)
    return {
        kind.label: {
            "counted": kinds[kind.label],
            **{result: became[kind.label, result] for result in RESULTS},
        }
        for kind in Kind
    }


def in_words(counters: Counters) -> str:
    """Counts of seal denials, faults and, if there were any, bypasses, for a person."""
    denials = sum(verdicts[Verdict.SEALED] for verdicts in counters.denials)
    again = sum(row[each] for row in counters.faults for each in COUNTED_AGAIN)
    faults = sum(sum(row) for row in counters.faults) - again
    bypasses = sum(counters.bypasses)
    around = f", and {counted(bypasses, 'change')} around a seal" if bypasses else ""
    return f"{counted(denials, 'seal denial')} and {counted(faults, 'fault')}{around}"
