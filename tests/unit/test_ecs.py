from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from any_event import any_event
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fingerprint import EVENTS

from monitor.evidence.events import encode
from monitor.formats.ecs import FIELDS, VERSION, convert
from monitor.formats.fields import FormatError
from monitor.version import VERSION as OURS

PUBLISHED = Path(__file__).parents[2] / f".venv/share/ecs-{VERSION}.json"
KINDS = list(EVENTS)
_TYPES: dict[str, type[str] | type[int]] = {
    **dict.fromkeys(("keyword", "wildcard", "match_only_text", "date"), str),
    "long": int,
}


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def test_a_denial() -> None:
    event = EVENTS["denial"]
    document = convert(event)
    assert json.loads(document["event"].pop("original")) == event
    assert document.pop("error")["stack_trace"].startswith("libc.so.6+0x101a37 [93ac61ec")
    assert document == {
        "@timestamp": "2026-11-21T17:07:52.898441250Z",
        "ecs": {"version": "9.4.0"},
        "message": event["summary"],
        "event": {
            "id": "830158af-00000e4ea555667f-00000003",
            "kind": "alert",
            "category": ("intrusion_detection", "process"),
            "type": ("denied",),
            "outcome": "failure",
            "action": "mprotect",
            "severity": 99,
            "module": "seal_monitor",
            "dataset": "seal_monitor.events",
            "provider": "seal-monitor",
        },
        "log": {"level": "critical"},
        "agent": {"type": "seal-monitor", "version": OURS},
        "rule": {"name": "read_only_data", "category": "attack"},
        "host": {
            "id": "6a1f0c4be2d94d7ab3572f18c09e64d5",
            "name": "web-3",
            "hostname": "web-3",
            "boot": {"id": "830158af-8e40-4a59-9dad-2ca6213aa2c6"},
            "os": {"type": "linux", "kernel": "6.18.44"},
        },
        "process": {
            "pid": 20721,
            "vpid": 20721,
            "parent": {"pid": 20720},
            "thread": {"id": 20721, "name": "image-worker"},
            "name": "image-worker",
            "executable": "/srv/images/bin/image-worker",
            "command_line": event["process"]["command_line"],
            "start": "2026-11-21T17:07:52.580018507Z",
            "real_user": {"id": "33", "name": "www-data"},
            "real_group": {"id": "33", "name": "www-data"},
        },
        "user": {"id": "33", "name": "www-data"},
        "related": {"user": ("www-data",), "hosts": ("web-3",)},
        "file": {"path": "/srv/images/bin/image-worker", "device": "254:0", "inode": "1474587"},
        "seal_monitor": {
            "schema": 2,
            "kind": "denial",
            "fingerprint": "381c08eeed93",
            "operation": "mprotect",
            "verdict": "sealed",
            "address": "0x55eb77215000",
            "memory": "/srv/images/bin/image-worker",
            "hidden": False,
            "identity": "complete",
            "files": "host",
            "executable_owner": 0,
            "unit": "image-worker.service",
            "build_id": "e06a8f49bf8d070c908e216c55a291776d2f33af",
        },
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("denial", ("alert", "mprotect", "failure", 99)),
        ("fault", ("alert", "guard_region", None, 47)),
        ("seal", ("event", "seal", "success", 21)),
        ("bypass", ("alert", "madvise_discard", "success", 99)),
        ("suppression", ("alert", "munmap", None, 47)),
        ("health", ("event", "started", None, 21)),
    ],
)
def test_kinds(kind: str, expected: tuple[object, ...]) -> None:
    found = convert(EVENTS[kind])["event"]
    named = ("kind", "action", "outcome", "severity")
    assert tuple(found.get(name) for name in named) == expected


def test_a_pod() -> None:
    event = EVENTS["denial"]
    workload = event["workload"] | {"pod_uid": "0b1c", "container_id": "ab" * 32}
    document = convert(event | {"workload": workload})
    assert document["container"] == {"id": "ab" * 32}
    assert document["orchestrator"] == {
        "type": "kubernetes",
        "resource": {"type": "pod", "id": "0b1c"},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "surprise"}, "kind is none of denial, fault"),
        ({"severity": "high"}, "severity is none of info, warning, critical"),
        ({"time": "yesterday"}, "time is not a time like"),
        ({"id": 7}, "id is not a string"),
    ],
)
def test_what_is_not_an_event(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}"):
        convert(EVENTS["denial"] | change)


# ---- What Elastic has published ------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    if not PUBLISHED.exists():
        pytest.skip("the Elastic Common Schema is not here: make test fetches it")
    fields: dict[str, Any] = json.loads(PUBLISHED.read_text("utf-8"))
    return fields


def flat(document: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def check(document: dict[str, Any], published: dict[str, Any]) -> None:
    for name, value in flat(document):
        if name.startswith("seal_monitor."):
            continue
        field = published[name]
        items = value if "array" in field["normalize"] else [value]
        assert isinstance(items, list), name
        for item in items:
            assert isinstance(item, _TYPES[field["type"]]), name
            if field["type"] == "date":
                datetime.fromisoformat(str(item)[:26])
        allowed = [str(each["name"]) for each in field.get("allowed_values", ())]
        assert not allowed or set(items) <= set(allowed), name
    categories = {each["name"]: each for each in published["event.category"]["allowed_values"]}
    types = {
        name
        for category in document["event"]["category"]
        for name in categories[category]["expected_event_types"]
    }
    assert set(document["event"]["type"]) <= types
    required = {name for name, field in published.items() if field.get("required")}
    assert required <= {name for name, _ in flat(document)}


def test_names_are_those_of_the_schema(published: dict[str, Any]) -> None:
    names = [field.name for field in FIELDS]
    assert len(names) == len(set(names))
    assert {name for name in names if not name.startswith("seal_monitor.")} <= set(published)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_event_is_a_document_of_the_schema(
    published: dict[str, Any], kind: str, data: st.DataObject
) -> None:
    event = data.draw(any_event(kind))
    # As it is sent: in UTF-8.
    document = json.loads(encode(convert(event)))
    check(document, published)
    assert document["event"]["original"] == encode(event).decode()
    assert document["seal_monitor"]["kind"] == kind
