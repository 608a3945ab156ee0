"""An ordinary user holds the locks of his own processes: what looks at all processes goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attackers import NOBODY
from clocks import at_most
from test_daemon import Compile, Running, Start, start
from test_snapshot_kernel import Violate, violate

from monitor.incidents.search import Filter, Incidents
from monitor.incidents.store import FILE

__all__ = ["start", "violate"]  # fixtures

LOCKED, MEGABYTES, HOGS = 10, 64, 4
THREADS = 4  # that may be stuck, of each who looks: monitor/evidence/waiting.py
SECONDS = 60.0
SETTINGS = """[posture]
interval = 1

[state]
directory = "{folder}"
"""


@contextmanager
def locked(program: Path) -> Iterator[list[int]]:
    """Pids of processes of an ordinary user that hold their locks for seconds at a time."""
    words = [str(word) for word in (program, LOCKED, MEGABYTES, HOGS)]
    with subprocess.Popen(
        words,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            yield [int(pid) for pid in process.stdout.readline().split()]
        finally:
            process.kill()  # and with it, by PR_SET_PDEATHSIG, all others


def snapshot_of(folder: Path, pid: int) -> dict[str, Any] | None:
    with Incidents(folder / FILE) as incidents:
        for incident in incidents.search(Filter(), 1000):
            for snapshot in incidents.snapshots(incident):
                if snapshot["pid"] == pid:
                    return snapshot
    return None


def threads(daemon: Running) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))


def rounds(daemon: Running, last: float, seconds: float) -> float:
    """When the next whole look at all processes has ended."""
    name = "seal_monitor_posture_last_success_timestamp_seconds"
    deadline = time.monotonic() + seconds
    while (now := daemon.metric(name)) == last:
        assert time.monotonic() < deadline, "a look waits 2 s for those of one owner"
        time.sleep(0.1)
    return now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o750)
    return made


def test_looks_and_snapshots_of_others_go_on(
    start: Start, compiled: Compile, folder: Path, violate: Violate
) -> None:
    sealing, violator = compiled("posture"), violate()
    daemon = start(SETTINGS.format(folder=folder))
    before = rounds(daemon, 0.0, SECONDS)
    assert daemon.metric("seal_monitor_posture_interval_seconds") == 1
    assert daemon.metric("seal_monitor_canary_interval_seconds") == 60
    count = threads(daemon)
    with (
        subprocess.Popen([sealing, "pages"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as own,
        locked(compiled("held_locks")) as pids,
    ):
        assert own.stdout is not None
        own.stdout.readline()
        for _ in range(2):  # the first may have begun before
            before = rounds(daemon, before, SECONDS)
        timed_out = daemon.metric('seal_monitor_posture_processes{state="timed_out"}')
        assert timed_out >= LOCKED // 3  # the others let it wait for less than 2 s
        assert daemon.metric('seal_monitor_posture_processes{state="sealing"}') >= 1
        violator.go()
        with at_most(2.0, "promised, whatever others do"):
            while (snapshot := snapshot_of(folder, violator.pid)) is None:
                time.sleep(0.02)
        assert snapshot["missing"] == {}
        assert threads(daemon) <= count + 2 + 3 * THREADS
        daemon.stop()  # in time, with threads that still wait
    assert len(pids) == LOCKED


def test_the_command_ends(compiled: Compile) -> None:
    """And shows what it can read exactly."""
    command = [str(compiled("posture")), "pages"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as own,
        locked(compiled("held_locks")) as pids,
    ):
        assert own.stdout is not None
        said = json.loads(own.stdout.readline())
        with at_most(SECONDS, "it waits 2 s for those of one owner"):
            shown = subprocess.run(
                [sys.executable, "-m", "monitor", "posture", "--all", "--json"],
                check=True,
                capture_output=True,
            ).stdout
    rows = {row["pid"]: row for row in json.loads(shown)["rows"]}
    assert [rows[pid]["state"] for pid in pids].count("timed_out") >= LOCKED // 3
    assert {name: rows[own.pid][name] for name in said} == said
