"""Our own trials on a host with a daemon: counted separately, and nothing else is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cell, Child, Harness, counts, new_cgroup, remove_cgroup, started
from test_daemon import READY_SECONDS, Running, Start, assert_conserved, start

from monitor.kernel.abi import ANNOUNCED_CGROUPS, ANNOUNCED_PROCESSES, Bank
from monitor.kernel.announced import Marks, NoRoomError
from monitor.provoke import child as provoke
from monitor.provoke.announce import runtime_directory, sockets

__all__ = ["start"]

DENIAL: Cell = ("denial", "munmap", "sealed")
ROOT = Path(__file__).parents[2]


# ---- In the kernel -------------------------------------------------------------------------------


@pytest.fixture
def marks(harness: Harness) -> Iterator[Marks]:
    made = Marks(harness.config, harness.loaded.maps["announced_cgroups"])
    yield made
    for place in range(ANNOUNCED_PROCESSES + ANNOUNCED_CGROUPS):
        made.free(place)
    assert harness.config.announced == 0


def announced(harness: Harness) -> Counter[Cell]:
    return counts(harness.state.counters(Bank.ANNOUNCED))


@pytest.mark.parametrize(
    ("other_pid", "later_ticks", "is_announced"),
    [(0, 0, True), (0, 1, False), (0, -1, False), (1, 0, False)],
)
def test_only_what_was_announced_is_counted_apart(
    harness: Harness, marks: Marks, other_pid: int, later_ticks: int, is_announced: bool
) -> None:
    harness.settle()
    before = announced(harness)
    words = provoke.command(["munmap", "prot_none"], wait=True)
    with started([words], env=provoke.environment()) as (child,):
        start_ticks = Child.of(child.pid).start_ticks
        marks.process(child.pid + other_pid, start_ticks + later_ticks)
        child.communicate("\n", timeout=20)
    records, counted = harness.settle()
    gained = announced(harness) - before
    fault: Cell = ("fault", "prot_none", "default")
    assert (gained[DENIAL], gained[fault]) == (is_announced, is_announced)
    assert (counted[DENIAL], counted[fault]) == (not is_announced, not is_announced)
    mine = [record for record in records if record.pid == child.pid]
    assert len(mine) == (0 if is_announced else 3)  # the seal as well
    if is_announced:  # and in its bank the sum is right, too
        assert gained["event", "denial", "filtered"] == gained["event", "fault", "filtered"] == 1


def test_every_place_works_and_no_more_are_taken(harness: Harness, marks: Marks) -> None:
    for place in range(ANNOUNCED_PROCESSES - 1):
        assert marks.process(1 << 22, place) == place
    harness.settle()
    before = announced(harness)
    with started([provoke.command(["munmap"], wait=True)], env=provoke.environment()) as (child,):
        last = marks.process(child.pid, Child.of(child.pid).start_ticks)
        assert last == ANNOUNCED_PROCESSES - 1
        with pytest.raises(NoRoomError):
            marks.process(1, 1)
        child.communicate("\n", timeout=20)
    _, counted = harness.settle()
    assert ((announced(harness) - before)[DENIAL], counted[DENIAL]) == (1, 0)
    marks.free(3)
    assert marks.process(1 << 22, 9) == 3


def test_a_place_that_was_freed_hides_nothing(harness: Harness, marks: Marks) -> None:
    harness.settle()
    with started([provoke.command(["munmap"], wait=True)], env=provoke.environment()) as (child,):
        marks.free(marks.process(child.pid, Child.of(child.pid).start_ticks))
        child.communicate("\n", timeout=20)
    _, counted = harness.settle()
    assert counted[DENIAL] == 1


FORKS = """
import os, sys
sys.stdin.read(1)
from monitor.provoke import table
def generation(depth):
    child = os.fork()
    if not child:
        if depth:
            generation(depth - 1)
        table.main(["munmap"])
        os._exit(0)
    os.waitpid(child, 0)
generation(1)
"""


def test_children_are_announced_and_grandchildren_not(harness: Harness, marks: Marks) -> None:
    harness.settle()
    before = announced(harness)
    with started([[sys.executable, "-c", FORKS]], env=provoke.environment()) as (child,):
        marks.process(child.pid, Child.of(child.pid).start_ticks)
        child.communicate("\n", timeout=20)
    _, counted = harness.settle()
    assert ((announced(harness) - before)[DENIAL], counted[DENIAL]) == (1, 1)


def test_a_cgroup_is_announced_with_those_below(harness: Harness, marks: Marks) -> None:
    def provoked(cgroup: Path) -> tuple[int, int]:
        """Denials that were counted as announced, and as the host's."""
        before = announced(harness)
        words = provoke.command(["munmap"], wait=True)
        made = harness.run(words, cgroup=cgroup, env=provoke.environment())
        return (announced(harness) - before)[DENIAL], made.counted[DENIAL]

    with new_cgroup("above") as above, new_cgroup("beside") as beside:
        below = above / "below"
        below.mkdir()
        try:
            descriptor = os.open(above, os.O_RDONLY)
            place = marks.cgroup(descriptor)
            os.close(descriptor)
            assert place == ANNOUNCED_PROCESSES
            assert [provoked(each) for each in (above, below, beside)] == [(1, 0), (1, 0), (0, 1)]
            marks.free(place)
            assert provoked(below) == (0, 1)
        finally:
            remove_cgroup(below)


def test_what_is_no_cgroup_is_not_marked(marks: Marks, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="file descriptor"):
        marks.cgroup(descriptor)
    os.close(descriptor)


# ---- With a daemon -------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor", *words],
        cwd=ROOT,
        env=provoke.environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def violations(daemon: Running) -> dict[str, float]:
    """Every count of violations that is not 0, our own trials among them."""
    _, text = daemon.get("/metrics")
    names = "denials|faults|bypasses|workload_denials|partial_updates|announced_violations"
    found = re.findall(rf"^seal_monitor_((?:{names})_total\{{.*\}}) (.*)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if float(value)}


def test_doctor_exec_and_demo_page_nobody(start: Start) -> None:
    daemon = start()
    done = command("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    tried = violations(daemon)
    assert tried.keys() == {'announced_violations_total{kind="denial"}'}
    by_doctor = tried['announced_violations_total{kind="denial"}']

    inner = provoke.command(["munmap", "mprotect", "guard_region_write"])
    done = command("exec", "--", *inner)
    assert "munmap" in done.stderr  # it is in the report of exec
    assert violations(daemon) == {
        'announced_violations_total{kind="denial"}': 2 * by_doctor + 2,
        'announced_violations_total{kind="fault"}': 1,
    }

    done = command("demo")
    assert (done.returncode, done.stderr) == (0, "")
    after = violations(daemon)
    assert {name.partition("{")[0] for name in after} == {"announced_violations_total"}
    assert after['announced_violations_total{kind="fault"}'] > 5
    assert after['announced_violations_total{kind="bypass"}'] > 0
    assert {event["kind"] for event in daemon.events()} == {"health"}

    reported = [event for event in daemon.events("health") if event["event"] != "started"]
    assert [event["event"] for event in reported] == [
        *("trials_announced", "trials_ended"),
        *("trials_announced", "trials_announced", "trials_ended"),
        *("trials_announced", "trials_ended"),
    ]
    assert {event["severity"] for event in reported} == {"info"}
    assert reported[1]["message"].endswith(f"meanwhile: {by_doctor:.0f}, announcements: 1")
    assert reported[3]["message"].startswith("exec python")
    assert reported[4]["message"].endswith(f"meanwhile: {by_doctor + 3:.0f}, announcements: 2")

    child = provoke.run("munmap")
    made = json.loads(child.communicate()[0])
    event = daemon.wait_for(lambda event: event["kind"] == "denial")
    assert event["process"]["pid"] == made["pid"]
    gained = {name: value for name, value in violations(daemon).items() if name not in after}
    assert gained == {
        'denials_total{operation="munmap",verdict="sealed"}': 1,
        **{name: 1 for name in gained if name.startswith("workload_denials_total")},
    }
    assert len(gained) == 2
    stopped = daemon.stop()
    assert stopped["details"]["denial"]["counted"] == 1
    assert_conserved(stopped)
    assert not Path(os.environ["SEAL_MONITOR_RUNTIME_DIRECTORY"]).exists()


def test_a_reload_keeps_what_is_announced(start: Start) -> None:
    daemon = start()
    script = f"kill -HUP {daemon.process.pid}; sleep 1; exec " + " ".join(
        provoke.command(["munmap"])
    )
    done = command("exec", "--", "sh", "-c", script)
    assert "munmap" in done.stderr
    daemon.health("reloaded")
    assert {name.partition("{")[0] for name in violations(daemon)} == {"announced_violations_total"}


def test_a_daemon_that_starts_is_waited_for(tmp_path: Path, require_bpf: None) -> None:
    """Its socket is there before its programs are: doctor goes on once it takes announcements."""
    daemon = Running(tmp_path, "")
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not sockets(runtime_directory()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        done = command("doctor")
        assert (done.returncode, done.stderr) == (0, "")
        daemon.health("trials_ended")
        assert violations(daemon).keys() == {'announced_violations_total{kind="denial"}'}
        daemon.stop()
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def test_an_exec_that_is_killed_hides_nothing_more(start: Start) -> None:
    """Its command goes on, and is anybody's again."""
    daemon = start()
    script = (
        "import os, time\n"
        "exec_pid = os.getppid()\n"
        "while os.getppid() == exec_pid: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "from monitor.provoke import table\n"
        "table.main(['munmap'])\n"
    )
    words = [sys.executable, "-m", "monitor", "exec", "--", sys.executable, "-c", script]
    with subprocess.Popen(
        words, cwd=ROOT, env=provoke.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        announced_command = daemon.wait_for(
            lambda event: (
                event.get("event") == "trials_announced" and "its command" in event["message"]
            )
        )
        assert f"(pid {process.pid})" in announced_command["message"]
        time.sleep(1)
        process.kill()
        assert process.stdout
        assert json.loads(process.stdout.read())["verdict"] == "sealed"
    denial = daemon.wait_for(lambda event: event["kind"] == "denial")
    assert denial["operation"] == "munmap"
    assert daemon.metric('seal_monitor_denials_total{operation="munmap",verdict="sealed"}') == 1
    command("exec", "--", "true")  # removes what the other left behind


def test_a_daemon_that_hangs_is_named_and_reports(start: Start) -> None:
    daemon = start()
    daemon.process.send_signal(19)  # SIGSTOP
    try:
        done = command("doctor")
    finally:
        daemon.process.send_signal(18)
    assert done.returncode == 0
    assert done.stderr.startswith("seal-monitor: the monitor does not answer an announcement: ")
    assert len(done.stderr.splitlines()) == 1
    daemon.wait_for(lambda event: event["kind"] == "denial")


def test_without_a_runtime_directory_it_says_so(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "file"
    file.write_text("")
    daemon = start(environment=os.environ | {"SEAL_MONITOR_RUNTIME_DIRECTORY": str(file)})
    note = (
        "no announcements are taken, and what doctor, exec and demo try is reported as anybody's: "
        f"{file}: Not a directory"
    )
    assert note in daemon.health("started")["details"]["notes"]
