"""The centre's tables and questions, on ClickHouse's engine and on PostgreSQL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import pytest
import yaml
from centre import SCHEMAS, Centre, ClickHouse, PostgreSQL, clickhouse, postgresql, statements
from fleet_answers import ANY, KINDS, OF_THE_COMMAND, Answers, comparable
from fleet_events import SPREADING, Fleet, example

from monitor.evidence.cgroups import alerted_workload, parse_cgroup_path, workload_name
from monitor.evidence.fingerprint import unattributed
from monitor.fleet import questions

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
EVER = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": NOW + timedelta(days=1)}
LAST_DAY = {"since": NOW - timedelta(days=1), "until": NOW}
ENGINES: dict[str, Callable[[], AbstractContextManager[Centre]]] = {
    "clickhouse": clickhouse,
    "postgresql": postgresql,
}
# Loading takes the time: 4 s for the first, 5 s for the second.
SIZES = {"clickhouse": 100_000, "postgresql": 25_000}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Centre]:
    with ENGINES[request.param]() as found:
        yield found


@pytest.fixture
def centre(engine: Centre) -> Centre:
    engine.clear()
    return engine


def asked(fleet: Fleet, answers: Answers) -> list[tuple[str, dict[str, Any]]]:
    """Each question, some in several ways."""
    worst = answers.ask("incidents", kinds=KINDS, rank=0, limit=1, **EVER, **ANY)[0][0]
    host = max(
        set(fleet.hosts), key=lambda name: sum(fact.host == name for fact in answers.facts[:5000])
    )
    narrow = {**ANY, "workload": f"{SPREADING}.service", "operation": "mprotect"}
    every: dict[str, Any] = {"kinds": (*KINDS, "seal", "health"), "rank": 0, "limit": 100_000}
    return [
        ("incidents", {"kinds": KINDS, "rank": 0, "limit": 50, **EVER, **ANY}),
        ("incidents", {"kinds": ("denial",), "rank": 2, "limit": 1000, **LAST_DAY, **ANY}),
        ("incidents", {"kinds": KINDS, "rank": 0, "limit": 50, **EVER, **narrow}),
        ("incidents", {"kinds": KINDS, "rank": 0, "limit": 50, **EVER, **ANY, "host": host}),
        ("incidents", {**every, **EVER, **ANY}),
        ("hosts", {"fingerprint": fleet.spreading, "limit": 10_000}),
        ("hosts", {"fingerprint": worst, "limit": 3}),
        ("radius", {"fingerprint": fleet.spreading}),
        ("radius", {"fingerprint": unattributed("denial", "munmap").id}),
        ("spread", {"fingerprint": fleet.spreading, "limit": 1000}),
        ("spread", {"fingerprint": unattributed("denial", "munmap").id, "limit": 24}),
        ("new", {"kinds": KINDS, "limit": 10_000, **LAST_DAY}),
        ("timeline", {"host": host, "limit": 1000, **EVER}),
        ("timeline", {"host": host, "limit": 5, **LAST_DAY}),
        ("user", {"user": "build", "limit": 1000, **LAST_DAY}),
        ("build_id", {"build_id": fleet.programs[3].build_id, "limit": 100}),
        ("build_id", {"build_id": "93ac61ec5a8eb1396f9fbd350e3169a558528a40", "limit": 10}),
        ("similar", {"fingerprint": worst, "limit": 20}),
    ]


def test_questions_have_the_right_answers(centre: Centre, request: pytest.FixtureRequest) -> None:
    fleet = Fleet(SIZES[request.node.callspec.params["engine"]], NOW)
    sent = list(fleet.lines())
    centre.load(line for line, _ in sent)
    answers = Answers(fact for _, fact in sent)
    assert len(sent) > len(answers.facts)  # some were sent twice
    assert {name for name, _ in asked(fleet, answers)} == set(questions.names()) - OF_THE_COMMAND
    for name, values in asked(fleet, answers):
        found = comparable(name, centre.ask(name, **values))
        assert found == answers.ask(name, **values), (name, values)
        assert found, (name, values)


def test_what_is_sent_twice_counts_once(centre: Centre) -> None:
    lines = [line for line, _ in Fleet(300, NOW).lines()]
    for _ in range(3):
        centre.load(lines)
    assert centre.rows("SELECT count(*), count(DISTINCT id) FROM seal_monitor.events") == [
        (300, 300)
    ]
    host = json.loads(lines[0])["host"]["name"]
    timeline = centre.ask("timeline", host=host, limit=1000, **EVER)
    ids = [row[10] for row in timeline]
    assert len(ids) == len(set(ids)) == sum(f'"name":"{host}"' in line for line in set(lines))


def test_the_first_of_two_with_one_id_stays(centre: Centre) -> None:
    """A host whose root is an attacker cannot replace what it has reported."""
    event = json.loads(next(Fleet(1, NOW).lines())[0])
    centre.load([json.dumps(event)])
    if isinstance(centre, ClickHouse):  # a second later, or both are equally early
        centre.rows("SELECT sleep(1.1)")
    centre.load([json.dumps(event | {"summary": "nothing happened"})])
    for view in ("events", "host_events"):
        found = centre.rows(f"SELECT summary FROM seal_monitor.{view}")
        assert found == [(event["summary"],)]


# ---- Hostile and odd -----------------------------------------------------------------------------


def line(**changes: object) -> str:
    event = example("denial") | {"time": f"{NOW:%Y-%m-%dT%H:%M:%S}.000000000Z"} | changes
    return json.dumps(event)


HOSTILE = {
    "no JSON": "'; DROP TABLE seal_monitor.records; --",
    "a number": "1",
    "a list": "[1, 2]",
    "null": "null",
    "a part of an event": line()[:300],
    "no id": line(id=""),
    "deep": "[" * 5000,
    "a NUL": line(id="nul").replace("image-worker", "\\u0000"),
    "half a surrogate": line(id="surrogate").replace("image-worker", "\\ud800"),
    "a number too large": line(id="large", count=10**40, process={"uid": 10**30, "pid": -1}),
    "a time that is none": line(id="time", time="2026-13-45T99:99:99Z"),
}
ODD = {
    "objects for texts": line(id="objects", severity={}, workload=[], process="x", host=7, stack=1),
    "a newer schema": line(id="newer", schema=99, kind="rowhammer", severity="fatal", more=[{}]),
    "next to nothing": json.dumps({"id": "least", "kind": "fault", "time": line()[:0] or "x"}),
    "a later day": line(id="future", time="2299-01-01T00:00:00.000000000Z"),
    "an earlier day": line(id="past", time="1970-01-01T00:00:00.000000000Z"),
    "a long name": line(id="long", host={"name": "h" * 100_000, "id": "i" * 100_000}),
    "as SQL": line(id="sql", host={"name": "'; DROP TABLE x; --", "id": "\\'"}),
}


def test_no_text_stops_the_collector(centre: Centre) -> None:
    """Each line of a batch is stored as it was sent; what is no event has a kind of its own."""
    good = line(id="good")
    lines = [*HOSTILE.values(), good, *ODD.values()]
    centre.load(lines)
    stored = dict(centre.rows("SELECT event, kind FROM seal_monitor.events"))
    assert set(stored) == set(lines)
    assert stored[good] == "denial"
    for name in ("no JSON", "a number", "a list", "null", "a part of an event", "no id", "deep"):
        assert stored[HOSTILE[name]] == "unreadable", name
    kinds = {name: stored[text] for name, text in ODD.items()}
    kinds.pop("next to nothing")
    assert kinds.pop("a newer schema") == "rowhammer"
    assert set(kinds.values()) == {"denial"}
    (rank,) = centre.rows("SELECT rank FROM seal_monitor.events WHERE id = 'newer'")
    assert rank == (2,)  # an unknown severity is not hidden among the lesser ones
    assert not centre.rows("SELECT id FROM seal_monitor.events WHERE time < '2000-01-01 00:00:00'")
    later = (NOW + timedelta(days=3)).strftime("%Y-%m-%d %H:%M:%S")
    assert not centre.rows(f"SELECT id FROM seal_monitor.events WHERE time > '{later}'")
    longest = centre.rows("SELECT max(length(host)), max(length(host_id)) FROM seal_monitor.events")
    assert longest == [(255, 255)]


def test_questions_take_values_for_values(centre: Centre) -> None:
    evil = "'; DROP TABLE seal_monitor.records; --"
    centre.load([line(id="sql", host={"name": evil, "id": "1"})])
    (found,) = centre.ask("timeline", host=evil, limit=10, **EVER)
    assert found[10] == "sql"


CGROUPS = (
    "/system.slice/nginx.service",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope",
    "/user.slice/user-1000.slice/user@1000.service/init.scope",
    "/user.slice/user-1000.slice/session-2.scope",
    f"/system.slice/docker-{'a1' * 32}.scope",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e3d4c_0000_1111_2222_"
    f"333344445555.slice/cri-containerd-{'b2' * 32}.scope",
    "/",
    "/user@5.service/x.service",
    "/some/where/else",
    f"/system.slice/{'a-long-name-' * 20}\N{GREEK SMALL LETTER ALPHA}.service",
    f"/user.slice/user-1000.slice/user@1000.service/app.slice/{'long-' * 45}.scope",
    "/user.slice/user-1000.slice",
    "/user.slice/user-1000.sliced/session-3.scope",
    "/machine.slice/user.slice/user-1000.slice/session-4.scope",
)


def test_workloads_have_the_names_of_events_and_of_alerts(centre: Centre) -> None:
    lines = []
    for number, cgroup in enumerate(CGROUPS):
        facts = parse_cgroup_path(cgroup)
        workload = {"unit": facts.unit, "container_id": facts.container_id}
        workload |= {"pod_uid": facts.pod_uid, "cgroup": facts.cgroup}
        lines.append(line(id=f"event-{number:02}", workload=workload))
    centre.load(lines)
    found = centre.rows("SELECT workload, user_slice FROM seal_monitor.events ORDER BY id")
    assert [name for name, _ in found] == [*map(workload_name, CGROUPS)]
    assert [of_user or name for name, of_user in found] == [*map(alerted_workload, CGROUPS)]
    assert [of_user for _, of_user in found].count("user-1000.slice") == 4


def test_an_event_without_fingerprint_is_of_an_unknown_caller(centre: Centre) -> None:
    """Of a suppression, and of a monitor that is older than fingerprints."""
    suppression = example("suppression") | {"time": f"{NOW:%Y-%m-%dT%H:%M:%S}.000000000Z"}
    suppression.pop("fingerprint", None)
    old = json.loads(line(id="old"))
    old.pop("fingerprint", None)
    centre.load([json.dumps(suppression), json.dumps(old)])
    query = "SELECT kind, what, fingerprint, events, suppressed FROM seal_monitor.events"
    assert sorted(centre.rows(query)) == [
        ("denial", "mprotect", unattributed("denial", "mprotect").id, 1, 0),
        ("denial", "munmap", unattributed("denial", "munmap").id, 0, suppression["count"]),
    ]


# As Vector's sink for PostgreSQL inserts.
VECTORS_INSERT = (
    "INSERT INTO seal_monitor.inbox "
    "SELECT * FROM jsonb_populate_recordset(NULL::seal_monitor.inbox, %s)"
)


# ---- One engine ----------------------------------------------------------------------------------

only_clickhouse = pytest.mark.parametrize("engine", ["clickhouse"], indirect=True)
only_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@only_clickhouse
def test_a_host_timeline_reads_its_own_rows(centre: ClickHouse) -> None:
    """Not those of all hosts: at most two granules of 256 rows."""
    centre.load(line for line, _ in Fleet(5000, NOW).lines())
    values = {"host": "node-00097.dc1.example", "limit": 9, **EVER}
    rows = centre.rows(f"EXPLAIN ESTIMATE {questions.clickhouse('timeline')}", **values)
    ((_, table, _, read, _),) = rows
    assert table == "host_records"
    assert read <= 512


@only_clickhouse
def test_the_collectors_record_becomes_a_row(centre: ClickHouse) -> None:
    """The columns that the OpenTelemetry collector fills; what is no event counts all the same."""
    centre.execute(
        "INSERT INTO seal_monitor.inbox (Timestamp, TraceId, SpanId, TraceFlags, SeverityText, "
        "SeverityNumber, ServiceName, Body, ResourceSchemaUrl, ResourceAttributes, "
        "ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, LogAttributes, EventName) "
        "VALUES (now64(9), '', '', 0, 'ERROR', 17, 'seal-monitor', 'nonsense', '', "
        "{'host.id': 'abc', 'host.name': 'web-3'}, '', '', '', {}, {}, '')"
    )
    query = "SELECT kind, host_id, host, id, severity FROM seal_monitor.events"
    name = f"unreadable-{hashlib.md5(b'nonsense').hexdigest()}"
    assert centre.rows(query) == [("unreadable", "abc", "web-3", name, "warning")]


def transformed(file: str, name: str, record: dict[str, object]) -> dict[str, object]:
    """What the program of a transform makes of a log record, run by Vector's own language."""
    if find_spec("pyvrl") is None:
        pytest.skip("pyvrl is not installed; run: make test")
    import pyvrl  # noqa: PLC0415 - skipped above where it is missing

    transforms = yaml.safe_load((SCHEMAS / file).read_text("utf-8"))["transforms"]
    made: dict[str, object] = pyvrl.Transform(transforms[name]["source"]).remap(record)
    return made


# As Vector gives a log record (its lib/opentelemetry-proto/src/logs.rs): a body that is no text as
# a value of its own, and resources only where there are some.
RECORD: dict[str, object] = {
    "message": line(id="one"),
    "resources": {"host.id": "abc", "host.name": "web-3", "service.name": "seal-monitor"},
    "severity_text": "ERROR",
}
NO_TEXT: dict[str, object] = {"message": {"a": [1]}}


@only_clickhouse
def test_vectors_row_becomes_a_record(centre: ClickHouse) -> None:
    for record in (RECORD, NO_TEXT):
        row = transformed("vector_clickhouse.yaml", "rows", record)
        centre.execute(f"INSERT INTO seal_monitor.inbox FORMAT JSONEachRow {json.dumps(row)}")
    found = centre.rows("SELECT event, kind, host FROM seal_monitor.events ORDER BY kind")
    assert found == [
        (RECORD["message"], "denial", "web-3"),
        ('{"a":[1]}', "unreadable", ""),
    ]


@only_postgresql
def test_vectors_line_becomes_a_record(centre: PostgreSQL) -> None:
    rows = [transformed("vector_postgresql.yaml", "lines", each) for each in (RECORD, NO_TEXT)]
    centre.rows(VECTORS_INSERT, (json.dumps(rows),))
    found = centre.rows("SELECT event, kind FROM seal_monitor.events ORDER BY kind")
    assert found == [(RECORD["message"], "denial"), ('{"a":[1]}', "unreadable")]


@only_clickhouse
def test_clickhouse_can_read_the_roles(centre: ClickHouse) -> None:
    """The engine has no store of users, so that the statements are parsed and not run."""
    for statement in statements(SCHEMAS / "clickhouse_roles.sql"):
        assert centre.rows(f"EXPLAIN AST {statement.strip()}"), statement


@only_postgresql
def test_a_reader_cannot_write_nor_a_writer_read(centre: PostgreSQL) -> None:
    import psycopg  # noqa: PLC0415 - skipped above where it is missing

    for name in ("reader", "writer"):
        centre.rows(f"CREATE ROLE {name} LOGIN IN ROLE seal_monitor_{name}")
    with centre.connect("writer") as writer:
        lines = [{"line": line(id="one")}, {"line": line(id="two")}]
        writer.execute(VECTORS_INSERT, (json.dumps(lines),))
        for query in (
            "SELECT * FROM seal_monitor.records",
            "DELETE FROM seal_monitor.records",
            "SELECT seal_monitor.expire(0)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute(query)
    with centre.connect("reader") as reader:
        found = reader.execute("SELECT id FROM seal_monitor.events ORDER BY id").fetchall()
        assert found == [("one",), ("two",)]
        for query in (
            "INSERT INTO seal_monitor.inbox VALUES ('x')",
            "DELETE FROM seal_monitor.records",
            "SELECT seal_monitor.expire(0)",
            "CREATE TABLE seal_monitor.mine ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(query)


@only_postgresql
def test_retention_takes_the_oldest(centre: PostgreSQL) -> None:
    days = (1, 20, 40)
    centre.load(
        line(id=f"of-{day}", time=f"{NOW - timedelta(days=day):%Y-%m-%dT%H:%M:%S}.000000000Z")
        for day in days
    )
    assert centre.rows("SELECT seal_monitor.expire(30)") == [(1,)]
    assert centre.rows("SELECT id FROM seal_monitor.events ORDER BY id") == [("of-1",), ("of-20",)]


@only_postgresql
def test_psql_takes_a_question(centre: PostgreSQL) -> None:
    centre.load([line(id="one")])
    found = centre.psql(
        *("-v", "host=web-3", "-v", "since=2000-01-01", "-v", "until=2100-01-01", "-v", "limit=5"),
        text=questions.psql("timeline"),
    )
    assert found.split("|")[10].strip() == "one"


@only_postgresql
def test_the_tables_may_be_made_again(centre: PostgreSQL) -> None:
    centre.load([line(id="one")])
    centre.psql("-1", "-f", str(SCHEMAS / "postgresql.sql"))
    centre.psql("-1", "-f", str(SCHEMAS / "postgresql_roles.sql"))
    assert centre.rows("SELECT count(*) FROM seal_monitor.events") == [(1,)]
