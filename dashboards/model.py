"""What a dashboard is made of: rows of panels, each with its queries.

In expressions `~name` stands for the metric `seal_monitor_name`, and SELECT for the chosen hosts.
Sums of all hosts have no label `instance`: SELECT finds them where all are chosen, and EACH finds
the hosts where some are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "ALERT",
    "CLICKHOUSE",
    "COUNT",
    "NAME",
    "POSTGRESQL",
    "PROMETHEUS",
    "TILE",
    "WIDTH",
    "Column",
    "Dashboard",
    "Link",
    "Panel",
    "Query",
    "Row",
    "Variable",
    "query",
]

Kind = Literal["bars", "lines", "number", "table", "text"]

# Grafana's names of the data sources.
PROMETHEUS = "prometheus"
CLICKHOUSE, POSTGRESQL = "grafana-clickhouse-datasource", "grafana-postgresql-datasource"
WIDTH = 24  # of Grafana's grid
COUNT = "locale"  # 5,321 and not 5.32 K
NAME = 110  # pixels
TILE = 3  # the height of a number
ALERT = 1  # a number that is coloured is so from this value on


@dataclass(frozen=True)
class Query:
    """`legend` is the name of a series; {{label}} in it stands for the label's value.

    The expression is PromQL, or SQL where the data source of the dashboard takes that.
    """

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Link:
    """`url` may have Grafana's variables, also those of a row: ${__data.fields.NAME}."""

    title: str
    url: str


@dataclass(frozen=True)
class Column:
    """Of a table. `unit` is for numbers; a value of `words` is shown as its word.

    A column of words that has none in some rows is `sparse`. It is `least` pixels wide, or as wide
    as its number needs: a table on a phone can be moved sideways.
    """

    title: str
    unit: str = "string"
    links: Sequence[Link] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    sparse: bool = False
    least: int = NAME


@dataclass(frozen=True)
class Panel:
    """`width` is in 24ths. `columns` are those of a table: a label or "Value", and how it is shown.

    A number takes the colour `alarm` from ALERT on. `links` are those of a number, a bar or a line.
    A `name` is shown in place of the number: the legend, as in "99 of 100".
    """

    title: str
    kind: Kind
    description: str
    unit: str
    queries: Sequence[Query]
    width: int
    height: int = 8
    alarm: str | None = None
    name: bool = False
    highest: float | None = None  # of the axis
    columns: Mapping[str, Column] = field(default_factory=dict)
    ascending: bool = False  # a table's rows, by the first column with a value
    hidden: Sequence[str] = ()  # labels that only links need
    links: Sequence[Link] = ()
    content: str = ""  # of a text, in Markdown


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """`label` of the series that `metric` selects; `many`: several or all of its values. Without a
    `metric` it is what a person types, or a link sets.

    `regex` takes from a value what is shown (`text`) and what is meant (`value`).
    """

    name: str
    title: str
    metric: str = ""
    label: str = ""
    many: bool = True
    default: str = ""
    regex: str = ""


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    source: str = PROMETHEUS
    since: str = "now-6h"


def query(expression: str, legend: str = "__auto") -> Query:
    return Query(expression, legend)
