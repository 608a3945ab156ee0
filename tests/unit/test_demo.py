"""What the demo prints after its cases, at the width of a terminal."""

from __future__ import annotations

import pytest

from monitor.commands.demo import counted, not_shown
from monitor.kernel.abi import Cause, Counters, Disposition, Method, Verdict
from monitor.provoke.provocation import Provocation

HIDDEN = "it is made, and nothing attached here sees it"


def skipped(description: str, reason: str) -> tuple[Provocation, str]:
    return Provocation("name", "other", description, lambda: {}), reason


def some_counters() -> Counters:
    counters = Counters()
    counters.denials[0][Verdict.SEALED] = 30
    counters.denials[1][Verdict.SEALED] = 2
    counters.denials[1][Verdict.UNVERIFIED] = 5
    counters.faults[Cause.SEALED][Disposition.HANDLER] = 1
    counters.faults[Cause.SEALED][Disposition.DEFAULT] = 1
    counters.faults[Cause.GUARD_REGION][Disposition.DEFAULT] = 3
    counters.faults[Cause.PROT_NONE][Disposition.DEFAULT] = 4
    counters.bypasses[Method.PTRACE_POKE] = 1
    return counters


def test_what_cannot_be_shown_is_listed_by_reason() -> None:
    assert not_shown([], 80) == []
    rows = [
        skipped("write to sealed memory through /proc/self/mem", HIDDEN),
        skipped("read a page whose protection key forbids it", "pkey_alloc: Invalid argument"),
        skipped("move a page out of sealed memory", HIDDEN),
    ]
    assert not_shown(rows, 40) == [
        "3 more cannot be shown on this host:",
        "  it is made, and nothing attached here",
        "  sees it",
        "    * write to sealed memory through",
        "      /proc/self/mem",
        "    * move a page out of sealed memory",
        "  pkey_alloc: Invalid argument",
        "    * read a page whose protection key",
        "      forbids it",
    ]


def test_what_the_kernel_counted() -> None:
    assert counted(some_counters(), 80) == [
        "The kernel counted meanwhile, on the whole host:",
        "  seal_monitor_denials_total   32 sealed, 5 unverified",
        "  seal_monitor_faults_total    3 guard_region, 4 prot_none, 2 sealed",
        "  seal_monitor_bypasses_total  1 ptrace_poke",
        "  seal_monitor_seals_total     0",
        "All metrics: http://127.0.0.1:10462/metrics while 'seal-monitor run' runs.",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_is_parted_from_its_name(width: int) -> None:
    lines = counted(some_counters(), width)[1:-1]
    assert max(map(len, lines)) <= width
    assert all(line.rstrip(",")[-1].isalpha() or line.endswith(" 0") for line in lines)
