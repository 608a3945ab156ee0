"""The questions of an investigation: one text of SQL each, which two databases take.

The text is ClickHouse's, with its own parameters, {name:Type}. For PostgreSQL only the parameters
are written in another way, and the functions `has` and `match` get the schema that postgresql.sql
makes them in. A value never becomes a part of the text: the driver sends it as a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["clickhouse", "filled", "names", "postgresql", "psql"]

# A wheel and the Debian package carry them beside this file, a checkout below dashboards/.
_DIRECTORY = next(
    path
    for path in (
        Path(__file__).parent / "questions",
        Path(__file__).parents[2] / "dashboards/fleet/questions",
    )
    if path.is_dir()
)
_PARAMETER = re.compile(r"\{(\w+):([^{}]+)\}")
_FUNCTION = re.compile(r"\b(has|match)\(")
# PostgreSQL's name of each type of ClickHouse's that a parameter has.
_TYPES = {
    "String": "text",
    "Array(String)": "text[]",
    "DateTime64(9, 'UTC')": "timestamptz",
    "UInt8": "bigint",
    "UInt32": "bigint",
}


def names() -> list[str]:
    """The names of all questions."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.sql"))


def clickhouse(name: str) -> str:
    """The question for ClickHouse: clickhouse-client takes a parameter as --param_NAME=VALUE."""
    return (_DIRECTORY / f"{name}.sql").read_text("utf-8")


def postgresql(name: str) -> str:
    """The question for psycopg, with parameters by name."""
    return _for_postgresql(clickhouse(name).replace("%", "%%"), "%({})s::{}")


def psql(name: str) -> str:
    """The question for psql, which takes a parameter as -v NAME=VALUE."""
    return _for_postgresql(clickhouse(name), ":'{}'::{}")


def filled(name: str, expressions: Mapping[str, str], is_postgresql: bool) -> str:
    """The question with an expression of SQL in place of each parameter, without its comments."""
    text = "\n".join(line for line in clickhouse(name).splitlines() if not line.startswith("--"))
    if is_postgresql:
        text = _FUNCTION.sub(r"seal_monitor.\1(", text)
    return _PARAMETER.sub(lambda found: expressions[found[1]], text)


def _for_postgresql(text: str, form: str) -> str:
    text = _FUNCTION.sub(r"seal_monitor.\1(", text)
    return _PARAMETER.sub(lambda found: form.format(found[1], _TYPES[found[2]]), text)
