"""Writes the dashboards, for Grafana 10 or later: `python dashboards/generate.py`, or `make docs`.

What is on them is in tables.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import (
    COLORS,
    DASHBOARDS,
    DATASOURCE,
    WIDTH,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
)

__all__ = ["DASHBOARDS", "document", "file_name", "text"]

Json = dict[str, Any]


def _expression(text: str) -> str:
    """PromQL; its own ~ are those of =~ and !~."""
    named = re.sub(r"(?<![=!])~", "seal_monitor_", text)
    return named.replace("SELECT", 'job="$job",instance=~"$instance"')


def _variable(variable: Variable) -> Json:
    definition = f"label_values({_expression(variable.metric)}, {variable.label})"
    every: Json = {"text": ["All"], "value": ["$__all"]}
    one: Json = {"text": variable.default, "value": variable.default}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.title,
        "datasource": DATASOURCE,
        "query": {"query": definition, "refId": "variable", "qryType": 1},
        "refresh": 2,  # with the time range
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        **({"allValue": ".+"} if variable.many else {}),
        "current": every if variable.many else one,
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def _annotation(name: str, color: str, expression: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "target": {"refId": "annotation", "expr": _expression(expression)},
        "titleFormat": name,
        "textFormat": text,
        "tagKeys": "instance",
    }


ANNOTATIONS = (
    _annotation(
        "Restarts",
        "blue",
        "changes(process_start_time_seconds{SELECT}[$__rate_interval]) > 0",
        "the monitor on {{instance}} was started",
    ),
    _annotation(
        "Losses",
        "orange",
        'sum by (instance) (increase(~events_total{SELECT,result=~"dropped|failed"}'
        "[$__rate_interval])) > 0"
        " or sum by (instance) (increase(~probe_missed_runs_total{SELECT}"
        "[$__rate_interval])) > 0",
        "events or runs lost on {{instance}}",
    ),
)


def _target(panel: Panel, index: int, wanted: Query) -> Json:
    is_instant = panel.kind != "timeseries"
    return {
        "refId": "ABCDEFGH"[index],
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": _expression(wanted.expression),
        "legendFormat": wanted.legend,
        "instant": is_instant,
        "range": not is_instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _thresholds(alarm: float | None) -> Json:
    steps: list[Json] = [{"color": "text" if alarm is None else "green", "value": None}]
    if alarm is not None:
        steps.append({"color": "red", "value": alarm})
    return {"mode": "absolute", "steps": steps}


def _override(name: str, *properties: tuple[str, Any]) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties],
    }


def _links(panel: Panel) -> list[Json]:
    return [{"title": title, "url": url, "targetBlank": False} for title, url in panel.links]


def _timeseries(panel: Panel) -> Json:
    has_results = any(re.search("{{(verdict|result)}}", each.legend) for each in panel.queries)
    bars = {
        "drawStyle": "bars",
        "fillOpacity": 80,
        "lineWidth": 0,
        "stacking": {"mode": "normal", "group": "A"},
    }
    are_hosts = any("instance" in each.legend for each in panel.queries)  # areas would overlap
    lines = {
        "drawStyle": "line",
        "fillOpacity": 0 if are_hosts else 10,
        "lineWidth": 1,
        "stacking": {"mode": "none", "group": "A"},
    }
    return {
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "color": {"mode": "palette-classic"},
                "custom": {**(bars if panel.bars else lines), "showPoints": "never"},
                "noValue": "none",
            },
            "overrides": [
                _override(name, ("color", {"mode": "fixed", "fixedColor": color}))
                for name, color in (COLORS.items() if has_results else ())
            ],
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
    return {
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": _thresholds(panel.alarm),
                "color": {"mode": "thresholds"},
                "noValue": "0",
            },
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "value",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def _bargauge(panel: Panel) -> Json:
    return {
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": [{"color": "red", "value": None}]},
                "color": {"mode": "thresholds"},
                "links": _links(panel),
                "noValue": "none",
            },
            "overrides": [],
        },
        "options": {
            "displayMode": "basic",
            "orientation": "horizontal",
            "valueMode": "color",
            "namePlacement": "auto",
            "showUnfilled": True,
            "sizing": "auto",
            "minVizWidth": 8,
            "minVizHeight": 16,
            "maxVizHeight": 300,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": False,
                "calcs": [],
            },
        },
    }


def _table(panel: Panel) -> Json:
    value = panel.columns.get("Value")
    hidden = {"Time": True, **({} if value else {"Value": True})}
    first = next(iter(panel.columns.values()))
    return {
        "fieldConfig": {
            "defaults": {
                "custom": {"align": "auto", "filterable": False, "cellOptions": {"type": "auto"}},
                "noValue": "none",
                "unit": "string",
            },
            "overrides": [
                *([_override(value, ("unit", panel.unit))] if value else ()),
                *([_override(first, ("links", _links(panel)))] if panel.links else ()),
            ],
        },
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": value or first, "desc": bool(value)}],
        },
        "transformations": [
            {
                "id": "organize",
                "options": {
                    "excludeByName": hidden,
                    "indexByName": {name: index for index, name in enumerate(panel.columns)},
                    "renameByName": dict(panel.columns),
                },
            }
        ],
    }


_FORMS = {"timeseries": _timeseries, "stat": _stat, "bargauge": _bargauge, "table": _table}


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "targets": [_target(panel, *pair) for pair in enumerate(panel.queries)],
        **_FORMS[panel.kind](panel),
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


def _panels(rows: Sequence[Row]) -> list[Json]:
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
            placed.append(_panel(panel, len(placed) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def document(dashboard: Dashboard) -> Json:
    """The dashboard in the form that Grafana reads."""
    datasource = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
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
        "time": {"from": "now-6h", "to": "now"},
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
        "annotations": {"list": list(ANNOTATIONS)},
        "templating": {"list": [datasource, *map(_variable, dashboard.variables)]},
        "panels": _panels(dashboard.rows),
    }


def file_name(dashboard: Dashboard) -> str:
    return f"{dashboard.uid.removeprefix('seal-monitor-')}.json"


def text(dashboard: Dashboard) -> str:
    return json.dumps(document(dashboard), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (Path(__file__).parent / file_name(each)).write_text(text(each), "utf-8")
