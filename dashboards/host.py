"""The dashboard of one host, or of one workload."""

from __future__ import annotations

from dataclasses import replace

from colors import WARNING
from model import COUNT, Column, Dashboard, Panel, Row, Variable, query
from queries import INTERVAL, gained, host, recorded
from violations import (
    BYPASSES,
    BYPASSES_BY_METHOD,
    DENIALS_BY_OPERATION,
    FAULTS,
    FAULTS_BY_SEVERITY,
    HOST_COLUMN,
    HOSTS,
    JOB,
    NEEDED_NOW,
    PARTIAL_UPDATES,
    PARTIAL_UPDATES_BY_OPERATION,
    SEALED_BYTES,
    SEALS,
    THIS_WORKLOAD,
    UNVERIFIED_BY_REASON,
    VERDICT_COLUMN,
    by_severity,
)

__all__ = ["FAILED_CANARIES", "HOST", "LOST", "RUNS_MISSED"]

WORKLOADS = Variable("workload", "Workload", "~workload_denials_total{SELECT}", "workload")
_CHOSEN = 'workload=~"$workload"'

INCIDENTS = """\
**On the host**, the incidents of the time shown, the worst first:

    seal-monitor incidents list --since ${__from:date:iso} --until ${__to:date:iso}

Fewer: `--severity critical`, `--workload NAME`; \
of one of several hosts in a database: `--host NAME`.
"""

FAILED_CANARIES = Panel(
    "Failed canaries",
    "bars",
    "Violations of the monitor's own, one a minute, that did not come back judged right, in each"
    " bar. Where there are some, nothing proves that others were seen.",
    COUNT,
    [
        query(
            gained("~canary_runs_total", 'result="failure"', within=INTERVAL) + " > 0",
            "failed canaries",
        )
    ],
    8,
)
LOST = Panel(
    "Events lost",
    "bars",
    "Events in each bar that found no room in the ring buffer (dropped) or no sink (failed).",
    COUNT,
    [
        query(
            gained("~events_total", 'result=~"dropped|failed"', "result", INTERVAL) + " > 0",
            "{{result}}",
        )
    ],
    8,
)
RUNS_MISSED = Panel(
    "Runs missed",
    "bars",
    "Runs of probes, in each bar, that the kernel skipped: counts are then a lower bound.",
    COUNT,
    [query(gained("~probe_missed_runs_total", within=INTERVAL) + " > 0", "runs missed")],
    8,
)

HOST = Dashboard(
    "seal-monitor-host",
    "seal-monitor / Host and workload",
    "One host, or one workload, over time; beside it whether the monitor could see.",
    (JOB, HOSTS, WORKLOADS),
    (
        Row(
            "Needs a person now, where it is red",
            (
                *(replace(panel, links=()) for panel in NEEDED_NOW[:-2]),
                *NEEDED_NOW[-2:],
                Panel(
                    "The incidents",
                    "text",
                    "How to list the incidents of the time shown.",
                    "",
                    (),
                    24,
                    6,
                    content=INCIDENTS,
                ),
            ),
        ),
        Row(
            "Denials",
            (
                replace(
                    by_severity(
                        "Denials of the workload",
                        "Refused attempts to change memory, of the chosen workloads.",
                        "denial",
                        f",{_CHOSEN}",
                    ),
                    links=(),
                ),
                Panel(
                    "Denials by workload and verdict",
                    "table",
                    "In the time shown, the thirty with most.",
                    COUNT,
                    [
                        query(
                            host(
                                "topk(30, "
                                + recorded(
                                    "~workload_denials_total",
                                    _CHOSEN,
                                    "instance, workload, verdict",
                                )
                                + ")"
                            )
                        )
                    ],
                    12,
                    columns={
                        "host": HOST_COLUMN,
                        "workload": Column("Workload", links=(THIS_WORKLOAD,)),
                        "verdict": VERDICT_COLUMN,
                        "Value": Column("Denials", COUNT),
                    },
                    hidden=("instance",),
                ),
                replace(
                    DENIALS_BY_OPERATION,
                    description="Refused attempts to change memory in the time shown, by system"
                    " call and verdict.",
                    queries=[
                        query(
                            recorded("~denials_total", by="operation, verdict")
                            + " or "
                            + gained("~denials_total", 'verdict="not_sealed"', "operation, verdict")
                            + " > 0"
                        )
                    ],
                    width=12,
                    height=6,
                ),
                replace(UNVERIFIED_BY_REASON, width=12, height=6),
            ),
        ),
        Row(
            "Changed all the same",
            tuple(
                replace(panel, links=())
                for panel in (
                    PARTIAL_UPDATES,
                    PARTIAL_UPDATES_BY_OPERATION,
                    BYPASSES,
                    BYPASSES_BY_METHOD,
                )
            ),
        ),
        Row("Faults", (replace(FAULTS_BY_SEVERITY, links=()), FAULTS)),
        Row("What is sealed", (replace(SEALS, height=6), replace(SEALED_BYTES, height=6))),
        Row(
            "Could the monitor see?",
            (
                replace(FAILED_CANARIES, height=6),
                replace(LOST, height=6),
                replace(RUNS_MISSED, height=6),
                Panel(
                    "Hosts and kernels",
                    "table",
                    "The kernel of each host, and when its monitor was started.",
                    COUNT,
                    [
                        query(
                            host(
                                "max by (instance, release) (~kernel_info{SELECT}) * on (instance)"
                                " group_left () (1000 *"
                                " max by (instance) (process_start_time_seconds{SELECT}))"
                            )
                        )
                    ],
                    8,
                    6,
                    columns={
                        "host": HOST_COLUMN,
                        "release": Column("Kernel"),
                        "Value": Column("Started", "dateTimeFromNow"),
                    },
                    hidden=("instance",),
                ),
                Panel(
                    "Blind spots",
                    "table",
                    "What may happen on a host without being seen; docs/limits.md says what closes"
                    " each.",
                    COUNT,
                    [query(host("max by (instance, name) (~blind_spot{SELECT}) == 1"))],
                    8,
                    6,
                    columns={"host": HOST_COLUMN, "name": Column("Blind spot")},
                    hidden=("instance",),
                ),
                Panel(
                    "May change in part",
                    "table",
                    "Operations that on this kernel may change the part before the seal and are"
                    " then refused; on how many hosts.",
                    COUNT,
                    [query("sum by (operation) (~partial_update_possible{SELECT})")],
                    4,
                    6,
                    columns={
                        "operation": Column("Operation"),
                        "Value": Column("Hosts", COUNT),
                    },
                ),
                Panel(
                    "Hosts without mseal",
                    "number",
                    "Their kernel is older than 6.10: nothing there can be sealed.",
                    COUNT,
                    [query("count(~seal_supported{SELECT} == 0) or vector(0)")],
                    4,
                    6,
                    alarm=WARNING,
                ),
            ),
        ),
    ),
)
