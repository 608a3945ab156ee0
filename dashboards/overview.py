"""The sealing overview: all hosts."""

from __future__ import annotations

from dataclasses import replace

from model import COUNT, Column, Dashboard, Panel, Row, query
from queries import all_or_each, host, recorded
from violations import (
    BYPASSES,
    BYPASSES_BY_METHOD,
    DENIALS,
    DENIALS_BY_OPERATION,
    FAULTS,
    FAULTS_BY_SEVERITY,
    HOST_COLUMN,
    HOSTS,
    JOB,
    NEEDED_BY_DAY,
    NEEDED_NOW,
    PARTIAL_UPDATES,
    PARTIAL_UPDATES_BY_OPERATION,
    PROCESSES_BY_STATE,
    SEALED_BYTES,
    SEALS,
    THIS_WORKLOAD,
    UNVERIFIED_BY_REASON,
)

__all__ = ["OVERVIEW"]

WORKLOAD_COLUMN = Column("Workload", links=(THIS_WORKLOAD,))
_RECORDED = 'job_workload:~workload_denials:increase10m{job="$job"}'

OVERVIEW = Dashboard(
    "seal-monitor-overview",
    "seal-monitor / Sealing overview",
    "Who tried to change sealed memory, on all hosts: how often, where, and who never did before.",
    (JOB, HOSTS),
    (
        Row("Needs a person now, where it is red", NEEDED_NOW),
        Row("Can wait for the day", NEEDED_BY_DAY),
        Row(
            "Denials",
            (
                DENIALS,
                DENIALS_BY_OPERATION,
                UNVERIFIED_BY_REASON,
                Panel(
                    "Hosts with most denials",
                    "table",
                    "The ten hosts with most denials in the time shown, not_sealed ones left out.",
                    COUNT,
                    [query(host("topk(10, " + recorded("~denials_total", by="instance") + ")"))],
                    8,
                    9,
                    columns={"host": HOST_COLUMN, "Value": Column("Denials", COUNT)},
                    hidden=("instance",),
                ),
                Panel(
                    "Workloads with most denials",
                    "table",
                    "The ten workloads with most denials in the time shown: units, pods,"
                    " containers or cgroups, on all hosts together. `other` has those beyond the"
                    " number that a monitor tracks.",
                    COUNT,
                    [
                        query(
                            "topk(10, "
                            + recorded(
                                "~workload_denials_total",
                                'verdict=~"sealed|unverified"',
                                "workload",
                            )
                            + ")"
                        )
                    ],
                    8,
                    9,
                    columns={"workload": WORKLOAD_COLUMN, "Value": Column("Denials", COUNT)},
                ),
                Panel(
                    "First denial ever",
                    "table",
                    "Workloads with a denial in the time shown and none in the 14 days before, on"
                    " any host, and when it came. Needs the recording rules. An empty table is good"
                    " news.",
                    COUNT,
                    [
                        query(
                            f"1000 * min by (workload) (min_over_time(timestamp({_RECORDED})"
                            f"[$__range:1m])) unless on (workload)"
                            f" max_over_time({_RECORDED}[14d] offset $__range)"
                        )
                    ],
                    8,
                    9,
                    columns={
                        "workload": WORKLOAD_COLUMN,
                        "Value": Column("First denial", "dateTimeAsIso"),
                    },
                ),
            ),
        ),
        Row(
            "Changed all the same",
            (PARTIAL_UPDATES, PARTIAL_UPDATES_BY_OPERATION, BYPASSES, BYPASSES_BY_METHOD),
        ),
        Row("Faults", (FAULTS_BY_SEVERITY, FAULTS)),
        Row(
            "What is sealed",
            (
                Panel(
                    "Sealed part of memory",
                    "lines",
                    "The part of all processes' executable memory and RELRO that is sealed; the"
                    " mean of the hosts.",
                    "percentunit",
                    [
                        query(
                            "avg by (memory) "
                            + all_or_each(
                                "job_memory:~posture_sealed_ratio:avg{SELECT}",
                                "~posture_sealed_ratio{EACH}",
                            ),
                            "{{memory}}",
                        )
                    ],
                    8,
                ),
                Panel(
                    "Hosts with programs that stopped sealing",
                    "table",
                    "Hosts with executables that are known to seal memory and were last seen"
                    " without. `seal-monitor posture` on the host names them.",
                    COUNT,
                    [
                        query(
                            host(
                                "sum by (instance)"
                                ' (~posture_executables{SELECT,state="stopped"}) > 0'
                            )
                        )
                    ],
                    8,
                    columns={"host": HOST_COLUMN, "Value": Column("Programs", COUNT)},
                    hidden=("instance",),
                ),
                Panel(
                    "Most sealed memory",
                    "table",
                    "Address space that is sealed, of the ten workloads with most, on all hosts.",
                    COUNT,
                    [query("topk(10, sum by (workload) (~posture_sealed_bytes{SELECT}))")],
                    8,
                    columns={
                        "workload": WORKLOAD_COLUMN,
                        "Value": Column("Sealed", "bytes"),
                    },
                ),
                replace(SEALS, width=8),
                replace(SEALED_BYTES, width=8),
                Panel(
                    "Processes by state",
                    "table",
                    "Processes at the last look, by whether they have sealed memory of their own.",
                    COUNT,
                    [query(PROCESSES_BY_STATE)],
                    8,
                    columns={"state": Column("State"), "Value": Column("Processes", COUNT)},
                ),
            ),
        ),
    ),
)
