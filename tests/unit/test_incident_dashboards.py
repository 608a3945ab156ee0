"""The dashboards of incidents: every query runs on the real engine, as Grafana would send it."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from centre import Centre, clickhouse, postgresql
from fleet_answers import Answers
from fleet_events import Fleet
from panels import FOLDER, Json

from monitor.fleet import questions

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
SINCE = NOW - timedelta(days=2)
DOCUMENTS: dict[str, Json] = {
    path.stem.removeprefix("incidents-"): json.loads(path.read_text("utf-8"))
    for path in sorted((FOLDER / "fleet").glob("incidents-*.json"))
}
ENGINES: dict[str, Callable[[], AbstractContextManager[Centre]]] = {
    "clickhouse": clickhouse,
    "postgresql": postgresql,
}
FLEET = Fleet(4000, NOW)
SENT = [*FLEET.lines()]
ANSWERS = Answers(fact for _, fact in SENT)
KINDS = ("denial", "fault", "bypass")
ANY = dict.fromkeys(("host", "executable", "workload", "verdict", "likely", "operation"), "")


@pytest.fixture(scope="module", params=list(ENGINES))
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[str, Centre]]:
    with ENGINES[request.param]() as centre:
        centre.load(line for line, _ in SENT)
        yield request.param, centre


def panels(name: str) -> dict[str, Json]:
    return {each["title"]: each for each in DOCUMENTS[name]["panels"] if each["type"] != "row"}


def interpolated(text: str, **values: str) -> str:
    """As Grafana fills in the variables: `percentencode` leaves letters, digits and -_.~ alone."""
    text = text.replace("${__from}", str(int(SINCE.timestamp() * 1000)))
    text = text.replace("${__to}", str(int(NOW.timestamp() * 1000)))
    for name, value in values.items():
        escaped = value.replace("'", "''")
        text = text.replace(f"${{{name}:percentencode}}", quote(value, safe=""))
        text = text.replace(f"${{{name}:sqlstring}}", f"'{escaped}'")
    assert "$" not in text, text
    return text


def shown(filled: tuple[str, Centre], title: str, **values: str) -> list[tuple[Any, ...]]:
    name, centre = filled
    (target,) = panels(name)[title]["targets"]
    chosen = {"fingerprint": FLEET.spreading, "host": SENT[0][1].host, **values}
    return centre.rows(interpolated(target["rawSql"], **chosen))


def test_panels_show_the_right_answers(filled: tuple[str, Centre]) -> None:
    of_it = {"fingerprint": FLEET.spreading}
    time = {"since": SINCE, "until": NOW}
    ((hosts, workloads, _, users, _, _, delivered, held_back),) = ANSWERS.ask("radius", **of_it)
    expected: dict[str, list[tuple[Any, ...]]] = {
        "New incidents": ANSWERS.ask("new", kinds=KINDS, limit=200, **time),
        "Incidents": ANSWERS.ask("incidents", kinds=KINDS, rank=0, **time, **ANY)[:200],
        "Hosts": [(hosts,)],
        "Violations": [(delivered + held_back,)],
        "Workloads": [(workloads,)],
        "Users": [(users,)],
        "Spread": sorted((row[0], row[2]) for row in ANSWERS.ask("spread", **of_it)),
        "Its hosts": ANSWERS.ask("hosts", limit=200, **of_it),
    }
    for title, rows in expected.items():
        assert rows, title
        assert [*map(tuple, shown(filled, title))] == rows, title
    found = [(row[0], row[1], row[3], row[10]) for row in shown(filled, "What it reported")]
    assert found == ANSWERS.ask("timeline", host=SENT[0][1].host, **time)
    ids = {fact.id for fact in ANSWERS.facts if fact.fingerprint == FLEET.spreading}
    last = shown(filled, "Its last events")
    assert {id for id, _ in last} <= ids
    assert all(json.loads(event)["id"] == id for id, event in last)
    others = set(panels(filled[0])) - set(expected)
    assert others == {"What it reported", "Its last events"}


@pytest.mark.parametrize(
    "evil",
    ["'", "\\", "\\' OR 1=1 --", "'; DROP TABLE seal_monitor.records; --", "%' OR '1", "é\n"],
)
def test_a_variable_is_a_value(filled: tuple[str, Centre], evil: str) -> None:
    """The names of hosts come from hosts."""
    for title in ("Its hosts", "Its last events", "What it reported"):
        assert shown(filled, title, fingerprint=evil, host=evil) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_have_the_columns_of_their_query(name: str) -> None:
    for title, panel in panels(name).items():
        if panel["type"] == "table":
            (target,) = panel["targets"]
            outer = target["rawSql"].partition("FROM")[0].removeprefix("SELECT\n")
            columns = re.findall(r"(?:AS )?(\w+),?\n", outer)
            organized = panel["transformations"][-1]["options"]
            assert list(organized["renameByName"]) == columns, title
            assert panel["options"]["sortBy"] == []  # the query's order stays


@pytest.mark.parametrize("name", DOCUMENTS)
def test_grafana_knows_all_but_the_queries(name: str) -> None:
    """The queries' own keys are those of their data sources, which have no published types."""
    schema = json.loads((FOLDER / "pictures/grafana.schema.json").read_text("utf-8"))
    document = copy.deepcopy(DOCUMENTS[name])
    for panel in document["panels"]:
        if "targets" in panel:
            panel["targets"] = []
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft7Validator(schema).iter_errors(document)
    )
    assert error is None, (list(error.absolute_path), error.message)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_query_goes_to_the_chosen_source(name: str) -> None:
    document = DOCUMENTS[name]
    kind = f"grafana-{name}-datasource"
    assert document["templating"]["list"][0]["query"] == kind
    for panel in panels(name).values():
        for target in panel["targets"]:
            assert target["datasource"] == {"type": kind, "uid": "${datasource}"}


def test_the_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    sys.modules.pop("generate", None)
    import generate  # noqa: PLC0415

    made = {generate.file_name(each): generate.text(each) for each in generate.INCIDENTS}
    there = {path.name: path.read_text("utf-8") for path in (FOLDER / "fleet").glob("*.json")}
    assert made == there, "run: make docs"


def test_a_question_without_its_parameters_has_only_expressions() -> None:
    text = questions.filled("hosts", {"fingerprint": "F", "limit": "7"}, True)
    assert "WHERE fingerprint = F" in text
    assert text.endswith("LIMIT 7")
    assert "--" not in text
