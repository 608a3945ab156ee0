"""Other programs take the place of those that systemd keeps, in a booted machine."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import own_programs
from machine import Event, Machine, booted
from test_keep_kernel import (
    PREPARE,
    became,
    counted,
    counters,
    last_start,
    nothing_is_left,
    scraped,
    settled,
    staged,
    violate,
)

__all__ = ["staged"]

CONFIG = "/etc/seal-monitor/config.toml"
TREE = "/usr/local/lib/seal-monitor/lib/python3.11/site-packages/monitor"
RAW, PLAIN = 'attach = "raw_tracepoint"\n', 'attach = "tracepoint"\n'
KILLS = 15
RESTARTS = 12

pytestmark = pytest.mark.host_wide


@pytest.fixture(scope="module")
def machine(staged: Path, build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    folder = build_directory / "replace"
    folder.mkdir(exist_ok=True)
    with booted(staged, folder, prepare=PREPARE, own_network=True) as machine:
        yield machine


@pytest.fixture
def others() -> dict[int, str]:
    """Programs that are there before the service, such as those of the session's harness."""
    return own_programs()


@pytest.fixture
def running(machine: Machine, others: dict[int, str]) -> Iterator[Machine]:
    machine.write(CONFIG, PLAIN)
    machine.run("systemctl", "start", "seal-monitor.service")
    assert machine.show("ActiveState") == "active", machine.journal()[-3000:]
    yield machine
    machine.run("systemctl", "stop", "seal-monitor.service")
    become(machine, "0.1.0")
    assert machine.events()[-1]["event"] == "stopped"
    nothing_is_left(others)


def become(machine: Machine, version: str) -> None:
    """The program is another version from now on; what runs is as it was."""
    machine.run("sed", "-i", f's/^VERSION = .*/VERSION = "{version}"/', f"{TREE}/version.py")
    machine.run("sh", "-c", f"rm -f {TREE}/__pycache__/version.*.pyc")


def restarted(machine: Machine) -> Event:
    machine.run("systemctl", "restart", "seal-monitor.service")
    return last_start(machine)


def replaced(event: Event) -> str:
    found: str = (event["details"]["resumed"] or {}).get("replaced", "")
    return found


def test_another_version_and_the_one_before_go_on(running: Machine) -> None:
    machine = running
    violate(machine, "mprotect", "one")
    machine.wait("denial", lambda: machine.denials("one.service"))
    first, kept = scraped(machine), machine.show("NFileDescriptorStore")
    programs = own_programs().keys()
    for version in ("0.2.0", "0.1.0"):
        become(machine, version)
        event = restarted(machine)
        assert replaced(event) == "another version", event["message"]
        assert event["blind_seconds"] == 0
        assert event["details"]["resumed"]["handover_seconds"] == 0
        assert event["details"]["resumed"]["events_dropped"] == 0
        assert "programs replaced (another version): nobody read for" in event["message"]
        print("ready", event["details"]["ready_seconds"])
    second = scraped(machine)
    down = {name for name, value in counters(first).items() if second.get(name, -1) < value}
    assert down == set()
    assert second['seal_monitor_starts_total{kind="replaced"}'] == 2
    since = "seal_monitor_counters_since_timestamp_seconds"
    assert second[since] == first[since]
    # Nothing of the versions before stays.
    assert machine.show("NFileDescriptorStore") == kept
    machine.wait("freed", lambda: len(own_programs()) == len(programs))
    event = restarted(machine)
    assert event["details"]["resumed"] is not None
    assert replaced(event) == ""


def test_another_way_to_attach_goes_on(running: Machine) -> None:
    machine = running
    violate(machine, "mprotect", "three")
    machine.wait("denial", lambda: machine.denials("three.service"))
    first, programs = scraped(machine), len(own_programs())
    for config in (RAW, PLAIN):
        machine.write(CONFIG, config)
        event = restarted(machine)
        assert replaced(event) == "another attach"
        assert 0 < event["details"]["resumed"]["handover_seconds"] < 1
        print("handover", event["details"]["resumed"]["handover_seconds"])
        violate(machine, "munmap", "four")
        machine.wait("denial", lambda: machine.denials("four.service"))
    assert set(event["details"]["probes"].values()) == {"tracepoint", "raw_tracepoint"}
    assert len(machine.denials("four.service")) == 2
    second = scraped(machine)
    name = 'seal_monitor_denials_total{operation="%s",verdict="sealed"}'
    assert second[name % "munmap"] - first[name % "munmap"] == 2
    assert second[name % "mprotect"] == first[name % "mprotect"]
    machine.wait("freed", lambda: len(own_programs()) == programs)


def test_maps_of_another_size_begin_again_without_a_gap(
    running: Machine, others: dict[int, str]
) -> None:
    machine = running
    before = own_programs().keys() - others.keys()
    kept = machine.show("NFileDescriptorStore")
    machine.write(CONFIG, PLAIN + "[ring]\nsize = 1048576\n")
    event = restarted(machine)
    assert event["details"]["resumed"] is None
    notes = " ".join(event["details"]["notes"])
    assert "what systemd had kept is let go: it is of another ring size" in notes
    assert machine.show("NFileDescriptorStore") == kept
    machine.wait("freed", lambda: not own_programs().keys() & before)


def test_replacing_in_a_storm_counts_each_run_once(running: Machine) -> None:
    """Versions back and forth, by restarts and by kills at any moment of a start."""
    machine = running
    first = scraped(machine)
    storm = "/usr/local/bin/kept_storm"
    machine.run("systemd-run", "--quiet", "--unit=storm", storm, "2000")
    dice, seen, down = random.Random(15), counters(first), Counter[str]()
    for turn in range(RESTARTS + KILLS):
        become(machine, f"0.{turn % 2 + 1}.0")
        if turn < RESTARTS:
            machine.run("systemctl", "restart", "seal-monitor.service")
        else:
            machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
            time.sleep(dice.uniform(0.0, 1.2))  # it is started after 0.1 s
        now = counters(scraped(machine))
        down.update(name for name, value in now.items() if value < seen.get(name, 0))
        seen.update(now)
    machine.wait("start", lambda: machine.show("ActiveState") == "active", 60)
    machine.run("systemctl", "kill", "-s", "TERM", "storm.service")
    machine.wait("quiet", lambda: scraped(machine).get("seal_monitor_ring_used_bytes") == 0, 60)
    time.sleep(1)
    made = machine.run("journalctl", "-u", "storm", "-o", "cat", "-g", "^[0-9]+( [0-9]+)+$")
    denials, faults, *_ = map(int, made.split())
    last = settled(machine)
    lines = machine.run(
        "journalctl", "-u", "seal-monitor", "-o", "cat", "--output-fields=SEAL_MONITOR_EVENT"
    ).splitlines()
    ids = Counter(json.loads(line)["id"] for line in lines if line[:1] == "{")
    own = 'seal_monitor_workload_denials_total{verdict="sealed",workload="storm.service"}'
    fault = 'seal_monitor_faults_total{cause="guard_region",disposition="handler"}'
    kinds = {
        kind: last[f'seal_monitor_starts_total{{kind="{kind}"}}']
        for kind in ("fresh", "resumed", "replaced")
    }
    print(denials, faults, kinds, became(last), counted(last), len(ids), down)
    assert kinds["fresh"] == first['seal_monitor_starts_total{kind="fresh"}']
    assert kinds["replaced"] >= RESTARTS - 1  # the first has the same version
    assert last[own] - first.get(own, 0) == denials
    assert last[fault] - first.get(fault, 0) == faults
    assert became(last) == counted(last)
    assert [each for each, count in ids.items() if count > 1] == []
    assert down == {}
