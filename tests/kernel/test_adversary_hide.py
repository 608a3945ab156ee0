"""Floods of an ordinary user's, which would hide what others do."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from attackers import NOBODY, by_nobody
from clocks import at_most
from test_daemon import (  # its fixture, too
    Compile,
    Running,
    Start,
    assert_conserved,
    start,
)

__all__ = ["start"]

SINGLES = 12
FLOODS = {
    "5,000 callers": ("callers", "5000"),
    "fewer callers than places": ("callers", "3900"),
    "processes": ("processes", "20"),
    "faults": ("faults",),
}
BY_ROOT = {
    # What root starts is of other users, as newuidmap(1) would have it.
    "sub-uids of a namespace": ("namespace",),
    "sub-uids": ("subordinates",),
}


@contextmanager
def flooded(commands: Sequence[Sequence[object]], users: Sequence[int]) -> Iterator[None]:
    """While the floods go on, each of its own user."""
    running = [by_nobody(command, user) for command, user in zip(commands, users, strict=True)]
    try:
        time.sleep(1)  # it is at its height
        yield
        for process in running:
            assert process.poll() is None  # else it would prove nothing
    finally:
        for process in running:
            process.kill()
            process.communicate()


def single_denial(program: Path) -> int:
    """Made by a process of root's; its pid."""
    child = subprocess.Popen([program, "1", "1", "0", "mprotect"], stdout=subprocess.DEVNULL)
    assert child.wait() == 0
    return child.pid


def delivered(daemon: Running, storm: Path, count: int = SINGLES, seconds: float = 2) -> None:
    """Each of root's denials is out in time."""
    for _ in range(count):
        pid = single_denial(storm)
        with at_most(seconds, "promised, whatever others do"):
            daemon.wait_for_line(f'"pid":{pid},'.encode())
        time.sleep(0.2)


@pytest.mark.parametrize("name", [*FLOODS, *BY_ROOT])
def test_single_denials_of_others_are_out(start: Start, compiled: Compile, name: str) -> None:
    daemon = start()
    command = [compiled("flood"), *(FLOODS | BY_ROOT)[name], "60"]
    with flooded([command], [0 if name in BY_ROOT else NOBODY]):
        delivered(daemon, compiled("storm"))
    assert_conserved(daemon.stop())


def test_many_attackers_at_once(start: Start, compiled: Compile) -> None:
    daemon = start()
    users = range(NOBODY - 4, NOBODY)
    # systemd gives slices even shares of the CPU, so that four loops get no more than one does.
    command = ["nice", "-n", "19", compiled("flood"), "processes", "20", "60"]
    with flooded([command for _ in users], users):
        delivered(daemon, compiled("storm"), 6, seconds=8)  # six programs on few CPUs
    assert_conserved(daemon.stop())


def test_a_moment_fills_no_queue(start: Start, compiled: Compile) -> None:
    """All 5,000 callers, for 20 ms and for a second: what they were held back is few events."""
    daemon = start()
    for seconds in ("0.02", "1"):
        with by_nobody([compiled("flood"), "callers", 5000, seconds]) as flood:
            flood.communicate()
        assert flood.returncode == 0
        time.sleep(3)
    assert_conserved(daemon.stop())
    reported = daemon.events("suppression")
    assert 0 < len(reported) <= 70
    assert daemon.events("health")[-1]["event"] == "stopped"
    assert not [e for e in daemon.events("health") if e["event"] == "sink_failed"]
    held_back = daemon.events("health")[-1]["details"]["denial"]["suppressed"]
    assert sum(event["count"] for event in reported) == held_back


def test_the_events_file_keeps_its_bound(start: Start, compiled: Compile, tmp_path: Path) -> None:
    file, most = tmp_path / "file.jsonl", 1 << 20
    daemon = start(
        f"[output]\nevents_file_max_size = {most}\n[rate_limit]\nhost = 100000\n",
        "--events-file",
        str(file),
    )
    first = single_denial(compiled("storm"))
    daemon.wait_for_line(f'"pid":{first},'.encode())
    with flooded([[compiled("flood"), "callers", "5000", "60"]], [NOBODY]):
        for _ in range(5):
            time.sleep(0.5)
            assert sum(each.stat().st_size for each in tmp_path.glob("file.*jsonl")) <= most
    last = single_denial(compiled("storm"))
    daemon.health("events_file_full")
    daemon.stop()
    parts = [tmp_path / f"file.{part}jsonl" for part in ("oldest.", "previous.", "")]
    assert sum(part.stat().st_size for part in parts) <= most
    denied = [
        event["process"]["pid"]
        for part in parts
        for event in map(json.loads, part.read_text("utf-8").splitlines())
        if event["kind"] == "denial"
    ]
    assert denied[0] == first
    assert last in denied
