"""A fault whose handler could not run is one event, where faults with a handler make events."""

from __future__ import annotations

from pathlib import Path

from test_daemon import READY_SECONDS, Running

from monitor.provoke import table as provoke

FAULTS = 60
SETTINGS = """
[events]
handled_faults = ["stack_guard"]
[rate_limit]
burst = 1000
[posture]
interval = 0
"""


def test_a_fault_whose_handler_failed_is_one_event(tmp_path: Path, require_bpf: None) -> None:
    daemon = Running(tmp_path, SETTINGS)
    try:
        daemon.health("started", READY_SECONDS)
        names = ["stack_overflow_handler_failed"] * FAULTS + ["stack_overflow_altstack_handled"]
        provoke.run(*names).wait(60)
        daemon.wait_for(lambda event: event.get("disposition") == "handler")
        stopped = daemon.stop()
        # One that was preempted for a millisecond between the two makes both.
        made = [event["disposition"] for event in daemon.events("fault")]
        failed, handled = made.count("handler_failed"), made.count("handler")
        assert (failed, failed + handled) == (FAULTS, len(made))
        assert 1 <= handled <= 1 + FAULTS // 20
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
