"""`seal-monitor schema --ecs` and the like: lines in, lines out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from clocks import at_most
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from test_fingerprint import EVENTS

from monitor.commands.convert import FORMATS, LINE_LIMIT
from monitor.evidence.events import encode
from monitor.formats.page import page

ROOT = Path(__file__).parents[2]
LINES = b"".join(encode(event) + b"\n" for event in EVENTS.values())
DENIAL = encode(EVENTS["denial"]) + b"\n"


def convert(name: str, text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "monitor", "schema", f"--{name}"],
        input=text,
        capture_output=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_an_event_of_each_kind(name: str) -> None:
    done = convert(name, LINES)
    assert (done.returncode, done.stderr) == (0, b"")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    _, of = FORMATS[name]
    assert found == [json.loads(json.dumps(of(event))) for event in EVENTS.values()]


def test_the_protocol_reads_the_lines() -> None:
    sent = [
        Parse(line, ExportLogsServiceRequest())
        for line in convert("opentelemetry", LINES).stdout.splitlines()
    ]
    records = [each.resource_logs[0].scope_logs[0].log_records[0] for each in sent]
    assert [record.event_name for record in records] == [f"seal_monitor.{kind}" for kind in EVENTS]


@pytest.mark.parametrize("name", FORMATS)
def test_an_event_of_schema_1(name: str) -> None:
    event = {key: value for key, value in EVENTS["denial"].items() if key != "fingerprint"}
    event |= {"schema": 1, "host": dict(list(event["host"].items())[:3])}
    done = convert(name, encode(event))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"web-3" in done.stdout
    assert b"fingerprint" not in done.stdout


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "it is not JSON"),
        (b"Nov 21 17:07:52 web-3 systemd[1]: Started.", "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"{}", "id is not a string"),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b"\xff\xfe{", "it is not JSON"),
        (b'{"id": "a", ' + b"7" * 5000 + b"}", "it is not JSON"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b'{"a":"' + b"x" * LINE_LIMIT + b'"}', f"it is longer than {LINE_LIMIT} bytes"),
        (b"x" * (3 * LINE_LIMIT), f"it is longer than {LINE_LIMIT} bytes"),
        (DENIAL[:-1].replace(b'"pid":20721', b'"pid":' + b"9" * 4000), "process.pid has more than"),
        (DENIAL[:-1].replace(b'"denial"', b'"\\u001b[31m"'), ""),
    ],
    ids=range(12),
)
def test_a_line_that_is_no_event_is_left_out(name: str, line: bytes, why: str) -> None:
    with at_most(60, "it never ends"):
        done = convert(name, DENIAL + line + b"\n" + DENIAL)
    kept = done.stdout.splitlines()
    if why or name != "opentelemetry":
        assert len(kept) == 2
        assert done.returncode == 1
        (report,) = done.stderr.decode().splitlines()
        assert report.startswith(f"seal-monitor: line 2 is left out: {why}")
        assert len(report) < 300
        assert "\x1b" not in report
    else:  # a kind of a later version is a record as well
        assert len(kept) == 3
    assert kept[0] == kept[-1]


def test_many_such_lines_are_counted() -> None:
    done = convert("ecs", b"x\n" * 1000)
    reports = done.stderr.decode().splitlines()
    assert (done.returncode, len(reports)) == (1, 21)
    assert reports[-1] == "seal-monitor: 980 more lines are left out"


@pytest.mark.parametrize("name", FORMATS)
def test_a_reader_that_goes_ends_it(name: str) -> None:
    command = (
        f"yes '{DENIAL.decode().strip()}' | {sys.executable} -m monitor schema --{name} | head -1; "
        'echo "${PIPESTATUS[1]}"'
    )
    assert "'" not in DENIAL.decode()
    with at_most(60, "it never ends"):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
        )
    line, code = done.stdout.splitlines()
    assert (code, done.stderr) == ("0", "")
    assert json.loads(line)


def test_only_one_format_at_a_time() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monitor", "schema", "--ecs", "--ocsf"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_the_page_is_current() -> None:
    text = (ROOT / "docs/formats.md").read_text("utf-8")
    assert text == page(), "run: python -m monitor.formats > docs/formats.md"
