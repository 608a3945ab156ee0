"""The dashboards: every query runs against a real Prometheus that holds hours of a fleet's life."""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from fleet import JOB, MINUTE, NEWCOMER, exposition
from prometheus import Prometheus, backfilled

from monitor.metrics.table import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards"
RULES = FOLDER / "rules"
HOSTS, MINUTES = 10, 240
RANGE = 120 * MINUTE  # what a dashboard shows: the second half
# Metrics that no dashboard and no rule uses, as globs, and why.
UNUSED: dict[str, str] = {}
# What Prometheus itself and the client library add.
OTHER_METRICS = {
    "up",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
}

Json = dict[str, Any]


def read(name: str) -> Json:
    document: Json = json.loads((FOLDER / name).read_text("utf-8"))
    return document


DOCUMENTS = {path.name: read(path.name) for path in sorted(FOLDER.glob("*.json"))}
PANELS = {
    f"{name}: {panel['title']}": panel
    for name, document in DOCUMENTS.items()
    for panel in document["panels"]
    if panel["type"] != "row"
}
VARIABLES = {
    f"{name}: {variable['name']}": variable
    for name, document in DOCUMENTS.items()
    for variable in document["templating"]["list"]
    if variable["type"] == "query"
}
ANNOTATIONS = {
    f"{name}: {annotation['name']}": annotation
    for name, document in DOCUMENTS.items()
    for annotation in document["annotations"]["list"]
}


def interpolated(text: str) -> str:
    """As Grafana sends it, for all hosts and workloads."""
    values = {
        "__rate_interval": "4m",
        "__range": f"{RANGE}s",
        "job": JOB,
        "instance": ".+",
        "workload": ".+",
    }
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    assert "$" not in text
    return text


class Filled(NamedTuple):
    server: Prometheus
    end: int


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    end = int(time.time()) // MINUTE * MINUTE
    folder = tmp_path_factory.mktemp("prometheus")
    start = end - MINUTES * MINUTE
    lines = exposition(HOSTS, MINUTES, end)
    with backfilled(folder, lines, RULES / "recording.yml", start, end) as server:
        yield Filled(server, end - MINUTE)  # the last sample's


def results(filled: Filled, target: Json) -> list[Any]:
    query = interpolated(target["expr"])
    if target["instant"]:
        return filled.server.instant(query, filled.end)
    return filled.server.over(query, filled.end - RANGE, filled.end, MINUTE)


# ---- With data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS.keys())
def test_every_panel_has_data(filled: Filled, panel: Json) -> None:
    for target in panel["targets"]:
        found = results(filled, target)
        assert found, target["expr"]
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for series in found:
            assert named <= set(series["metric"])
            shown = series.get("values") or [series["value"]]
            assert all(value != "NaN" for _, value in shown[-1:])
        if panel["type"] == "table":
            (rename,) = (each["options"]["renameByName"] for each in panel["transformations"])
            labels = {label for series in found for label in series["metric"]}
            assert labels == set(rename) - {"Value"}


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=VARIABLES.keys())
def test_every_variable_has_values(filled: Filled, variable: Json) -> None:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert asked
    values = filled.server.get(
        f"label/{asked[2]}/values",
        **{"match[]": interpolated(asked[1])},
        start=filled.end - RANGE,
        end=filled.end,
    )
    expected = {
        "job": [JOB],
        "instance": [f"web-{index:03}.example:10462" for index in range(HOSTS)],
    }.get(asked[2])
    assert values == expected if expected else NEWCOMER in values


@pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=ANNOTATIONS.keys())
def test_every_annotation_is_found(filled: Filled, annotation: Json) -> None:
    query = interpolated(annotation["target"]["expr"])
    found = filled.server.over(query, filled.end - RANGE, filled.end, MINUTE)
    hosts = {series["metric"]["instance"][:7] for series in found}
    assert hosts == {"Restarts": {"web-003"}, "Losses": {"web-008"}}[annotation["name"]]


def values(filled: Filled, name: str) -> dict[str, float]:
    """What an instant panel shows, by its labels."""
    (target,) = PANELS[name]["targets"]
    return {
        " ".join(series["metric"].values()): float(series["value"][1])
        for series in results(filled, target)
    }


def test_the_first_denial_of_a_workload(filled: Filled) -> None:
    begin = filled.end + MINUTE - MINUTES * MINUTE
    denied = begin + MINUTES * 4 // 5 * MINUTE
    ((workload, shown),) = values(filled, "overview.json: First denial ever").items()
    assert workload == NEWCOMER
    assert denied <= shown / 1000 < denied + MINUTE  # when the rule was evaluated next


def test_a_single_denial_is_one(filled: Filled) -> None:
    by_workload = values(filled, "overview.json: Workloads with most denials")
    assert by_workload[NEWCOMER] == 1
    assert next(iter(by_workload)) == "image-worker.service"
    titles = ("overview.json: Refused by a seal", "overview.json: Perhaps by a seal")
    total = sum(values(filled, name)[""] for name in titles)
    assert sum(by_workload.values()) == pytest.approx(total, rel=0.01)
    each = values(filled, "host.json: Denials by workload and verdict")
    assert each[f"web-001.example:10462 sealed {NEWCOMER}"] == 1


def test_health_at_a_glance(filled: Filled) -> None:
    shown = {
        name.removeprefix("health.json: "): values(filled, name)[""]
        for name, panel in PANELS.items()
        if name.startswith("health") and panel["type"] == "stat"
    }
    assert shown == {
        "Down": 1,
        "Never ready": 1,
        "Probes not attached": 1,
        "Config not in force": 1,
        "Corrupt records": 0,
        "Restarts": 1,
    }
    assert values(filled, "overview.json: Hosts watched") == {"": HOSTS - 1}


# ---- Without -------------------------------------------------------------------------------------


def test_the_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    sys.modules.pop("generate", None)
    import generate  # noqa: PLC0415

    made = {generate.file_name(each): generate.text(each) for each in generate.DASHBOARDS}
    assert set(made) == set(DOCUMENTS)
    for name, text in made.items():
        assert (FOLDER / name).read_text("utf-8") == text, "run: make docs"


def test_grafana_keeps_its_hands_off() -> None:
    """We choose the ids of a dashboard: links and updates then work."""
    assert {name: document["uid"] for name, document in DOCUMENTS.items()} == {
        "overview.json": "seal-monitor-overview",
        "host.json": "seal-monitor-host",
        "health.json": "seal-monitor-health",
    }
    for document in DOCUMENTS.values():
        assert document["id"] is None
        names = [variable["name"] for variable in document["templating"]["list"]]
        assert names[:3] == ["datasource", "job", "instance"]
        numbers = [panel["id"] for panel in document["panels"]]
        assert sorted(set(numbers)) == sorted(numbers)


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS.keys())
def test_every_panel_is_explained_and_readable(panel: Json) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        expression = target["expr"]
        assert not set(re.findall(r"\w+", expression)) & {"pid", "executable", "path", "comm"}
        assert 'job="$job"' in expression
        if not target["instant"]:
            windows = set(re.findall(r"\[(.+?)\]", expression))
            assert windows <= {"$__rate_interval"}, windows
        if "instance" in target["legendFormat"]:  # the most unusual of a hundred hosts
            assert re.match(r"(top|bottom)k\((5|10), |quantile", expression)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_panels_stand_side_by_side(name: str) -> None:
    places = [panel["gridPos"] for panel in DOCUMENTS[name]["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (one, other)


def expressions() -> str:
    targets = (target["expr"] for panel in PANELS.values() for target in panel["targets"])
    asked = (variable["query"]["query"] for variable in VARIABLES.values())
    noted = (annotation["target"]["expr"] for annotation in ANNOTATIONS.values())
    return "\n".join((*targets, *asked, *noted))


def rules() -> tuple[str, set[str]]:
    """Every expression of the rules, and what they record."""
    found = [
        rule
        for path in RULES.glob("*.yml")
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]
    recorded = {rule["record"] for rule in found if "record" in rule}
    return "\n".join(rule["expr"] for rule in found), recorded


def names_in(text: str) -> set[str]:
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    return set(re.findall(r"[\w:]*(?:seal_monitor|process)_[\w:]+|\bup\b", text))


def test_every_metric_is_there_and_used() -> None:
    in_rules, recorded = rules()
    used = {name.removesuffix("_bucket") for name in names_in(expressions()) | names_in(in_rules)}
    known = {metric.full_name for metric in METRICS}
    assert used - recorded - OTHER_METRICS <= known
    unused = {name for name in known - used if not any(fnmatch(name, glob) for glob in UNUSED)}
    assert unused == set()
    page = (ROOT / "docs/metrics.md").read_text("utf-8")
    assert all(f"| `{name}` |" in page for name in used & known)


def test_what_is_provisioned() -> None:
    (dashboards,) = (FOLDER / "provisioning/dashboards").glob("*.yml")
    (provider,) = yaml.safe_load(dashboards.read_text("utf-8"))["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/usr/local/share/seal-monitor"
    (sources,) = (FOLDER / "provisioning/datasources").glob("*.yml")
    (source,) = yaml.safe_load(sources.read_text("utf-8"))["datasources"]
    assert source["type"] == "prometheus"


# ---- Grafana's types -----------------------------------------------------------------------------

SCHEMA = json.loads((FOLDER / "pictures/grafana.schema.json").read_text("utf-8"))
GRAFANA = jsonschema.Draft7Validator(SCHEMA)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_grafana_knows_every_key_and_value(name: str) -> None:
    """The schema is made of @grafana/schema; a dashboard has only the keys named there."""
    error = jsonschema.exceptions.best_match(GRAFANA.iter_errors(DOCUMENTS[name]))
    assert error is None, (list(error.absolute_path), error.message)


@pytest.mark.parametrize(
    ("kind", "path", "key", "value"),
    [
        ("stat", "options", "colourMode", "value"),
        ("stat", "options", "colorMode", "bright"),
        ("table", "options", "sortby", []),
        ("bargauge", "options", "sizing", "Auto"),
        ("timeseries", "", "titel", "Denials"),
        ("timeseries", "gridPos", "width", 12),
        ("timeseries", "fieldConfig.defaults", "units", "s"),
        ("timeseries", "fieldConfig.defaults.custom", "drawStyle", "bar"),
        ("timeseries", "fieldConfig.defaults.custom", "fillOpactiy", 10),
    ],
)
def test_the_schema_finds_mistakes(kind: str, path: str, key: str, value: object) -> None:
    document = copy.deepcopy(DOCUMENTS["overview.json"])
    part = next(panel for panel in document["panels"] if panel["type"] == kind)
    for step in filter(None, path.split(".")):
        part = part[step]
    part[key] = value
    assert not GRAFANA.is_valid(document)
