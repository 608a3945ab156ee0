"""The store of incidents, written to as by the daemon and read as by the commands."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most
from test_fingerprint import EVENTS

from monitor.evidence.fingerprint import fingerprint, unattributed
from monitor.incidents.search import Filter, Incident, IncidentError, Incidents
from monitor.incidents.store import (
    FILE,
    OTHERS,
    IncidentStore,
    Retention,
    nanoseconds,
    snapshot_data,
)
from monitor.metrics.tally import Tally
from monitor.sinks.delivery import Delivery
from monitor.sinks.outputs import SinkError, encode

Event = dict[str, Any]

MIB = 1 << 20
DAY = 86_400
WEEK_START = 1_795_000_000  # Unix seconds, in November 2026
NOW = WEEK_START * 10**9
KEPT = Retention(age=30, size=64 * MIB, events=20)
EVERYTHING = Filter(kinds=("denial", "fault", "seal", "bypass", "health"))


def at(seconds: float) -> str:
    whole, fraction = divmod(round(seconds * 1e9), 1_000_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def denial(
    seconds: float = WEEK_START,
    *,
    caller: int = 0x1212,
    pid: int = 1000,
    unit: str = "image-worker.service",
    executable: str = "/srv/images/bin/image-worker",
    operation: str = "munmap",
    host: str = "web-3",
) -> Event:
    """`caller` is the offset in the executable: another one is another incident."""
    event = copy.deepcopy(EVENTS["denial"])
    event["time"] = at(seconds)
    event["operation"] = operation
    event["summary"] = f"{operation} of sealed memory refused: x (pid {pid}) tried"
    event["host"]["name"] = host
    event["process"] |= {"pid": pid, "executable": executable, "start": at(WEEK_START - pid)}
    event["workload"] |= {"unit": unit, "cgroup": f"/system.slice/{unit}"}
    event["caller"] = event["stack"][1]["address"] = f"0x{0x550000000000 + caller:x}"
    event["stack"][1]["offset"] = caller
    return event | {"fingerprint": fingerprint(event).id}


def suppression(count: int, of: Event | None, seconds: float = WEEK_START) -> Event:
    """The gap of events like this one; None: of the bucket that many share."""
    event = copy.deepcopy(EVENTS["suppression"])
    event |= {"time": at(seconds + 2), "first": at(seconds), "last": at(seconds + 1)}
    event |= {"of": "denial", "count": count, "cause": None}
    if of is None:
        return event | {"process": None, "operation": None, "caller": None}
    event["host"] = of["host"]
    event["process"]["pid"] = of["process"]["pid"]
    return event | {"operation": of["operation"], "caller": of["caller"]}


class Store:
    """A store and what it has reported."""

    def __init__(self, folder: Path, retention: Retention, now: float) -> None:
        self.folder, self.path = folder, folder / FILE
        self.reports: list[str] = []
        self.now = now
        self.boot = 100.0
        self.sink = IncidentStore(
            *(folder, retention, self.reports.append, lambda: round(self.now * 1e9)),
            boot_ns=lambda: round(self.boot * 1e9),
        )

    def wait(self, seconds: float) -> None:
        """Both clocks go on, and the next event looks at what is too old."""
        self.now += seconds
        self.boot += seconds
        self.sink.reopen()

    def take(self, *events: Event) -> None:
        self.sink.write_all([self.sink.render(event) for event in events])

    def read(self, wanted: Filter = EVERYTHING, limit: int = 1_000_000) -> list[Incident]:
        with Incidents(self.path) as incidents:
            return incidents.search(wanted, limit)

    def take_snapshot(self, event: Event, pid: int, seconds: float = WEEK_START) -> None:
        """A snapshot of the process that made the event."""
        text = encode({"event": event["id"], "pid": pid, "memory_map": []})
        self.sink.write(snapshot_data(fingerprint(event).id, round(seconds * 1e9), text))

    def snapshots(self, incident: Incident) -> list[int]:
        """The pids."""
        with Incidents(self.path) as incidents:
            return [snapshot["pid"] for snapshot in incidents.snapshots(incident)]

    def events(self, incident: Incident) -> list[Event]:
        with Incidents(self.path) as incidents:
            return incidents.events(incident)


Make = Callable[..., Store]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Store] = []

    def _make(
        retention: Retention = KEPT, now: float = WEEK_START, folder: Path = tmp_path
    ) -> Store:
        made.append(Store(folder, retention, now))
        return made[-1]

    yield _make
    for store in made:
        store.sink.close()


# ---- Grouping and counts -------------------------------------------------------------------------


def test_a_week_of_history(make: Make) -> None:
    """Violations in 30 places on 3 hosts: every count as it was made."""
    store = make()
    chance = random.Random(7)
    wanted: Counter[str] = Counter()
    made: Counter[tuple[str, str]] = Counter()
    gaps: Counter[str] = Counter()
    batch = []
    for second in range(0, 7 * DAY, 7 * DAY // 5000):
        place = min(int(chance.expovariate(0.2)), 29)
        event = denial(
            WEEK_START + second,
            caller=place,
            pid=2000 + chance.randrange(50),
            unit=f"worker-{chance.randrange(4)}.service",
            host=f"web-{chance.randrange(3)}",
        )
        number = fingerprint(event).id
        batch.append(event)
        wanted[number] += 1
        made[number, event["host"]["name"]] += 1
        if second % 7 == 0:
            held_back = chance.randrange(1, 100)
            batch.append(suppression(held_back, event, WEEK_START + second))
            wanted[number] += held_back
            gaps[number] += 1
        if len(batch) > 60:
            store.take(*batch)
            batch.clear()
    store.take(*batch)
    found = store.read()
    assert {incident.id: incident.count for incident in found} == wanted
    assert sum(incident.suppressed for incident in found) > 10_000
    for incident in found:
        assert sum(incident.facets["host"].values()) == incident.events
        for host, count in incident.facets["host"].items():
            assert count == made[incident.id, host]
        assert set(incident.facets["workload"]) <= {f"worker-{n}.service" for n in range(4)}
        assert len(store.events(incident)) == min(20, incident.events + gaps[incident.id])
    assert [incident.last_ns for incident in found] == sorted(
        (incident.last_ns for incident in found), reverse=True
    )


def test_an_event_of_schema_1_is_of_the_same_incident(make: Make) -> None:
    store, event = make(), denial(WEEK_START)
    old = {name: value for name, value in event.items() if name != "fingerprint"} | {"schema": 1}
    old["host"] = {name: value for name, value in event["host"].items() if name != "id"}
    store.take(old, event)
    (found,) = store.read()
    assert (found.id, found.events) == (event["fingerprint"], 2)


def test_what_is_stored_of_an_incident(make: Make) -> None:
    store = make()
    first, last = denial(WEEK_START), denial(WEEK_START + 3600.5, pid=1001, host="web-4")
    store.take(first)
    store.take(last)
    (found,) = store.read()
    assert (found.id, found.kind, found.what) == (fingerprint(first).id, "denial", "munmap")
    assert found.title == "munmap of sealed memory refused"
    assert (found.summary, found.severity) == (last["summary"], "critical")
    assert found.first_ns == WEEK_START * 10**9
    assert found.last_ns == WEEK_START * 10**9 + 3_600_500_000_000
    assert (found.events, found.suppressed, found.count) == (2, 0, 2)
    assert found.facets == {
        "verdict": {"sealed": 2},
        "disposition": {},
        "likely": {"attack": 2},
        "executable": {"/srv/images/bin/image-worker": 2},
        "workload": {"image-worker.service": 2},
        "host": {"web-3": 1, "web-4": 1},
        "user": {"www-data": 2},
        "in_namespace": {},
        "not_verified": {},
    }
    assert store.events(found) == [first, last]


def test_paths_that_are_not_the_hosts_are_counted(make: Make) -> None:
    store = make()
    for files, path in (("host", "/a"), ("namespace", "/a"), (None, "/b"), (None, "c")):
        event = denial(WEEK_START, executable=path)
        event["process"]["files"] = files
        store.take(event)
    counted = [
        (name, path, number)
        for found in store.read()
        for name in ("in_namespace", "not_verified")
        for path, number in found.facets[name].items()
    ]
    assert sorted(counted) == [("in_namespace", "/a", 1), ("not_verified", "/b", 1)]


def test_every_kind_is_stored(make: Make) -> None:
    store = make()
    store.take(*EVENTS.values())
    titles = {incident.kind: incident.title for incident in store.read() if incident.events}
    assert titles["fault"] == "write to a guard region"
    assert titles["seal"] == "mseal"
    assert titles["bypass"] == "discard of sealed memory"
    assert set(titles) == {"denial", "fault", "seal", "bypass", "health"}
    assert {incident.kind for incident in store.read(Filter())} == {"denial", "fault", "bypass"}


def test_the_last_events_are_kept_and_all_are_counted(make: Make) -> None:
    store = make(Retention(30, MIB, events=3))
    events = [denial(WEEK_START + n) for n in range(10)]
    store.take(*events)
    (found,) = store.read()
    assert found.events == 10
    assert store.events(found) == events[-3:]


def test_lesser_events_do_not_push_the_worst_one_out(make: Make) -> None:
    store = make(Retention(30, MIB, events=3))
    worst, again = denial(WEEK_START, pid=1), denial(WEEK_START + 50, pid=2)
    lesser = [
        denial(WEEK_START + n, pid=3) | {"severity": "warning", "verdict": "unverified"}
        for n in range(1, 41)
    ]
    for n, event in enumerate(lesser):
        event["summary"] += f" for the {n}th time"
    store.take(worst, *lesser[:20])
    (found,) = store.read()
    assert (found.events, found.severity) == (21, "critical")
    assert store.events(found) == [worst, *lesser[18:20]]
    store.take(*(suppression(1, lesser[0]) for _ in range(9)))
    assert store.events(found)[0] == worst
    # One that is as bad takes its place.
    store.take(again, *lesser[20:])
    assert store.events(found) == [again, *lesser[-2:]]


# ---- What was suppressed -------------------------------------------------------------------------


def test_suppressed_events_go_where_their_process_was_seen(make: Make) -> None:
    store = make()
    one, two = denial(caller=1, pid=1), denial(caller=2, pid=1)
    elsewhere = denial(caller=3, pid=2)
    store.take(one, two, elsewhere)
    store.take(suppression(40, one), suppression(2, two), suppression(60, one))
    found = {incident.id: incident for incident in store.read()}
    assert len(found) == 3
    assert found[fingerprint(one).id].suppressed == 100
    assert found[fingerprint(two).id].suppressed == 2
    assert found[fingerprint(elsewhere).id].suppressed == 0
    assert found[fingerprint(one).id].last_ns == (WEEK_START + 1) * 10**9
    assert found[fingerprint(one).id].summary == one["summary"]


def test_of_a_fault_by_its_instruction(make: Make) -> None:
    store = make()
    fault = EVENTS["fault"]
    event = suppression(9, None) | {
        "of": "fault",
        "process": {"pid": fault["process"]["pid"], "name": "x"},
        "cause": fault["cause"],
        "caller": fault["instruction_pointer"],
        "host": fault["host"],
    }
    store.take(fault, event)
    (found,) = store.read()
    assert (found.events, found.suppressed) == (1, 9)


@pytest.mark.parametrize("difference", ["pid", "caller", "operation", "boot", "process", "restart"])
def test_else_they_are_unattributed_and_counted(make: Make, difference: str) -> None:
    store = make()
    event = denial()
    store.take(event)
    gap = suppression(50, None if difference == "process" else event)
    if difference == "pid":
        gap["process"]["pid"] = 7
    elif difference == "caller":
        gap["caller"] = "0x1"
    elif difference == "operation":
        gap["operation"] = "mremap"
    elif difference == "boot":
        gap["host"] = gap["host"] | {"boot_id": "another"}
    elif difference == "restart":
        store.sink.close()
        store = make()
    store.take(gap, gap)
    found = {incident.id: incident for incident in store.read()}
    assert {number: incident.count for number, incident in found.items()} == {
        fingerprint(event).id: 1,
        unattributed("denial", gap["operation"]).id: 100,
    }
    title = found[unattributed("denial", gap["operation"]).id].title
    assert title == f"{gap['operation'] or ''} denials of unknown callers".strip()


def test_when_their_incident_was_removed_meanwhile(make: Make) -> None:
    store = make(Retention(age=1, size=MIB, events=20))
    event = denial()
    store.take(event)
    store.wait(2 * DAY)
    store.take(suppression(50, event, store.now))
    (found,) = store.read()
    assert (found.id, found.count) == (unattributed("denial", "munmap").id, 50)


def test_after_a_new_beginning_numbers_are_other_ones(make: Make) -> None:
    """In a new database, or after a rollback, another incident may have the number."""
    store = make()
    first, second = denial(caller=1, pid=1), denial(caller=2, pid=2)
    store.take(first)
    store.sink.close()
    garbage(store.path)
    store.take(second)
    store.take(suppression(50, first))
    assert {incident.id: incident.count for incident in store.read()} == {
        fingerprint(second).id: 1,
        unattributed("denial", "munmap").id: 50,
    }


@pytest.mark.parametrize(("callers", "attributed"), [(2, 50), (1, 0)])
def test_so_many_callers_are_remembered(tmp_path: Path, callers: int, attributed: int) -> None:
    first, second = denial(caller=1, pid=1), denial(caller=2, pid=2)
    sink = IncidentStore(tmp_path, KEPT, lambda _: None, callers=callers)
    sink.write_all([sink.render(event) for event in (first, second, suppression(50, first))])
    sink.close()
    with Incidents(tmp_path / FILE) as incidents:
        (found,) = incidents.find(fingerprint(first).id)
    assert found.suppressed == attributed


# ---- Text that others chose ----------------------------------------------------------------------


def test_values_are_bounded_in_number(make: Make) -> None:
    store = make()
    store.take(*(denial(unit=f"w{n}.service") for n in range(100)))
    store.take(denial(unit="w3.service"))
    (found,) = store.read()
    workloads = found.facets["workload"]
    assert len(workloads) == 33
    assert sum(workloads.values()) == found.events == 101
    assert (workloads[OTHERS], workloads["w3.service"]) == (68, 2)


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE incidents; --", "\x1b[2J\x1b]0;owned\x07", "\ud800", "a\0b", "*?[", "é"]
)
def test_values_are_data(make: Make, text: str) -> None:
    store = make()
    event = denial(unit=f"{text}.service", executable=f"/bin/{text}", host=text)
    event["summary"] = text
    store.take(event, suppression(3, event))
    (found,) = store.read()
    assert found.count == 4
    for shown in (found.title, found.summary, *(v for f in found.facets.values() for v in f)):
        assert shown.isprintable()


# ---- Retention -----------------------------------------------------------------------------------


def test_by_age(make: Make) -> None:
    store = make(Retention(age=7, size=64 * MIB, events=20))
    store.take(*(denial(WEEK_START + day * DAY, caller=day) for day in range(7)))
    still = denial(WEEK_START, caller=100)
    store.take(still, denial(WEEK_START + 6 * DAY, caller=100))
    store.wait(9.5 * DAY)
    store.take(EVENTS["health"] | {"time": at(store.now)})
    found = store.read(Filter())
    days = sorted((incident.last_ns // 10**9 - WEEK_START) // DAY for incident in found)
    assert days == [3, 4, 5, 6, 6]
    (recurring,) = (incident for incident in found if incident.id == fingerprint(still).id)
    # The count stays; the event of more than seven days ago does not.
    assert recurring.events == 2
    assert [event["time"] for event in store.events(recurring)] == [at(WEEK_START + 6 * DAY)]


def days(store: Store) -> list[int]:
    """When the incidents were seen last, in days."""
    return sorted((each.last_ns // 10**9 - WEEK_START) // DAY for each in store.read(Filter()))


def test_a_look_with_nothing_too_old_does_not_read_every_event(make: Make) -> None:
    """It comes after every 64 events: as cheap among 4,000 as among 400."""

    def steps(kept: int) -> int:
        store = make()
        store.take(*(denial(WEEK_START, caller=n) for n in range(kept)))
        store.wait(2 * DAY)
        store.take(denial(WEEK_START, caller=0))
        taken = 0

        def count() -> None:
            nonlocal taken
            taken += 1

        assert store.sink._database is not None
        store.sink._database.set_progress_handler(count, 1)
        store.sink._removal.remove_old(store.sink._open(), round(store.now * 1e9))
        store.path.unlink()
        return taken

    assert 0 < steps(4000) == steps(400)


def test_a_clock_that_is_ahead_for_a_while_removes_nothing(make: Make) -> None:
    store = make()
    store.take(*(denial(WEEK_START + n, caller=n) for n in range(3)))
    for year, restarts in ((365, False), (365, True), (0, True), (0, False)):
        store.now = WEEK_START + year * DAY
        if restarts:
            store.sink.close()
            store = make(now=store.now)
        for hour in (0, 6, 12):
            store.wait(hour * 3600)
            store.take(denial(store.now, caller=100 + hour))
        assert days(store)[:3] == [0, 0, 0]


def test_a_clock_that_was_set_is_believed_after_a_day(make: Make) -> None:
    store = make()
    store.take(*(denial(WEEK_START + n, caller=n) for n in range(3)))
    store.now += 365 * DAY
    store.take(denial(store.now, caller=3))
    assert days(store) == [0, 0, 0, 365]
    store.wait(23 * 3600)
    store.take(denial(store.now, caller=3))
    assert days(store) == [0, 0, 0, 365]
    store.wait(2 * 3600)
    store.take(denial(store.now, caller=3))
    assert days(store) == [366]


def test_by_age_where_no_run_takes_a_day(make: Make) -> None:
    """An event of a few days ago shows that the clock is right."""
    for day in range(0, 60, 3):
        store = make(now=WEEK_START + day * DAY)
        store.take(denial(store.now, caller=day))
        store.sink.close()
    assert days(store) == list(range(27, 60, 3))


def test_events_from_a_clock_that_was_ahead_go_with_the_next(make: Make) -> None:
    store = make()
    store.take(denial(WEEK_START, caller=1))
    ahead = WEEK_START + 3650 * DAY
    store.take(denial(ahead, caller=1), denial(ahead, caller=2))
    store.take_snapshot(denial(ahead, caller=2), 1, ahead)
    for _ in range(6):
        store.wait(10 * DAY)
        store.take(denial(store.now, caller=1))
    # Nothing behind it in the order of arrival is 30 days old before that.
    (found,) = store.read()
    assert (found.last_ns // 10**9 - WEEK_START) // DAY == 60
    assert [event["time"] for event in store.events(found)] == [
        at(WEEK_START + day * DAY) for day in (30, 40, 50, 60)
    ]
    assert rows(store.path, "snapshots") == 0


def test_by_size(make: Make) -> None:
    size = 2 * MIB
    store = make(Retention(age=30, size=size, events=20))
    for n in range(3000):
        store.take(denial(WEEK_START + n, caller=n))
        if n % 100 == 0:
            assert store.path.stat().st_size <= size
    assert store.path.stat().st_size <= size
    found = store.read()
    callers = sorted((incident.last_ns // 10**9 - WEEK_START) for incident in found)
    # Those seen last, without a gap.
    assert callers == list(range(3000 - len(found), 3000))
    assert len(found) > 300
    assert store.reports == []


def test_a_smaller_size_shrinks_the_file(make: Make) -> None:
    store = make()
    store.take(*(denial(WEEK_START + n, caller=n) for n in range(2000)))
    store.sink.close()
    assert store.path.stat().st_size > 5 * MIB
    store = make(Retention(age=30, size=MIB, events=20))
    store.take(denial(WEEK_START + 5000, caller=5000))
    store.sink.close()
    assert store.path.stat().st_size <= MIB
    assert store.read()[0].last_ns == (WEEK_START + 5000) * 10**9


# ---- Snapshots -----------------------------------------------------------------------------------


def test_the_last_snapshots_of_each_incident_are_kept(make: Make) -> None:
    store = make()
    first, second = denial(caller=1), denial(caller=2)
    store.take(first, second)
    for pid in range(10):
        store.take_snapshot(first, pid)
    store.take_snapshot(second, 77)
    by_caller = {incident.id: incident for incident in store.read()}
    assert store.snapshots(by_caller[fingerprint(first).id]) == [7, 8, 9]
    assert store.snapshots(by_caller[fingerprint(second).id]) == [77]
    assert {incident.count for incident in by_caller.values()} == {1}


def test_a_snapshot_and_its_event_at_once(make: Make) -> None:
    store = make()
    event = denial()
    text = encode({"event": event["id"], "pid": 5, "name": "a\nb"})
    store.sink.write_all(
        [store.sink.render(event), snapshot_data(fingerprint(event).id, NOW, text)]
    )
    (found,) = store.read()
    assert (found.count, store.snapshots(found)) == (1, [5])


def test_a_snapshot_of_no_incident_is_refused(make: Make) -> None:
    store = make()
    store.take(denial(caller=1))
    with pytest.raises(SinkError, match=r"no incident [0-9a-f]{12} that a snapshot belongs to"):
        store.take_snapshot(denial(caller=2), 1)
    assert store.reports == []


def rows(path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        (number,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(number)


def test_snapshots_go_with_age(make: Make) -> None:
    store = make(Retention(age=7, size=64 * MIB, events=20))
    event = denial()
    store.take(event)
    store.take_snapshot(event, 1, WEEK_START)
    store.take(denial(WEEK_START + 6 * DAY))
    store.take_snapshot(event, 2, WEEK_START + 6 * DAY)
    store.wait(8 * DAY)
    store.take(denial(store.now))
    (found,) = store.read()
    assert (found.count, store.snapshots(found)) == (3, [2])


def test_snapshots_go_with_their_incident(make: Make) -> None:
    store = make(Retention(age=7, size=64 * MIB, events=20))
    event = denial()
    store.take(event)
    store.take_snapshot(event, 1, WEEK_START + 30 * DAY)
    store.wait(10 * DAY)
    store.take(denial(store.now, caller=2))
    assert [store.snapshots(found) for found in store.read()] == [[]]
    assert rows(store.path, "snapshots") == 0


def test_snapshots_count_in_the_size(make: Make) -> None:
    store = make(Retention(age=7, size=MIB, events=20))
    text = encode({"event": "e", "pid": 1, "padding": "x" * 30_000})
    for n in range(200):
        event = denial(WEEK_START + n, caller=n)
        store.take(event)
        store.sink.write(snapshot_data(fingerprint(event).id, NOW, text))
    assert store.path.stat().st_size <= MIB
    found = store.read()
    assert 5 <= len(found) < 40
    assert fingerprint(event).id == found[0].id
    assert rows(store.path, "snapshots") == len(found)


def version_1(store: Store) -> None:
    """Make the database what the version before snapshots wrote."""
    store.sink.close()
    with contextlib.closing(sqlite3.connect(store.path)) as database:
        for table in ("standing", "owners", "snapshots"):
            database.execute(f"DROP TABLE {table}")
        for column in ("workload", "user"):
            database.execute(f"ALTER TABLE facets DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 1")


def test_a_database_without_snapshots_gets_them(make: Make) -> None:
    store = make()
    event = denial()
    store.take(event)
    version_1(store)
    (found,) = store.read()
    assert (found.count, store.snapshots(found)) == (1, [])
    store.take(event)
    store.take_snapshot(event, 5)
    (found,) = store.read()
    assert (found.count, store.snapshots(found)) == (2, [5])
    assert store.reports == []


# ---- Trouble -------------------------------------------------------------------------------------


def garbage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def other_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE facets")


def malformed(path: Path) -> None:
    """Every page but the first is zeroes."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(size - 4096))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [garbage, other_version, other_tables, malformed, cut])
def test_a_broken_one_is_set_aside(make: Make, damage: Callable[[Path], None]) -> None:
    store = make()
    store.take(*(denial(caller=n) for n in range(100)))
    store.sink.close()
    damage(store.path)
    store.take(denial(caller=7), denial(caller=8))
    assert {incident.count for incident in store.read()} == {1}
    assert len(store.read()) == 2
    (message,) = store.reports
    (bad,) = store.folder.glob(f"{FILE}.bad-????????T??????Z")
    assert message.startswith(f"{store.path} cannot be used: ")
    assert message.endswith(f"; set aside as {bad.name}")


def test_damage_while_it_is_open(make: Make) -> None:
    store = make()
    store.take(*(denial(caller=n) for n in range(2000)))
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    malformed(store.path)
    for n in range(100):
        store.take(denial(caller=n))
    assert len(store.reports) == 1
    assert sum(incident.count for incident in store.read()) >= 99


def test_only_the_last_one_set_aside_is_kept(make: Make) -> None:
    store = make()
    for text in ("first", "second", "third"):
        store.sink.close()
        store.path.write_text(f"{text}, and no database")
        store.take(denial())
        (bad,) = store.folder.glob(f"{FILE}.bad-*")
        assert bad.read_text() == f"{text}, and no database"
    assert len(store.reports) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from monitor.incidents.store import IncidentStore, Retention
store = IncidentStore(Path(sys.argv[1]), Retention(30, 1 << 26, 20), print)
for line in sys.stdin.buffer:
    store.write(line)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed(make: Make) -> None:
    """All that was taken is there for the next one."""
    store = make()
    lines = b"".join(store.sink.render(denial(caller=n % 7)) + b"\n" for n in range(100))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, store.folder], input=lines, check=False, timeout=60
    )
    assert ended.returncode == -9
    assert sum(incident.count for incident in store.read()) == 100
    store.take(denial())
    assert sum(incident.count for incident in store.read()) == 101
    assert store.reports == []


def test_removed_while_it_is_open(make: Make) -> None:
    store = make()
    store.take(denial())
    for path in store.folder.glob(f"{FILE}*"):
        path.unlink()
    store.take(denial())
    assert store.read()[0].count == 1


def test_a_link_is_not_followed(make: Make, tmp_path: Path) -> None:
    store = make()
    elsewhere = tmp_path / "elsewhere"
    store.path.symlink_to(elsewhere)
    with pytest.raises(SinkError, match=r"incidents\.db: .*; not stored"):
        store.take(denial())
    assert not elsewhere.exists()


def test_without_its_directory(make: Make, tmp_path: Path) -> None:
    store = make(folder=tmp_path / "state")
    with pytest.raises(SinkError, match=r"incidents\.db: No such file or directory; not stored"):
        store.take(denial())
    store.folder.mkdir()
    store.take(denial())
    assert len(store.read()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk: Path, make: Make) -> None:
    store = make(folder=small_disk)
    store.take(denial(caller=0))
    stored = 1
    refused = []
    (small_disk / "filler").write_bytes(bytes(2 * MIB))
    for n in range(1, 2000):
        try:
            store.take(denial(caller=n))
            stored += 1
        except SinkError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert set(refused) == {f"{store.path}: database or disk is full; not stored"}
    assert sum(incident.count for incident in store.read()) == stored
    (small_disk / "filler").unlink()
    store.take(denial(caller=9999))
    assert sum(incident.count for incident in store.read()) == stored + 1
    assert store.reports == []


def test_a_disk_that_is_full_at_first(small_disk: Path, make: Make) -> None:
    store = make(folder=small_disk)
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for _ in range(3):
        with pytest.raises(SinkError, match=r"(full|No space left on device); not stored"):
            store.take(denial())
    (small_disk / "filler").unlink()
    store.take(denial())
    assert store.read()[0].count == 1
    assert store.reports == []


def test_through_the_queue_of_a_full_disk(small_disk: Path, make: Make) -> None:
    """Every event is either stored or counted as an error."""
    store = make(folder=small_disk)
    (small_disk / "filler").write_bytes(bytes(3 * MIB))
    tally = Tally(["incidents"])
    delivery = Delivery([store.sink], tally)
    for n in range(1000):
        delivery.send(denial(caller=n))
        if n % 100 == 0:
            assert delivery.wait(10)
    assert delivery.wait(10)
    delivered, failed = tally.events["denial", "delivered"], tally.events["denial", "failed"]
    assert delivered + failed == 1000
    assert failed == tally.sink_errors["incidents"] > 0
    assert sum(incident.count for incident in store.read()) == delivered > 0
    delivery.close()


# ---- Reading -------------------------------------------------------------------------------------


def test_mode(make: Make) -> None:
    store = make()
    store.take(denial())
    assert len(list(store.folder.glob(f"{FILE}*"))) == 3
    for path in store.folder.glob(f"{FILE}*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_reader_while_it_is_written(make: Make) -> None:
    """Neither waits for the other, and a reader sees whole transactions."""
    store = make()
    store.take(*(denial(caller=n) for n in range(10)))
    stop = threading.Event()
    sums: list[int] = []
    problems: list[Exception] = []

    def read() -> None:
        try:
            while not stop.is_set():
                found = store.read()
                sums.append(sum(incident.count for incident in found))
                assert all(sum(i.facets["host"].values()) == i.events for i in found)
        except (IncidentError, AssertionError) as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(200):
        store.take(*(denial(caller=n) for n in range(10)))
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert all(number % 10 == 0 for number in sums)
    assert len(set(sums)) > 5
    assert sum(incident.count for incident in store.read()) == 2010


def test_a_reader_that_goes_on_reading_holds_up_nothing(make: Make) -> None:
    store = make()
    store.take(denial())
    with Incidents(store.path) as reader:
        store.take(*(denial() for _ in range(60)))
        assert reader.search(EVERYTHING, 10)[0].count == 1
    assert store.read()[0].count == 61


READ = """
import os, sys
from pathlib import Path
from monitor.incidents.search import *
os.setgroups([]); os.setgid(12345); os.setuid(12345)
try:
    with Incidents(Path(sys.argv[1])) as incidents:
        print(sum(i.count for i in incidents.search(Filter(), 100)))
except IncidentError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_may_only_read(tmp_path: Path) -> None:
    """A user in the file's group, who cannot write to the directory; and one in no group."""
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        store = Store(folder, KEPT, WEEK_START)

        def seen() -> str:
            return subprocess.run(
                [sys.executable, "-c", READ, store.path], capture_output=True, text=True, check=True
            ).stdout.strip()

        store.take(denial(), denial())
        assert seen().endswith("incidents.db: unable to open database file; run as root")
        for path in folder.glob(f"{FILE}*"):
            os.chown(path, 0, 12345)
        assert seen() == "2"
        store.sink.close()
        assert [path.name for path in folder.iterdir()] == [FILE]
        assert seen() == "2"
        assert [path.name for path in folder.iterdir()] == [FILE]
        # The files that root leaves behind after reading.
        store.read()
        assert len(list(folder.iterdir())) == 3
        assert seen() == "2"


def test_nothing_to_read(make: Make, tmp_path: Path) -> None:
    store = make()
    with pytest.raises(IncidentError, match=r"there are no incidents: no /.*'seal-monitor run'"):
        Incidents(store.path, own=True)
    store.path.touch()
    with pytest.raises(IncidentError, match=r"there are no incidents in /.* yet$"):
        Incidents(store.path, own=True)
    with contextlib.closing(sqlite3.connect(store.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")  # what the daemon does before the tables
    assert store.path.stat().st_size
    with pytest.raises(IncidentError, match=r"there are no incidents in /.* yet$"):
        Incidents(store.path, own=True)
    garbage(store.path)
    with pytest.raises(IncidentError, match="file is not a database; the daemon sets a broken"):
        Incidents(store.path, own=True)


@pytest.mark.parametrize(
    ("wanted", "callers"),
    [
        (Filter(), [4, 3, 2, 1, 0]),
        (Filter(since_ns=(WEEK_START + 3) * 10**9), [4, 3]),
        (Filter(until_ns=(WEEK_START + 1) * 10**9), [1, 0]),
        (Filter(operation="mremap"), [4]),
        (Filter(operation="m*"), [4, 3, 2, 1, 0]),
        (Filter(workload="b.service"), [3, 1]),
        (Filter(workload="?.service", operation="munmap"), [3, 2, 1, 0]),
        (Filter(executable="tool"), [4]),
        (Filter(executable="/opt/*"), [4]),
        (Filter(executable="opt"), []),
        (Filter(verdict="sealed"), [4, 3, 2, 1, 0]),
        (Filter(verdict="unverified"), []),
        (Filter(kinds=("fault",)), []),
        (Filter(operation="' OR 1=1 --"), []),
    ],
)
def test_filters(make: Make, wanted: Filter, callers: list[int]) -> None:
    store = make()
    for n in range(5):
        store.take(
            denial(
                WEEK_START + n,
                caller=n,
                unit=f"{'ab'[n % 2]}.service",
                operation="mremap" if n == 4 else "munmap",
                executable="/opt/bin/tool" if n == 4 else "/srv/worker",
            )
        )
    found = store.read(wanted)
    assert [incident.last_ns // 10**9 - WEEK_START for incident in found] == callers
    assert store.read(wanted, limit=1) == found[:1]


def in_cgroup(number: int, cgroup: str, unit: str) -> Event:
    event = denial(WEEK_START + number, caller=number)
    event["workload"] |= {"unit": unit, "cgroup": cgroup}
    return event


@pytest.mark.parametrize(
    ("workload", "numbers"),
    [
        ("user-1000.slice", [2, 1, 0]),
        ("user-*.slice", [3, 2, 1, 0]),
        ("user-100?.slice", [3, 2, 1, 0]),
        ("user-100.slice", []),
        ("session-4.scope", [1]),
        ("user@1000.service/app.service", [2]),
        ("system.slice", []),
    ],
)
def test_a_user_is_found_by_the_name_that_alerts_have(
    make: Make, workload: str, numbers: list[int]
) -> None:
    store, user = make(), "/user.slice/user-1000.slice"
    store.take(
        in_cgroup(0, user, "user-1000.slice"),
        in_cgroup(1, f"{user}/session-4.scope", "session-4.scope"),
        in_cgroup(2, f"{user}/user@1000.service/app.slice/app.service", "app.service"),
        in_cgroup(3, "/user.slice/user-1001.slice/session-5.scope", "session-5.scope"),
        in_cgroup(4, "/system.slice/image-worker.service", "image-worker.service"),
    )
    found = store.read(Filter(workload=workload))
    assert [incident.last_ns // 10**9 - WEEK_START for incident in found] == numbers


def test_processes_and_their_timelines(make: Make) -> None:
    store = make()
    seal = copy.deepcopy(EVENTS["seal"])
    refused = denial(WEEK_START + 5, pid=77)
    seal["time"] = at(WEEK_START + 1)
    for name in ("pid", "start"):
        seal["process"][name] = refused["process"][name]
    seal["host"] = refused["host"]
    later = denial(WEEK_START + 900, pid=77)
    later["process"]["start"] = at(WEEK_START + 800)
    same = denial(WEEK_START + 8, pid=77)  # by another run of the daemon
    same["process"]["start"] = at(WEEK_START - 77 + 0.0001)
    store.take(refused, suppression(12, refused, WEEK_START + 5), seal, later, same)
    store.take(denial(pid=78))
    with Incidents(store.path) as incidents:
        first, second = incidents.processes(77)
        assert first.start_ns == (WEEK_START - 77) * 10**9
        assert second.start_ns == (WEEK_START + 800) * 10**9
        timeline = incidents.timeline(77, first)
        assert [event["kind"] for event, _ in timeline] == [
            *("seal", "denial", "suppression", "denial")
        ]
        assert [event["time"] for event, _ in timeline] == [
            at(WEEK_START + seconds) for seconds in (1, 5, 7, 8)
        ]
        assert [number for _, number in timeline][1:] == [fingerprint(refused).id] * 3
        assert [event for event, _ in incidents.timeline(77, second)] == [later]
        assert incidents.processes(79) == []


def test_times() -> None:
    assert nanoseconds("2026-11-21T17:07:52.898441250Z") == 1795280872_898441250
    assert at(1795280872.5) == "2026-11-21T17:07:52.500000000Z"


# ---- What it takes -------------------------------------------------------------------------------


def test_a_thousand_events_a_second(make: Make) -> None:
    """Through the queue, as in the daemon; a third of them is the first of its incident."""
    store = make()
    tally = Tally(["incidents"])
    delivery = Delivery([store.sink], tally)
    events = [denial(WEEK_START + n, caller=n % 1000, pid=n) for n in range(3000)]
    with at_most(2, "1,500 events take one CPU second", time.process_time):
        for start in range(0, 3000, 500):
            for event in events[start : start + 500]:
                delivery.send(event)
            assert delivery.wait(60)
    delivery.close()
    assert tally.events["denial", "delivered"] == 3000
    assert sum(incident.count for incident in store.read()) == 3000


MULTIPLIED = (
    """
    WITH RECURSIVE copies (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM copies WHERE n < :number)
    INSERT INTO incidents
    SELECT n, printf('%012x', n * 2654435761 % (1 << 48)), kind, what, executable, caller || n,
           mapping, title, severity, summary, first_ns + n * 1000000000, last_ns + n * 1000000000,
           events, suppressed
    FROM copies, incidents WHERE number = 1
    """,
    """
    INSERT INTO facets
    SELECT number, name, value || iif(name IN ('workload', 'program'), number % 500, ''), count,
           facets.workload, user
    FROM incidents, facets WHERE incident = 1 AND number > 1
    """,
    """
    INSERT INTO events
    SELECT number, number, last_ns, boot_id, pid, start_ns, event
    FROM incidents, events WHERE seq = 1 AND number > 1
    """,
)


def test_a_hundred_thousand_incidents(make: Make) -> None:
    """Are searched in milliseconds; the bound is for a slow machine."""
    store = make(Retention(age=30, size=1 << 30, events=20))
    store.take(denial())
    store.sink.close()
    with sqlite3.connect(store.path) as database:
        for statement in MULTIPLIED:
            database.execute(statement, {"number": 100_000})
    database.close()
    with Incidents(store.path) as incidents:
        for name, wanted, number in (
            ("the last ones", Filter(), 50),
            ("by workload", Filter(workload="image-worker.service7"), 50),
            ("by executable", Filter(executable="image-worker77"), 50),
            ("by operation", Filter(operation="munmap"), 50),
            ("by operations", Filter(operation="m*"), 50),
            ("by operation, none", Filter(operation="brk"), 0),
            ("by verdict, all", Filter(verdict="sealed"), 50),
            ("by host", Filter(host="web-*"), 50),
            ("by severity", Filter(severity="critical"), 50),
            ("by time", Filter(until_ns=(WEEK_START + 99) * 10**9), 50),
        ):
            with at_most(0.5, f"{name}: as long as reading all of them", time.process_time):
                assert len(incidents.search(wanted, 50)) == number
            with at_most(0.5, f"{name}: as long as reading all of them", time.process_time):
                assert len(incidents.search(wanted, 50, "worst")) == number
                assert sum(incidents.totals(wanted).values()) >= number
        (last,) = incidents.search(Filter(), 1)
        with at_most(0.5, "as long as reading all of them", time.process_time):
            assert incidents.find(last.id[:8]) == [last]
            assert len(incidents.events(last)) == 1
