"""Writes the dashboards, for Grafana 10 or later: `python dashboards/generate.py`, or `make docs`.

What is on them is in overview.py, host.py and health.py; incidents.py: of the databases of fleet/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import colors
import queries
from health import HEALTH
from host import HOST
from incidents import INCIDENTS
from model import (
    ALERT,
    CLICKHOUSE,
    NAME,
    PROMETHEUS,
    WIDTH,
    Column,
    Dashboard,
    Link,
    Panel,
    Query,
    Row,
    Variable,
)
from overview import OVERVIEW

__all__ = ["DASHBOARDS", "INCIDENTS", "document", "expanded", "file_name", "text"]

Json = dict[str, Any]

DASHBOARDS = (OVERVIEW, HOST, HEALTH)
BARS = {"interval": "5m", "maxDataPoints": 100}  # a bar is so long at least, and there are so many
# Pixels: numbers have what they need, names the rest.
LETTER, ARROW = 8, 45  # of a title; the arrow shows by what the rows are sorted
WIDTHS = {"dateTimeAsIso": 165, "dateTimeFromNow": 165, "bytes": 105}
TYPES = {
    "bars": "timeseries",
    "lines": "timeseries",
    "number": "stat",
    "table": "table",
    "text": "text",
}


def expanded(text: str) -> str:
    """PromQL; its own ~ are those of =~ and !~."""
    named = re.sub(r"(?<![=!])~", "seal_monitor_", text)
    chosen = 'job="$job",instance=~"$instance"'
    # All hosts are chosen by a pattern that the name of any job matches, and none by its own name.
    return named.replace("SELECT", chosen).replace("EACH", f'{chosen},job!~"$instance"')


def _source(name: str) -> Json:
    return {"type": name, "uid": "${datasource}"}


def _variable(variable: Variable) -> Json:
    if not variable.metric:
        return {
            "type": "textbox",
            "name": variable.name,
            "label": variable.title,
            "query": variable.default,
            "current": {"text": variable.default, "value": variable.default},
            "options": [],
            "hide": 0,
            "skipUrlSync": False,
        }
    definition = f"label_values({expanded(variable.metric)}, {variable.label})"
    every: Json = {"text": ["All"], "value": ["$__all"]}
    one: Json = {"text": variable.default, "value": variable.default}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.title,
        "datasource": _source(PROMETHEUS),
        "query": {"query": definition, "refId": "variable", "qryType": 1},
        "regex": variable.regex,
        "refresh": 2,  # with the time range
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        **({"allValue": ".*"} if variable.many else {}),  # also what has no such label
        "current": every if variable.many else one,
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def _annotation(name: str, color: str, expression: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": _source(PROMETHEUS),
        "enable": True,
        "hide": False,
        "iconColor": color,
        "target": {"refId": "annotation", "expr": expanded(queries.host(expression))},
        "titleFormat": name,
        "textFormat": text,
        "tagKeys": "host",
    }


ANNOTATIONS = (
    _annotation(
        "Restarts",
        "blue",
        "changes(process_start_time_seconds{SELECT}[$__rate_interval]) > 0",
        "the monitor on {{host}} was started",
    ),
    _annotation(
        "Losses",
        "dark-orange",
        'sum by (instance) (increase(~events_total{SELECT,result=~"dropped|failed"}'
        "[$__rate_interval])) > 0"
        " or sum by (instance) (increase(~probe_missed_runs_total{SELECT}"
        "[$__rate_interval])) > 0",
        "events or runs lost on {{host}}",
    ),
)


def _sql_target(panel: Panel, wanted: Query, source: str) -> Json:
    is_over_time = panel.kind in ("bars", "lines")
    if source == CLICKHOUSE:
        form = "timeseries" if is_over_time else "table"
        return {
            "editorType": "sql",
            "queryType": form,
            "format": 0 if is_over_time else 1,
            "rawSql": wanted.expression,
            "pluginVersion": "4.0.0",
        }
    return {
        "editorMode": "code",
        "rawQuery": True,
        "format": "time_series" if is_over_time else "table",
        "rawSql": wanted.expression,
    }


def _target(panel: Panel, index: int, wanted: Query, source: str) -> Json:
    head = {"refId": "ABCDEFGH"[index], "datasource": _source(source)}
    if source != PROMETHEUS:
        return head | _sql_target(panel, wanted, source)
    is_instant = panel.kind not in ("bars", "lines")
    return head | {
        "editorMode": "code",
        "expr": expanded(wanted.expression),
        "legendFormat": wanted.legend,
        "instant": is_instant,
        "range": not is_instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _override(name: str, *properties: tuple[str, Any]) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties],
    }


def _links(links: Sequence[Link]) -> list[Json]:
    return [{"title": link.title, "url": link.url, "targetBlank": False} for link in links]


def _colored(panel: Panel) -> list[Json]:
    """The colours of all series that the panel may have. Raises KeyError for one without."""
    found: dict[str, str] = {}
    for each in panel.queries:
        if label := re.fullmatch("{{(.+)}}", each.legend):
            found |= colors.of_label(label[1])
        else:
            found[each.legend] = colors.of_name(each.legend)
    return [
        _override(name, ("color", {"mode": "fixed", "fixedColor": color}))
        for name, color in found.items()
    ]


def _timeseries(panel: Panel) -> Json:
    bars = {
        "drawStyle": "bars",
        "fillOpacity": 80,
        "lineWidth": 0,
        "stacking": {"mode": "normal", "group": "A"},
    }
    lines = {
        "drawStyle": "line",
        "fillOpacity": 0,
        "lineWidth": 1,
        "stacking": {"mode": "none", "group": "A"},
    }
    is_bars = panel.kind == "bars"
    return {
        **(BARS if is_bars else {}),
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                **({} if panel.highest is None else {"max": panel.highest}),
                **({"decimals": 0} if panel.unit == "locale" else {}),  # there is no half event
                "color": {"mode": "fixed", "fixedColor": colors.NOTHING},
                "custom": {**(bars if is_bars else lines), "showPoints": "never"},
                "links": _links(panel.links),
                "noValue": "none",
            },
            "overrides": _colored(panel),
        },
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": True},
        },
    }


def _stat(panel: Panel) -> Json:
    steps: list[Json] = [{"color": colors.NOTHING, "value": None}]
    if panel.alarm is not None:
        steps.append({"color": panel.alarm, "value": ALERT})
    return {
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                "color": {"mode": "thresholds"},
                "links": _links(panel.links),
                "noValue": "none",
            },
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "name" if panel.name else "value",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def _column(label: str, column: Column) -> Json:
    """How a column is shown; its words have the colours that they have elsewhere."""
    properties: list[tuple[str, Any]] = []
    if column.unit != "string":
        title = LETTER * len(column.title) + ARROW
        properties.append(("unit", column.unit))
        properties.append(("custom.width", max(title, WIDTHS.get(column.unit, 0))))
    elif column.least != NAME:
        properties.append(("custom.minWidth", column.least))
    if column.unit == "percentunit":
        properties.append(("decimals", 2))
    if column.sparse:
        properties.append(("noValue", " "))  # instead of the panel's "none"
    if column.links:
        properties.append(("links", _links(column.links)))
    colored = {name: {"color": color} for name, color in colors.of_label(label).items()}
    words = {value: {"text": word} for value, word in column.words.items()}
    values = [*colored, *(value for value in words if value not in colored)]
    if options := {value: colored.get(value, {}) | words.get(value, {}) for value in values}:
        properties.append(("mappings", [{"type": "value", "options": options}]))
    if colored:
        properties.append(("custom.cellOptions", {"type": "color-text"}))
    return _override(column.title, *properties)


# Grafana 12 and later go by the second.
_HIDDEN = (
    ("custom.hidden", True),
    ("custom.hideFrom", {"viz": True, "legend": False, "tooltip": False}),
)


def _table(panel: Panel, is_sorted: bool) -> Json:
    """Sorted here, where the data source does not do that."""
    value = next((name for name in panel.columns if name.startswith("Value")), None)
    first = next(iter(panel.columns.values()))
    shown = [_column(*each) for each in panel.columns.items()]
    merge = [{"id": "merge", "options": {}}] if len(panel.queries) > 1 else []
    return {
        "fieldConfig": {
            "defaults": {
                "custom": {
                    "align": "auto",
                    "filterable": False,
                    "cellOptions": {"type": "auto"},
                    "minWidth": NAME,
                },
                "noValue": "none",
                "unit": "string",
            },
            "overrides": [
                *(each for each in shown if each["properties"]),
                *(_override(name, *_HIDDEN) for name in panel.hidden),
            ],
        },
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": []
            if is_sorted
            else [
                {
                    "displayName": panel.columns[value].title if value else first.title,
                    "desc": bool(value) and not panel.ascending,
                }
            ],
        },
        "transformations": [
            *merge,
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, **({} if value else {"Value": True})},
                    "indexByName": {name: index for index, name in enumerate(panel.columns)},
                    "renameByName": {name: column.title for name, column in panel.columns.items()},
                },
            },
        ],
    }


def _text(panel: Panel) -> Json:
    return {
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"mode": "markdown", "content": panel.content},
    }


_FORMS = {
    "bars": _timeseries,
    "lines": _timeseries,
    "number": _stat,
    "text": _text,
}


def _form(panel: Panel, source: str) -> Json:
    if panel.kind == "table":
        return _table(panel, is_sorted=source != PROMETHEUS)
    return _FORMS[panel.kind](panel)


def _panel(panel: Panel, source: str, number: int, x: int, y: int) -> Json:
    return {
        "id": number,
        "type": TYPES[panel.kind],
        "title": panel.title,
        "description": panel.description,
        "datasource": _source(source),
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "targets": [_target(panel, *pair, source) for pair in enumerate(panel.queries)],
        **_form(panel, source),
    }


def _row(row: Row, number: int, y: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
        "panels": [],
    }


def _panels(rows: Sequence[Row], source: str) -> list[Json]:
    """The panels placed from left to right; when a line is full, the next one begins."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(_row(row, len(placed) + 1, y))
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            placed.append(_panel(panel, source, len(placed) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def document(dashboard: Dashboard) -> Json:
    """The dashboard in the form that Grafana reads."""
    datasource = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": dashboard.source,
        "options": [],
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
    }
    return {
        "id": None,
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["seal-monitor"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair for all panels
        "time": {"from": dashboard.since, "to": "now"},
        "timepicker": {},
        "timezone": "",
        "refresh": "1m",
        "fiscalYearStartMonth": 0,
        "links": [
            {
                "type": "dashboards",
                "title": "seal-monitor",
                "tags": ["seal-monitor"],
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": list(ANNOTATIONS) if dashboard.source == PROMETHEUS else []},
        "templating": {"list": [datasource, *map(_variable, dashboard.variables)]},
        "panels": _panels(dashboard.rows, dashboard.source),
    }


def file_name(dashboard: Dashboard) -> str:
    return f"{dashboard.uid.removeprefix('seal-monitor-')}.json"


def text(dashboard: Dashboard) -> str:
    return json.dumps(document(dashboard), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (Path(__file__).parent / file_name(each)).write_text(text(each), "utf-8")
    for each in INCIDENTS:
        (Path(__file__).parent / "fleet" / file_name(each)).write_text(text(each), "utf-8")
