"""The dashboards, as tables of panels; generate.py writes them in Grafana's form.

A panel is a row; a new metric needs one. Here `~name` stands for the metric `seal_monitor_name`,
and SELECT for the chosen hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = [
    "COLORS",
    "DASHBOARDS",
    "DATASOURCE",
    "WIDTH",
    "Dashboard",
    "Panel",
    "Query",
    "Row",
    "Variable",
    "query",
]

Kind = Literal["timeseries", "stat", "bargauge", "table"]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of Grafana's grid
PER_MINUTE = "suffix: /min"
COUNT = "locale"  # 5,321 and not 5.32 K
DEADLY = 'disposition=~"default|handler_failed"'
GUARDS = 'cause=~"guard_region|stack_guard|prot_none"'
COLORS = {
    "sealed": "red",
    "unverified": "orange",
    "not_sealed": "blue",
    "success": "green",
    "failure": "red",
    "delivered": "green",
    "suppressed": "blue",
    "filtered": "purple",
    "dropped": "orange",
    "failed": "red",
}


@dataclass(frozen=True)
class Query:
    """`legend` is the name of a series; {{label}} in it stands for the label's value."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Panel:
    """`width` is in 24ths. A stat is red from the value `alarm`."""

    title: str
    kind: Kind
    description: str
    unit: str
    queries: Sequence[Query]
    width: int
    height: int = 8
    alarm: float | None = None
    bars: bool = False  # stacked; for what happens now and then
    columns: dict[str, str] = field(default_factory=dict)  # of a table: label or "Value", its title
    links: Sequence[tuple[str, str]] = ()  # title, URL


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """`label` of the series that `metric` selects; `many`: several or all of its values."""

    name: str
    title: str
    metric: str
    label: str
    many: bool = True
    default: str = ""


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]


def query(expression: str, legend: str = "__auto") -> Query:
    return Query(expression, legend)


def rate(metric: str, by: str, where: str = "") -> str:
    """Per minute; what stays at 0 is left out, so that a legend names only what happens."""
    selector = f"{metric}{{{'SELECT' if not where else f'SELECT,{where}'}}}"
    return f"60 * sum by ({by}) (rate({selector}[$__rate_interval])) > 0"


def total(metric: str, where: str = "", by: str = "") -> str:
    """In the whole range that is shown, as a whole number."""
    selector = f"{metric}{{{'SELECT' if not where else f'SELECT,{where}'}}}"
    grouping = f" by ({by}) " if by else ""
    return f"round(sum{grouping}(increase({selector}[$__range])))"


def workload_total(by: str, verdicts: str, where: str = "") -> str:
    """As total(), for counters that come into being with the first denial, within the range."""
    series = f'~workload_denials_total{{SELECT,verdict=~"{verdicts}"{where}}}'
    peak = f"max_over_time({series}[$__range])"
    return f"sum by ({by}) ({peak} - {series} offset $__range >= 0 or {peak})"


# ---- The tables ----------------------------------------------------------------------------------

JOB = Variable("job", "Job", "~build_info", "job", many=False, default="seal-monitor")
HOSTS = Variable("instance", "Host", '~build_info{job="$job"}', "instance")
WORKLOADS = Variable("workload", "Workload", "~workload_denials_total{SELECT}", "workload")

HOST_LINK = "/d/seal-monitor-host?${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
TO_HOST = (("This host", HOST_LINK + "&var-instance=${__field.labels.instance}"),)
TO_HOST_IN_TABLE = (("This host", HOST_LINK + "&var-instance=${__data.fields.Host}"),)
TO_WORKLOAD = (("This workload", HOST_LINK + "&var-workload=${__data.fields.Workload}"),)

EVENTS_OF_DENIALS = (
    "\n\nThe events, on the host: `journalctl -t seal-monitor SEAL_MONITOR_KIND=denial"
    ' --since "1 hour ago"`, or `seal-monitor incidents list --since 1h --kind denial`.'
    '\n\nIn Loki, from a file of events: `{filename="/var/log/seal-monitor/events.jsonl"} | json'
    ' | kind="denial"`; of one unit: add `| workload_unit="UNIT"`.'
)
EVENTS_OF_FAULTS = EVENTS_OF_DENIALS.replace("denial", "fault")

VIOLATION_STATS = (
    Panel(
        "Refused by a seal",
        "stat",
        "Attempts to change sealed memory in the time shown, where a seal is proved to be the"
        " reason of the refusal. It should be 0.",
        COUNT,
        [query(total("~denials_total", 'verdict="sealed"'))],
        4,
        4,
        alarm=1,
    ),
    Panel(
        "Perhaps by a seal",
        "stat",
        "Refused calls with a seal in their range, where something else may have been the reason"
        " (verdict unverified).",
        COUNT,
        [query(total("~denials_total", 'verdict="unverified"'))],
        4,
        4,
        alarm=1,
    ),
    Panel(
        "Partial updates",
        "stat",
        "Refused calls that had changed the part of the range before the seal.",
        COUNT,
        [query(total("~partial_updates_total"))],
        4,
        4,
        alarm=1,
    ),
    Panel(
        "Sealed memory hit",
        "stat",
        "Accesses that the protection of sealed memory does not allow: mostly writes to what was"
        " sealed read-only.",
        COUNT,
        [query(total("~faults_total", 'cause="sealed"'))],
        4,
        4,
        alarm=1,
    ),
    Panel(
        "Deaths at guards",
        "stat",
        "Faults at guard regions, stack guards and inaccessible pages for which no handler ran.",
        COUNT,
        [query(total("~faults_total", f"{GUARDS},{DEADLY}"))],
        4,
        4,
    ),
)

DENIALS_BY_OPERATION = Panel(
    "Denials by operation",
    "timeseries",
    "Refused attempts to change memory that a seal explains or may explain, by the system call."
    + EVENTS_OF_DENIALS,
    PER_MINUTE,
    [query(rate("~denials_total", "operation", 'verdict!="not_sealed"'), "{{operation}}")],
    12,
    bars=True,
)
FAULTS_BY_CAUSE = Panel(
    "Deadly faults by cause",
    "timeseries",
    "Faults at guard pages and protections for which no handler ran, by what lies at the address."
    + EVENTS_OF_FAULTS,
    PER_MINUTE,
    [query(rate("~faults_total", "cause", DEADLY), "{{cause}}")],
    12,
    bars=True,
)
FAULTS_BY_DISPOSITION = Panel(
    "All faults by disposition",
    "timeseries",
    "What the signal did: default, the process died; handler, a handler of its own was called, as"
    " JVMs, V8 and Go do all day; handler_failed, its handler could not run.",
    PER_MINUTE,
    [query(rate("~faults_total", "disposition"), "{{disposition}}")],
    12,
    bars=True,
)
UNVERIFIED = Panel(
    "Unverified denials by reason",
    "timeseries",
    "What keeps the seal from being proved as the reason of a refusal. The process can bring about"
    " all of them but other_process by itself.",
    PER_MINUTE,
    [query(rate("~unverified_denials_total", "reason"), "{{reason}}")],
    12,
    bars=True,
)
PARTIAL_UPDATES = Panel(
    "Partial updates by operation",
    "timeseries",
    "Refused calls that left the part of the range before the seal changed, by the system call.",
    PER_MINUTE,
    [query(rate("~partial_updates_total", "operation"), "{{operation}}")],
    12,
    bars=True,
)
BYPASSES = Panel(
    "Bypasses by method",
    "timeseries",
    "Changes of what sealed memory holds, made around its seal, by the way taken. Debuggers also do"
    " this." + EVENTS_OF_DENIALS.replace("denial", "bypass"),
    PER_MINUTE,
    [query(rate("~bypasses_total", "method"), "{{method}}")],
    12,
    bars=True,
)
SEALS = Panel(
    "Seals",
    "timeseries",
    "Successful mseal calls. With glibc that seals, each start of a program has some.",
    PER_MINUTE,
    [query("60 * sum(rate(~seals_total{SELECT}[$__rate_interval]))", "seals")],
    12,
)
SEALED_BYTES = Panel(
    "Sealed bytes",
    "timeseries",
    "Address space in the ranges of successful mseal calls, a second.",
    "Bps",
    [query("sum(rate(~sealed_bytes_total{SELECT}[$__rate_interval]))", "sealed bytes")],
    12,
)

OVERVIEW = Dashboard(
    "seal-monitor-overview",
    "seal-monitor / Sealing overview",
    "Who tried to change sealed memory, on all hosts: how often, where, and who never did before.",
    (JOB, HOSTS),
    (
        Row(
            "In the time shown",
            (
                *VIOLATION_STATS,
                Panel(
                    "Hosts watched",
                    "stat",
                    "Hosts whose monitor answers scrapes. The health dashboard has the others.",
                    COUNT,
                    [query("sum(up{SELECT})")],
                    4,
                    4,
                ),
            ),
        ),
        Row(
            "Denials",
            (
                DENIALS_BY_OPERATION,
                Panel(
                    "Denials by verdict",
                    "timeseries",
                    "sealed: a seal is proved to be the reason; unverified: it may be; not_sealed:"
                    " refused for another reason, with tracepoints only.",
                    PER_MINUTE,
                    [query(rate("~denials_total", "verdict"), "{{verdict}}")],
                    12,
                    bars=True,
                ),
                Panel(
                    "Hosts with most denials",
                    "bargauge",
                    "The ten hosts with most denials in the time shown, not_sealed ones left out.",
                    COUNT,
                    [
                        query(
                            "topk(10, "
                            + total("~denials_total", 'verdict!="not_sealed"', "instance")
                            + " > 0)",
                            "{{instance}}",
                        )
                    ],
                    8,
                    9,
                    links=TO_HOST,
                ),
                Panel(
                    "Workloads with most denials",
                    "table",
                    "The fifteen workloads with most denials in the time shown: units, pods,"
                    " containers or cgroups, on all hosts together. `other` has those beyond the"
                    " number that a monitor tracks. At least: what was counted before a restart of"
                    " the monitor in this time may be missing.",
                    COUNT,
                    [
                        query(
                            "topk(15, " + workload_total("workload", "sealed|unverified") + " > 0)"
                        )
                    ],
                    8,
                    9,
                    columns={"workload": "Workload", "Value": "Denials"},
                    links=TO_WORKLOAD,
                ),
                Panel(
                    "First denial ever",
                    "table",
                    "Workloads with a denial in the time shown and none in the 14 days before, on"
                    " any host, and when it came. Needs the recording rules. An empty table is good"
                    " news.",
                    "dateTimeAsIso",
                    [
                        query(
                            "1000 * min by (workload) (min_over_time(timestamp("
                            'job_workload:~workload_denials:increase10m{job="$job"}'
                            ")[$__range:1m])) unless on (workload) max_over_time("
                            'job_workload:~workload_denials:increase10m{job="$job"}[14d]'
                            " offset $__range)"
                        )
                    ],
                    8,
                    9,
                    columns={"workload": "Workload", "Value": "First denial"},
                    links=TO_WORKLOAD,
                ),
            ),
        ),
        Row("Faults", (FAULTS_BY_CAUSE, FAULTS_BY_DISPOSITION)),
        Row(
            "What is sealed",
            (
                Panel(
                    "Processes",
                    "timeseries",
                    "Processes on all hosts, by whether they have sealed memory of their own.",
                    COUNT,
                    [query("sum by (state) (~posture_processes{SELECT})", "{{state}}")],
                    6,
                ),
                Panel(
                    "Sealed part of memory",
                    "timeseries",
                    "The part of all processes' executable memory and RELRO that is sealed; the"
                    " mean of the hosts.",
                    "percentunit",
                    [query("avg by (memory) (~posture_sealed_ratio{SELECT})", "{{memory}}")],
                    6,
                ),
                Panel(
                    "Sealed bytes by workload",
                    "timeseries",
                    "Address space that is sealed. The ten workloads with most.",
                    "bytes",
                    [
                        query(
                            "topk(10, sum by (workload) (~posture_sealed_bytes{SELECT}))",
                            "{{workload}}",
                        )
                    ],
                    6,
                ),
                Panel(
                    "Executables that seal",
                    "timeseries",
                    "Executables that are known to seal memory, on all hosts: sealing, they did"
                    " when last seen; stopped, they ran without.",
                    "short",
                    [query("sum by (state) (~posture_executables{SELECT})", "{{state}}")],
                    6,
                ),
            ),
        ),
        Row(
            "Changes and seals",
            tuple(
                replace(panel, width=width)
                for panel, width in (
                    (UNVERIFIED, 5),
                    (PARTIAL_UPDATES, 5),
                    (BYPASSES, 5),
                    (SEALS, 5),
                    (SEALED_BYTES, 4),
                )
            ),
        ),
    ),
)

HOST = Dashboard(
    "seal-monitor-host",
    "seal-monitor / Host and workload",
    "One host, or one workload, over time; beside it whether the monitor could see.",
    (JOB, HOSTS, WORKLOADS),
    (
        Row(
            "In the time shown",
            (
                *VIOLATION_STATS,
                Panel(
                    "Workloads with denials",
                    "stat",
                    "Workloads that have a count of their own, since the start of the monitor.",
                    COUNT,
                    [query("sum(~workloads_tracked{SELECT})")],
                    4,
                    4,
                ),
            ),
        ),
        Row(
            "Violations",
            (
                Panel(
                    "Denials by workload, in the last 10 minutes",
                    "timeseries",
                    "Whole numbers, with the first denial of a workload. The ten with most at each"
                    " moment. Needs the recording rules." + EVENTS_OF_DENIALS,
                    "short",
                    [
                        query(
                            "topk(10, sum by (workload) (instance_workload_verdict:"
                            "~workload_denials:increase10m{SELECT,"
                            'workload=~"$workload",verdict!="not_sealed"}) > 0)',
                            "{{workload}}",
                        )
                    ],
                    12,
                    bars=True,
                ),
                Panel(
                    "Denials by workload and verdict",
                    "table",
                    "In the time shown, the thirty with most; at least, see the overview.",
                    COUNT,
                    [
                        query(
                            "topk(30, "
                            + workload_total(
                                "instance, workload, verdict", ".+", ',workload=~"$workload"'
                            )
                            + " > 0)"
                        )
                    ],
                    12,
                    columns={
                        "instance": "Host",
                        "workload": "Workload",
                        "verdict": "Verdict",
                        "Value": "Denials",
                    },
                ),
                DENIALS_BY_OPERATION,
                replace(PARTIAL_UPDATES, width=6),
                replace(BYPASSES, width=6),
                FAULTS_BY_CAUSE,
                FAULTS_BY_DISPOSITION,
                SEALS,
                SEALED_BYTES,
            ),
        ),
        Row(
            "Could the monitor see?",
            (
                Panel(
                    "Canary",
                    "timeseries",
                    "Violations of the monitor's own, one a minute, that must come back judged"
                    " right. Where there is none, nothing proves that others were seen.",
                    PER_MINUTE,
                    [
                        query(
                            "60 * sum by (result) (rate(~canary_runs_total{SELECT}"
                            "[$__rate_interval]))",
                            "{{result}}",
                        )
                    ],
                    8,
                ),
                Panel(
                    "Age of the run",
                    "timeseries",
                    "Time since the monitor was started: a fall to 0 is a restart. The youngest"
                    " five.",
                    "s",
                    [
                        query(
                            "bottomk(5, time() - process_start_time_seconds{SELECT})",
                            "{{instance}}",
                        )
                    ],
                    8,
                ),
                Panel(
                    "Lost",
                    "timeseries",
                    "Events that found no room or no sink, and runs of probes that the kernel"
                    " skipped: while there are some, counts are a lower bound.",
                    PER_MINUTE,
                    [
                        query(
                            rate("~events_total", "result", 'result=~"dropped|failed"'),
                            "events {{result}}",
                        ),
                        query(
                            "60 * sum(rate(~probe_missed_runs_total{SELECT}"
                            "[$__rate_interval])) > 0",
                            "runs missed",
                        ),
                    ],
                    8,
                    bars=True,
                ),
                Panel(
                    "Kernels",
                    "table",
                    "The kernel of each host.",
                    COUNT,
                    [query("max by (instance, release) (~kernel_info{SELECT})")],
                    8,
                    columns={"instance": "Host", "release": "Kernel"},
                    links=TO_HOST_IN_TABLE,
                ),
                Panel(
                    "Partial updates that are possible",
                    "table",
                    "Operations that on this kernel may change the part before the seal and are"
                    " then refused; in how many hosts.",
                    COUNT,
                    [query("sum by (operation) (~partial_update_possible{SELECT})")],
                    8,
                    columns={"operation": "Operation", "Value": "Hosts"},
                ),
                Panel(
                    "Hosts without mseal",
                    "stat",
                    "Their kernel is older than 6.10: nothing there can be sealed.",
                    COUNT,
                    [query("count(~seal_supported{SELECT} == 0) or vector(0)")],
                    8,
                    alarm=1,
                ),
            ),
        ),
    ),
)

HEALTH = Dashboard(
    "seal-monitor-health",
    "seal-monitor / Monitor health",
    "Whether the monitors see, report and hold what they promise.",
    (JOB, HOSTS),
    (
        Row(
            "Now",
            (
                Panel(
                    "Down",
                    "stat",
                    "Hosts whose monitor does not answer scrapes.",
                    COUNT,
                    [query("count(up{SELECT} == 0) or vector(0)")],
                    4,
                    4,
                    alarm=1,
                ),
                Panel(
                    "Never ready",
                    "stat",
                    "Hosts whose monitor runs, but whose canary has not come back since its start.",
                    COUNT,
                    [
                        query(
                            "count(~canary_last_success_timestamp_seconds{SELECT} == 0)"
                            " or vector(0)"
                        )
                    ],
                    4,
                    4,
                    alarm=1,
                ),
                Panel(
                    "Probes not attached",
                    "stat",
                    "Probes, on all hosts, that could be attached in no way.",
                    COUNT,
                    [query("count(~probe_attached{SELECT} == 0) or vector(0)")],
                    4,
                    4,
                    alarm=1,
                ),
                Panel(
                    "Config not in force",
                    "stat",
                    "Hosts whose configuration has a mistake, or a change that waits for a"
                    " restart.",
                    COUNT,
                    [query("count(~config_last_reload_successful{SELECT} == 0) or vector(0)")],
                    4,
                    4,
                    alarm=1,
                ),
                Panel(
                    "Corrupt records",
                    "stat",
                    "Records of the kernel that could not be decoded, in the time shown.",
                    COUNT,
                    [query(total("~decode_errors_total"))],
                    4,
                    4,
                    alarm=1,
                ),
                Panel(
                    "Restarts",
                    "stat",
                    "Starts of the monitor after the first, in the time shown.",
                    COUNT,
                    [query("sum(changes(process_start_time_seconds{SELECT}[$__range]))")],
                    4,
                    4,
                ),
            ),
        ),
        Row(
            "Does it see?",
            (
                Panel(
                    "Probes by mode",
                    "timeseries",
                    "Attached probes, on all hosts, by the way they are attached. fexit costs least"
                    " and sees most.",
                    "short",
                    [query("sum by (mode) (~probe_attached{SELECT})", "{{mode}}")],
                    8,
                ),
                Panel(
                    "Hosts by probe and mode",
                    "table",
                    "On how many hosts each probe is attached in each way.",
                    COUNT,
                    [query("count by (probe, mode) (~probe_attached{SELECT} == 1)")],
                    8,
                    columns={"probe": "Probe", "mode": "Mode", "Value": "Hosts"},
                ),
                Panel(
                    "Blind spots",
                    "table",
                    "On how many hosts the way to watch does not see what happens there;"
                    " docs/limits.md says what closes each.",
                    COUNT,
                    [query("count by (name) (~blind_spot{SELECT} == 1)")],
                    8,
                    columns={"name": "Blind spot", "Value": "Hosts"},
                ),
                Panel(
                    "Runs missed",
                    "timeseries",
                    "Runs of a probe that the kernel skipped; counts are then a lower bound.",
                    PER_MINUTE,
                    [query(rate("~probe_missed_runs_total", "probe"), "{{probe}}")],
                    8,
                    bars=True,
                ),
                Panel(
                    "Canary",
                    "timeseries",
                    "Runs of the canary, on all hosts, by result.",
                    PER_MINUTE,
                    [
                        query(
                            "60 * sum by (result) (rate(~canary_runs_total{SELECT}"
                            "[$__rate_interval]))",
                            "{{result}}",
                        )
                    ],
                    8,
                ),
                Panel(
                    "Since the canary's last success",
                    "timeseries",
                    "The five hosts where it is longest ago; a minute is normal.",
                    "s",
                    [
                        query(
                            "topk(5, time() - (~canary_last_success_timestamp_seconds{SELECT} >"
                            " 0))",
                            "{{instance}}",
                        )
                    ],
                    8,
                ),
            ),
        ),
        Row(
            "Does it report?",
            (
                Panel(
                    "Events by result",
                    "timeseries",
                    "delivered: a sink took it; suppressed: rate limit; filtered: configuration;"
                    " dropped: ring buffer full; failed: no sink took it.",
                    PER_MINUTE,
                    [query(rate("~events_total", "result"), "{{result}}")],
                    8,
                    bars=True,
                ),
                Panel(
                    "Delay of events",
                    "timeseries",
                    "From the kernel's time stamp to the sink, on all hosts.",
                    "s",
                    [
                        query(
                            f"histogram_quantile({quantile}, sum by (le) (rate("
                            "~event_delay_seconds_bucket{SELECT}[$__rate_interval])))",
                            legend,
                        )
                        for quantile, legend in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
                    ],
                    8,
                ),
                Panel(
                    "Identities",
                    "timeseries",
                    "Look-ups of processes in /proc: complete; partial, something could not be"
                    " read; gone, it had exited; reused, the pid is another process's.",
                    PER_MINUTE,
                    [query(rate("~identity_lookups_total", "result"), "{{result}}")],
                    8,
                    bars=True,
                ),
                Panel(
                    "Snapshots",
                    "timeseries",
                    "Snapshots of violating processes: taken; partial, something could not be read;"
                    " gone, it had ended; dropped, too many at once; failed, the store did not take"
                    " it.",
                    PER_MINUTE,
                    [query(rate("~snapshots_total", "result"), "{{result}}")],
                    6,
                    bars=True,
                ),
                Panel(
                    "Ring buffer",
                    "timeseries",
                    "Bytes that wait to be read. The five hosts with most.",
                    "bytes",
                    [query("topk(5, ~ring_used_bytes{SELECT})", "{{instance}}")],
                    6,
                ),
                Panel(
                    "Waiting for sinks",
                    "timeseries",
                    "Events in the queue of each sink, on the host that has most.",
                    "short",
                    [query("max by (sink) (~sink_queue_events{SELECT})", "{{sink}}")],
                    6,
                ),
                Panel(
                    "Places for workloads in use",
                    "timeseries",
                    "Of those in workloads.maximum, on the host that has most. From three quarters"
                    " on only services get one.",
                    "percentunit",
                    [query("max(~workloads_tracked{SELECT} / ~workloads_maximum{SELECT})", "used")],
                    6,
                ),
                Panel(
                    "Removed from the events file",
                    "timeseries",
                    "Bytes between the oldest and the newest events, to keep its bound.",
                    "bytes",
                    [
                        query(
                            f"topk(5, {rate('~events_file_removed_bytes_total', 'instance')})",
                            "{{instance}}",
                        )
                    ],
                    6,
                    bars=True,
                ),
                Panel(
                    "Not taken by sinks",
                    "timeseries",
                    "Events that a sink did not take: it failed, or its queue was full.",
                    PER_MINUTE,
                    [query(rate("~sink_errors_total", "sink"), "{{sink}}")],
                    6,
                    bars=True,
                ),
            ),
        ),
        Row(
            "What is it, and what does it take?",
            (
                Panel(
                    "Memory",
                    "timeseries",
                    "Resident memory: the median of the hosts, and the five that take most.",
                    "bytes",
                    [
                        query("quantile(0.5, process_resident_memory_bytes{SELECT})", "median"),
                        query(
                            "topk(5, process_resident_memory_bytes{SELECT})",
                            "{{instance}}",
                        ),
                    ],
                    8,
                ),
                Panel(
                    "CPU",
                    "timeseries",
                    "Time of one CPU that the monitor takes: the median, and the five with most.",
                    "percentunit",
                    [
                        query(
                            "quantile(0.5, rate(process_cpu_seconds_total{SELECT}"
                            "[$__rate_interval]))",
                            "median",
                        ),
                        query(
                            "topk(5, rate(process_cpu_seconds_total{SELECT}[$__rate_interval]))",
                            "{{instance}}",
                        ),
                    ],
                    8,
                ),
                Panel(
                    "Open files",
                    "timeseries",
                    "Descriptors that the monitor has open. The five hosts with most.",
                    "short",
                    [query("topk(5, process_open_fds{SELECT})", "{{instance}}")],
                    8,
                ),
                Panel(
                    "Since the last look at what is sealed",
                    "timeseries",
                    "The five hosts whose monitor last looked at all processes longest ago.",
                    "s",
                    [
                        query(
                            "topk(5, time() -"
                            " (~posture_last_success_timestamp_seconds{SELECT} > 0))",
                            "{{instance}}",
                        )
                    ],
                    12,
                ),
                Panel(
                    "Duration of the look",
                    "timeseries",
                    "How long the look at all processes takes, mostly waiting. The five slowest.",
                    "s",
                    [query("topk(5, ~posture_scan_duration_seconds{SELECT})", "{{instance}}")],
                    12,
                ),
                Panel(
                    "Overdue",
                    "timeseries",
                    "Time since the last canary that came back, and since the last whole look at"
                    " what is sealed, in intervals as configured. Above 2, one is overdue; the five"
                    " highest of each.",
                    "short",
                    [
                        query(
                            "topk(5, (time() - (~canary_last_success_timestamp_seconds{SELECT}"
                            " > 0)) / (~canary_interval_seconds{SELECT} > 0))",
                            "{{instance}} canary",
                        ),
                        query(
                            "topk(5, (time() - (~posture_last_success_timestamp_seconds{SELECT}"
                            " > 0)) / (~posture_interval_seconds{SELECT} > 0))",
                            "{{instance}} look",
                        ),
                    ],
                    24,
                ),
                Panel(
                    "Store of incidents",
                    "timeseries",
                    "Bytes on disk of the database of incidents. The five hosts with most.",
                    "bytes",
                    [query("topk(5, ~incident_store_bytes{SELECT})", "{{instance}}")],
                    6,
                ),
                Panel(
                    "Incidents removed",
                    "timeseries",
                    "Incidents removed from the databases, by severity: too old, or beyond their"
                    " owner's share of a full one.",
                    PER_MINUTE,
                    [query(rate("~incidents_removed_total", "severity"), "{{severity}}")],
                    6,
                    bars=True,
                ),
                Panel(
                    "Versions",
                    "table",
                    "Hosts with each version of the monitor.",
                    COUNT,
                    [query("count by (version, revision) (~build_info{SELECT})")],
                    6,
                    columns={"version": "Version", "revision": "Revision", "Value": "Hosts"},
                ),
                Panel(
                    "Configuration read",
                    "table",
                    "When each monitor last read a configuration that is all in force.",
                    "dateTimeAsIso",
                    [
                        query(
                            "1000 * max by (instance)"
                            " (~config_last_reload_success_timestamp_seconds{SELECT} > 0)"
                        )
                    ],
                    6,
                    columns={"instance": "Host", "Value": "Read"},
                    links=TO_HOST_IN_TABLE,
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, HOST, HEALTH)
