from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from any_event import any_event
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.semconv import schemas
from test_fingerprint import EVENTS

from monitor.evidence import events
from monitor.evidence.events import encode
from monitor.formats.fields import FormatError
from monitor.formats.opentelemetry import (
    ATTRIBUTES,
    CONVENTIONS,
    RESOURCE,
    SCHEMA_URL,
    log_record,
    request,
    resource,
)
from monitor.version import VERSION

KINDS = list(EVENTS)


def attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {
        pair["key"]: next(
            int(value) if kind == "intValue" else value for kind, value in pair["value"].items()
        )
        for pair in of["attributes"]
    }


def test_a_denial() -> None:
    event = EVENTS["denial"]
    record = log_record(event)
    assert json.loads(record["body"]["stringValue"]) == event
    assert {name: record[name] for name in record if name not in ("body", "attributes")} == {
        "timeUnixNano": "1795280872898441250",
        "observedTimeUnixNano": "1795280872898441250",
        "severityNumber": 18,
        "severityText": "critical",
        "eventName": "seal_monitor.denial",
    }
    build = "e06a8f49bf8d070c908e216c55a291776d2f33af"
    libc = "93ac61ec5a8eb1396f9fbd350e3169a558528a40"
    assert attributes(record) == {
        "log.record.uid": "830158af-00000e4ea555667f-00000003",
        "process.pid": 20721,
        "process.parent_pid": 20720,
        "process.vpid": 20721,
        "process.creation.time": "2026-11-21T17:07:52.580018507Z",
        "process.executable.path": "/srv/images/bin/image-worker",
        "process.executable.name": "image-worker",
        "process.executable.build_id.gnu": build,
        "process.command_line": event["process"]["command_line"],
        "process.real_user.id": 33,
        "process.real_user.name": "www-data",
        "process.linux.cgroup": "0::/system.slice/image-worker.service",
        "thread.name": "image-worker",
        "security_rule.name": "read_only_data",
        "security_rule.category": "attack",
        "code.stacktrace": "\n".join(
            (
                f"libc.so.6+0x101a37 [{libc}]",
                f"image-worker+0x1212 [{build}]",
                f"image-worker+0x1253 [{build}]",
                f"image-worker+0x133b [{build}]",
                f"libc.so.6+0x2724a [{libc}]",
            )
        ),
        "seal_monitor.schema": 2,
        "seal_monitor.kind": "denial",
        "seal_monitor.fingerprint": "381c08eeed93",
        "seal_monitor.operation": "mprotect",
        "seal_monitor.verdict": "sealed",
        "seal_monitor.address": "0x55eb77215000",
        "seal_monitor.memory": "/srv/images/bin/image-worker",
        "seal_monitor.hidden": False,
        "seal_monitor.thread_id": 20721,
        "seal_monitor.identity": "complete",
        "seal_monitor.files": "host",
        "seal_monitor.executable_owner": 0,
        "seal_monitor.unit": "image-worker.service",
    }
    assert attributes(resource(event)) == {
        "service.name": "seal-monitor",
        "service.version": VERSION,
        "host.id": "6a1f0c4be2d94d7ab3572f18c09e64d5",
        "host.name": "web-3",
        "os.type": "linux",
        "os.version": "6.18.44",
        "seal_monitor.boot_id": "830158af-8e40-4a59-9dad-2ca6213aa2c6",
    }


def test_a_program_that_has_ended_has_no_path() -> None:
    event = EVENTS["denial"] | {"process": EVENTS["denial"]["process"] | {"executable": "worker"}}
    found = attributes(log_record(event))
    assert "process.executable.path" not in found
    assert found["process.executable.name"] == "worker"


def test_frames_with_functions_and_without_files() -> None:
    frame = {"address": "0x7f00", "module": None, "build_id": None, "offset": None, "symbol": None}
    inner = frame | {"module": "a", "offset": 16, "symbol": "f+0x1"}
    found = attributes(log_record(EVENTS["fault"] | {"stack": [inner, frame]}))
    assert found["code.stacktrace"] == "f+0x1 (a+0x10)\n0x7f00"
    assert "code.stacktrace" not in attributes(log_record(EVENTS["fault"] | {"stack": []}))


def test_events_of_one_host_are_sent_together() -> None:
    one, other = EVENTS["denial"], EVENTS["fault"]
    elsewhere = one | {"host": one["host"] | {"id": None, "name": "web-4"}}
    sent = request([one, elsewhere, other])
    found = [
        (attributes(group["resource"]), len(group["scopeLogs"][0]["logRecords"]))
        for group in sent["resourceLogs"]
    ]
    assert [(names["host.name"], count) for names, count in found] == [("web-3", 2), ("web-4", 1)]
    assert "host.id" not in found[1][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "now"}, "time is not a time like 2026-11-21T17:07:52.898441250Z"),
        ({"time": None}, "time is not a string"),
        ({"time": "2026-99-21T17:07:52.898441250Z"}, "time is not a time like"),
        ({"severity": "bad"}, "severity is none of info, warning, critical"),
        ({"severity": ["info"]}, "severity is not a string"),
        ({"kind": None}, "kind is not a string"),
        ({"host": None}, "host.name is not a string"),
        ({"host": []}, "host.name is not in an object"),
        ({"process": 7}, "process.pid is not in an object"),
        ({"process": {"pid": "7"}}, "process.pid is not an integer"),
        ({"process": {"pid": True}}, "process.pid is not an integer"),
        ({"process": {"pid": 1 << 63}}, "process.pid has more than 64 bits"),
        ({"stack": {}}, "stack is not a list"),
        ({"stack": [7]}, "stack has a frame that is not an object"),
        ({"hidden": 1}, "hidden is neither true nor false"),
    ],
)
def test_what_is_not_an_event(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=f"^{re.escape(message)}"):
        log_record(EVENTS["denial"] | change)


# ---- What others have published ------------------------------------------------------------------


def conventions() -> Iterator[tuple[str, bool]]:
    """The names of attributes, and whether they are deprecated. Stable ones come last: where they
    were before they are deprecated in favour of the same name.
    """
    for place in ("_incubating.attributes", "attributes"):
        package = importlib.import_module(f"opentelemetry.semconv.{place}")
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            for name, words in re.findall(
                r'^[A-Z0-9_]+: Final = "([a-z0-9_.]+)"\n(?:"""\n(.*?)""")?',
                inspect.getsource(module),
                re.MULTILINE | re.DOTALL,
            ):
                yield name, words.startswith("Deprecated")


def test_names_are_those_of_the_semantic_conventions() -> None:
    known = dict(conventions())
    assert len(known) > 500
    names = [field.name for field in (*RESOURCE, *ATTRIBUTES)]
    assert len(names) == len(set(names))
    theirs = [name for name in names if not name.startswith("seal_monitor.")]
    assert [name for name in theirs if known.get(name, True)] == []
    assert SCHEMA_URL in {schema.value for schema in schemas.Schemas}
    assert f"V{CONVENTIONS.replace('.', '_')}" in schemas.Schemas.__members__


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_event_is_a_record_of_the_protocol(kind: str, data: st.DataObject) -> None:
    event = data.draw(any_event(kind))
    jsonschema.Draft202012Validator(events.schema()).validate(event)
    # As it is sent: in UTF-8.
    text = json.dumps(request([event]), ensure_ascii=False).encode().decode()
    sent = ParseDict(json.loads(text), ExportLogsServiceRequest())
    (record,) = sent.resource_logs[0].scope_logs[0].log_records
    assert record.body.string_value == encode(event).decode()
    found = {pair.key: pair.value for pair in record.attributes}
    assert len(found) == len(record.attributes)
    assert found["log.record.uid"] == AnyValue(string_value=event["id"])
    assert found["seal_monitor.kind"].string_value == kind
    assert ("seal_monitor.fingerprint" in found) == (event["fingerprint"] is not None)
    assert record.event_name == f"seal_monitor.{kind}"
    assert record.time_unix_nano == record.observed_time_unix_nano > 0
