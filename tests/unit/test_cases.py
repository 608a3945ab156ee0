"""What is gathered of an incident, and a store for the tests of reports and exports."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_fingerprint import EVENTS
from test_incidents import EVERYTHING, KEPT, WEEK_START, Store, at, denial, suppression

from monitor.evidence.fingerprint import fingerprint
from monitor.incidents.search import Filter, Incident, Incidents
from monitor.incidents.store import nanoseconds, snapshot_data
from monitor.report.cases import Case, gather
from monitor.symbols.resolver import Resolver

Event = dict[str, Any]
LATER = "2026-11-21T17:08:03.000000000Z"

SNAPSHOT: dict[str, Any] = {
    "time": "2026-11-21T17:07:52.899000000Z",
    "event": EVENTS["denial"]["id"],
    "pid": 20721,
    "start": EVENTS["denial"]["process"]["start"],
    "memory_map": [
        {
            **{"start": "0x55eb77210000", "end": "0x55eb77215000", "permissions": "r-xp"},
            "file": {
                **{"path": "/srv/images/bin/image-worker", "device": "254:0"},
                **{"inode": 1474587, "offset": 0},
            },
            **{"sealed": False, "name": None, "guard": False, "rss_kib": 20},
        },
        {
            **{"start": "0x55eb77215000", "end": "0x55eb77217000", "permissions": "r--p"},
            "file": {
                **{"path": "/srv/images/bin/image-worker", "device": "254:0"},
                **{"inode": 1474587, "offset": 20480},
            },
            **{"sealed": True, "name": None, "guard": False, "rss_kib": 8},
        },
        {
            **{"start": "0x7fff00000000", "end": "0x7fff00021000", "permissions": "rw-p"},
            **{"file": None, "sealed": None, "name": "[stack]", "guard": True, "rss_kib": 12},
        },
    ],
    "memory_map_complete": True,
    "limits": {"stack": {"soft": 8388608, "hard": None}},
    "seccomp": {"mode": "filter", "filters": 2, "no_new_privileges": True},
    "modules": [
        {"path": "/srv/images/bin/image-worker", "build_id": "e06a8f49", "start": "0x55eb77210000"},
        {"path": "/lib/x86_64-linux-gnu/libc.so.6", "build_id": None, "start": "0x7f4d2e42c000"},
    ],
    "parents": [
        {"pid": 20720, "name": "supervisor", "executable": "/usr/bin/supervisor", "start": None},
        {"pid": 1, "name": "systemd", "executable": None, "start": None},
    ],
    "missing": {"something": "Permission denied"},
    "duration_ms": 3.2,
}


def a_day(folder: Path) -> Store:
    """What a worker did that day, and what others did later; one event of each kind."""
    store = Store(folder, KEPT, WEEK_START)
    refused, fault, seal = (copy.deepcopy(EVENTS[kind]) for kind in ("denial", "fault", "seal"))
    seal |= {"process": refused["process"], "host": refused["host"]}
    seal["time"] = "2026-11-21T17:07:52.580900000Z"
    gap = suppression(3996, refused) | {"time": LATER, "first": LATER, "last": LATER}
    alone = suppression(7, None) | {"time": LATER, "first": LATER, "last": LATER}
    store.take(seal, refused, fault, gap, copy.deepcopy(EVENTS["health"]), alone)
    kept, taken_ns = json.dumps(SNAPSHOT).encode(), nanoseconds(SNAPSHOT["time"])
    store.sink.write_all([snapshot_data(fingerprint(refused).id, taken_ns, kept)])
    partial = denial(WEEK_START + 86_400, operation="mprotect", caller=0x333, pid=78)
    partial["partial_update"] = {"start": "0x55eb77211000", "end": "0x55eb77215000"}
    partial["arguments"] = {"addr": "0x55eb77211000", "size": 0x6000, "prot": "r-x"}
    partial["stack"][1] |= {"module": None, "build_id": None, "offset": None}
    store.take(partial)
    for day in range(5, 8):
        event = denial(WEEK_START + 86_400 * day, unit=f"w{day}.service", pid=77)
        store.take(event | {"arguments": {"addr": "0x55eb77215000", "length": 8192}})
    store.sink.close()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = a_day(tmp_path)
    yield store
    store.sink.close()


def case_of(store: Store, what: str, snapshots: list[dict[str, Any]] | None = None) -> Case:
    """The case of the incident with this operation, cause or name."""
    (incident,) = (each for each in store.read() if what in (each.what, each.id))
    with Incidents(store.path) as incidents:
        (case,) = gather(incidents, [incident])
    return case if snapshots is None else replace(case, snapshots=snapshots)


def incident_of(store: Store, what: str) -> Incident:
    (found,) = (each for each in store.read(EVERYTHING) if each.what == what)
    return found


def test_the_timeline_is_that_of_the_process(store: Store) -> None:
    case = case_of(store, "guard_region")
    assert [event["kind"] for event, _ in case.timeline] == [
        *("seal", "denial", "fault", "suppression"),
    ]
    assert case.event["kind"] == "fault"
    assert case_of(store, "started").timeline == []
    # Of the incident with a gap behind it, the event is the denial before it.
    (refused,) = (each for each in store.read() if each.suppressed == 3996)
    assert case_of(store, refused.id).event == EVENTS["denial"]
    assert case_of(store, refused.id).snapshots == [SNAPSHOT]
    assert case.snapshots == []


def test_similar_incidents(store: Store) -> None:
    case = case_of(store, "guard_region")
    assert {(other.what, why) for other, why in case.similar} == {
        ("munmap", "program"),
        ("mprotect", "program"),
        ("seal", "program"),
    }
    other = denial(WEEK_START + 9 * 86_400, executable="/opt/other", caller=0x99)
    for frame in other["stack"]:
        frame["module"] = "other"
    store.take(other)
    (found,) = (each for each in store.read() if "/opt/other" in each.facets["executable"])
    assert [(each.what, why) for each, why in case_of(store, found.id).similar] == [
        ("munmap", "violation, kind of memory")
    ]


class _Asked(Resolver):
    """Remembers the paths where it had to look."""

    def __init__(self) -> None:
        super().__init__({})
        self.paths: set[str] = set()

    def resolve(self, event: Mapping[str, Any]) -> dict[str, Any]:
        self.paths.add(event["process"]["executable"])
        return dict(event)


def test_a_process_that_was_gone_has_the_path_of_its_like(store: Store) -> None:
    """Only the place to look for names is taken from it."""
    gone = denial(WEEK_START + 9 * 86_400, operation="brk", executable="image-worker", pid=79)
    unknown = denial(WEEK_START + 9 * 86_400, operation="brk", executable="nobody", pid=80)
    for event in (gone, unknown):
        store.take(event)
    resolver = _Asked()
    with resolver, Incidents(store.path) as incidents:
        cases = gather(incidents, incidents.search(Filter(operation="brk"), 5), resolver)
    assert resolver.paths == {"/srv/images/bin/image-worker", "nobody"}
    kept = {event["process"]["executable"] for case in cases for event in case.events}
    assert kept == {"image-worker", "nobody"}


def test_a_process_of_another_boot_is_another(store: Store) -> None:
    fault = copy.deepcopy(EVENTS["fault"])
    fault["host"]["boot_id"] = "other"
    fault["stack"][0]["offset"] = 0x777
    store.take(fault)
    (found,) = (
        each for each in store.read() if each.what == "guard_region" and "0x777" in each.caller
    )
    assert len(case_of(store, found.id).timeline) == 1


def test_an_absurd_start_time(store: Store) -> None:
    """Only the database of a stranger has one."""
    event = denial(WEEK_START, operation="brk")
    store.take(event)
    for start in (None, "", "yesterday", at(0)[:25], 7):
        changed = event | {"process": event["process"] | {"start": start}}
        incidents = _Saying(store.path)
        incidents.said = [changed]
        with incidents:
            (case,) = gather(incidents, [incident_of(store, "brk")])
        assert case.timeline == []


class _Saying(Incidents):
    """Incidents that return other events than their own."""

    said: list[Event]

    def events(self, incident: Incident) -> list[Event]:
        return self.said
