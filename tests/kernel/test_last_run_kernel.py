"""What the real daemon knows at its start of the run before it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_daemon import READY_SECONDS, Running

from monitor.life.last_run import FILE
from monitor.provoke import table as provoke

Another = Callable[[], Running]
KINDS = ("denial", "fault", "seal", "bypass")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    return folder


@pytest.fixture
def another(tmp_path: Path, state: Path, require_bpf: None) -> Iterator[Another]:
    """Starts another life with the same state directory, and waits until it is ready."""
    lives: list[Running] = []

    def start() -> Running:
        folder = tmp_path / str(len(lives))
        folder.mkdir()
        lives.append(Running(folder, f'[state]\ndirectory = "{state}"\n'))
        lives[-1].health("started", READY_SECONDS)
        return lives[-1]

    yield start
    for daemon in lives:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def test_killed_then_stopped(another: Another, state: Path) -> None:
    first = another()
    while not (state / FILE).exists():
        time.sleep(0.01)
        assert first.process.poll() is None
    started = first.health("started")
    assert (started["blind_seconds"], started["details"]["last_run"]) == (None, None)
    first.process.kill()
    first.process.wait()
    killed = time.monotonic()

    second = another()
    down = time.monotonic() - killed
    started = second.health("started")
    # It had written its file at its start, and lived for less than 10 s after that.
    assert 0 < started["blind_seconds"] < down + 10
    assert started["details"]["last_run"]["ended"] == "killed"
    assert started["details"]["last_run"]["counts"] == dict.fromkeys(KINDS, 0)
    assert started["message"].endswith("s: the last run was killed")
    provoke.run("munmap").communicate()
    stopped = second.stop()
    assert stopped["message"].endswith("stopped by SIGTERM; nothing is seen from now on")
    ended = time.monotonic()

    third = another()
    started = third.health("started")
    assert 0 < started["blind_seconds"] < time.monotonic() - ended + 5
    past = started["details"]["last_run"]
    assert (past["ended"], past["reason"]) == ("stopped", "stopped by SIGTERM")
    assert past["counts"] == dict.fromkeys(KINDS, 0) | {"denial": 1, "seal": 1}
    third.stop()


def test_a_corrupt_file_is_reported_and_survived(another: Another, state: Path) -> None:
    (state / FILE).write_text('{"version": 1')
    daemon = another()
    failed = daemon.health("state_failed")
    assert failed["severity"] == "warning"
    assert "says nothing of the last run" in failed["message"]
    assert daemon.health("started")["details"]["last_run"] is None
    daemon.stop()
    assert json.loads((state / FILE).read_text())["reason"] == "stopped by SIGTERM"
    assert (state / f"{FILE}.bad").read_text() == '{"version": 1'


def test_two_at_once(another: Another) -> None:
    first, second = another(), another()
    assert "another instance uses it" in second.health("state_failed")["message"]
    notes = second.health("started")["details"]["notes"]
    assert "no state directory is used: the next start will not know of this run" in notes
    second.stop()
    first.stop()
