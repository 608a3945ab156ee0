"""The incidents of all hosts, from the databases of fleet/: one dashboard for each of the two.

The SQL is that of fleet/questions. What a person types, or a link sets, comes from events, and so
from an attacker: it is encoded on its way into a query, and never a part of its text.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from model import (
    CLICKHOUSE,
    COUNT,
    POSTGRESQL,
    Column,
    Dashboard,
    Link,
    Panel,
    Query,
    Row,
    Variable,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from monitor.fleet import questions

__all__ = ["INCIDENTS"]

_KINDS = ("denial", "fault", "bypass")
_PATTERNS = ("host", "executable", "workload", "verdict", "likely", "operation")
_RANKS = {"0": "info", "1": "warning", "2": "critical"}

_HERE = "/d/${__dashboard.uid}?${datasource:queryparam}&${__url_time_range}"
_INCIDENT = Link(
    "This incident",
    _HERE + "&${host:queryparam}&var-fingerprint=${__data.fields.Incident:percentencode}",
)
_HOST = Link(
    "What this host reported",
    _HERE + "&${fingerprint:queryparam}&var-host=${__data.fields.Host:percentencode}",
)
_METRICS = Link(
    "The metrics of this host",
    "/d/seal-monitor-host?var-instance=${__data.fields.Host:percentencode}:10462&${__url_time_range}",
)
_TIME = "dateTimeAsIso"
_INCIDENT_COLUMN = Column("Incident", links=(_INCIDENT,), least=130)
_WORST = Column("Severity", words=_RANKS)


def _expressions(source: str) -> Mapping[str, str]:
    """Of the parameters: of the time that is shown, and of the variables."""
    kinds = ", ".join(f"'{kind}'" for kind in _KINDS)
    usual = dict.fromkeys(_PATTERNS, "''") | {"rank": "0", "limit": "200"}
    if source == CLICKHOUSE:
        return usual | {
            "kinds": f"[{kinds}]",
            "since": "fromUnixTimestamp64Milli(toInt64(${__from}), 'UTC')",
            "until": "fromUnixTimestamp64Milli(toInt64(${__to}), 'UTC')",
            # A backslash means something in a text of ClickHouse's: quotes alone would not do.
            "fingerprint": "decodeURLComponent('${fingerprint:percentencode}')",
            "chosen_host": "decodeURLComponent('${host:percentencode}')",
        }
    return usual | {
        "kinds": f"ARRAY[{kinds}]",
        "since": "to_timestamp(${__from} / 1000.0)",
        "until": "to_timestamp(${__to} / 1000.0)",
        "fingerprint": "${fingerprint:sqlstring}",
        "chosen_host": "${host:sqlstring}",
    }


def _dashboard(source: str, name: str) -> Dashboard:
    values = _expressions(source)

    def text(question: str, **changes: str) -> str:
        return questions.filled(question, {**values, **changes}, source == POSTGRESQL)

    def asked(question: str, **changes: str) -> list[Query]:
        return [Query(text(question, **changes))]

    def part(question: str, columns: str, name: str) -> list[Query]:
        return [Query(f"SELECT {columns} FROM (\n{text(question)}\n) AS found ORDER BY 1", name)]

    def table(
        title: str,
        description: str,
        queries: list[Query],
        columns: Mapping[str, Column],
        width: int,
    ) -> Panel:
        return Panel(title, "table", description, COUNT, queries, width, 8, columns=columns)

    def number(title: str, description: str, column: str) -> Panel:
        return Panel(title, "number", description, COUNT, part("radius", column, "__auto"), 6, 3)

    incident = {
        "fingerprint": _INCIDENT_COLUMN,
        "kind": Column("Kind"),
        "what": Column("What"),
        "worst": _WORST,
    }
    return Dashboard(
        f"seal-monitor-incidents-{name}",
        f"seal-monitor / Incidents ({'ClickHouse' if source == CLICKHOUSE else 'PostgreSQL'})",
        "Incidents of all hosts, from the centre: what is new, where, and what each host reported.",
        (
            Variable("fingerprint", "Incident", many=False),
            Variable("host", "Host", many=False),
        ),
        (
            Row(
                "What is new, and what is worst",
                (
                    table(
                        "New incidents",
                        "What no host had before the time shown; the last one first.",
                        asked("new"),
                        {
                            **incident,
                            "first_seen": Column("First seen", _TIME),
                            "hosts": Column("Hosts", COUNT),
                            "violations": Column("Violations", COUNT),
                        },
                        24,
                    ),
                    table(
                        "Incidents",
                        "Those seen in the time shown, the worst first; counts are of all time.",
                        asked("incidents", fingerprint="'%'"),
                        {
                            **incident,
                            "first_seen": Column("First seen", _TIME),
                            "last_seen": Column("Last seen", _TIME),
                            "delivered": Column("Reported", COUNT),
                            "held_back": Column("Held back", COUNT),
                            "hosts": Column("Hosts", COUNT),
                        },
                        24,
                    ),
                ),
            ),
            Row(
                "The incident that is chosen above",
                (
                    number("Hosts", "On how many hosts it was seen.", "hosts"),
                    number("Violations", "How often.", "delivered + held_back AS violations"),
                    number("Workloads", "In how many workloads.", "workloads"),
                    number("Users", "Of how many users.", "users"),
                    Panel(
                        "Spread",
                        "bars",
                        "On how many hosts it was seen for the first time, hour by hour.",
                        COUNT,
                        part("spread", 'hour AS time, new_hosts AS "new hosts"', "new hosts"),
                        10,
                        8,
                    ),
                    table(
                        "Its hosts",
                        "The first one first.",
                        asked("hosts"),
                        {
                            "host": Column("Host", links=(_HOST, _METRICS), least=200),
                            "host_id": Column("Machine id", least=280),
                            "first_seen": Column("First seen", _TIME),
                            "last_seen": Column("Last seen", _TIME),
                            "delivered": Column("Reported", COUNT),
                            "held_back": Column("Held back", COUNT),
                        },
                        14,
                    ),
                    table(
                        "Its last events",
                        "As they were sent, the last one first.",
                        asked("recent", limit="20"),
                        {"id": Column("Event", least=300), "event": Column("JSON", least=600)},
                        24,
                    ),
                ),
            ),
            Row(
                "The host that is chosen above",
                (
                    table(
                        "What it reported",
                        "In the time shown, in order.",
                        asked("timeline", host=values["chosen_host"]),
                        {
                            "time": Column("Time", _TIME),
                            "kind": Column("Kind"),
                            "severity": Column("Severity"),
                            "fingerprint": _INCIDENT_COLUMN,
                            "what": Column("What"),
                            "executable": Column("Executable", least=200),
                            "workload": Column("Workload", least=140),
                            "user_name": Column("User"),
                            "pid": Column("Pid", "none"),
                            "summary": Column("Summary", least=400),
                            "id": Column("Event", least=300),
                        },
                        24,
                    ),
                ),
            ),
        ),
        source,
        "now-24h",
    )


INCIDENTS = (_dashboard(CLICKHOUSE, "clickhouse"), _dashboard(POSTGRESQL, "postgresql"))
