"""The generated dashboards, as their tests read them, and the queries as Grafana sends them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fleet import JOB, MINUTE

__all__ = [
    "ALL",
    "BAR",
    "DOCUMENTS",
    "FOLDER",
    "PANELS",
    "RANGE",
    "SERIES",
    "VARIABLES",
    "Json",
    "interpolated",
]

FOLDER = Path(__file__).parents[1] / "dashboards"
RANGE = 120 * MINUTE  # what a dashboard shows
BAR = 5 * MINUTE
ALL = ".*"

Json = dict[str, Any]

DOCUMENTS: dict[str, Json] = {
    path.name: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
PANELS: dict[str, Json] = {
    f"{name}: {panel['title']}": panel
    for name, document in DOCUMENTS.items()
    for panel in document["panels"]
    if panel["type"] != "row"
}
SERIES = {name: panel for name, panel in PANELS.items() if panel["type"] == "timeseries"}
VARIABLES: dict[str, Json] = {
    f"{name}: {variable['name']}": variable
    for name, document in DOCUMENTS.items()
    for variable in document["templating"]["list"]
    if variable["type"] == "query"
}


def interpolated(text: str, hosts: str = ALL) -> str:
    """As Grafana sends it, for all workloads, and for all hosts unless it is a pattern of some."""
    values = {
        "__rate_interval": "4m",
        "__range_s": str(RANGE),
        "__range": f"{RANGE}s",
        "__interval_ms": str(BAR * 1000),
        "__interval": f"{BAR}s",
        "job": JOB,
        "instance": hosts,
        "workload": ".*",
    }
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    assert not re.search(r"\$(?!1\b)", text), text  # $1 is label_replace's
    return text
