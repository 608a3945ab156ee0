"""Other programs take the place of those that systemd keeps, in a booted machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import own_programs
from kept_storm import (
    Storm,
    became,
    counted,
    counters,
    nothing_is_lost,
    repeated,
    scraped,
    settled,
)
from machine import Event, Machine, booted
from test_keep_kernel import (
    MODULES,
    PREPARE,
    last_start,
    nothing_is_left,
    ready,
    staged,
    started,
    violate,
)

__all__ = ["staged"]

CONFIG = "/etc/seal-monitor/config.toml"
RAW, PLAIN = 'attach = "raw_tracepoint"\n', 'attach = "tracepoint"\n'
RINGS = (1 << 16, 1 << 20, 1 << 18)
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
    machine.run("sed", "-i", f's/^VERSION = .*/VERSION = "{version}"/', f"{MODULES}/version.py")
    machine.run("sh", "-c", f"rm -f {MODULES}/__pycache__/version.*.pyc")


def restarted(machine: Machine) -> Event:
    machine.run("systemctl", "restart", "seal-monitor.service")
    return last_start(machine)


def replaced(event: Event) -> str:
    found: str = (event["details"]["resumed"] or {}).get("replaced", "")
    return found


def refused(events: list[Event], operation: str) -> list[Event]:
    return [each for each in events if each.get("operation") == operation]


def violate_and_wait(machine: Machine, operation: str, unit: str) -> None:
    """Whose event it is may be unknown: on a busy machine its process is gone before it is read."""
    before = len(refused(machine.events(), operation))
    violate(machine, operation, unit)
    machine.wait("denial", lambda: len(refused(machine.events(), operation)) > before)


def test_another_version_and_the_one_before_go_on(running: Machine) -> None:
    machine = running
    violate_and_wait(machine, "mprotect", "one")
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
    violate_and_wait(machine, "mprotect", "three")
    first, programs = scraped(machine), len(own_programs())
    for config in (RAW, PLAIN):
        machine.write(CONFIG, config)
        event = restarted(machine)
        assert replaced(event) == "another attach"
        assert 0 < event["details"]["resumed"]["handover_seconds"] < 1
        print("handover", event["details"]["resumed"]["handover_seconds"])
        violate_and_wait(machine, "munmap", "four")
    assert set(event["details"]["probes"].values()) == {"tracepoint", "raw_tracepoint"}
    second = scraped(machine)
    name = 'seal_monitor_denials_total{operation="%s",verdict="sealed"}'
    assert second[name % "munmap"] - first[name % "munmap"] == 2
    assert second[name % "mprotect"] == first[name % "mprotect"]
    machine.wait("freed", lambda: len(own_programs()) == programs)


def test_a_ring_of_another_size_comes_after_the_one_before(running: Machine) -> None:
    machine = running
    violate_and_wait(machine, "mprotect", "five")
    first, kept = scraped(machine), machine.show("NFileDescriptorStore")
    made = before = len(refused(machine.events(), "munmap"))
    for size in (1 << 16, 1 << 20):
        unit, starts = f"size-{size}", len(started(machine))
        machine.write(CONFIG, f"{PLAIN}[ring]\nsize = {size}\n")
        machine.run("kill", "-STOP", machine.show("MainPID"))
        for _ in range(3):
            violate(machine, "munmap", unit)
        machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
        ready(machine, starts + 1)
        events, event = machine.events(), last_start(machine)
        assert replaced(event) == "another ring size", event["message"]
        assert event["blind_seconds"] == 0
        assert event["details"]["resumed"]["records_found"] >= 3
        assert event["details"]["resumed"]["events_dropped"] == 0
        found = refused(events, "munmap")
        assert len(found) == made + 3
        assert max(map(events.index, found)) < events.index(event)
        violate_and_wait(machine, "munmap", unit)  # into the new one
        made += 4
        # The one before is let go when it is empty.
        machine.wait("forgotten", lambda: machine.show("NFileDescriptorStore") == kept)
    second = settled(machine)
    down = {name for name, value in counters(first).items() if second.get(name, -1) < value}
    assert down == set()
    name = 'seal_monitor_denials_total{operation="munmap",verdict="sealed"}'
    assert second[name] - first[name] == made - before == 8
    assert became(second) == counted(second)
    assert event_ids_repeated(machine) == []
    event = restarted(machine)
    assert event["details"]["resumed"]["records_found"] == 0
    assert replaced(event) == ""


def event_ids_repeated(machine: Machine) -> list[str]:
    return repeated(event["id"] for event in machine.events())


def test_another_number_of_workloads_needs_no_other_programs(running: Machine) -> None:
    machine = running
    violate_and_wait(machine, "mprotect", "six")
    name = "seal_monitor_workload_denials_total{"
    since = "seal_monitor_counters_since_timestamp_seconds"
    began = settled(machine)[since]
    for maximum, places in ((1, 1), (1000, 2), (65536, 3)):
        machine.write(CONFIG, f"{PLAIN}[workloads]\nmaximum = {maximum}\n")
        event = restarted(machine)
        assert event["details"]["resumed"] is not None
        assert replaced(event) == ""
        violate(machine, "mprotect", f"of-{maximum}")
        series = settled(machine)
        assert series["seal_monitor_workloads_maximum"] == maximum
        assert series["seal_monitor_workloads_tracked"] == places
        # The second one found no place.
        assert series[f'{name}verdict="sealed",workload="other"}}'] == 1
        counts = [value for each, value in series.items() if each.startswith(name)]
        assert sum(counts) == places + 1
    assert series[since] == began


def other_version(machine: Machine, turn: int) -> None:
    become(machine, f"0.{turn % 2 + 1}.0")


def other_sizes(machine: Machine, turn: int) -> None:
    ring, workloads = RINGS[turn % len(RINGS)], 32 << turn % 12
    maps = f"[ring]\nsize = {ring}\n[workloads]\nmaximum = {workloads}\n"
    machine.write(CONFIG, PLAIN + maps)


@pytest.mark.parametrize("change", [other_version, other_sizes])
def test_replacing_in_a_storm_counts_each_run_once(
    running: Machine, change: Callable[[Machine, int], None]
) -> None:
    """Back and forth, by restarts and by kills at any moment of a start."""
    machine, dice, storm = running, random.Random(15), Storm(running)
    for turn in range(RESTARTS + KILLS):
        change(machine, turn)
        if turn < RESTARTS:
            machine.run("systemctl", "restart", "seal-monitor.service")
        else:
            machine.run("systemctl", "kill", "-s", "KILL", "seal-monitor.service")
            time.sleep(dice.uniform(0.0, 1.2))  # it is started after 0.1 s
        storm.look()
    storm.end()
    nothing_is_lost(storm)
    # The first may be of the version that ran.
    assert storm.last['seal_monitor_starts_total{kind="replaced"}'] >= RESTARTS - 1
