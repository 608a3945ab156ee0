"""Events as entries of a real systemd-journald: every field, large ones, hostile ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journald import Journald, journald

from monitor.metrics.tally import EVENT_KINDS, Tally
from monitor.sinks.delivery import LIMITS, Delivery
from monitor.sinks.journal import MESSAGE_IDS, PRIORITIES, JournalSink, has_standard_output
from monitor.sinks.outputs import SinkError, encode

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "systemd/seal-monitor.catalog"
EXAMPLES: dict[str, dict[str, Any]] = {
    event["kind"]: event
    for event in map(
        json.loads,
        re.findall(
            r"^```json\n(.*?)^```$",
            (ROOT / "docs/events.md").read_text("utf-8"),
            re.MULTILINE | re.DOTALL,
        ),
    )
}
COMMON = {"SYSLOG_IDENTIFIER", "MESSAGE", "MESSAGE_ID", "PRIORITY", "OBJECT_SYSTEMD_UNIT"}
WORKER = {
    "SEAL_MONITOR_PID": "20721",
    "SEAL_MONITOR_EXECUTABLE": "/srv/images/bin/image-worker",
    "SEAL_MONITOR_FILES": "host",
    "SEAL_MONITOR_IDENTITY": "complete",
    "SEAL_MONITOR_PROGRAM": "/srv/images/bin/image-worker",
    "SEAL_MONITOR_UNIT": "image-worker.service",
    "OBJECT_SYSTEMD_UNIT": "image-worker.service",
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Journald]:
    with journald() as running:
        yield running


@pytest.fixture
def sink(daemon: Journald) -> Iterator[JournalSink]:
    sink = JournalSink(daemon.socket)
    yield sink
    sink.close()


def ours(entry: dict[str, Any]) -> dict[str, Any]:
    """Without what journald adds. Text that journalctl shows as bytes is decoded."""
    return {
        name: bytes(value).decode() if isinstance(value, list) else value
        for name, value in entry.items()
        if name in COMMON or name.startswith("SEAL_MONITOR")
    }


def stored(daemon: Journald, sink: JournalSink, event: dict[str, Any]) -> dict[str, Any]:
    """The event's entry."""
    sink.write(sink.render(event))
    (entry,) = daemon.wait_for(1, f"SEAL_MONITOR_EVENT_ID={event['id']}")
    return entry


@pytest.mark.parametrize(
    ("kind", "priority", "fields"),
    [
        (
            "denial",
            "2",
            {
                "SEAL_MONITOR_OPERATION": "mprotect",
                "SEAL_MONITOR_VERDICT": "sealed",
                "SEAL_MONITOR_ADDRESS": "0x55eb77215000",
                **WORKER,
            },
        ),
        (
            "fault",
            "4",
            {
                "SEAL_MONITOR_CAUSE": "guard_region",
                "SEAL_MONITOR_ADDRESS": "0x7f4d2e419000",
                **WORKER,
            },
        ),
        ("seal", "6", {"SEAL_MONITOR_ADDRESS": "0x55eb77215000", **WORKER}),
        (
            "suppression",
            "4",
            {
                "SEAL_MONITOR_OPERATION": "munmap",
                "SEAL_MONITOR_PID": "20723",
                "SEAL_MONITOR_PROGRAM": "/srv/images/bin/image-worker",
                "SEAL_MONITOR_EXECUTABLE": "/srv/images/bin/image-worker",
                "SEAL_MONITOR_FILES": "host",
                "SEAL_MONITOR_IDENTITY": "complete",
                "SEAL_MONITOR_UNIT": "image-worker.service",
                "OBJECT_SYSTEMD_UNIT": "image-worker.service",
            },
        ),
        ("health", "6", {}),
    ],
)
def test_every_field(
    daemon: Journald, sink: JournalSink, kind: str, priority: str, fields: dict[str, str]
) -> None:
    event = EXAMPLES[kind]
    entry = stored(daemon, sink, event)
    found = ours(entry)
    assert json.loads(found.pop("SEAL_MONITOR_EVENT")) == event
    assert found == {
        "MESSAGE": event["summary"],
        "MESSAGE_ID": MESSAGE_IDS[kind],
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "seal-monitor",
        "SEAL_MONITOR_EVENT_ID": event["id"],
        "SEAL_MONITOR_KIND": kind,
        **fields,
    }
    assert entry["_UID"] == "0"


HOSTILE = [
    "/tmp/a\nPRIORITY=0\nMESSAGE=forged\n_UID=4711\nSEAL_MONITOR_KIND=health\n",
    "/tmp/a\n\nMESSAGE\n\x06\0\0\0\0\0\0\0forged\n",
    "/tmp/\0\x1b[31m\r\t=",
    "/tmp/Käse \u2028 \U0001f512",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_forges_a_field(daemon: Journald, sink: JournalSink, text: str) -> None:
    """Though nothing unescaped gets that far."""
    name = f"hostile-{HOSTILE.index(text)}"
    denial = EXAMPLES["denial"]
    event = {
        **denial,
        "id": name,
        "summary": text,
        "operation": text,
        "process": {**denial["process"], "executable": text},
    }
    entry = stored(daemon, sink, event)
    found = ours(entry)
    assert json.loads(found["SEAL_MONITOR_EVENT"]) == event
    assert found["SEAL_MONITOR_EXECUTABLE"] == found["MESSAGE"] == text
    assert found["SEAL_MONITOR_OPERATION"] == text
    assert (found["PRIORITY"], found["SEAL_MONITOR_KIND"]) == ("2", "denial")
    assert entry["_UID"] == "0"
    assert daemon.entries("MESSAGE=forged") == daemon.entries("_UID=4711") == []


def test_what_is_no_unicode_is_escaped(daemon: Journald, sink: JournalSink) -> None:
    event = {**EXAMPLES["health"], "id": "surrogate", "summary": "a \udcff"}
    found = ours(stored(daemon, sink, event))
    assert found["MESSAGE"] == "a \\udcff"
    assert json.loads(found["SEAL_MONITOR_EVENT"]) == event


@pytest.mark.parametrize("size", [150, 300, 3000])
def test_large_events(daemon: Journald, sink: JournalSink, size: int) -> None:
    """KiB. Beyond some 200 a datagram does not take them."""
    details = {"stack": ["0x7f3188610a37\n"] * (size * 1024 // 18)}
    event = {**EXAMPLES["health"], "id": f"large-{size}", "details": details}
    assert len(encode(event)) > size * 1000
    found = ours(stored(daemon, sink, event))
    assert found["SEAL_MONITOR_EVENT"].encode() == encode(event)
    assert found["MESSAGE"] == event["summary"]


def test_a_unit_shows_only_its_own_events(daemon: Journald, sink: JournalSink) -> None:
    denial = EXAMPLES["denial"]
    user = "/user.slice/user-1000.slice/user@1000.service/app.slice/sshd.service"
    for number, cgroup in enumerate((user, "/system.slice/sshd.service")):
        workload = {**denial["workload"], "unit": "sshd.service", "cgroup": cgroup}
        stored(daemon, sink, {**denial, "id": f"unit-{number}", "workload": workload})
    (shown,) = daemon.entries("--unit=sshd.service")
    assert shown["SEAL_MONITOR_EVENT_ID"] == "unit-1"
    named = daemon.entries("SEAL_MONITOR_UNIT=sshd.service")
    assert [entry["SEAL_MONITOR_EVENT_ID"] for entry in named] == ["unit-0", "unit-1"]


def test_without_a_journald(tmp_path: Path) -> None:
    with pytest.raises(SinkError) as failure:
        JournalSink(tmp_path / "socket")
    assert str(failure.value) == f"there is no {tmp_path}/socket; is systemd-journald running?"


def test_a_journald_that_ends_and_comes_back() -> None:
    reports: list[tuple[str, str | None]] = []
    tally = Tally(["journal"])
    with journald() as running:
        sink = JournalSink(running.socket)
        delivery = Delivery(
            [sink],
            tally,
            lambda name, error: reports.append((name, str(error) if error else None)),
            LIMITS._replace(quiet_seconds=0.1),
        )

        def send(*numbers: int) -> None:
            for number in numbers:
                delivery.send({**EXAMPLES["denial"], "id": f"event-{number}"})
            assert delivery.wait(10)

        send(1, 2)
        running.stop()
        send(3, 4)
        running.start()
        send(5)
        deadline = time.monotonic() + 10
        while len(reports) < 2:
            assert time.monotonic() < deadline
            delivery.collect()
            time.sleep(0.01)
        entries = running.wait_for(3, f"MESSAGE_ID={MESSAGE_IDS['denial']}")
        delivery.close()
    stored = [entry["SEAL_MONITOR_EVENT_ID"] for entry in entries]
    assert stored == ["event-1", "event-2", "event-5"]
    assert reports == [
        ("journal", f"{running.socket}: Connection refused; event not written"),
        ("journal", None),
    ]
    assert (tally.events["denial", "delivered"], tally.events["denial", "failed"]) == (3, 2)
    assert tally.sink_errors == {"journal": 2}


def test_every_kind_has_an_id_of_its_own() -> None:
    assert list(MESSAGE_IDS) == list(EVENT_KINDS)
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{19}", value) for value in MESSAGE_IDS.values())
    assert set(PRIORITIES) == {"critical", "warning", "info"}


def test_the_catalog_explains_every_id(tmp_path: Path, daemon: Journald) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (folder / CATALOG.name).write_bytes(CATALOG.read_bytes())
    root = f"--root={tmp_path}"
    updated = subprocess.run(
        ["journalctl", root, "--update-catalog"], check=True, capture_output=True, text=True
    )
    assert updated.stdout + updated.stderr == ""
    listed = subprocess.run(
        ["journalctl", root, "--list-catalog"], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"^([0-9a-f]{32}) seal-monitor: \S", listed, re.MULTILINE) == sorted(
        MESSAGE_IDS.values()
    )
    assert set(re.findall(r"@(\w+)@", CATALOG.read_text("utf-8"))) < sent()


def sent() -> set[str]:
    """The names of all fields."""
    sink = JournalSink(ROOT)
    data = b"".join(sink.render(event) for event in EXAMPLES.values())
    sink.close()
    names = re.findall(rb"^((?:SEAL_MONITOR|OBJECT|MESSAGE|PRIORITY|SYSLOG)[A-Z_]*)$", data, re.M)
    return {name.decode() for name in names}


def test_the_page_lists_what_is_sent() -> None:
    page = (ROOT / "docs/events.md").read_text("utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| `([0-9a-f]{32})` \|$", page, re.MULTILINE)) == dict(
        MESSAGE_IDS
    )
    first = page.partition("| Field | |")[2].partition("\n\n")[0]
    named = {
        f"SEAL_MONITOR{name}" if name.startswith("_") else name
        for row in re.findall(r"^\| (`.*?`) \|", first, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert named == sent()


def test_whether_journald_takes_standard_output() -> None:
    status = os.fstat(1)
    own = f"{status.st_dev}:{status.st_ino}"
    assert has_standard_output({"JOURNAL_STREAM": own})
    assert not has_standard_output({"JOURNAL_STREAM": f"{own}0"})  # a shell has redirected it
    assert not has_standard_output({})
