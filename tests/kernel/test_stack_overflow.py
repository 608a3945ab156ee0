"""Which faults are a stack overflow, on real stacks; and which only look like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness, Made

from monitor.evidence import events
from monitor.evidence.classify import classify
from monitor.kernel.abi import Access, Cause, Disposition, Kind, Record, RecordFlag

HOST = events.Host("h", "b", "r")


def used_up(
    harness: Harness, compiled: Callable[[str], Path], where: str, how: str
) -> tuple[Made, Record]:
    made = harness.run([compiled("overflow"), where, how, "--wait"])
    if made.exits == [77]:
        pytest.skip("this kernel has no guard regions")
    (record,) = made.of_kind(Kind.FAULT)
    return made, record


def event_of(harness: Harness, record: Record) -> events.Fault:
    origin = events.Origin("i", "t", 0, HOST, None, None)
    event = classify(record, origin, sealed_mask=harness.config.sealed_mask)
    assert isinstance(event, events.Fault)
    return event


OVERFLOWS = [
    *((where, "recurse") for where in ("main", "thread", "region", "bare", "context", "signal")),
    *((where, how) for where in ("main", "thread", "region") for how in ("array", "middle")),
]


GUARDS = {
    **dict.fromkeys(("main", "bare"), ""),
    **dict.fromkeys(("thread", "context", "signal"), "(---p, anonymous)"),
    "region": "(rw-p, anonymous)",
}


@pytest.mark.parametrize(("where", "how"), OVERFLOWS)
def test_overflow(harness: Harness, compiled: Callable[[str], Path], where: str, how: str) -> None:
    made, record = used_up(harness, compiled, where, how)
    assert made.exits == [-11]
    assert (Cause(record.cause), Access(record.access)) == (Cause.STACK_GUARD, Access.WRITE)
    assert record.flags & RecordFlag.INFERRED
    assert record.address < made.line["low"] + (1 << 17 if where == "main" else 4096)
    assert made.counted["fault", "stack_guard", "default"] == 1

    event = event_of(harness, record)
    guard = GUARDS[where]
    if how != "recurse":  # beyond the guard: nothing, or memory that the C library has reserved
        guard = "(---p, anonymous)" if record.mapping.end else ""
    assert event.summary == (
        f"write to memory past the end of a stack (inferred) at 0x{record.address:x}"
        f"{guard and ' ' + guard}: overflow (pid {made.child.pid}) died of SIGSEGV; "
        "probably a bug: stack overflow"
    )
    assert event.severity == "warning"
    assert event.assessment == events.Assessment("stack_overflow", "bug")


NO_OVERFLOWS = [
    ("main", "null", Cause.OTHER),
    ("thread", "null", Cause.OTHER),
    ("thread", "guard", Cause.PROT_NONE),
    ("region", "guard", Cause.GUARD_REGION),
    ("region", "overrun", Cause.GUARD_REGION),
    ("context", "guard", Cause.PROT_NONE),
    ("context", "overrun", Cause.PROT_NONE),
    ("main", "below", Cause.OTHER),
    ("main", "pivot", Cause.OTHER),
    ("thread", "pivot", Cause.OTHER),
]


@pytest.mark.parametrize(("where", "how", "cause"), NO_OVERFLOWS)
def test_no_overflow(
    harness: Harness, compiled: Callable[[str], Path], where: str, how: str, cause: Cause
) -> None:
    made, record = used_up(harness, compiled, where, how)
    assert made.exits == [-11]
    assert Cause(record.cause) is cause


@pytest.mark.parametrize("where", ["thread", "bare"])
def test_a_wild_pointer_far_below_a_stack(
    harness: Harness, compiled: Callable[[str], Path], where: str
) -> None:
    made, record = used_up(harness, compiled, where, "below")
    assert made.exits == [-11]
    assert Cause(record.cause) in (Cause.OTHER, Cause.PROT_NONE)  # whatever is there


@pytest.mark.parametrize("where", ["main", "context"])
def test_a_crash_handler_is_not_on_purpose(
    harness: Harness, compiled: Callable[[str], Path], where: str
) -> None:
    made, record = used_up(harness, compiled, where, "catch")
    assert made.exits == [11]
    assert Disposition(record.disposition) is Disposition.HANDLER
    event = event_of(harness, record)
    assert event.summary == (
        f"write to memory past the end of a stack (inferred) at 0x{record.address:x}"
        f"{' (---p, anonymous)' if where == 'context' else ''}: "
        f"overflow (pid {made.child.pid}) got SIGSEGV, a handler was called; "
        "not known: the handler may have mended it, or reported a crash"
    )
    assert event.severity == "warning"
    assert event.assessment == events.Assessment("handled", "unknown")
