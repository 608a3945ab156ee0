from __future__ import annotations

import copy
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from monitor.evidence import events
from monitor.evidence.events import (
    AddressRange,
    Assessment,
    Bypass,
    Denial,
    Event,
    Fault,
    File,
    Frame,
    Health,
    Host,
    Identified,
    Mapping,
    Process,
    Seal,
    Sealed,
    Suppression,
    Target,
    Workload,
    event_id,
    timestamp,
    to_dict,
)
from monitor.kernel import abi
from monitor.kernel.operations import OPERATIONS

HOST = Host(
    "web-1",
    "1b4e28ba-2fa1-4d2e-883f-0016d3cca427",
    "6.18.44",
    "0f3c5a9b2d7e4816a1c9e0d4b5f60718",
)
PROCESS = Process(
    *(4242, 4243, 1, 7, "worker", "/usr/bin/python3", "python3 app.py"),
    *("2025-01-02T03:04:05.000000006Z", 1000, 1000, "app", "staff"),
    Identified("partial", "not permitted"),
    "host",
    0,
    "00ff",
)
STUB = Process(4242, None, None, None, "worker", None, None, None, None, None, None, None)
WORKLOAD = Workload("app.service", None, None, "/system.slice/app.service")
FILE = File("/usr/lib/libfoo.so", "254:1", 77, 4096)
FRAMES = (
    Frame("0x401000", "app", "ab" * 20, 4096, "main"),
    Frame("0x7f00", None, None, None, None),
)
COMMON: dict[str, Any] = {
    "id": "1b4e28ba-00000000000003e8-00000001",
    "time": "2025-01-02T03:04:05.000000006Z",
    "time_boot_ns": 1000,
    "severity": "warning",
    "summary": "something happened",
    "host": HOST,
    "process": PROCESS,
    "workload": WORKLOAD,
}
DENIAL = Denial(
    **COMMON,
    operation="mprotect",
    arguments={"addr": "0x1000", "size": 4096, "prot": "rw-"},
    verdict="sealed",
    reason=None,
    assessment=Assessment("read_only_data", "attack"),
    role="range",
    sealed=Sealed("0x1000", "0x2000", "r--p", FILE, None),
    partial_update=AddressRange("0x0", "0x1000"),
    hidden=False,
    compat=False,
    instruction_pointer="0x7f00",
    caller="0x401000",
    stack=FRAMES,
    stack_complete=True,
)
FAULT = Fault(
    **COMMON,
    cause="guard_region",
    inferred=True,
    assessment=None,
    access="write",
    address="0x1234",
    mapping=Mapping("0x1000", "0x2000", "rw-p", False, None, "heap"),
    disposition="default",
    instruction_pointer="0x401000",
    pkey=None,
    signal_code=1,
    stack=FRAMES,
    stack_complete=False,
)
SEAL = Seal(
    **COMMON,
    start="0x1000",
    length=4096,
    mapping=None,
    caller="0x401000",
    stack=(),
    stack_complete=False,
)
BYPASS = Bypass(
    **COMMON,
    method="proc_mem_write",
    assessment=Assessment("breakpoint", "handled"),
    target=Target(7, COMMON["time"], "web", None),
    changed=AddressRange("0x1000", "0x1001"),
    sealed=Sealed("0x1000", "0x2000", "r-xp", FILE, None),
    compat=False,
    instruction_pointer="0x7f00",
    caller="0x401000",
    stack=FRAMES,
    stack_complete=True,
)
SUPPRESSION = Suppression(
    **{**COMMON, "process": STUB},
    of="denial",
    operation="mprotect",
    cause=None,
    method=None,
    caller="0x401000",
    count=3,
    first=COMMON["time"],
    last=COMMON["time"],
)
HEALTH = Health(
    **{**COMMON, "process": None, "workload": None},
    event="runs_missed",
    message="3 runs of mprotect were missed",
    blind_seconds=1.5,
    details={"probe": "mprotect", "missed": 3},
)
EXAMPLES: list[Event] = [
    DENIAL,
    replace(DENIAL, verdict="unverified", reason="seccomp", sealed=None, partial_update=None),
    replace(DENIAL, arguments={"flags": ["MAP_FIXED"], "fd": -1}, stack=(), process=STUB),
    FAULT,
    replace(FAULT, mapping=None, cause="pkey", pkey=3, signal_code=4, workload=None),
    SEAL,
    BYPASS,
    replace(BYPASS, target=None, assessment=None),
    SUPPRESSION,
    replace(SUPPRESSION, of="bypass", operation=None, method="ptrace_poke"),
    replace(SUPPRESSION, of="seal", operation=None, caller=None, process=None, workload=None),
    HEALTH,
    replace(HEALTH, event="started", blind_seconds=None, details={}),
]
SCHEMA = events.schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SCHEMA_1 = json.loads((Path(__file__).parents[1] / "assets/events-1.schema.json").read_text())

# dataclass -> its definition in the schema
DEFINITIONS: dict[type, str] = {
    Host: "host",
    Process: "process",
    Workload: "workload",
    File: "file",
    Mapping: "mapping",
    Sealed: "sealed",
    AddressRange: "address_range",
    Assessment: "assessment",
    Frame: "frame",
    Denial: "denial",
    Fault: "fault",
    Seal: "seal",
    Target: "target",
    Bypass: "bypass",
    Suppression: "suppression",
    Health: "health",
}


def objects(node: object) -> Iterator[dict[str, Any]]:
    """Every object definition in the schema."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


def accepts_null(prop: dict[str, Any]) -> bool:
    document = {"$defs": SCHEMA["$defs"], **prop}
    return bool(jsonschema.Draft202012Validator(document).is_valid(None))


def enumerators(name: str) -> list[str]:
    return [item for item in SCHEMA["$defs"][name]["enum"] if item is not None]


def property_enum(kind: str, name: str) -> list[str]:
    return [x for x in SCHEMA["$defs"][kind]["properties"][name]["enum"] if x is not None]


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("cls", DEFINITIONS, ids=lambda cls: cls.__name__)
def test_dataclass_and_schema_agree(cls: type) -> None:
    definition = SCHEMA["$defs"][DEFINITIONS[cls]]
    names = [item.name for item in fields(cls)]
    assert list(definition["properties"]) == names
    assert definition["required"] == names


@pytest.mark.parametrize("cls", DEFINITIONS, ids=lambda cls: cls.__name__)
def test_dataclass_and_schema_agree_on_null(cls: type) -> None:
    definition = SCHEMA["$defs"][DEFINITIONS[cls]]
    hints = typing.get_type_hints(cls)
    optional = {
        item.name: types.NoneType in typing.get_args(hints[item.name]) for item in fields(cls)
    }
    # These are shared: null for what has none, an object elsewhere.
    shared = {"host", "sealed", "partial_update", "mapping", "file", "process", "workload"}
    assert {k: v for k, v in optional.items() if k not in shared} == {
        name: accepts_null(prop)
        for name, prop in definition["properties"].items()
        if name not in shared
    }


def test_no_object_takes_unknown_keys() -> None:
    assert [node for node in objects(SCHEMA) if node["additionalProperties"] is not False] == []


def test_every_field_is_described() -> None:
    bare = [
        name
        for node in objects(SCHEMA)
        for name, prop in node["properties"].items()
        if not (
            prop.get("description")
            or SCHEMA["$defs"][prop["$ref"].removeprefix("#/$defs/")].get("description")
        )
    ]
    assert bare == []


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        (enumerators("operation"), [operation.name for operation in OPERATIONS]),
        (enumerators("cause"), [cause.label for cause in abi.Cause]),
        (property_enum("denial", "verdict"), [verdict.label for verdict in abi.Verdict]),
        (property_enum("denial", "reason"), [r.label for r in abi.Reason if r.value]),
        (property_enum("denial", "role"), [role.label for role in abi.Role]),
        (property_enum("fault", "access"), [access.label for access in abi.Access]),
        (property_enum("fault", "disposition"), [d.label for d in abi.Disposition]),
        (property_enum("suppression", "of"), [kind.label for kind in abi.Kind]),
        (property_enum("health", "event"), list(events.HEALTH_SEVERITY)),
        (enumerators("severity"), list(typing.get_args(events.Severity))),
    ],
)
def test_schema_lists_what_the_code_knows(listed: list[str], known: list[str]) -> None:
    assert listed == known


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_examples_are_valid(event: Event) -> None:
    VALIDATOR.validate(to_dict(event))


@pytest.mark.parametrize(
    ("event", "path", "value"),
    [
        (DENIAL, ["id"], "1"),
        (DENIAL, ["schema"], 1),
        (DENIAL, ["fingerprint"], "381C08EEED93"),
        (DENIAL, ["fingerprint"], "381c08eeed93ff"),
        (DENIAL, ["host", "id"], "two words"),
        (DENIAL, ["host", "id"], ""),
        (DENIAL, ["time"], "2025-01-02T03:04:05Z"),
        (DENIAL, ["kind"], "fault"),
        (DENIAL, ["severity"], "high"),
        (DENIAL, ["summary"], "two\nlines"),
        (DENIAL, ["verdict"], "maybe"),
        (DENIAL, ["operation"], "open"),
        (DENIAL, ["caller"], 4198400),
        (DENIAL, ["caller"], "0x7F"),
        (DENIAL, ["sealed", "permissions"], "r--"),
        (DENIAL, ["sealed", "sealed"], True),
        (DENIAL, ["arguments", "addr"], None),
        (DENIAL, ["process", "pid"], None),
        (DENIAL, ["process", "comm"], "x"),
        (DENIAL, ["unknown"], 1),
        (DENIAL, ["stack"], None),
        (FAULT, ["access"], "exec"),
        (FAULT, ["mapping", "file"], "libfoo.so"),
        (FAULT, ["operation"], "mprotect"),
        (SEAL, ["length"], -1),
        (SUPPRESSION, ["count"], 0),
        (SUPPRESSION, ["of"], "health"),
        (HEALTH, ["event"], "bored"),
        (HEALTH, ["details"], []),
    ],
)
def test_broken_events_are_not_valid(event: Event, path: list[str], value: object) -> None:
    document = copy.deepcopy(to_dict(event))
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_no_field_may_be_missing(event: Event) -> None:
    document = to_dict(event)
    for key in document:
        assert not VALIDATOR.is_valid({k: v for k, v in document.items() if k != key}), key


# ---- Versions ------------------------------------------------------------------------------------


def objects_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in schema["$defs"].items() if "properties" in node}


def still(old: Any, new: Any) -> bool:
    """Whether a value that the new part of the schema allows is allowed by the old one. Lists of
    values may grow.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        words = ("description", "enum")
        return all(name in words or still(old[name], new.get(name)) for name in old)
    return bool(old == new)


@pytest.mark.parametrize("name", objects_of(SCHEMA_1))
def test_what_schema_1_has_is_still_there(name: str) -> None:
    old, new = objects_of(SCHEMA_1)[name]["properties"], objects_of(SCHEMA)[name]["properties"]
    assert [field for field in old if not still(old[field], new.get(field))] == []
    for field in old:
        assert set(old[field].get("enum", ())) <= set(new[field].get("enum", ()))


def read_by_schema_1(value: Any, node: dict[str, Any]) -> Any:
    """The value as a reader sees it that takes only what it knows."""
    if reference := node.get("$ref"):
        node = SCHEMA_1["$defs"][reference.rpartition("/")[2]]
    if isinstance(value, dict) and "properties" in node:
        known = node["properties"]
        return {k: read_by_schema_1(v, known[k]) for k, v in value.items() if k in known}
    if isinstance(value, list) and "items" in node:
        return [read_by_schema_1(item, node["items"]) for item in value]
    return value


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_a_reader_of_schema_1_reads_todays_events(event: Event) -> None:
    document = read_by_schema_1(to_dict(event), SCHEMA_1["$defs"][event.kind])
    assert "fingerprint" not in document
    assert "id" not in document["host"]
    jsonschema.Draft202012Validator(SCHEMA_1).validate(document | {"schema": 1})


def test_to_dict_is_the_contract_object() -> None:
    assert to_dict(replace(SEAL, mapping=Mapping("0x1", "0x2", "r--p", True, FILE, None))) == {
        "schema": 2,
        "id": "1b4e28ba-00000000000003e8-00000001",
        "time": "2025-01-02T03:04:05.000000006Z",
        "time_boot_ns": 1000,
        "kind": "seal",
        "severity": "warning",
        "summary": "something happened",
        "fingerprint": "4900a2b118bd",
        "host": {
            "name": "web-1",
            "boot_id": "1b4e28ba-2fa1-4d2e-883f-0016d3cca427",
            "kernel_release": "6.18.44",
            "id": "0f3c5a9b2d7e4816a1c9e0d4b5f60718",
        },
        "process": {
            "pid": 4242,
            "tid": 4243,
            "parent_pid": 1,
            "vpid": 7,
            "name": "worker",
            "executable": "/usr/bin/python3",
            "command_line": "python3 app.py",
            "start": "2025-01-02T03:04:05.000000006Z",
            "uid": 1000,
            "gid": 1000,
            "user_name": "app",
            "group_name": "staff",
            "identity": {"result": "partial", "reason": "not permitted"},
            "files": "host",
            "executable_owner": 0,
            "executable_build_id": "00ff",
            "program": None,
        },
        "workload": {
            "unit": "app.service",
            "container_id": None,
            "pod_uid": None,
            "cgroup": "/system.slice/app.service",
        },
        "start": "0x1000",
        "length": 4096,
        "mapping": {
            "start": "0x1",
            "end": "0x2",
            "permissions": "r--p",
            "sealed": True,
            "file": {
                "path": "/usr/lib/libfoo.so",
                "device": "254:1",
                "inode": 77,
                "offset": 4096,
            },
            "name": None,
        },
        "caller": "0x401000",
        "stack": [],
        "stack_complete": False,
    }


def test_keys_come_in_the_contract_order() -> None:
    document = to_dict(HEALTH)
    assert list(document) == [
        *("schema", "id", "time", "time_boot_ns", "kind", "severity", "summary"),
        *(
            "fingerprint",
            "host",
            "process",
            "workload",
            "event",
            "message",
            "blind_seconds",
            "details",
        ),
    ]


def test_stack_frames_are_plain() -> None:
    assert to_dict(DENIAL)["stack"] == [
        {
            "address": "0x401000",
            "module": "app",
            "build_id": "ab" * 20,
            "offset": 4096,
            "symbol": "main",
        },
        {"address": "0x7f00", "module": None, "build_id": None, "offset": None, "symbol": None},
    ]


@pytest.mark.parametrize(
    ("time_boot_ns", "sequence", "expected"),
    [
        (0, 0, "1b4e28ba-0000000000000000-00000000"),
        (255, 16, "1b4e28ba-00000000000000ff-00000010"),
        (2**64 - 1, 2**32 + 1, "1b4e28ba-ffffffffffffffff-00000001"),
    ],
)
def test_event_id(time_boot_ns: int, sequence: int, expected: str) -> None:
    assert event_id(HOST.boot_id, time_boot_ns, sequence) == expected


@pytest.mark.parametrize(
    ("boot_ns", "offset_ns", "expected"),
    [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (1, 1_700_000_000_123_456_788, "2023-11-14T22:13:20.123456789Z"),
        (999_999_999, 0, "1970-01-01T00:00:00.999999999Z"),
        # A float would round this to the next second.
        (1, 1_735_689_599_999_999_998, "2024-12-31T23:59:59.999999999Z"),
        (2, 1_735_689_599_999_999_998, "2025-01-01T00:00:00.000000000Z"),
    ],
)
def test_timestamp(boot_ns: int, offset_ns: int, expected: str) -> None:
    assert timestamp(boot_ns, offset_ns) == expected
