"""A daemon whose sinks hang, fail, are rotated and come back, while real violations go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most
from journald import journald
from test_daemon import (  # also its fixture
    VALIDATOR,
    Compile,
    Event,
    Running,
    Start,
    assert_conserved,
    start,
    storm,
)

from monitor.provoke import table as provoke
from monitor.sinks.journal import MESSAGE_IDS

__all__ = ["start"]

ROOT = Path(__file__).parents[2]
NO_LIMIT = """\
[rate_limit]
per_caller = 1000000
burst = 1000000
host = 1000000
[ring]
size = 16777216
"""
DELIVERED = 'seal_monitor_events_total{kind="denial",result="delivered"}'
QUEUE = 'seal_monitor_sink_queue_events{sink="json"}'
ERRORS = 'seal_monitor_sink_errors_total{sink="json"}'


def lines(path: Path) -> list[Event]:
    """The events of a file, all whole and valid."""
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        VALIDATOR.validate(event)
    return found


def of(found: list[Event], kind: str) -> list[str]:
    return [event["id"] for event in found if event["kind"] == kind]


def stop_in_time(daemon: Running) -> None:
    """The daemon ends, whatever its reader does; the reader then reads the rest."""
    assert daemon.reader is not None
    daemon.process.send_signal(signal.SIGTERM)
    with at_most(60, "nobody reads what it writes"):
        assert daemon.process.wait() == 0, daemon.errors.read_text()
    daemon.reader.send_signal(signal.SIGCONT)
    daemon.reader.wait(60)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_stopped_reader(start: Start, compiled: Compile, tmp_path: Path, goes_on: bool) -> None:
    file = tmp_path / "file.jsonl"
    daemon = start(NO_LIMIT, "--events-file", str(file), through=["cat"])
    assert daemon.reader is not None
    daemon.reader.send_signal(signal.SIGSTOP)
    made = 0
    for _ in range(20):
        made += storm(compiled("storm"), 1, 200, 0, "mprotect")["total"]
        with at_most(25, "nobody reads what it writes"):
            # All of them, each time: a busy machine leaves less of the ring for one process.
            daemon.wait_for_metric(DELIVERED, made)
    assert made == 4000
    assert daemon.metric(QUEUE) > 500
    refused = daemon.metric(ERRORS)
    assert refused > 500
    reported = [event["message"] for event in lines(file) if event.get("event") == "sink_failed"]
    assert [message.partition(":")[0] for message in reported] == ["json"]

    if goes_on:
        daemon.reader.send_signal(signal.SIGCONT)
        daemon.health("sink_recovered", 10)
        assert daemon.metric(QUEUE) == 0
    stop_in_time(daemon)

    in_file = lines(file)
    stopped = in_file[-1]
    assert stopped["event"] == "stopped"
    assert_conserved(stopped)
    numbers = stopped["details"]["denial"]
    assert (numbers["counted"], numbers["delivered"], numbers["failed"]) == (made, made, 0)
    ids = of(in_file, "denial")
    assert len(set(ids)) == len(ids) == made
    assert sorted(ids) == ids  # ids sort by time
    printed = of(daemon.events(), "denial")
    assert printed == [number for number in ids if number in set(printed)]
    if goes_on:
        assert daemon.events()[-1] == stopped
        assert made - len(printed) <= refused  # some of those refused were health events


def test_events_that_nobody_takes_have_failed(start: Start, compiled: Compile) -> None:
    """The pipe is the only sink. Its reader still gets what it held at the end."""
    daemon = start(NO_LIMIT, through=["cat"])
    assert daemon.reader is not None
    daemon.reader.send_signal(signal.SIGSTOP)
    made = storm(compiled("storm"), 1, 4000, 0, "mprotect")["total"]
    results = 'seal_monitor_events_total{kind="denial",result="%s"}'
    deadline = time.monotonic() + 30
    while daemon.metric(QUEUE) + daemon.metric(ERRORS) < made - 100:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    delivered = daemon.metric(results % "delivered")
    assert 0 < delivered < 200  # as many as the pipe holds
    stop_in_time(daemon)
    assert len(of(daemon.events(), "denial")) == delivered


def rotate(configuration: Path, times: int) -> None:
    for _ in range(times):
        time.sleep(0.2)
        state = configuration.with_suffix(".state")
        command = ["logrotate", "--force", "--state", str(state), str(configuration)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def rotation(folder: Path, daemon: Running) -> Path:
    """The configuration that we ship, for another directory and a daemon without systemd."""
    text = (ROOT / "systemd/seal-monitor.logrotate").read_text("utf-8")
    before, after = text.split("        systemctl kill ")
    text = f"{before}        kill -HUP {daemon.process.pid}\n{after.partition(chr(10))[2]}"
    changed = text.replace("/var/log/seal-monitor", str(folder))
    assert changed != text
    file = folder / "logrotate"
    file.write_text(changed)
    file.chmod(0o644)
    return file


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """logrotate refuses a directory that others may write to."""
    if shutil.which("logrotate") is None:
        pytest.skip("logrotate is not installed")
    folder = tmp_path / "log"
    folder.mkdir(mode=0o750)
    return folder


def test_every_event_is_in_one_of_the_rotated_files(
    start: Start, compiled: Compile, logs: Path
) -> None:
    daemon = start(NO_LIMIT, "--events-file", str(logs / "events.jsonl"))
    made = 0
    done = threading.Event()

    def flow() -> None:
        nonlocal made
        while not done.is_set():
            made += storm(compiled("storm"), 1, 20, 0, "mprotect")["total"]
            time.sleep(0.02)  # what the ring and the sinks hold easily

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        rotate(rotation(logs, daemon), 8)
    finally:
        done.set()
        thread.join()
    stopped = daemon.stop()
    assert made > 200
    assert stopped["details"]["denial"]["delivered"] == made, stopped["details"]

    rotated = sorted(logs.glob("events.jsonl*"))
    assert len(rotated) == 9
    found: list[Event] = []
    for path in reversed(rotated):  # .8.gz is the oldest
        if path.suffix == ".gz":
            subprocess.run(["gunzip", path], check=True)
            path = path.with_suffix("")  # noqa: PLW2901
        found += lines(path)
        assert path.stat().st_mode & 0o7777 == 0o640
    assert Counter(event["id"] for event in found) == Counter(
        event["id"] for event in daemon.events()
    )
    assert len(of(found, "denial")) == made
    assert [event.get("event") for event in found].count("reloaded") == 8


def test_a_file_that_is_copied_and_truncated(start: Start, logs: Path) -> None:
    path = logs / "events.jsonl"
    daemon = start("", "--events-file", str(path))
    file = logs / "logrotate"
    file.write_text(f"{path} {{\n    copytruncate\n    rotate 3\n}}\n")
    file.chmod(0o644)
    ids = []
    for _ in range(2):
        provoke.run("munmap").communicate()
        ids.append(
            daemon.wait_for(lambda event: event["kind"] == "denial" and event["id"] not in ids)[
                "id"
            ]
        )
        rotate(file, 1)
    provoke.run("munmap").communicate()
    daemon.stop()
    found = [of(lines(logs / name), "denial") for name in ("events.jsonl.2", "events.jsonl.1")]
    assert found == [[ids[0]], [ids[1]]]
    last = lines(path)
    assert len(of(last, "denial")) == 1
    assert last[-1]["event"] == "stopped"


def test_the_journal_ends_and_comes_back(start: Start) -> None:
    with journald() as journal:
        daemon = start("[output]\njournal = true\n", prefix=journal.command())

        def denial(count: int) -> Event:
            provoke.run("mprotect").communicate()
            daemon.wait_for(lambda _: len(daemon.events("denial")) == count)
            return daemon.events("denial")[-1]

        first = denial(1)
        (entry,) = journal.wait_for(1, f"MESSAGE_ID={MESSAGE_IDS['denial']}")
        assert json.loads(text(entry, "SEAL_MONITOR_EVENT")) == first
        assert entry["MESSAGE"] == first["summary"]
        assert entry["SEAL_MONITOR_PID"] == str(first["process"]["pid"])
        assert entry["_PID"] == str(daemon.process.pid)

        journal.stop()
        denial(2)
        assert daemon.health("sink_failed")["message"].startswith("journal: /run/systemd/journal/")
        journal.start()
        third = denial(3)
        daemon.health("sink_recovered", 10)
        stopped = daemon.stop()
        assert_conserved(stopped)
        assert stopped["details"]["denial"]["delivered"] == 3  # standard output took all
        denials = journal.entries(f"MESSAGE_ID={MESSAGE_IDS['denial']}")
        assert [entry["SEAL_MONITOR_EVENT_ID"] for entry in denials] == [first["id"], third["id"]]
        *_, last = journal.entries(f"MESSAGE_ID={MESSAGE_IDS['health']}")
        assert json.loads(text(last, "SEAL_MONITOR_EVENT")) == stopped


def text(entry: dict[str, Any], name: str) -> str:
    """A field that journalctl may show as a list of bytes."""
    value = entry[name]
    return bytes(value).decode() if isinstance(value, list) else str(value)
