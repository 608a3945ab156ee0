from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from any_event import any_event
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from test_fingerprint import EVENTS

from monitor.evidence.events import encode
from monitor.formats.fields import FormatError
from monitor.formats.ocsf import VERSION, convert
from monitor.version import VERSION as OURS

KINDS = list(EVENTS)
PUBLISHED = get_ocsf_schema(VERSION)
VALIDATORS = {
    uid: jsonschema.Draft202012Validator(
        OcsfJsonSchemaEmbedded(PUBLISHED).get_class_schema(name, profiles=profiles)
    )
    for uid, name, profiles in (
        (1004, "memory_activity", ["host", "security_control"]),
        (0, "base_event", ["host"]),
    )
}


def test_a_denial() -> None:
    event = EVENTS["denial"]
    document = convert(event)
    assert json.loads(document.pop("raw_data")) == event
    process = {
        "pid": 20721,
        "name": "image-worker",
        "created_time": 1_795_280_872_580,
        "file": {"name": "image-worker", "path": "/srv/images/bin/image-worker", "type_id": 1},
    }
    user = {"uid": "33", "name": "www-data"}
    assert document == {
        "metadata": {
            "version": "1.8.0",
            "product": {"name": "seal-monitor", "vendor_name": "seal-monitor", "version": OURS},
            "uid": "830158af-00000e4ea555667f-00000003",
            "correlation_uid": "381c08eeed93",
            "event_code": "denial",
            "original_time": "2026-11-21T17:07:52.898441250Z",
            "profiles": ["host", "security_control"],
        },
        "time": 1_795_280_872_898,
        "severity_id": 5,
        "severity": "Critical",
        "message": event["summary"],
        "status_id": 2,
        "device": {
            "uid": "6a1f0c4be2d94d7ab3572f18c09e64d5",
            "hostname": "web-3",
            "boot_uid": "830158af-8e40-4a59-9dad-2ca6213aa2c6",
            "type_id": 0,
            "os": {"name": "Linux", "type_id": 200, "kernel_release": "6.18.44"},
        },
        "category_uid": 1,
        "class_uid": 1004,
        "activity_id": 2,
        "activity_name": "Modify Page",
        "type_uid": 100402,
        "action_id": 2,
        "disposition_id": 2,
        "is_alert": True,
        "confidence_id": 3,
        "base_address": "0x55eb77215000",
        "actor": {
            "process": process
            | {
                "tid": 20721,
                "cmd_line": event["process"]["command_line"],
                "parent_process": {"pid": 20720},
                "user": user,
            },
            "user": user,
        },
        "process": process,
        "unmapped": {
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
                "cgroup": "/system.slice/image-worker.service",
                "build_id": "e06a8f49bf8d070c908e216c55a291776d2f33af",
                "assessment": "read_only_data",
                "likely": "attack",
            }
        },
    }


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("denial", {"operation": "munmap"}, (100403, "Delete Page", 2, 2)),
        ("denial", {"operation": "mremap"}, (100409, "Map View", 2, 2)),
        ("denial", {"operation": "other"}, (100499, "denial", 2, 2)),
        ("fault", {}, (100404, "Buffer Overflow", 2, 2)),
        ("fault", {"cause": "sealed"}, (100408, "Write", 2, 2)),
        ("fault", {"cause": "other", "access": "read"}, (100407, "Read", 2, 2)),
        ("fault", {"cause": "pkey", "access": "execute"}, (100499, "fault", 2, 2)),
        ("bypass", {}, (100403, "Delete Page", 3, 15)),
        ("bypass", {"method": "ptrace_poke"}, (100408, "Write", 3, 15)),
        ("seal", {}, (100499, "seal", None, None)),
        ("suppression", {}, (100403, "Delete Page", 2, 2)),
        ("suppression", {"process": None}, (99, "suppression", None, None)),
        ("health", {}, (99, "started", None, None)),
    ],
)
def test_activities(kind: str, change: dict[str, Any], expected: tuple[object, ...]) -> None:
    found = convert(EVENTS[kind] | change)
    named = ("type_uid", "activity_name", "action_id", "disposition_id")
    assert tuple(found.get(name) for name in named) == expected
    assert found["type_uid"] == found["class_uid"] * 100 + found["activity_id"]


def test_of_a_bypass_both_processes() -> None:
    """Nothing of the one is said of the other."""
    target = {"pid": 7, "start": EVENTS["bypass"]["process"]["start"], "name": "victim"}
    document = convert(EVENTS["bypass"] | {"target": target | {"executable": None, "files": None}})
    assert document["process"] == {
        "pid": 7,
        "name": "victim",
        "created_time": document["actor"]["process"]["created_time"],
    }
    assert document["actor"]["process"]["pid"] == 20721


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "surprise"}, "kind is none of denial, fault"),
        ({"severity": "high"}, "severity is none of info, warning, critical"),
        ({"process": []}, "process.identity.result is not in an object"),
    ],
)
def test_what_is_not_an_event(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}"):
        convert(EVENTS["denial"] | change)


# ---- What OCSF has published ---------------------------------------------------------------------


def check(document: dict[str, Any]) -> None:
    """Valid by the class's schema, and by what that does not say: one of several is required."""
    VALIDATORS[document["class_uid"]].validate(document)
    for name, objects in (
        ("device", [document["device"]]),
        ("process", [document.get("process"), document.get("actor", {}).get("process")]),
        ("actor", [document.get("actor")]),
        ("product", [document["metadata"]["product"]]),
    ):
        one_of = PUBLISHED["objects"][name]["constraints"]["at_least_one"]
        for found in objects:
            assert found is None or set(one_of) & set(found), name


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_event_is_an_event_of_the_class(kind: str, data: st.DataObject) -> None:
    event = data.draw(any_event(kind))
    document = json.loads(encode(convert(event)))
    check(document)
    assert document["raw_data"] == encode(event).decode()
    assert document["metadata"].get("correlation_uid") == event["fingerprint"]
