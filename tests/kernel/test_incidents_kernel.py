"""The incidents of the real daemon, read when it has ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_daemon import Compile, Running, Start, assert_conserved, start, storm

from monitor.incidents.store import FILE
from monitor.provoke import table as provoke

__all__ = ["start"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    return folder


def incidents(daemon: Running, *arguments: object) -> Any:
    if daemon.process.poll() is None:
        daemon.wait_for_metric('seal_monitor_sink_queue_events{sink="incidents"}', 0)
    command = [sys.executable, "-m", "monitor", "incidents", *map(str, arguments)]
    return json.loads(
        subprocess.run(
            [*command, "--config", daemon.configuration, "--json"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
    )


def test_counts_are_exact(start: Start, compiled: Compile, state: Path) -> None:
    settings = f'[state]\ndirectory = "{state}"\n[events]\nseals = true\n'
    daemon = start(settings)
    made = storm(compiled("storm"), 1, 3000, 0, "mprotect")["total"]
    child = provoke.run("munmap", "guard_region_write")
    denied, fault = (json.loads(line) for line in child.communicate()[0].splitlines())
    daemon.wait_for(
        lambda event: event["kind"] == "fault" and event["process"]["pid"] == fault["pid"]
    )
    # Also while it runs.
    (last,) = incidents(daemon, "timeline", fault["pid"])["events"][-1:]
    assert last["event"]["kind"] == "fault"
    stopped = daemon.stop()
    assert_conserved(stopped)
    assert [
        event["message"] for event in daemon.events("health") if "failed" in event["event"]
    ] == []
    assert sorted(path.name for path in state.iterdir()) == [FILE, "last_run.json"]

    found = incidents(daemon, "list", "--kind", "all")
    for kind, numbers in stopped["details"].items():
        of_kind = [each for each in found if each["kind"] == kind]
        for name in ("delivered", "suppressed"):
            assert sum(each[name] for each in of_kind) == numbers[name], (kind, name)
    (refused,) = incidents(daemon, "list", "--executable", "storm", "--operation", "mprotect")
    assert made == refused["count"] == 3000
    assert refused["suppressed"] > 2000
    assert refused["facets"]["verdict"] == {"sealed": refused["delivered"]}

    story = incidents(daemon, "show", refused["id"][:8])
    assert len(story["events"]) == 20
    assert {event["kind"] for event in story["events"]} <= {"denial", "suppression"}
    timeline = incidents(daemon, "timeline", denied["pid"])
    kinds = [entry["event"]["kind"] for entry in timeline["events"]]
    assert kinds[0] == "seal"
    assert kinds.count("denial") == 1
    assert [entry["event"] for entry in timeline["events"]] == [
        event
        for event in daemon.events()
        if event["process"] and event["process"]["pid"] == denied["pid"]
    ]


def test_a_broken_database_is_reported_and_survived(start: Start, state: Path) -> None:
    (state / FILE).write_text("no database")
    daemon = start(f'[state]\ndirectory = "{state}"\n')
    message = daemon.health("state_failed")["message"]
    assert message.startswith(f"{state / FILE} cannot be used: file is not a database; set aside")
    provoke.run("munmap").communicate()
    daemon.wait_for(lambda event: event["kind"] == "denial")
    daemon.stop()
    assert "munmap" in [each["operation"] for each in incidents(daemon, "list")]


def test_show_names_the_functions(start: Start, compiled: Compile, state: Path) -> None:
    daemon = start(f'[state]\ndirectory = "{state}"\n[events]\nseals = true\n')
    command = [str(compiled("frames")), "1", "outermost", "denied", "--wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        daemon.wait_for(lambda event: event["kind"] == "seal")  # now it knows the path
        process.communicate(b"x", timeout=20)
    daemon.wait_for(lambda event: event["kind"] == "denial")
    daemon.stop()
    (refused,) = incidents(daemon, "list", "--executable", "frames")
    (event,) = incidents(daemon, "show", refused["id"])["events"]
    functions = [(frame["symbol"] or "").partition("+")[0] for frame in event["stack"]]
    assert functions[1:] == ["violate", "descend", "descend", "outermost"]
