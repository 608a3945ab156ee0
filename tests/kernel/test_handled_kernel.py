"""A fault whose handler could not run is one event, where faults with a handler make events."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from test_daemon import READY_SECONDS, Running

from monitor.provoke import table as provoke
from monitor.watch.handled import SETTLE_NS

FAULTS = 60
SETTINGS = """
[events]
handled_faults = ["stack_guard"]
[rate_limit]
burst = 1000
[posture]
interval = 0
"""


def is_failed(event: dict[str, Any]) -> bool:
    assert event["disposition"] in ("handler", "handler_failed")
    return bool(event["disposition"] == "handler_failed")


def thread(event: dict[str, Any]) -> int:
    return int(event["process"]["tid"])


def time_ns(event: dict[str, Any]) -> int:
    seconds, _, fraction = event["time"].removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction)


def test_a_fault_whose_handler_failed_is_one_event(tmp_path: Path, require_bpf: None) -> None:
    daemon = Running(tmp_path, SETTINGS)
    try:
        daemon.health("started", READY_SECONDS)
        names = ["stack_overflow_handler_failed"] * FAULTS + ["stack_overflow_altstack_handled"]
        provoke.run(*names).wait(60)
        daemon.wait_for(lambda event: event.get("disposition") == "handler")
        stopped = daemon.stop()
        made = daemon.events("fault")
        failed = {thread(event): time_ns(event) for event in made if is_failed(event)}
        handled = {thread(event): time_ns(event) for event in made if not is_failed(event)}
        assert (len(failed), len(failed) + len(handled)) == (FAULTS, len(made))
        # One that was preempted for a millisecond between the two makes both.
        gaps = [failed[each] - handled[each] for each in failed.keys() & handled.keys()]
        assert len(gaps) == len(handled) - 1 < FAULTS
        assert all(gap > SETTLE_NS // 2 for gap in gaps), gaps
        became = stopped["details"]["fault"]
        assert became == {
            "counted": 2 * FAULTS + 2,  # the other one ended in its handler
            "delivered": len(made),
            "filtered": 2 * FAULTS + 2 - len(made),
            "suppressed": 0,
            "dropped": 0,
            "failed": 0,
        }
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
