"""What is known of events that the rate limit holds back: by those that came before them."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.evidence.events import Process, Severity
from monitor.evidence.reported import PLACES, Reported
from monitor.kernel.abi import BucketKey, Bypass, Cause, Kind, Method, Record
from monitor.kernel.operations import OPERATIONS

PROCESS = Process(42, 43, 1, 42, "worker-3", "/usr/bin/engine", None, None, 0, 0, None, None)
NAMES = [operation.name for operation in OPERATIONS]
MUNMAP, MPROTECT = NAMES.index("munmap"), NAMES.index("mprotect")
PLACE = {"start_boot_ns": 5, "caller": 0x401000, "pid": 42}


def record(kind: Kind = Kind.DENIAL, **values: Any) -> Record:
    return Record(kind=kind, **{**PLACE, **values})


def key(kind: int = Kind.DENIAL, what: int = 0, **values: Any) -> BucketKey:
    return BucketKey(kind=kind, what=what, **{**PLACE, **values})


RECORDS = [
    (record(Kind.FAULT, cause=Cause.PROT_NONE), key(Kind.FAULT, Cause.PROT_NONE)),
    (record(Kind.SEAL), key(Kind.SEAL)),
    (
        record(Kind.BYPASS, bypass=Bypass(method=Method.PTRACE_POKE)),
        key(Kind.BYPASS, Method.PTRACE_POKE),
    ),
]


@pytest.mark.parametrize(("seen", "place"), RECORDS)
@pytest.mark.parametrize("severity", ["info", "warning", "critical"])
def test_it_has_the_severity_of_those_before_it(
    seen: Record, place: BucketKey, severity: Severity
) -> None:
    reported = Reported()
    reported.add(seen, severity, PROCESS)
    assert reported.severity(place) == severity


@pytest.mark.parametrize(
    ("severities", "worst"),
    [
        (("info", "info"), "warning"),
        (("critical", "info", "warning"), "critical"),
        (("warning", "critical"), "critical"),
    ],
)
def test_of_several_it_has_the_worst(severities: tuple[Severity, ...], worst: Severity) -> None:
    """And of denials at least the worst that the operation can be."""
    reported = Reported()
    for severity in severities:
        reported.add(record(operation=MUNMAP), severity, PROCESS)
    assert reported.severity(key(what=MUNMAP)) == worst


@pytest.mark.parametrize(
    ("place", "severity"),
    [
        (key(what=MUNMAP), "warning"),
        (key(what=MPROTECT), "critical"),
        (key(what=99), "critical"),
        (key(Kind.FAULT, Cause.SEALED), "critical"),
        (key(Kind.FAULT, Cause.GUARD_REGION), "warning"),
        (BucketKey(kind=Kind.FAULT), "critical"),  # of any cause: many processes
        (key(Kind.BYPASS), "critical"),
        (key(Kind.SEAL), "info"),
        (key(9), "critical"),
    ],
)
def test_nobody_hides_what_was_never_reported(place: BucketKey, severity: Severity) -> None:
    """Another place of the same process, a leak perhaps, makes it no less."""
    reported = Reported()
    reported.add(record(caller=0x402000), "info", PROCESS)
    assert reported.severity(place) == severity


def test_the_process_is_the_one_that_was_reported_last() -> None:
    reported = Reported()
    assert reported.process(42, 5) is None
    reported.add(record(), "info", PROCESS)
    assert reported.process(42, 5) == PROCESS
    assert reported.process(42, 6) is None


def test_it_does_not_grow_and_what_it_forgets_is_no_less() -> None:
    reported = Reported()
    for caller in range(PLACES + 1):
        reported.add(record(Kind.BYPASS, caller=caller), "info", PROCESS)
    assert reported.severity(key(Kind.BYPASS, caller=1)) == "info"
    assert reported.severity(key(Kind.BYPASS, caller=0)) == "critical"
