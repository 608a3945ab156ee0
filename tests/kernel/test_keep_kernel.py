"""What systemd keeps for the service while it is started again, in a booted machine."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import own_programs
from machine import Event, Machine, booted
from test_service_kernel import stage

ASSETS = Path(__file__).parents[1] / "assets"
PREPARE = """
mkdir -p $place/root/etc/systemd/system/seal-monitor.service.d
printf '[Service]\\nRestartSec=100ms\\nWatchdogSec=12\\n' \\
    >$place/root/etc/systemd/system/seal-monitor.service.d/test.conf
systemd-sysusers --root=$place/root >&2
"""
PYTHON = "/usr/local/lib/seal-monitor/bin/python"
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:10462/metrics", timeout=5).read().decode())
"""
KILLS = 30

pytestmark = pytest.mark.host_wide


@pytest.fixture(scope="module")
def staged(build_directory: Path) -> Path:
    root = stage(build_directory / "staged")
    storm = root / "usr/local/bin/kept_storm"
    source = str(ASSETS / "kept_storm.c")
    subprocess.run(["gcc", "-O1", "-pthread", "-o", str(storm), source], check=True)
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


def scraped(machine: Machine) -> dict[str, float]:
    """Every series of the monitor's own; empty while it does not answer."""
    found = re.findall(r"^(seal_monitor_\S+) (\S+)$", machine.run(PYTHON, "-c", SCRAPE), re.M)
    return {name: float(value) for name, value in found}


def counters(series: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in series.items() if "_total" in name}


def became(series: dict[str, float]) -> dict[str, float]:
    """By kind: the events whose result is counted."""
    name = 'seal_monitor_events_total{kind="%s",'
    return {
        kind: sum(value for each, value in series.items() if each.startswith(name % kind))
        for kind in ("denial", "fault")
    }


def counted(series: dict[str, float]) -> dict[str, float]:
    """The same as the kernel counted. A fault whose handler's frame did not fit, or which ended
    the process all the same, is counted twice there, and exported once as handled.
    """
    again = re.compile(r'seal_monitor_faults_total\{.*disposition="handler_(failed|ended)"')
    sums = dict.fromkeys(("denial", "fault"), 0.0)
    for each, value in series.items():
        if each.startswith("seal_monitor_denials_total"):
            sums["denial"] += value
        elif each.startswith("seal_monitor_faults_total"):
            sums["fault"] += value * (2 if again.match(each) else 1)
    return sums


def settled(machine: Machine) -> dict[str, float]:
    """A scrape when no event is on its way, if there is such a moment soon."""
    deadline = time.monotonic() + 30
    while True:
        series = scraped(machine)
        if became(series) == counted(series) or time.monotonic() > deadline:
            return series
        time.sleep(0.5)


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
    # The watchdog continues the daemon to end it, so that it may still have reported by itself.
    assert last_start(machine)["details"]["resumed"] is not None
    assert len(denials(machine, "mremap")) == 1


def test_what_does_not_match_is_let_go(running: Machine, others: dict[int, str]) -> None:
    machine, before = running, own_programs().keys() - others.keys()
    assert before
    machine.write("/etc/seal-monitor/config.toml", "[ring]\nsize = 1048576\n")
    machine.run("systemctl", "restart", "seal-monitor.service")
    assert last_start(machine)["details"]["resumed"] is None
    notes = " ".join(last_start(machine)["details"]["notes"])
    assert "what systemd had kept is let go: it is of another ring size" in notes
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


def test_kills_in_a_storm_lose_no_count_and_repeat_no_event(running: Machine) -> None:
    machine = running
    first = scraped(machine)
    machine.run(
        "systemd-run",
        "--quiet",
        "--unit=storm",
        "/usr/local/bin/kept_storm",
        "2000",
    )
    dice, seen, down = random.Random(15), counters(first), Counter[str]()
    while int(machine.show("NRestarts")) < KILLS:
        time.sleep(dice.uniform(0.0, 1.5))
        now = counters(scraped(machine))
        down.update(name for name, value in now.items() if value < seen.get(name, 0))
        seen.update(now)
        machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
    time.sleep(2)
    machine.wait("start", lambda: machine.show("ActiveState") == "active")
    scraped(machine)
    machine.run("systemctl", "kill", "-s", "TERM", "storm.service")
    machine.wait("quiet", lambda: scraped(machine).get("seal_monitor_ring_used_bytes") == 0, 60)
    time.sleep(3)
    made = machine.run("journalctl", "-u", "storm", "-o", "cat", "-g", "^[0-9]+ [0-9]+$")
    denials, faults = map(int, made.split())
    last = settled(machine)

    def gained(name: str) -> float:
        return last[name] - first.get(name, 0)

    lines = machine.run(
        "journalctl", "-u", "seal-monitor", "-o", "cat", "--output-fields=SEAL_MONITOR_EVENT"
    ).splitlines()
    events = [json.loads(line) for line in lines if line[:1] == "{"]
    repeated = [each for each, count in Counter(e["id"] for e in events).items() if count > 1]
    own = 'seal_monitor_workload_denials_total{verdict="sealed",workload="storm.service"}'
    fault = 'seal_monitor_faults_total{cause="guard_region",disposition="handler"}'
    starts = {
        kind: last[f'seal_monitor_starts_total{{kind="{kind}"}}'] for kind in ("fresh", "resumed")
    }
    print(
        denials,
        gained(own),
        faults,
        gained(fault),
        starts,
        became(last),
        counted(last),
        len(events),
        last["seal_monitor_unread_seconds_total"],
        last["seal_monitor_records_found_total"],
        down,
    )
    assert starts["fresh"] == 1
    assert gained(own) == denials
    assert gained(fault) == faults
    assert became(last) == counted(last)
    assert repeated == []
    assert down == {}
