"""What an incident keeps of whom: an attacker pushes nobody else's evidence out of it.

He can make violations with the fingerprint of another's: from as many cgroups, processes, users of
a user namespace and executables as he likes.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_incidents import KEPT, MIB, NOW, WEEK_START, Store, denial, make, suppression

from monitor.evidence.fingerprint import fingerprint
from monitor.evidence.owner import NOBODY, Owner, owner_of
from monitor.incidents.places import Row, Value, has_more, row_to_remove, value_to_remove
from monitor.incidents.retention import Retention
from monitor.incidents.schema import VERSION, schema_of
from monitor.incidents.search import Incident
from monitor.incidents.store import OTHERS, snapshot_data

__all__ = ["make"]

Event = dict[str, Any]
Make = Callable[..., Store]

SCOPE = "/user.slice/user-1000.slice/user@1000.service/run-{}.scope"
ODD = "\x1b]0;x\a\u202e/.. '\"|\n"


def victim(number: int = 0) -> Event:
    """The worker's, as root started it; each of another process."""
    return _of(33, "/system.slice/image-worker.service", number, pid=7000 + number)


def _of(uid: int, cgroup: str, number: int, **others: Any) -> Event:
    event = denial(WEEK_START + number / 1000, **others)
    event["process"] |= {"uid": uid, "user_name": "www-data" if uid == 33 else None}
    event["workload"] |= {"cgroup": cgroup, "unit": cgroup.rpartition("/")[2]}
    return event


def by_scopes(number: int) -> Event:
    return _of(1000, SCOPE.format(number % 40), number, pid=9000 + number)


def by_sub_users(number: int) -> Event:
    return _of(100_000 + number * 131 % 65_536, SCOPE.format(number % 40), number)


def by_executables(number: int) -> Event:
    path = f"/tmp/{number}/image-worker"
    return _of(1000, SCOPE.format(number % 3), number, executable=path)


def by_odd_names(number: int) -> Event:
    cgroup = SCOPE.format(f"{ODD}{number}")
    return _of(1000, cgroup, number, executable=f"/tmp/{ODD}{number}/image-worker")


ATTACKS = [by_scopes, by_sub_users, by_executables, by_odd_names]


def pids(store: Store, found: Incident) -> Counter[int]:
    return Counter(event["process"]["pid"] for event in store.events(found))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_flood_leaves_another_his_evidence(
    make: Make, attack: Callable[[int], Event], is_first: bool
) -> None:
    store = make()
    his = [victim(number) for number in range(3)]
    flood = [attack(number) for number in range(600)]
    assert {fingerprint(event).id for event in flood} == {fingerprint(his[0]).id}
    for part in (flood, his) if is_first else (his, flood):
        store.take(*part)
    (found,) = store.read()
    assert found.count == 603
    kept = store.events(found)
    assert len(kept) == KEPT.events
    assert [event for event in kept if event["process"]["uid"] == 33] == his
    # All that is left is the attacker's own last ones.
    assert kept[-1] == (his if is_first else flood)[-1]
    assert found.facets["workload"]["image-worker.service"] == 3
    assert found.facets["executable"]["/srv/images/bin/image-worker"] >= 3
    assert found.facets["user"] == {"www-data": 3}
    for values in found.facets.values():
        assert len(values) <= 33
    for name in ("workload", "executable", "host", "verdict"):
        assert sum(found.facets[name].values()) == 603


def test_users_of_one_workload_share_it(make: Make) -> None:
    """Where no systemd divides them, one who has 65,536 users is as good as one."""
    store = make()
    store.take(_of(33, "/", 0, pid=7000), _of(34, "/", 1, pid=7001))
    store.take(*(_of(100_000 + number, "/", number + 2) for number in range(500)))
    (found,) = store.read()
    assert pids(store, found) == {7000: 1, 7001: 1, 1000: 18}


def test_each_of_two_has_half(make: Make) -> None:
    store = make()
    for number in range(200):
        store.take(victim(number), by_scopes(number))
    (found,) = store.read()
    kept = Counter(event["process"]["uid"] for event in store.events(found))
    assert kept == {33: 10, 1000: 10}
    (last,) = (event for event in store.events(found) if event == victim(199))
    assert last["process"]["uid"] == 33


def test_one_alone_has_all_of_it(make: Make) -> None:
    store = make()
    store.take(*(by_executables(number) for number in range(100)))
    (found,) = store.read()
    assert store.events(found) == [by_executables(number) for number in range(80, 100)]
    assert len(found.facets["executable"]) == 33
    assert found.facets["executable"][OTHERS] == 68


def test_the_worst_of_each_stays(make: Make) -> None:
    lesser = {"severity": "warning", "verdict": "unverified"}
    store = make(Retention(30, MIB, events=6))
    store.take(victim(0), by_scopes(0))
    for number in range(1, 50):
        store.take(victim(number) | lesser, by_scopes(number) | lesser)
        store.take(suppression(5, victim(number)))
    (found,) = store.read()
    kept = store.events(found)
    assert len(kept) == 6
    assert kept[:2] == [victim(0), by_scopes(0)]
    assert found.severity == "critical"


def test_of_more_owners_than_places_the_worst_and_the_last_are_kept(make: Make) -> None:
    store = make(Retention(30, MIB, events=4))
    lesser = {"severity": "warning", "verdict": "unverified"}
    events = [_of(0, f"/system.slice/w{number}.service", number) for number in range(10)]
    store.take(events[0], *(event | lesser for event in events[1:]))
    (found,) = store.read()
    assert store.events(found) == [events[0], *(event | lesser for event in events[7:])]


def test_snapshots_are_shared_too(make: Make) -> None:
    store = make()
    event = victim()
    store.take(event)

    def snapshot(pid: int, owner: Owner) -> None:
        text = b'{"pid":%d,"memory_map":[]}' % pid
        store.sink.write(snapshot_data(fingerprint(event).id, NOW, text, owner))

    snapshot(1, owner_of(event))
    for number in range(50):
        snapshot(100 + number, owner_of(by_scopes(number)))
    (found,) = store.read()
    assert store.snapshots(found) == [1, 148, 149]


def test_a_value_that_two_have_is_of_the_one_who_has_fewer(make: Make) -> None:
    """Else it would go with the share of an attacker who had used it before."""
    store = make()
    copied = _of(1000, SCOPE.format(0), 0)
    store.take(copied, *(by_executables(number) for number in range(40)))
    store.take(victim(1))
    another = [
        _of(1001, "/user.slice/user-1001.slice/a.scope", n, executable=f"/t/{n}/image-worker")
        for n in range(40)
    ]
    store.take(*another, *another)
    (found,) = store.read()
    assert found.facets["executable"]["/srv/images/bin/image-worker"] == 2
    with closing(sqlite3.connect(store.path)) as database:
        query = "SELECT user, count(*) FROM facets WHERE name = 'executable' AND value <> ? "
        shares = dict(database.execute(query + "GROUP BY user", (OTHERS,)))
    assert shares == {"33": 1, "1000": 15, "1001": 16}


def test_no_order_of_events_takes_a_share_away() -> None:
    """Any flood: each owner has what he made, or as much as an equal share."""
    chance = random.Random(5)
    for _ in range(100):
        kept, values, made = [], [], Counter[str]()
        for seq in range(300):
            workload = chance.choice("aaaaaaaaaabbc")
            made[workload] += 1
            kept.append(Row(seq, workload, str(chance.randrange(3)), chance.randrange(3)))
            if (loser := row_to_remove(kept, 20)) is not None:
                kept = [row for row in kept if row.seq != loser]
            values.append(Value(workload, "", 1, False, f"{seq}"))
            if len(values) > 32:
                values.remove(value_to_remove(values))
            values = [value._replace(is_kept=True) for value in values]
        for found, places in ((kept, 20), (values, 32)):
            shares = Counter(each.workload for each in found)
            assert shares.total() == places
            for workload, number in made.items():
                assert shares[workload] >= min(number, places // len(made))


def test_nobody_gives_first() -> None:
    one, other = Owner("a", "1"), Owner("b", "1")
    assert has_more(NOBODY, one, {})
    assert not has_more(one, NOBODY, {one: 9})
    assert not has_more(one, other, {one: 1})
    assert has_more(one, other, {one: 2})
    assert not has_more(one, Owner("a", "2"), {one: 2, Owner("a", "2"): 1})
    # All of a workload's users together, against another workload.
    assert has_more(one, other, {one: 1, Owner("a", "2"): 2, other: 1})


# ---- Databases of versions before and after ------------------------------------------------------


def version_3(path: Path) -> None:
    """Make the database what the version before wrote."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE owners")
        for table in ("facets", "snapshots"):
            for column in ("workload", "user"):
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 3")


def test_an_older_database_is_read_and_brought_up(make: Make) -> None:
    store = make()
    his = victim()
    store.take(his, *(by_executables(number) for number in range(32)))
    text = b'{"pid":1,"memory_map":[]}'
    store.sink.write(snapshot_data(fingerprint(his).id, NOW, text))
    before = store.read()
    store.sink.close()
    version_3(store.path)
    assert store.read() == before
    assert store.events(before[0])[-1] == by_executables(31)
    assert store.snapshots(before[0]) == [1]
    # Its events have their owners, its values the next one who has them.
    store.take(victim(1))
    (found,) = store.read()
    kept = Counter(event["process"]["uid"] for event in store.events(found))
    assert kept == {1000: 18, 33: 2}
    store.take(*(by_executables(number) for number in range(100, 200)))
    (found,) = store.read()
    kept = Counter(event["process"]["uid"] for event in store.events(found))
    assert kept == {1000: 18, 33: 2}
    assert found.facets["executable"]["/srv/images/bin/image-worker"] == 2
    assert sum(found.facets["executable"].values()) == found.events == 134
    with closing(sqlite3.connect(store.path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert store.reports == []


def test_each_version_has_the_tables_of_the_one_before() -> None:
    names = [{row[1] for row in schema_of(version)} for version in range(1, VERSION + 1)]
    for older, newer in pairwise(names):
        assert older < newer
