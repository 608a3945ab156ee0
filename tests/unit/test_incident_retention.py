"""Whose incidents are kept: an attacker can neither erase nor lower another's."""

from __future__ import annotations

import copy
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_fingerprint import EVENTS
from test_incidents import (
    EVERYTHING,
    MIB,
    WEEK_START,
    Store,
    at,
    denial,
    make,
    suppression,
)

from monitor.evidence.fingerprint import fingerprint
from monitor.evidence.owner import Owner, owner_of
from monitor.incidents.retention import Retention
from monitor.incidents.search import Incident
from monitor.incidents.store import snapshot_data

__all__ = ["make"]

Event = dict[str, Any]
Make = Callable[..., Store]

ASSETS = Path(__file__).parents[1] / "assets"
SMALL = Retention(age=30, size=MIB, events=20, new=None)
HIS = "/user.slice/user-65534.slice/user@65534.service"


def fault(number: int, uid: int = 65534, cgroup: str = HIS, severity: str = "info") -> Event:
    """In a file that was just renamed: a new incident each. Digits alone would be left out."""
    event = copy.deepcopy(EVENTS["fault"])
    event |= {"time": at(WEEK_START + 10 + number / 1000), "severity": severity}
    event["process"] |= {"uid": uid, "pid": 5000, "executable": "/tmp/evict"}
    event["workload"] |= {"cgroup": cgroup, "unit": cgroup.rpartition("/")[2]}
    path = f"/tmp/f{number // 1000}-{number % 1000}"
    event["mapping"] = dict(event["mapping"] or {}) | {
        "file": {"path": path, "device": "0:1", "inode": number, "offset": 0}
    }
    return event


def critical(seconds: float = WEEK_START, **others: Any) -> Event:
    event = denial(seconds, **others)
    event["process"]["uid"] = 0
    return event


def flood(store: Store, events: list[Event]) -> None:
    for start in range(0, len(events), 64):
        store.take(*events[start : start + 64])


def ids(found: list[Incident]) -> set[str]:
    return {incident.id for incident in found}


def test_fresh_incidents_of_a_user_remove_nobody_elses(make: Make) -> None:
    """17,500 did in 19 s, through renamed files."""
    store = make(Retention(30, 8 * MIB, 20, None))
    others = [critical(caller=1), critical(caller=2) | {"severity": "info"}]
    store.take(*others)
    flood(store, [fault(number) for number in range(17_500)])
    kept = store.read()
    assert {fingerprint(event).id for event in others} <= ids(kept)
    assert 1000 < len(kept) < 17_500
    assert store.sink.removed == {"info": 17_502 - len(kept), "warning": 0, "critical": 0}
    (notice,) = store.sink.notices
    assert notice.startswith("incidents removed to make room for others: ")
    assert "of user 65534 in user-65534.slice. " in notice
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 8 * MIB + 65_536


@pytest.mark.parametrize(
    "disguise",
    [
        lambda n: {"severity": "critical"},
        lambda n: {"uid": 100_000 + n},
        lambda n: {"cgroup": f"/user.slice/user-65534.slice/session-{n}.scope"},
        lambda n: {"cgroup": f"{HIS}/app.slice/{n}.scope", "uid": 100_000 + n},
        lambda n: {"cgroup": f"/his/{n}/{n}.service"},
    ],
    ids=["critical", "user namespace", "sessions", "scopes", "cgroups"],
)
def test_nor_under_many_names(make: Make, disguise: Callable[[int], dict[str, Any]]) -> None:
    store = make(SMALL)
    others = [critical(caller=1), critical(caller=2) | {"severity": "info"}]
    others += [critical(caller=n, unit=f"{n}.service") for n in range(3, 15)]
    store.take(*others)
    flood(store, [fault(number, **disguise(number)) for number in range(1000)])
    assert {fingerprint(event).id for event in others} <= ids(store.read())
    assert sum(store.sink.removed.values()) > 300


def test_nor_by_large_ones(make: Make) -> None:
    """A few with snapshots take as much as all of another's."""
    store = make(SMALL)
    others = [critical(caller=n) | {"severity": "info"} for n in range(40)]
    store.take(*others)
    for number in range(30):
        store.take(fault(number))
        text = b'{"padding":"' + b"x" * 30_000 + b'"}'
        store.sink.write(snapshot_data(fingerprint(fault(number)).id, 1, text))
    assert {fingerprint(event).id for event in others} <= ids(store.read())
    assert store.sink.removed["info"] > 5


def test_of_one_owner_the_critical_ones_are_kept(make: Make) -> None:
    store = make(SMALL)
    important = [fault(n, severity="critical") for n in range(20)]
    flood(store, [*important, *(fault(n) for n in range(100, 1100))])
    assert {fingerprint(event).id for event in important} <= ids(store.read())


def test_an_incident_of_two_is_lost_last(make: Make) -> None:
    """He makes root's before root does, and floods."""
    store = make(SMALL)
    shared = [fault(1), fault(1, uid=0, cgroup="/system.slice/a.service")]
    flood(store, [shared[0], *(fault(n) for n in range(2, 50)), shared[1]])
    flood(store, [fault(n) for n in range(100, 1100)])
    assert fingerprint(shared[0]).id in ids(store.read())


# ---- Many places ---------------------------------------------------------------------------------


def test_too_many_new_ones_are_one(make: Make) -> None:
    store = make(Retention(30, 64 * MIB, 20, new=100))
    events = [fault(number) for number in range(1000)]
    store.take(events[0], suppression(0, None))
    flood(store, [*events[1:], events[0], critical()])
    found = store.read()
    assert sum(incident.events for incident in found) == 1002
    (many,) = (incident for incident in found if incident.caller == "many places")
    assert len(found) == 103  # with the suppression's, and root's
    assert (many.events, many.severity) == (900, "info")
    assert many.title == ("write to a guard region: many places, user 65534 in user-65534.slice")
    store.take_snapshot(events[999], 7)
    assert store.snapshots(many) == [7]
    store.take(fault(2000, severity="critical"))
    assert {i.severity for i in store.read() if i.caller == "many places"} == {"info", "critical"}


def test_after_an_hour_there_is_room_for_new_ones(make: Make) -> None:
    store = make(Retention(30, 64 * MIB, 20, new=10))
    flood(store, [fault(number) for number in range(20)])
    store.wait(3700)
    flood(store, [fault(number) for number in range(20)])
    assert len(store.read()) == 21


def test_many_users_of_one_workload_are_one(make: Make) -> None:
    store = make(Retention(30, 64 * MIB, 20, new=10))
    flood(store, [fault(n, uid=2000 + n) for n in range(500)])
    found = store.read()
    assert len(found) == 41
    assert max(incident.events for incident in found) == 460


def test_all_users_of_a_namespace_are_one(make: Make) -> None:
    store = make(Retention(30, 64 * MIB, 20, new=10))
    flood(store, [fault(n, uid=100_000 + n) for n in range(500)])
    (many,) = (each for each in store.read() if each.caller == "many places")
    assert many.events == 490
    assert many.title.endswith("many places, users from 100000 on in user-65534.slice")


# ---- What only rises -----------------------------------------------------------------------------


def test_what_is_said_of_an_incident_only_rises(make: Make) -> None:
    """A second denial under a filter of his own made a critical one a warning."""
    first, last = denial(), denial(WEEK_START + 9)
    first["summary"] = "munmap of sealed memory refused: the first"
    last |= {"verdict": "unverified", "severity": "warning", "summary": "munmap refused: the last"}
    for order in itertools.permutations((first, last)):
        store = make()
        store.take(*order)
        (found,) = store.read()
        assert (found.severity, found.title, found.summary) == (
            "critical",
            "munmap of sealed memory refused",
            "munmap of sealed memory refused: the first",
        )
        assert found.facets["verdict"] == {"sealed": 1, "unverified": 1}
        assert found.last_ns == (WEEK_START + 9) * 10**9
        store.sink.close()
        store.path.unlink()


def test_at_the_same_severity_what_is_proved_counts_more(make: Make) -> None:
    store = make()
    proved = denial()
    store.take(proved, proved | {"verdict": "unverified", "summary": "something else: x"})
    (found,) = store.read()
    assert (found.title, found.summary) == (
        "munmap of sealed memory refused",
        proved["summary"],
    )


# ---- An older database ---------------------------------------------------------------------------


def test_one_of_the_first_version_is_brought_up(make: Make, tmp_path: Path) -> None:
    """Made by 0.1.0."""
    store = make()
    store.path.write_bytes(gzip.decompress((ASSETS / "incidents-2.db.gz").read_bytes()))
    before = store.read(EVERYTHING)
    his = denial(caller=2) | {"verdict": "unverified", "severity": "warning"}
    event = denial(caller=1)
    assert len(before) == 5
    (found,) = (each for each in before if each.id == fingerprint(event).id)
    assert store.snapshots(found) == [5]
    store.take(event | {"severity": "info", "verdict": "not_sealed"}, his)
    after = {incident.id: incident for incident in store.read(EVERYTHING)}
    assert ids(before) == set(after)
    assert (after[found.id].severity, after[found.id].count) == ("critical", found.count + 1)
    assert store.snapshots(after[found.id]) == [5]
    assert store.reports == []
    assert store.sink._database is not None
    owners = store.sink._database.execute("SELECT DISTINCT workload, user FROM standing")
    assert ("user-65534.slice", "65534") in owners.fetchall()


def test_owners() -> None:
    assert owner_of(fault(1)) == Owner("user-65534.slice", "65534")
    assert owner_of({"process": None, "workload": None}) == Owner("", "")
    for path, workload in (
        ("/system.slice/a.service/his/b.service", "a.service"),
        (
            "/kubepods.slice/kubepods-pod" + "a" * 8 + "_aaaa_aaaa_aaaa_" + "a" * 12 + ".slice/x",
            None,
        ),
        ("/system.slice/docker-" + "0" * 64 + ".scope/x", "container/" + "0" * 12),
        ("/his/1/2.scope", "/his"),
        ("/", "/"),
    ):
        found = owner_of({"process": None, "workload": {"cgroup": path}}).workload
        assert found == (workload or "pod/aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa")
