"""A newer package and back, while a storm of violations goes on: nothing goes uncounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import own_programs
from kept_storm import Storm, build, nothing_is_lost
from machine import Event, Machine, booted
from test_deb import OLD_VERSION, must, package, packages
from trees import SUITES, tree

from monitor.version import VERSION

__all__ = ["package", "packages"]

ROUNDS = 3
VERSIONS = {"new": VERSION, "old": OLD_VERSION}


@pytest.fixture(params=SUITES)
def machine(
    request: pytest.FixtureRequest, packages: Path, build_directory: Path, require_bpf: None
) -> Iterator[Machine]:
    folder = build_directory / f"upgrade-{request.param}"
    folder.mkdir()
    build(packages)
    with booted(packages, folder, tree(request.param), own_network=True) as machine:
        yield machine


def install(machine: Machine, name: str) -> Event:
    """By apt, and what the daemon then says of its start."""
    before = len(starts(machine))
    command = ("apt-get", "install", "--yes", "--allow-downgrades", f"/root/{name}.deb")
    must(
        machine,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        *command,
        "-o",
        "Dpkg::Options::=--force-confnew",
    )
    machine.wait("start", lambda: len(starts(machine)) > before, 60)
    assert must(machine, "seal-monitor", "--version") == f"seal-monitor {VERSIONS[name]}"
    return starts(machine)[-1]


def starts(machine: Machine) -> list[Event]:
    return [event for event in machine.events() if event.get("event") == "started"]


def test_upgrades_in_a_storm_lose_no_count_and_repeat_no_event(machine: Machine) -> None:
    others = own_programs()
    install(machine, "old")
    storm = Storm(machine)
    for name in ("new", "old") * ROUNDS:
        start = install(machine, name)
        details = start["details"]
        print(name, details["ready_seconds"], start["blind_seconds"], details["resumed"])
        assert start["blind_seconds"] == 0
        assert details["resumed"]["replaced"] == "another version"
    storm.end()
    nothing_is_lost(storm)
    must(machine, "apt-get", "remove", "--yes", "seal-monitor")
    assert machine.show("ActiveState") == "inactive"
    machine.wait("end", lambda: own_programs().keys() <= others.keys())
