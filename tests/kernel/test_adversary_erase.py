"""What an ordinary user or a kill cannot take from a real daemon: its state, and its incidents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apart import own_cgroup
from attackers import NOBODY, by_nobody, by_nobody_in_cgroup, delegated, in_cgroup
from test_daemon import READY_SECONDS, Compile, Running, Start, start

from monitor.incidents.search import Filter, Incidents
from monitor.incidents.store import FILE
from monitor.provoke import table as provoke

__all__ = ["start"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    return folder


@pytest.fixture
def lives(tmp_path: Path, state: Path, require_bpf: None) -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for daemon in running:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def test_killed_while_it_starts_the_next_one_keeps_its_state(
    lives: list[Running], tmp_path: Path, state: Path
) -> None:
    settings = f'[state]\ndirectory = "{state}"\n'
    for number in range(21):
        folder = tmp_path / str(number)
        folder.mkdir()
        lives.append(Running(folder, settings))
        if number < 20:
            time.sleep(0.1 + number * 0.05)
            lives[-1].process.kill()
            lives[-1].process.wait()
    started = lives[-1].health("started", READY_SECONDS)
    assert not [note for note in started["details"]["notes"] if "state directory" in note]
    assert not [e for e in lives[-1].events("health") if e["event"] == "state_failed"]
    lives[-1].stop()


def test_renamed_files_remove_no_critical_incident(
    start: Start, compiled: Compile, state: Path
) -> None:
    """Each fault is in a file that was just renamed: a new incident each, before."""
    settings = f'[state]\ndirectory = "{state}"\n[incidents]\nmax_size = 1048576\n'
    settings += "[rate_limit]\nper_caller = 1000\nburst = 10000\nhost = 10000\n"
    settings += '[events]\nhandled_faults = ["prot_none"]\n'  # none by default
    daemon = start(settings)
    program = compiled("evict")
    provoke.run("munmap").communicate()
    denied = daemon.wait_for(lambda event: event["kind"] == "denial")
    # Not below the test's own folder, which no other user may search.
    with tempfile.TemporaryDirectory(prefix="seal-monitor-test-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        with by_nobody([program, 2000, folder]) as evict:
            made, _ = evict.communicate(timeout=60)
    assert int(made) == 2000
    daemon.stop()
    command = [sys.executable, "-m", "monitor", "incidents", "list", "--json", "--limit", "5000"]
    command += ["--config", str(daemon.configuration)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    kept = {each["severity"] for each in found if each["operation"] == "munmap"}
    assert kept == {denied["severity"]}
    (many,) = (each for each in found if each["caller"] == "many places")
    assert many["count"] > 1000
    assert len(found) < 150


ATTACKS = {
    # Three times from 40 cgroups of his own, and as any of 65,536 users.
    "scopes": [("scopes", 40)] * 3,
    "sub-uids": [("subordinates", 3)],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_flood_with_the_same_fingerprint_pushes_nobody_out(
    start: Start, compiled: Compile, state: Path, attack: str
) -> None:
    """Both run the same program, so the violations are of one incident."""
    settings = f'[state]\ndirectory = "{state}"\n'
    settings += "[rate_limit]\nper_caller = 1000\nburst = 10000\nhost = 10000\n"
    daemon = start(settings)
    program = compiled("flood")
    own = own_cgroup()
    assert own is not None
    with delegated(own) as (user, service):

        def his() -> int:
            words = in_cgroup(service, [program, "processes", 1, 0.001])
            with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
                made, _ = process.communicate(timeout=60)
            return int(made)

        before = sum(his() for _ in range(3))
        for number, (kind, count) in enumerate(ATTACKS[attack]):
            words: list[object] = [program, kind, count]
            if kind == "scopes":
                folder = user / str(number)
                folder.mkdir()
                for each in (folder, folder / "cgroup.procs"):
                    os.chown(each, NOBODY, NOBODY)
                command = by_nobody_in_cgroup(user, [*words, folder])
            else:
                command = in_cgroup(user, words)  # root starts them, as newuidmap(1) does
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
        daemon.stop()
    with Incidents(state / FILE) as incidents:
        found = incidents.search(Filter(operation="mprotect"), 99)
        kept = [[e["process"]["uid"] for e in incidents.events(each)] for each in found]
    by_root = [(each, users) for each, users in zip(found, kept, strict=True) if 0 in users]
    ((incident, users),) = by_root
    assert incident.count >= before + 100
    assert len(users) == 20
    assert users.count(0) == min(before, 10)
