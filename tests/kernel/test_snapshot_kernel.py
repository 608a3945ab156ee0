"""Snapshots of real violators, as a real daemon takes them and keeps them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_daemon import Compile, Running, Start, assert_conserved, start, storm

from monitor.evidence.memory_map import bounded_lines, parse_smaps
from monitor.incidents.search import Filter, Incidents
from monitor.incidents.store import FILE, SNAPSHOTS_KEPT, nanoseconds
from monitor.provoke import table as provoke

__all__ = ["start"]

# Maps COUNT areas, seals every third one, is refused TIMES times and lives until its input ends.
# Prints the start of the area that is touched. With a file, a part of that is mapped and sealed.
VIOLATOR = """
import ctypes, mmap, os, sys
from monitor.kernel.syscalls import call
count, times, path = int(sys.argv[1]), int(sys.argv[2]), os.fsencode(sys.argv[3])
areas = []
for n in range(count):
    area = mmap.mmap(-1, 3 * 4096, flags=mmap.MAP_PRIVATE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if n % 3 == 0:
        assert call("mseal", address + 4096, 4096, 0) == 0
    areas.append((area, address))
if path:
    file = mmap.mmap(os.open(path, os.O_RDWR), 4096, flags=mmap.MAP_PRIVATE)
    assert call("mseal", ctypes.addressof(ctypes.c_char.from_buffer(file)), 4096, 0) == 0
touched = areas[0][1] + 4096
os.read(0, 1)
for _ in range(times):
    assert call("mprotect", touched, 4096, mmap.PROT_READ) == -1
print(touched, flush=True)
sys.stdin.read()
os._exit(0)  # else the interpreter unmaps what is sealed
"""
Violate = Callable[..., "Violator"]


class Violator:
    """Stopped before its violation until `go`."""

    def __init__(self, count: int = 9, times: int = 1, path: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", VIOLATOR, str(count), str(times), path],
            env=provoke.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self.process.pid

    def go(self) -> int:
        """The start of what was touched."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"x")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def sealed(self) -> list[tuple[int, int]]:
        with open(f"/proc/{self.pid}/smaps", "rb") as file:
            mappings = parse_smaps(bounded_lines(file))
            return [(mapping.start, mapping.end) for mapping in mappings if mapping.sealed]


@pytest.fixture
def violate() -> Iterator[Violate]:
    made: list[Violator] = []

    def _violate(**options: Any) -> Violator:
        made.append(Violator(**options))
        return made[-1]

    yield _violate
    for violator in made:
        violator.process.communicate()


class Watched:
    """A daemon with a store."""

    def __init__(self, start: Start, folder: Path, settings: str = "") -> None:
        folder.mkdir(mode=0o750)
        self.folder = folder
        self.settings = f'[state]\ndirectory = "{folder}"\n{settings}'
        self.daemon: Running = start(self.settings)

    def count(self, result: str) -> float:
        return self.daemon.metric(f'seal_monitor_snapshots_total{{result="{result}"}}')

    def wait(self, result: str, count: int) -> None:
        self.daemon.wait_for_metric(f'seal_monitor_snapshots_total{{result="{result}"}}', count, 20)

    def counts(self) -> dict[str, float]:
        results = ("taken", "partial", "gone", "dropped", "failed")
        return {result: count for result in results if (count := self.count(result))}

    def snapshots(self) -> list[dict[str, Any]]:
        with Incidents(self.folder / FILE) as incidents:
            found = incidents.search(Filter(), 1000)
            return [each for incident in found for each in incidents.snapshots(incident)]


@pytest.fixture
def watched(start: Start, tmp_path: Path) -> Callable[..., Watched]:
    return lambda settings="": Watched(start, tmp_path / "state", settings)


def late_ms(snapshot: dict[str, Any], event: dict[str, Any]) -> float:
    return (nanoseconds(snapshot["time"]) - nanoseconds(event["time"])) / 1e6


def test_its_sealed_ranges_exactly(watched: Callable[..., Watched], violate: Violate) -> None:
    watching = watched()
    violator = violate(count=60)
    touched = violator.go()
    watching.wait("taken", 1)
    (snapshot,) = watching.snapshots()
    assert snapshot["pid"] == violator.pid
    assert (snapshot["missing"], snapshot["memory_map_complete"]) == ({}, True)
    sealed = [
        (int(mapping["start"], 16), int(mapping["end"], 16))
        for mapping in snapshot["memory_map"]
        if mapping["sealed"]
    ]
    assert sealed == violator.sealed()
    assert len([start for start, _ in sealed]) >= 20
    assert (touched, touched + 4096) in sealed
    assert {mapping["sealed"] for mapping in snapshot["memory_map"]} == {True, False}
    (event,) = watching.daemon.events("denial")
    assert (snapshot["event"], snapshot["start"]) == (event["id"], event["process"]["start"])
    assert 0 < late_ms(snapshot, event) < 2000
    assert snapshot["parents"][0]["pid"] == event["process"]["parent_pid"]
    modules = {module["path"]: module["build_id"] for module in snapshot["modules"]}
    assert modules[event["process"]["executable"]]
    assert_conserved(watching.daemon.stop())


def test_once_in_a_thousand_violations(watched: Callable[..., Watched], violate: Violate) -> None:
    """The rate limit lets a hundred pass."""
    watching = watched()
    for violator in (violate(times=1000), violate(times=1000)):
        violator.go()
    watching.wait("taken", 2)
    stopped = watching.daemon.stop()
    assert stopped["details"]["denial"]["counted"] == 2000
    assert stopped["details"]["denial"]["delivered"] >= 200
    assert len(watching.snapshots()) == 2


def test_one_that_is_gone_is_counted(watched: Callable[..., Watched], violate: Violate) -> None:
    """The daemon looks when it has ended."""
    watching = watched()
    violator = violate()
    watching.daemon.process.send_signal(signal.SIGSTOP)
    try:
        violator.go()
        violator.process.communicate()
    finally:
        watching.daemon.process.send_signal(signal.SIGCONT)
    watching.wait("gone", 1)
    assert watching.counts() == {"gone": 1}
    watching.daemon.stop()
    assert watching.snapshots() == []


def test_one_that_has_executed_another_program_is_gone(
    watched: Callable[..., Watched], violate: Violate
) -> None:
    watching = watched()
    code = VIOLATOR.replace("print(touched, flush=True)", "os.execv('/bin/cat', ['cat', '-'])")
    with subprocess.Popen(
        [sys.executable, "-c", code, "3", "1", ""],
        env=provoke.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        watching.daemon.process.send_signal(signal.SIGSTOP)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"xy")
            process.stdin.flush()
            assert process.stdout.read(1) == b"y"
        finally:
            watching.daemon.process.send_signal(signal.SIGCONT)
        watching.wait("gone", 1)
        process.communicate()
    watching.daemon.stop()
    assert watching.snapshots() == []


def test_a_thousand_processes_at_once(watched: Callable[..., Watched], compiled: Compile) -> None:
    """A snapshot of each is asked for; few are taken, and events are not held up."""
    watching = watched()
    assert storm(compiled("crowd"), 1000) == {"mprotect": 1000}
    daemon = watching.daemon
    stopped = daemon.stop()
    assert_conserved(stopped)
    # More than one where the build id was in no page of a process that was forked just now, and one
    # for those of the held back that a sweep has no line for.
    counts = Counter[str]()
    for found in _incidents(watching):
        counts[found.what] += found.count
    assert counts.total() == 1000
    assert set(counts) <= {"mprotect", "unknown"}
    assert counts["mprotect"] >= 750, "three quarters of the host's burst are for whoever comes"
    assert len(watching.snapshots()) <= SNAPSHOTS_KEPT


def _incidents(watching: Watched) -> list[Any]:
    with Incidents(watching.folder / FILE) as incidents:
        return incidents.search(Filter(), 1000)


def test_every_request_is_counted_once(watched: Callable[..., Watched], compiled: Compile) -> None:
    watching = watched()
    assert storm(compiled("swarm"), 200, 0) == {"mprotect": 200}
    delivered = 'seal_monitor_events_total{kind="denial",result="delivered"}'
    watching.daemon.wait_for_metric(delivered, 200, 20)
    deadline = time.monotonic() + 20
    while sum((counts := watching.counts()).values()) < 200:
        assert time.monotonic() < deadline, counts
        time.sleep(0.1)
    assert sum(counts.values()) == 200
    assert counts["dropped"] >= 190  # the first three, and one in ten seconds


@pytest.mark.parametrize("name", ['a"b', "a b\n[heap]", "\x1b[31mred", "\udcff\udcfe"])
def test_hostile_names(
    watched: Callable[..., Watched], violate: Violate, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(4096))
    watching = watched()
    violate(path=str(file)).go()
    watching.wait("taken", 1)
    (snapshot,) = watching.snapshots()
    (mapped,) = (
        mapping["file"]["path"]
        for mapping in snapshot["memory_map"]
        if mapping["file"] and mapping["file"]["path"].startswith(str(tmp_path))
    )
    assert mapped.isprintable()
    assert '"' not in mapped


def test_it_is_switched_off_and_on(watched: Callable[..., Watched], violate: Violate) -> None:
    watching = watched("[incidents]\nsnapshots = false\n")
    violate().go()
    watching.daemon.wait_for(lambda event: event["kind"] == "denial")
    assert watching.counts() == {}
    watching.daemon.configuration.write_text(watching.settings.replace("false", "true"), "utf-8")
    watching.daemon.process.send_signal(signal.SIGHUP)
    assert watching.daemon.health("reloaded")["details"]["changed"] == ["incidents.snapshots"]
    second = violate()
    second.go()
    watching.wait("taken", 1)
    assert [snapshot["pid"] for snapshot in watching.snapshots()] == [second.pid]


def test_what_a_person_sees(watched: Callable[..., Watched], violate: Violate) -> None:
    watching = watched()
    violate(count=60).go()
    watching.wait("taken", 1)
    (incident,) = _incidents(watching)
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "monitor", "incidents", "show", incident.id),
            *("--config", str(watching.daemon.configuration)),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "\na snapshot\n  of pid " in shown
    assert " rw-p <- touched\n" in shown
    assert "\n  parents     " in shown
