"""What a designer and a person on call expect of each panel, by the generated dashboards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from panels import DOCUMENTS, FOLDER, PANELS, SERIES, VARIABLES, Json

from monitor.arguments import parse
from monitor.commands.incidents import moment
from monitor.metrics.table import METRICS

NUMBERS = {name: panel for name, panel in PANELS.items() if panel["type"] == "stat"}
TABLES = {name: panel for name, panel in PANELS.items() if panel["type"] == "table"}
# As a person reads them: whole numbers with separators, bytes, parts, short times on an axis, and
# dates or "3 minutes ago" in a table.
UNITS = {
    "timeseries": {"locale", "bytes", "percentunit", "s"},
    "stat": {"locale", "percentunit"},
    "table": {"s", "string", "locale", "bytes", "percentunit", "dateTimeAsIso", "dateTimeFromNow"},
}
GREY = "#8e8e8e"
LEGEND = 10


def each(panels: dict[str, Json]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("panel", panels.values(), ids=panels.keys())


@pytest.fixture(scope="module")
def colors() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import colors as module  # noqa: PLC0415

        yield module


def overrides(panel: Json) -> dict[str, dict[str, Any]]:
    """By what they match, their properties."""
    return {
        override["matcher"]["options"]: {one["id"]: one["value"] for one in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }


def expressions(panel: Json) -> str:
    """With the names of the counters in place of what is recorded of them."""
    text = "\n".join(target["expr"] for target in panel["targets"])
    return re.sub(r"\w+:(seal_monitor_\w+):(?:gained|nonzero)", r"\1_total", text)


def values_of(label: str, panel: Json) -> set[str]:
    """All values that a label may have on this panel, by the table of metrics."""
    text = expressions(panel)
    (values,) = {
        metric.labels[label]
        for metric in METRICS
        if metric.full_name in text and label in metric.labels
    }
    asked = re.search(rf'{label}=~?"(.+?)"', text)
    return {one for one in values if asked is None or re.fullmatch(asked[1], one)}


def fixed(panel: Json) -> dict[str, str]:
    """The colour of each series that has one."""
    return {
        name: properties["color"]["fixedColor"]
        for name, properties in overrides(panel).items()
        if "color" in properties
    }


# ---- Colours -------------------------------------------------------------------------------------


def test_a_colour_has_one_meaning(colors: Any) -> None:
    meanings = [meaning.text for meaning in colors.COLORS.values()]
    assert len(set(meanings)) == len(meanings)
    names = [
        (label, name)
        for meaning in colors.COLORS.values()
        for label, those in meaning.names.items()
        for name in those
    ]
    assert len(set(names)) == len(names)


@each(SERIES)
def test_every_series_has_the_colour_of_its_meaning(panel: Json, colors: Any) -> None:
    shown: dict[str, str] = {}
    for target in panel["targets"]:
        legend = target["legendFormat"]
        if label := re.fullmatch(r"{{(\w+)}}", legend):
            for name in values_of(label[1], panel):
                shown[name] = colors.of_label(label[1])[name]
        else:
            shown[legend] = colors.of_name(legend)
    drawn = fixed(panel)
    assert {name: drawn[name] for name in shown} == shown
    assert len(set(shown.values())) == len(shown), "two series look the same"


def test_red_is_for_what_is_critical(colors: Any) -> None:
    """The names that are red anywhere: a new one is thought about."""
    assert colors.COLORS["red"].text.startswith("critical")
    red = {name for panel in SERIES.values() for name, one in fixed(panel).items() if one == "red"}
    assert red == {
        *("critical", "partial updates", "failed canaries"),
    }
    text = "\n".join((FOLDER / name).read_text("utf-8") for name in DOCUMENTS)
    others = set(re.findall(r'"(?:fixedColor|iconColor|color)": "(.+?)"', text))
    assert others <= set(colors.COLORS)
    assert set(re.findall(r'"((?:\w+-)*red)"', text)) == {"red"}


@each(NUMBERS)
def test_a_number_is_grey_when_nothing_happened(panel: Json) -> None:
    first, *others = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert first == {"color": GREY, "value": None}
    assert others in (
        [],
        [{"color": "red", "value": 1}],
        [{"color": "orange", "value": 1}],
    )
    assert panel["options"]["graphMode"] == "none"


def test_the_top_row_is_what_needs_a_person() -> None:
    for name, document in DOCUMENTS.items():
        row, *panels = document["panels"]
        assert (row["type"], row["title"]) == ("row", "Needs a person now, where it is red")
        lines = [panel for panel in panels if panel["gridPos"]["y"] == 1]
        assert sum(panel["gridPos"]["w"] for panel in lines) == 24
        titles = [panel["title"] for panel in lines]
        assert {"Hosts up", "Hosts that see"} <= set(titles)
        if name != "health.json":
            assert titles == [
                *("Critical denials", "Critical bypasses", "Critical faults", "Partial updates"),
                *("Not judged", "Hosts up", "Hosts that see"),
            ]
            reds = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1] for panel in lines]
            assert reds == [{"color": "red", "value": 1}] * 7


# ---- Units and legends ---------------------------------------------------------------------------


@each({**SERIES, **NUMBERS, **TABLES})
def test_units_are_those_that_a_person_reads(panel: Json) -> None:
    units = {panel["fieldConfig"]["defaults"]["unit"]}
    units |= {each["unit"] for each in overrides(panel).values() if "unit" in each}
    assert units <= UNITS[panel["type"]]


@each(SERIES)
def test_no_axis_counts_days_in_seconds(panel: Json) -> None:
    """How long ago something was is in a table, as "3 minutes ago"."""
    ago = re.sub(r"time\(\) - process_start_time_seconds{.*?} >", "", expressions(panel))
    ago = re.sub(r"time\(\) - process_start_time_seconds{.*?} <", "", ago)
    assert "time()" not in ago


@each(SERIES)
def test_what_happens_now_and_then_is_counted(panel: Json) -> None:
    """A quarter of an event a minute is nothing that happened."""
    for target in panel["targets"]:
        is_bars = panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars"
        counters = [
            metric.full_name
            for metric in METRICS
            if metric.type == "counter" and metric.full_name in expressions(panel)
        ]
        assert is_bars == bool(counters)
        if is_bars:
            assert "rate(" not in target["expr"]
            assert "$__interval" in target["expr"]
            assert (panel["interval"], panel["maxDataPoints"]) == ("5m", 100)
            assert panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"


@each(SERIES)
def test_no_legend_grows_with_the_fleet(panel: Json) -> None:
    """Hosts, workloads and sinks are in tables; a legend has at most ten names, all known."""
    names = 0
    for target in panel["targets"]:
        labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
        assert target["legendFormat"] != "__auto"
        names += len(values_of(labels[0], panel)) if labels else 1
    assert names <= LEGEND


def test_programs_that_stopped_sealing_are_a_table() -> None:
    shown = {name for name, panel in PANELS.items() if "posture_executables" in expressions(panel)}
    assert shown == {
        "overview.json: Programs that stopped sealing",
        "overview.json: Hosts with programs that stopped sealing",
    }
    assert not shown & set(SERIES)


def test_titles_are_unique_on_a_dashboard() -> None:
    for document in DOCUMENTS.values():
        titles = [each["title"] for each in document["panels"] if each["type"] != "row"]
        assert sorted(set(titles)) == sorted(titles)


# ---- Hosts ---------------------------------------------------------------------------------------


@each(TABLES)
def test_hosts_have_no_port(panel: Json) -> None:
    renamed = panel["transformations"][-1]["options"]["renameByName"]
    assert "instance" not in renamed
    by_host = [target for target in panel["targets"] if "by (instance" in target["expr"]]
    if "host" in renamed:
        assert all("label_replace" in target["expr"] for target in by_host)
        hidden = overrides(panel)["instance"]
        assert hidden["custom.hidden"] is True
        assert hidden["custom.hideFrom"]["viz"] is True
        (link,) = overrides(panel)["Host"]["links"]
        assert "var-instance=${__data.fields.instance:percentencode}" in link["url"]


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize(
    ("instance", "host"),
    [
        ("web-001.example:10462", "web-001.example"),
        ("web-001.example", "web-001.example"),
        ("192.0.2.7:443", "192.0.2.7"),
        ("[2001:db8::7]:10462", "[2001:db8::7]"),
    ],
)
def test_the_choice_of_hosts_has_no_port(name: str, instance: str, host: str) -> None:
    written = VARIABLES[f"{name}: instance"]["regex"]
    found = re.search(written.strip("/").replace("(?<", "(?P<"), instance)
    assert found
    assert (found["text"], found["value"]) == (host, instance)


# ---- Links ---------------------------------------------------------------------------------------


def links() -> Iterator[tuple[str, Json, str]]:
    """Panel and URL of every link."""
    for name, panel in PANELS.items():
        config = panel["fieldConfig"]
        for found in (config["defaults"], *overrides(panel).values()):
            for link in found.get("links", ()):
                yield name, panel, link["url"]


@pytest.mark.parametrize(("name", "panel", "url"), links())
def test_a_link_leads_to_a_dashboard_of_ours(name: str, panel: Json, url: str) -> None:
    asked = urlsplit(url)
    target = {document["uid"]: document for document in DOCUMENTS.values()}[
        asked.path.removeprefix("/d/")
    ]
    variables = {variable["name"] for variable in target["templating"]["list"]}
    for given in re.findall(r"\${(\w+):queryparam}", url):
        assert given in variables
    for key, value in parse_qsl(asked.query):
        assert key.removeprefix("var-") in variables
        column = re.fullmatch(r"\${__data\.fields\.(\w+):percentencode}", value)
        assert column
        renamed = panel["transformations"][-1]["options"]["renameByName"]
        assert column[1] in {*renamed.values(), "instance"}
    assert "${__url_time_range}" in url


def test_every_number_of_violations_leads_to_its_incidents() -> None:
    """From the overview to the host, from the host to the command."""
    for name, panel in PANELS.items():
        coloured = panel["type"] == "stat" and len(
            panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        )
        if name.startswith("overview") and coloured == 2:
            assert panel["fieldConfig"]["defaults"]["links"], name


def commands() -> Iterator[str]:
    for panel in PANELS.values():
        for text in (panel["description"], panel["options"].get("content", "")):
            yield from re.findall(r"seal-monitor incidents .+?(?=`|\n)", text)


def test_the_commands_that_are_named_are_ours() -> None:
    found = set(commands())
    assert len(found) > 3
    for command in found:
        asked = command.replace("${__from:date:iso}", "2026-11-29T01:14:00.000Z")
        asked = asked.replace("${__to:date:iso}", "2026-11-29T07:13:00.000Z")
        arguments = parse(asked.split()[1:])
        assert "$" not in asked
        for flag in ("since", "until"):
            if hasattr(arguments, flag):
                moment(f"--{flag}", getattr(arguments, flag), 0)
