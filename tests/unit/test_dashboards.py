"""The dashboards: every query runs against a real Prometheus that holds hours of a fleet's life."""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from fleet import JOB, MINUTE, NEWCOMER, exposition
from panels import ALL, BAR, DOCUMENTS, FOLDER, PANELS, RANGE, VARIABLES, Json, interpolated
from prometheus import Prometheus, backfilled

from monitor.metrics.table import METRICS

ROOT = Path(__file__).parents[2]
RULES = FOLDER / "rules"
HOSTS, MINUTES = 10, 240  # the dashboards show the second half
# Metrics that no dashboard and no rule uses, and why.
UNUSED: dict[str, str] = {
    "seal_monitor_last_violation_timestamp_seconds": "for the text of alerts; incidents have more",
    "seal_monitor_announced_violations_total": "own trials; health events report each",
    "seal_monitor_starts_total": "health events report each",
    "seal_monitor_unread_seconds_total": "the event of the start has it",
    "seal_monitor_records_found_total": "the event of the start has it",
}
# What Prometheus itself and the client library add.
OTHER_METRICS = {
    "up",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
}

ANNOTATIONS = {
    f"{name}: {annotation['name']}": annotation
    for name, document in DOCUMENTS.items()
    for annotation in document["annotations"]["list"]
}


EVALUATED = MINUTE - 1  # seconds after a sample: by then the rules have it


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


def results(filled: Filled, target: Json, hosts: str = ALL) -> list[Any]:
    query = interpolated(target["expr"], hosts)
    at = filled.end + EVALUATED
    if target["instant"]:
        return filled.server.instant(query, at)
    return filled.server.over(query, at - RANGE + BAR, at, BAR)


def hidden(panel: Json) -> set[str]:
    """The columns that only links need."""
    return {
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if any(each["id"] == "custom.hidden" for each in override["properties"])
    }


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
            renamed = panel["transformations"][-1]["options"]["renameByName"]
            labels = {label for series in found for label in series["metric"]}
            assert labels == {name for name in renamed if "Value" not in name} | hidden(panel)


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS.keys())
def test_all_hosts_have_what_each_has(filled: Filled, panel: Json) -> None:
    """All of them are read from other series than hosts that are chosen one by one."""
    every = "|".join(rf"web-{index:03}\\.example:10462" for index in range(HOSTS))

    def shown(target: Json, hosts: str) -> dict[str, list[float]]:
        return {
            str(sorted(series["metric"].items())): [
                round(float(value), 9) for _, value in series.get("values") or [series["value"]]
            ]
            for series in results(filled, target, hosts)
        }

    for target in panel["targets"]:
        assert shown(target, ALL) == shown(target, f"({every})"), target["expr"]


def test_one_host_is_not_all(filled: Filled) -> None:
    """Nor is what all have added to it, or shown where it has nothing."""
    (target,) = PANELS["overview.json: Refused by a seal"]["targets"]
    gained = {
        index: float(found["value"][1])
        for index in range(HOSTS)
        for found in results(filled, target, rf"web-{index:03}\\.example:10462")
    }
    assert set(gained) == set(range(HOSTS)) - {5}  # which does not answer
    (of_all,) = results(filled, target)
    assert sum(gained.values()) == float(of_all["value"][1])
    assert 0 < max(gained.values()) < sum(gained.values())
    assert results(filled, target, "nowhere") == []


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
    hosts = {series["metric"]["host"] for series in found}
    expected = {"Restarts": {"web-003.example"}, "Losses": {"web-008.example"}}
    assert hosts == expected[annotation["name"]]


def values(filled: Filled, name: str) -> dict[str, float]:
    """What a table or a number shows, by its labels; hosts without their port."""
    (target,) = PANELS[name]["targets"]
    return {
        " ".join(value for label, value in series["metric"].items() if label != "instance"): float(
            series["value"][1]
        )
        for series in results(filled, target)
    }


def number(filled: Filled, name: str) -> float | str:
    """What a number shows: itself or, as in "99 of 100", its name."""
    panel = PANELS[name]
    (target,) = panel["targets"]
    (series,) = results(filled, target)
    if panel["options"]["textMode"] == "name":
        return re.sub(
            r"{{(\w+)}}", lambda found: series["metric"][found[1]], target["legendFormat"]
        )
    return float(series["value"][1])


@pytest.fixture(scope="module")
def counted(filled: Filled) -> dict[str, dict[tuple[str, ...], float]]:
    """What the fleet's counters gained in the range, without Prometheus: by metric and labels."""
    last: dict[str, float] = {}
    gained: dict[str, dict[tuple[str, ...], float]] = {}
    for line in exposition(HOSTS, MINUTES, filled.end + MINUTE):
        if found := re.fullmatch(r"seal_monitor_(\w+_total)({.*}) (\S+) (\d+)\n", line):
            metric, labels, value, at = found[1], found[2], float(found[3]), int(found[4])
            before = last.get(metric + labels, 0.0)
            last[metric + labels] = value
            if at > filled.end - RANGE:
                key = tuple(re.findall(r'"(.*?)"', labels)[1:])
                gain = value - before if value >= before else value
                gained.setdefault(metric, {}).setdefault(key, 0.0)
                gained[metric][key] += gain
    return gained


Counted = dict[str, dict[tuple[str, ...], float]]


def summed(counted: Counted, metric: str, index: int) -> dict[str, float]:
    """By one of the labels; 0 is the host. `metric{value}`: of this value of any label."""
    name, _, value = metric.rstrip("}").partition("{")
    found: dict[str, float] = {}
    for labels, gain in counted[name].items():
        if gain and (not value or value in labels):
            found[labels[index]] = found.get(labels[index], 0.0) + gain
    return found


def test_the_first_denial_of_a_workload(filled: Filled) -> None:
    begin = filled.end + MINUTE - MINUTES * MINUTE
    denied = begin + MINUTES * 4 // 5 * MINUTE
    ((workload, shown),) = values(filled, "overview.json: First denial ever").items()
    assert workload == NEWCOMER
    assert denied <= shown / 1000 < denied + MINUTE  # when the rule was evaluated next


def test_a_single_denial_is_one(filled: Filled, counted: Counted) -> None:
    by_workload = values(filled, "overview.json: Workloads with most denials")
    assert by_workload[NEWCOMER] == 1
    assert next(iter(by_workload)) == "image-worker.service"
    titles = ("overview.json: Refused by a seal", "overview.json: Perhaps by a seal")
    total = sum(float(number(filled, name)) for name in titles)
    assert sum(by_workload.values()) == total
    each = values(filled, "host.json: Denials by workload and verdict")
    assert each[f"web-001.example sealed {NEWCOMER}"] == 1
    assert sum(each.values()) == sum(counted["workload_denials_total"].values())


def test_numbers_are_exact(filled: Filled, counted: Counted) -> None:
    by_verdict = summed(counted, "denials_total", 2)
    assert number(filled, "overview.json: Refused by a seal") == by_verdict["sealed"]
    assert number(filled, "overview.json: Perhaps by a seal") == by_verdict["unverified"]
    critical = {
        kind: sum(
            gain
            for labels, gain in counted["violations_total"].items()
            if labels[2:] == (kind, "critical")
        )
        for kind in ("denial", "fault", "bypass")
    }
    assert critical["denial"] > critical["fault"] == 1 > critical["bypass"] == 0
    assert number(filled, "overview.json: Critical denials") == critical["denial"]
    assert number(filled, "overview.json: Critical faults") == critical["fault"]
    assert number(filled, "overview.json: Critical bypasses") == 0
    warnings = summed(counted, "violations_total", 3)["warning"]
    assert number(filled, "overview.json: Warnings") == warnings
    partial = sum(counted["partial_updates_total"].values())
    assert number(filled, "overview.json: Partial updates") == partial
    by_operation = values(filled, "host.json: Denials by operation")
    assert sum(by_operation.values()) == sum(by_verdict.values())
    by_operation = values(filled, "overview.json: Denials by operation")
    assert sum(by_operation.values()) == by_verdict["sealed"] + by_verdict["unverified"]
    by_host = values(filled, "overview.json: Hosts with most denials")
    assert by_host["web-000.example"] == sum(
        gain for labels, gain in counted["denials_total"].items() if labels[0].startswith("web-000")
    )


@pytest.mark.parametrize(
    ("name", "metric", "label"),
    [
        ("overview.json: Denials", "violations_total{denial}", 3),
        ("host.json: Denials of the workload", "violations_total{denial}", 3),
        ("overview.json: Bypasses", "violations_total{bypass}", 3),
        ("overview.json: Faults", "violations_total{fault}", 3),
        ("overview.json: Partial updates over time", "partial_updates_total", None),
        ("health.json: Events by result", "events_total", 2),
        ("health.json: Incidents removed", "incidents_removed_total", 1),
        ("health.json: Sent to a collector", "sink_sent_total", 2),
    ],
)
def test_bars_add_up(
    filled: Filled, counted: Counted, name: str, metric: str, label: int | None
) -> None:
    """Each event is in one bar, as a whole number, and not in the next one as well."""
    (target,) = PANELS[name]["targets"]
    shown: dict[str, float] = {}
    for series in results(filled, target):
        gains = [float(value) for _, value in series["values"]]
        assert all(gain == int(gain) for gain in gains)
        shown[" ".join(series["metric"].values())] = sum(gains)
    expected = (
        {"": sum(counted[metric].values())} if label is None else summed(counted, metric, label)
    )
    assert shown == expected


def by_column(filled: Filled, name: str) -> list[dict[str, float]]:
    """The columns of a table, by instance."""
    return [
        {series["metric"]["instance"]: float(series["value"][1]) for series in found}
        for found in (results(filled, target) for target in PANELS[name]["targets"])
    ]


def test_health_names_who_has_what_the_collector_has_not(filled: Filled, counted: Counted) -> None:
    oldest, on_disk = by_column(filled, "health.json: Waiting for the collector")
    (waiting,) = oldest
    assert oldest[waiting] == MINUTE * (on_disk[waiting] / 4096 + 1)
    assert waiting == "web-004.example:10462"
    assert on_disk.keys() == oldest.keys()
    refused, lost = by_column(filled, "health.json: Never at the collector")
    assert refused == summed(counted, "sink_sent_total{refused}", 0) == {waiting: 2}
    assert lost == summed(counted, "sink_spool_dropped_total", 0) == {waiting: 10}


def test_health_names_who_is_in_trouble(filled: Filled) -> None:
    found = values(filled, "health.json: Hosts that need a person")
    begin = filled.end + MINUTE - MINUTES * MINUTE
    last = {"web-005.example": begin + MINUTES * 9 // 10 * MINUTE - MINUTE - 20}
    assert found == {
        "web-005.example does not answer": 1000.0 * last["web-005.example"],
        "web-006.example was never ready": 0.0,
        "web-007.example shmdt a probe is not attached": 1000.0 * (filled.end - 20),
        "web-009.example its configuration is not in force": 1000.0 * (filled.end - 20),
    }


def test_what_became_no_event_is_not_judged(filled: Filled) -> None:
    assert number(filled, "overview.json: Not judged") == 0
    (target,) = PANELS["overview.json: Not judged"]["targets"]
    without = target["expr"].replace('kind=~"denial|bypass"', 'kind="bypass"')
    (found,) = filled.server.instant(interpolated(without), filled.end)
    denials = 'sum(seal_monitor_denials_total{verdict!="not_sealed"} offset 2m)'
    (all_of_them,) = filled.server.instant(denials, filled.end)
    assert float(found["value"][1]) == float(all_of_them["value"][1]) > 0


def test_health_at_a_glance(filled: Filled) -> None:
    shown = {
        name.removeprefix("health.json: "): number(filled, name)
        for name, panel in PANELS.items()
        if name.startswith("health") and panel["type"] == "stat"
    }
    assert shown == {
        "Hosts up": "9 of 10",
        "Hosts that see": "7 of 9",
        "Corrupt records": 0,
        "Configuration in force": "8 of 9",
        "Events lost": 1,
        "Restarts": 1,
    }
    assert number(filled, "overview.json: Hosts up") == "9 of 10"
    assert number(filled, "overview.json: Sealing") == 115 / 1417


def test_who_stopped_sealing_is_named(filled: Filled) -> None:
    assert values(filled, "overview.json: Hosts with programs that stopped sealing") == {
        "web-001.example": 1
    }
    assert number(filled, "overview.json: Programs that stopped sealing") == 1


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
    assert re.search(r"[.`]$", panel["description"])
    if panel["type"] == "text":
        return
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        expression = target["expr"]
        assert not set(re.findall(r"\w+", expression)) & {"pid", "executable", "path", "comm"}
        assert 'job="$job"' in expression
        if not target["instant"]:
            windows = set(re.findall(r"\[(.+?)\]", expression))
            assert windows <= {"$__rate_interval", "$__interval", "1h"}, windows


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
    assert known - used == UNUSED.keys()
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
        ("text", "options", "mode", "Markdown"),
        ("timeseries", "", "titel", "Denials"),
        ("timeseries", "gridPos", "width", 12),
        ("timeseries", "fieldConfig.defaults", "units", "s"),
        ("timeseries", "fieldConfig.defaults.custom", "drawStyle", "bar"),
        ("timeseries", "fieldConfig.defaults.custom", "fillOpactiy", 10),
    ],
)
def test_the_schema_finds_mistakes(kind: str, path: str, key: str, value: object) -> None:
    document = copy.deepcopy(DOCUMENTS["host.json"])
    part = next(panel for panel in document["panels"] if panel["type"] == kind)
    for step in filter(None, path.split(".")):
        part = part[step]
    part[key] = value
    assert not GRAFANA.is_valid(document)
