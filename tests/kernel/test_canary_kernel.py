"""The canary: nothing else is taken for it, and its failure is reported until it comes back."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness import Child, Harness, started, wait_until_reading
from test_daemon import READY_SECONDS, Running, assert_conserved

from monitor.kernel.counters import mark_canary
from monitor.provoke import table as provoke

SUCCESS, FAILURE = (
    f'seal_monitor_canary_runs_total{{result="{result}"}}' for result in ("success", "failure")
)


@pytest.mark.parametrize(
    ("other_pid", "later_ticks", "is_canary"),
    [
        (False, 0, True),
        (False, 1, False),  # the pid, of a process that started a hundredth of a second later
        (False, -1, False),
        (True, 0, False),  # started in the same hundredth of a second
    ],
)
def test_only_the_canary_is_taken_for_it(
    harness: Harness, other_pid: bool, later_ticks: int, is_canary: bool
) -> None:
    harness.settle()
    before = harness.canary_counts()
    with started([provoke.command(["mprotect"], wait=True)], env=provoke.environment()) as (child,):
        wait_until_reading(child)
        try:
            mark_canary(harness.config, child.pid)
            assert harness.config.canary_start_ticks == Child.of(child.pid).start_ticks
            harness.config.canary_start_ticks += later_ticks
            harness.config.canary_pid += other_pid
            child.communicate("\n", timeout=20)
        finally:
            harness.config.canary_pid = 0
    records, counted = harness.settle()
    denial = ("denial", "mprotect", "sealed")
    gained = harness.canary_counts() - before
    assert (gained[denial], gained["seals",]) == (is_canary, is_canary)
    assert (counted[denial], counted["seals",]) == (not is_canary, not is_canary)
    assert sum(record.pid == child.pid for record in records) == (0 if is_canary else 2)


# ---- Its failure, in the real daemon -------------------------------------------------------------


def canary_of(daemon: Running) -> int:
    """Pid of the canary's process, once it runs its program."""
    deadline = time.monotonic() + 30
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    while time.monotonic() < deadline:
        for pid in children.read_text().split():
            with suppress(OSError):
                if b"monitor.provoke.table" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    raise TimeoutError("the daemon starts no canary")


def stop_it(daemon: Running, _: Path) -> None:
    os.kill(canary_of(daemon), signal.SIGSTOP)


def kill_it(daemon: Running, _: Path) -> None:
    os.kill(canary_of(daemon), signal.SIGKILL)


def take_its_program(_: Running, program: Path) -> None:
    program.rename(program.with_suffix(".away"))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (stop_it, "its process did not end in time"),
        (kill_it, "its process did not make "),
        (take_its_program, "its process cannot be started: [Errno 2] No such file or directory"),
    ],
)
def test_its_failure_is_reported_until_it_comes_back(
    tmp_path: Path,
    require_bpf: None,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Running, Path], None],
    reason: str,
) -> None:
    program = tmp_path / "python"
    program.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(sys, "executable", str(program))
    daemon = Running(tmp_path, "[canary]\ninterval = 2\n")
    try:
        daemon.health("started", READY_SECONDS)
        assert daemon.get("/-/ready") == (200, "ready\n")
        passed = time.monotonic()

        harm(daemon, program)
        failed = daemon.health("canary_failed", 15)
        status, text = daemon.get("/-/ready")
        assert status == 503
        assert text.startswith(f"canary: {reason}")
        assert failed["severity"] == "critical"
        assert failed["message"].startswith(reason)
        assert daemon.metric(FAILURE) >= 1

        with suppress(FileNotFoundError):
            program.with_suffix(".away").rename(program)
        recovered = daemon.health("canary_recovered", 15)
        assert recovered["severity"] == "info"
        # From its last success, which was before it was harmed, up to the next.
        assert 2 <= recovered["blind_seconds"] <= time.monotonic() - passed + 5
        assert recovered["blind_seconds"] >= 5 or harm is take_its_program
        assert daemon.get("/-/ready") == (200, "ready\n")
        assert daemon.metric(SUCCESS) >= 2

        stopped = daemon.stop()
        assert [numbers["counted"] for numbers in stopped["details"].values()] == [0, 0, 0, 0]
        assert_conserved(stopped)
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
