"""What was counted, and what became of it."""

from __future__ import annotations

from monitor.kernel.abi import Cause, Counters, Disposition, Kind, Method, Outcome, Verdict
from monitor.metrics.accounts import final, in_words, totals
from monitor.metrics.tally import Tally


def counted() -> Counters:
    counters = Counters()
    counters.denials[0][Verdict.SEALED] = 5
    counters.denials[2][Verdict.NOT_SEALED] = 2
    counters.faults[Cause.GUARD_REGION][Disposition.DEFAULT] = 3
    counters.faults[Cause.STACK_GUARD][Disposition.HANDLER] = 1
    counters.faults[Cause.STACK_GUARD][Disposition.HANDLER_FAILED] = 1
    counters.seals = 4
    counters.bypasses[Method.PTRACE_POKE] = 2
    counters.events[Kind.DENIAL][Outcome.SUPPRESSED] = 1
    counters.events[Kind.DENIAL][Outcome.FILTERED] = 2
    counters.events[Kind.SEAL][Outcome.DROPPED] = 4
    return counters


def test_totals() -> None:
    assert totals(counted()) == {"denial": 7, "fault": 5, "seal": 4, "bypass": 2}


def test_final() -> None:
    tally = Tally()
    tally.event("denial", "delivered", 3)
    tally.event("denial", "filtered")
    tally.event("fault", "delivered", 4)
    tally.event("fault", "failed")
    tally.event("bypass", "delivered", 2)
    names = ("counted", "delivered", "suppressed", "filtered", "dropped", "failed")
    assert final(counted(), tally) == {
        "denial": dict(zip(names, (7, 3, 1, 3, 0, 0), strict=True)),
        "fault": dict(zip(names, (5, 4, 0, 0, 0, 1), strict=True)),
        "seal": dict(zip(names, (4, 0, 0, 0, 4, 0), strict=True)),
        "bypass": dict(zip(names, (2, 2, 0, 0, 0, 0), strict=True)),
    }


def test_in_words() -> None:
    """A fault whose handler could not run is delivered twice, and one fault."""
    assert in_words(counted()) == "5 seal denials and 4 faults, and 2 changes around a seal"
    assert in_words(Counters()) == "0 seal denials and 0 faults"
    one = Counters()
    one.denials[0][Verdict.SEALED] = 1
    one.faults[Cause.GUARD_REGION][Disposition.DEFAULT] = 1
    one.bypasses[Method.PTRACE_POKE] = 1
    assert in_words(one) == "1 seal denial and 1 fault, and 1 change around a seal"
