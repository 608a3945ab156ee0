"""What systemd keeps for the service while it is started again, in a booted machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import own_programs, remove_cgroup
from kept_storm import (
    Storm,
    became,
    build,
    counted,
    counters,
    nothing_is_lost,
    scraped,
    settled,
)
from machine import Event, Machine, booted
from test_service_kernel import stage

from monitor.keep import record

__all__ = ["became", "counted", "counters", "scraped", "settled"]

PREPARE = """
mkdir -p $place/root/etc/systemd/system/seal-monitor.service.d
printf '[Service]\\nRestartSec=100ms\\nWatchdogSec=12\\n' \\
    >$place/root/etc/systemd/system/seal-monitor.service.d/test.conf
systemd-sysusers --root=$place/root >&2
"""
PYTHON = "/usr/local/lib/seal-monitor/bin/python"
MODULES = "/usr/local/lib/seal-monitor/lib/python3.11/site-packages/monitor"
MEMORY = Path("/sys/fs/cgroup/memory")
OOM_BYTES = 32 << 20
GREEDY = """
import os, sys
with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))
kept = [b"x" * (1 << 20) for _ in range(64)]
"""
KILLED = "Main process exited, code=killed, status=9/KILL"
KILLS = 30
# Where a kill meets the daemon: the command before, and how many seconds later it comes at most.
MOMENTS = (
    ("true", 1.5),  # it watches
    ("systemctl kill -s KILL seal-monitor", 0.45),  # it starts: the manager waits for 0.1 s
    ("systemctl --no-block restart seal-monitor", 0.3),  # it stops, and resumes
)

pytestmark = pytest.mark.host_wide


@pytest.fixture(scope="module")
def staged(build_directory: Path) -> Path:
    root = stage(build_directory / "staged")
    build(root)
    return root


@pytest.fixture(scope="module")
def machine(staged: Path, build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    folder = build_directory / "keep"
    folder.mkdir(exist_ok=True)
    with booted(staged, folder, prepare=PREPARE, own_network=True) as machine:
        yield machine


def started(machine: Machine) -> list[Event]:
    return [event for event in machine.events() if event.get("event") == "started"]


def violate(machine: Machine, name: str, unit: str) -> None:
    command = ["systemd-run", "--quiet", "--wait", f"--unit={unit}"]
    done = machine.done(*command, PYTHON, "-m", "monitor.provoke.table", name)
    assert done.returncode == 0, done.stderr


def ready(machine: Machine, starts: int) -> None:
    command = "journalctl -u seal-monitor -o cat | grep -c '^started: '"
    machine.wait("start", lambda: int(machine.run("sh", "-c", command) or 0) >= starts, 60)


def nothing_is_left(before: dict[int, str]) -> None:
    deadline = time.monotonic() + 20  # the kernel frees programs a grace period after their end
    while own_programs().keys() - before.keys() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own_programs().keys() - before.keys() == set()


@pytest.fixture
def others() -> dict[int, str]:
    """Programs that are there before the service, such as those of the session's harness."""
    return own_programs()


@pytest.fixture
def running(machine: Machine, others: dict[int, str]) -> Iterator[Machine]:
    """The service is started, and stopped at the end: then nothing is left."""
    machine.run("systemctl", "start", "seal-monitor.service")
    assert machine.show("ActiveState") == "active", machine.journal()[-3000:]
    yield machine
    machine.run("systemctl", "stop", "seal-monitor.service")
    machine.write("/etc/seal-monitor/config.toml", "")
    assert machine.show("ActiveState") == "inactive"
    assert machine.events()[-1]["event"] == "stopped"
    nothing_is_left(others)


def last_start(machine: Machine) -> Event:
    return started(machine)[-1]


def denials(machine: Machine, operation: str) -> list[Event]:
    return [event for event in machine.events() if event.get("operation") == operation]


def test_a_killed_service_resumes(running: Machine) -> None:
    machine = running
    assert int(machine.show("NFileDescriptorStore")) > 20, machine.journal()
    violate(machine, "mprotect", "one")
    machine.wait("denial", lambda: machine.denials("one.service"))
    first, starts = scraped(machine), len(started(machine))

    # While nobody runs.
    machine.write("/run/systemd/system/seal-monitor.service.d/z.conf", "[Service]\nRestartSec=3s\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
    violate(machine, "munmap", "two")
    assert len(started(machine)) == starts
    ready(machine, starts + 1)
    machine.run("rm", "/run/systemd/system/seal-monitor.service.d/z.conf")
    machine.run("systemctl", "daemon-reload")
    events, second = machine.events(), scraped(machine)
    start = last_start(machine)
    resumed = start["details"]["resumed"]
    assert resumed["records_found"] >= 1
    assert resumed["events_dropped"] == 0
    assert 2 < resumed["unread_seconds"] < 20
    assert start["blind_seconds"] == 0
    assert "resumed: nobody read for" in start["message"]
    print("ready", started(machine)[-2]["details"]["ready_seconds"])
    print("ready again", start["details"]["ready_seconds"])

    # What waited comes first, once, and all goes on.
    (denial,) = denials(machine, "munmap")
    assert denial["time_boot_ns"] < start["time_boot_ns"]
    assert events.index(denial) < events.index(start)
    ids = [event["id"] for event in events]
    assert len(ids) == len(set(ids))
    down = {name for name, value in counters(first).items() if second.get(name, -1) < value}
    assert down == set()
    assert second['seal_monitor_starts_total{kind="resumed"}'] == 1
    since = "seal_monitor_counters_since_timestamp_seconds"
    assert second[since] == first[since]


def test_a_restart_and_one_by_the_watchdog_resume(running: Machine) -> None:
    machine = running
    starts = len(started(machine))
    machine.run("systemctl", "restart", "seal-monitor.service")
    assert last_start(machine)["details"]["resumed"] is not None
    machine.run("kill", "-STOP", machine.show("MainPID"))
    violate(machine, "mremap_source", "three")
    ready(machine, starts + 2)
    assert last_start(machine)["details"]["resumed"] is not None
    # The watchdog continues the daemon to end it, so that it may still have taken the event, and
    # have reported it or not.
    series = settled(machine)
    result = 'seal_monitor_events_total{kind="denial",result="%s"}'
    delivered, failed = series[result % "delivered"], series[result % "failed"]
    print("delivered, failed", delivered, failed, last_start(machine)["details"]["resumed"])
    assert (delivered, failed) in ((1, 0), (0, 1))
    assert delivered <= len(denials(machine, "mremap")) <= 1


@pytest.fixture
def counts_otherwise(machine: Machine) -> Iterator[Callable[[], None]]:
    """Once called, the program is a version that cannot go on with the counts of this one."""
    file = f"{MODULES}/keep/record.py"

    def become(number: int) -> None:
        machine.run("sed", "-i", f"s/^_FORMAT = .*/_FORMAT = {number}/", file)
        machine.run("sh", "-c", f"rm -f {MODULES}/keep/__pycache__/record.*.pyc")

    yield lambda: become(99)
    become(record._FORMAT)


def test_what_does_not_match_is_let_go(
    running: Machine, others: dict[int, str], counts_otherwise: Callable[[], None]
) -> None:
    machine, before = running, own_programs().keys() - others.keys()
    assert before
    counts_otherwise()
    machine.run("systemctl", "restart", "seal-monitor.service")
    assert last_start(machine)["details"]["resumed"] is None
    notes = " ".join(last_start(machine)["details"]["notes"])
    assert "what systemd had kept is let go: it is of another format" in notes
    store = int(machine.show("NFileDescriptorStore"))
    machine.wait("let go", lambda: not own_programs().keys() & before)
    machine.run("systemctl", "restart", "seal-monitor.service")
    assert last_start(machine)["details"]["resumed"] is not None
    assert int(machine.show("NFileDescriptorStore")) == store


def test_a_start_that_fails_for_good_leaves_nothing(machine: Machine) -> None:
    before = own_programs()
    machine.run("systemctl", "start", "seal-monitor.service")
    assert own_programs().keys() - before.keys() != set()
    machine.write("/etc/seal-monitor/config.toml", "wrong = 1\n")
    machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
    machine.wait("failure", lambda: machine.show("ActiveState") == "failed")
    nothing_is_left(before)
    machine.write("/etc/seal-monitor/config.toml", "")


def kills(machine: Machine) -> int:
    return machine.journal().count(KILLED)


def test_kills_in_a_storm_lose_no_count_and_repeat_no_event(running: Machine) -> None:
    machine, dice, turn = running, random.Random(15), 0
    storm, before = Storm(machine), kills(machine)
    while kills(machine) - before < KILLS:
        command, most = MOMENTS[turn % len(MOMENTS)]
        turn += 1
        assert turn < 4 * KILLS
        pause = f"sleep {dice.uniform(0.0, most):.3f}"
        machine.run("sh", "-c", f"{command}; {pause}; systemctl kill -s KILL seal-monitor")
        # Two starts in a row that end while they look at the set would have the third let it go.
        machine.wait("start", lambda: machine.show("ActiveState") == "active")
        if turn % 5 == 0:
            storm.look()
    storm.end()
    nothing_is_lost(storm)


def test_the_oom_killer_loses_no_count(running: Machine) -> None:
    machine = running
    storm = Storm(machine)
    for _ in range(3):
        starts = len(started(machine))
        by_the_oom_killer(main_pid(machine))
        ready(machine, starts + 1)
    storm.end()
    nothing_is_lost(storm)


def main_pid(machine: Machine) -> int:
    """The daemon's pid on the host."""
    return machine.pid_on_host(int(machine.show("MainPID")))


def by_the_oom_killer(pid: int) -> None:
    """The process and a greedy one are given too little memory, and the kernel ends the first."""
    group = MEMORY / f"seal-monitor-test-{os.getpid()}-oom"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(OOM_BYTES))
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        (group / "cgroup.procs").write_text(str(pid))
        with subprocess.Popen([sys.executable, "-c", GREEDY, group / "cgroup.procs"]) as greedy:
            greedy.wait(30)
        events = dict(
            line.split() for line in (group / "memory.oom_control").read_text().splitlines()
        )
        assert int(events["oom_kill"]) >= 1
    finally:
        remove_cgroup(group)


@pytest.mark.parametrize("state", ["starting", "resuming"])
def test_a_stop_at_any_moment_leaves_nothing(
    machine: Machine, others: dict[int, str], state: str
) -> None:
    dice = random.Random(17)
    for _ in range(6):
        if state == "resuming":
            machine.run("systemctl", "start", "seal-monitor")
        begin = {
            "starting": "systemctl --no-block start seal-monitor",
            "resuming": "systemctl kill -s KILL seal-monitor; sleep 0.1",
        }[state]
        pause = f"sleep {dice.uniform(0.0, 0.4):.3f}"
        machine.run("sh", "-c", f"{begin}; {pause}; systemctl stop seal-monitor")
        assert machine.show("ActiveState") in ("inactive", "failed")
        assert machine.show("NFileDescriptorStore") == "0"
        nothing_is_left(others)


def test_a_start_limit_leaves_nothing(machine: Machine, others: dict[int, str]) -> None:
    limit = "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n"
    drop_in = "/run/systemd/system/seal-monitor.service.d/limit.conf"
    machine.write(drop_in, limit)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "seal-monitor")
    try:
        machine.run("systemctl", "start", "seal-monitor")

        def fails() -> bool:
            machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor")
            return machine.show("ActiveState") == "failed"

        machine.wait("failure", fails)
        assert "Start request repeated too quickly" in machine.journal()
        nothing_is_left(others)
    finally:
        machine.run("rm", drop_in)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "reset-failed", "seal-monitor")
