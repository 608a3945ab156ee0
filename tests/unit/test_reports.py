"""What started and stopped say."""

from __future__ import annotations

import pytest

from monitor.keep.ledger import Ledger
from monitor.kernel.abi import Cause, Counters, Disposition, Verdict
from monitor.kernel.loaded import AttachedProbe, Loaded
from monitor.life import reports
from monitor.life.keeping import Keeping
from monitor.life.last_run import LastRun, Run
from monitor.metrics.tally import Tally

BOOT = "0f4bcab1-f4fc-4546-a292-69bfec02ebb7"
URL = "http://127.0.0.1:10462/metrics"
PAST = Run(BOOT, "aa", 1000.0, 2000.0, 500.0, None, {"denial": 3})
NOT_KEPT = "no state directory is used: the next start will not know of this run"


def counted() -> Counters:
    counters = Counters()
    counters.denials[0][Verdict.SEALED] = 1234
    counters.faults[Cause.STACK_GUARD][Disposition.HANDLER] = 7
    counters.faults[Cause.STACK_GUARD][Disposition.HANDLER_FAILED] = 2
    return counters


def keeping() -> Keeping:
    return Keeping(None, Ledger(), Tally())


def started(past: Run | None, boot_id: str = BOOT) -> reports.Said:
    last_run = LastRun(None, boot_id)
    last_run.past = past
    probes = [
        AttachedProbe("mprotect", "fexit", "do_mprotect_pkey", "", 3),
        AttachedProbe("faults", "raw_tracepoint", "signal_generate", "", 4),
        AttachedProbe("munmap", "fexit", "__vm_munmap", "not there", -1),
    ]
    return reports.started(
        ready_seconds=0.2345,
        metrics_url=URL,
        loaded=Loaded({}, probes, [], notes=["of the programs"]),
        partial_updates={"mprotect": True},
        keeping=keeping(),
        counters=counted(),
        last_run=last_run,
        boot_id=boot_id,
        watching_since=(512.5, 2020.0),
        notes=["of the start"],
    )


def test_a_first_start() -> None:
    assert started(None) == (
        f"ready after 0.23 s, attached by fexit, raw_tracepoint, metrics on {URL}",
        None,
        {
            "metrics": URL,
            "ready_seconds": 0.234,
            "probes": {"mprotect": "fexit", "faults": "raw_tracepoint"},
            "partial_updates": {"mprotect": True},
            "notes": ["of the programs", "of the start", NOT_KEPT],
            "kept_by": None,
            "resumed": None,
            "last_run": None,
        },
    )


@pytest.mark.parametrize(
    ("boot_id", "seconds", "how"),
    [(BOOT, 12.5, "killed"), ("another", 20.0, "host rebooted")],
)
def test_a_start_after_another_run_was_blind(boot_id: str, seconds: float, how: str) -> None:
    said = started(PAST, boot_id)
    assert said.blind_seconds == seconds
    assert said.message.endswith(f", blind for {seconds} s: the last run was {how}")
    assert said.details["last_run"] == {
        "run_id": "aa",
        "ended": how,
        "reason": None,
        "started": 1000.0,
        "alive": 2000.0,
        "counts": {"denial": 3},
    }


@pytest.mark.parametrize(("by", "asked"), [("SIGTERM", ", stopped by SIGTERM"), ("", "")])
def test_a_stop_has_the_final_counts(by: str, asked: str) -> None:
    said = reports.stopped(counted(), Tally(), keeping(), 59.6, by)
    counts = "1,234 seal denials and 7 faults"
    assert said.message == f"{counts} in 60 s{asked}; nothing is seen from now on"
    assert said.details.keys() == {"denial", "fault", "seal", "bypass"}
    assert said.details["fault"] == {
        "counted": 9,
        "delivered": 0,
        "suppressed": 0,
        "filtered": 0,
        "dropped": 0,
        "failed": 0,
    }


def test_the_line_of_systemctl() -> None:
    counts = "1,234 seal denials and 7 faults"
    assert reports.status([], counted()) == f"watching; {counts}"
    reasons = ["it is stopping", "canary: late"]
    said = "not ready: it is stopping; not ready: canary: late"
    assert reports.status(reasons, counted()) == f"{said}; {counts}"
