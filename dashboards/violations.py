"""The panels that the overview and the dashboard of a host share."""

from __future__ import annotations

from dataclasses import replace

from colors import CRITICAL, WARNING
from model import COUNT, TILE, Column, Link, Panel, Variable, query
from queries import (
    INTERVAL,
    RANGE,
    Window,
    all_or_each,
    gained_by_all,
    out_of,
    recorded,
    selected,
)

__all__ = [
    "BYPASSES",
    "BYPASSES_BY_METHOD",
    "DENIALS",
    "DENIALS_BY_OPERATION",
    "FAULTS",
    "FAULTS_BY_SEVERITY",
    "HOSTS",
    "HOSTS_THAT_SEE",
    "HOSTS_UP",
    "HOST_COLUMN",
    "JOB",
    "NEEDED_BY_DAY",
    "NEEDED_NOW",
    "PARTIAL_UPDATES",
    "PARTIAL_UPDATES_BY_OPERATION",
    "PROCESSES_BY_STATE",
    "SEALED_BYTES",
    "SEALS",
    "THIS_HOST",
    "THIS_WORKLOAD",
    "UNVERIFIED_BY_REASON",
    "VERDICT_COLUMN",
    "by_severity",
]

DEADLY = 'disposition!="handler"'
GUARDS = 'cause=~"guard_region|stack_guard|prot_none"'

JOB = Variable("job", "Job", "~build_info", "job", many=False, default="seal-monitor")
HOSTS = Variable(
    "instance",
    "Host",
    '~build_info{job="$job"}',
    "instance",
    regex="/^(?<value>(?<text>.+?)(:[0-9]+)?)$/",
)

# ---- Links: from a number to what is behind it ---------------------------------------------------
# Users choose names of workloads: encoded, one cannot bring parameters of its own.

_CHOSEN = "?${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
_HOST = f"/d/seal-monitor-host{_CHOSEN}"
_BEHIND = Link("What is behind it, on these hosts", _HOST + "&${instance:queryparam}")
_HEALTH = Link(
    "Which hosts, and why", f"/d/seal-monitor-health{_CHOSEN}" + "&${instance:queryparam}"
)
THIS_HOST = Link("This host", _HOST + "&var-instance=${__data.fields.instance:percentencode}")
THIS_WORKLOAD = Link(
    "This workload",
    _HOST + "&${instance:queryparam}&var-workload=${__data.fields.Workload:percentencode}",
)
HOST_COLUMN = Column("Host", links=(THIS_HOST,), least=150)
VERDICT_COLUMN = Column("Verdict", least=95)


def _events(kind: str, severity: str = "") -> str:
    """How to come from a number to its events."""
    wanted = f" --severity {severity}" if severity else ""
    found = f'| kind="{kind}"' if kind != "violation" else '| kind=~"denial|fault|bypass"'
    journal = f" SEAL_MONITOR_KIND={kind}" if kind != "violation" else ""
    return (
        "\n\nThe incidents, on the host: `seal-monitor incidents list --since 1h"
        f" --kind {kind}{wanted}`; its events: `journalctl -t seal-monitor{journal}"
        " --since '1 hour ago'`."
        '\n\nIn Loki, from a file of events: `{filename="/var/log/seal-monitor/events.jsonl"}'
        f' | json {found}`; of one unit: add `| workload_unit="UNIT"`.'
    )


# ---- What needs a person -------------------------------------------------------------------------

_UP = f"sum{all_or_each('job:~up:sum{SELECT}', 'up{EACH}')}"
_THERE = f"sum{all_or_each('job:~up:count{SELECT}', 'count by (job) (up{EACH})')}"
# A monitor that answers, but may not see: its canary never came back or is overdue, or a probe is
# attached in no way. Without the rules there is no data.
_RULES = 'on () job:~up:sum{job="$job"}'
_SEEING = f"({_UP} - (count(instance:~blind{{SELECT}}) or 0 * {_UP} and {_RULES}))"

HOSTS_UP = Panel(
    "Hosts up",
    "number",
    "Hosts whose monitor answers scrapes now, of all that Prometheus knows. Red: on another one"
    " nothing may be watching.",
    COUNT,
    [out_of(_UP, _THERE)],
    4,
    TILE,
    alarm=CRITICAL,
    name=True,
    links=(_HEALTH,),
)
HOSTS_THAT_SEE = Panel(
    "Hosts that see",
    "number",
    "Of the hosts that answer, those whose canary comes back and whose probes are all attached."
    " Red: another one may be blind.",
    COUNT,
    [out_of(_SEEING, _UP)],
    4,
    TILE,
    alarm=CRITICAL,
    name=True,
    links=(_HEALTH,),
)


def violations(kind: str, severity: str = "", by: str = "", within: Window = RANGE) -> str:
    """Of a kind, or of several as a regular expression."""
    wanted = f',severity="{severity}"' if severity else ""
    return recorded("~violations_total", f'kind=~"{kind}"{wanted}', by, within)


def _critical(title: str, description: str, kind: str, width: int) -> Panel:
    return Panel(
        title,
        "number",
        description
        + " In the time shown; critical by the facts of each one. It should be 0."
        + _events(kind, "critical"),
        COUNT,
        [query(violations(kind, "critical"))],
        width,
        TILE,
        alarm=CRITICAL,
        links=(_BEHIND,),
    )


# As the alert SealEventMissing has it; the events of the last two minutes may be on their way.
_SINCE = "instance:~counters_since:nonzero{SELECT}"
_NOT_JUDGED = (
    "sum(clamp_min(sum by (job, instance) ("
    "instance_operation_verdict:~denials:nonzero{SELECT} offset 2m"
    " or instance_method:~bypasses:nonzero{SELECT} offset 2m)"
    " - (sum by (job, instance) ("
    'instance_workload_kind_severity:~violations:nonzero{SELECT,kind=~"denial|bypass"})'
    " or 0 * instance:~counters:nonzero{SELECT}), 0)"
    f" and on (job, instance) {_SINCE} == {_SINCE} offset 2m) or 0 * {_UP} and {_RULES}"
)

NEEDED_NOW = (
    _critical(
        "Critical denials",
        "Attempts to change sealed memory that a seal refused, or may have refused.",
        "denial",
        4,
    ),
    _critical(
        "Critical bypasses",
        "Changes of what sealed memory holds, made around its seal.",
        "bypass",
        4,
    ),
    _critical(
        "Critical faults",
        "Accesses that the protection of memory does not allow, such as writes to what was sealed"
        " read-only.",
        "fault",
        3,
    ),
    Panel(
        "Partial updates",
        "number",
        "Refused calls in the time shown that had changed the part of the range before the seal."
        + _events("denial"),
        COUNT,
        [query(recorded("~partial_updates_total"))],
        4,
        TILE,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    Panel(
        "Not judged",
        "number",
        "Denials and bypasses, since the monitors were started, that the kernel has counted and"
        " that became no event: nobody knows how severe they are, and no other number here has"
        " them.",
        COUNT,
        [query(_NOT_JUDGED)],
        3,
        TILE,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    replace(HOSTS_UP, width=3),
    replace(HOSTS_THAT_SEE, width=3),
)

_EXECUTABLES = (
    'job_state:~posture_executables:sum{SELECT,state="stopped"}',
    '~posture_executables{EACH,state="stopped"}',
)


def _processes(where: str = "") -> tuple[str, str]:
    return (
        selected("job_state:~posture_processes:sum", where),
        selected("~posture_processes", where, "EACH"),
    )


_SEALING = _processes('state="sealing"')
PROCESSES_BY_STATE = f"sum by (state) {all_or_each(*_processes())}"

NEEDED_BY_DAY = (
    Panel(
        "Warnings",
        "number",
        "Denials, faults and bypasses in the time shown whose facts are those of a bug or a leak"
        " rather than an attack." + _events("violation"),
        COUNT,
        [query(violations(".+", "warning"))],
        4,
        TILE,
        alarm=WARNING,
        links=(_BEHIND,),
    ),
    Panel(
        "Programs that stopped sealing",
        "number",
        "Executables that are known to seal memory and were last seen without, now.",
        COUNT,
        [query(f"sum{all_or_each(*_EXECUTABLES)}")],
        5,
        TILE,
        alarm=WARNING,
        links=(_BEHIND,),
    ),
    Panel(
        "Refused by a seal",
        "number",
        "Attempts to change sealed memory in the time shown, whatever their severity, where a seal"
        " is proved to be the reason of the refusal." + _events("denial"),
        COUNT,
        [query(recorded("~denials_total", 'verdict="sealed"'))],
        4,
        TILE,
        links=(_BEHIND,),
    ),
    Panel(
        "Perhaps by a seal",
        "number",
        "Refused calls in the time shown with a seal in their range, where something else may have"
        " been the reason (verdict unverified)." + _events("denial"),
        COUNT,
        [query(recorded("~denials_total", 'verdict="unverified"'))],
        4,
        TILE,
        links=(_BEHIND,),
    ),
    Panel(
        "Deaths at guards",
        "number",
        "Faults in the time shown at guard regions, stack guards and inaccessible pages for which"
        " no handler ran. Programs with bugs have some; the alert is for many more than usual."
        + _events("fault"),
        COUNT,
        [query(recorded("~faults_total", f"{GUARDS},{DEADLY}"))],
        4,
        TILE,
        links=(_BEHIND,),
    ),
    Panel(
        "Sealing",
        "number",
        "The part of all processes that has sealed memory of its own, at the last look.",
        "percentunit",
        [query(f"sum{all_or_each(*_SEALING)} / sum{all_or_each(*_processes())}")],
        3,
        TILE,
    ),
)

# ---- Denials -------------------------------------------------------------------------------------


def by_severity(title: str, description: str, kind: str, where: str = "") -> Panel:
    """Bars of a kind of violation."""
    series = recorded("~violations_total", f'kind="{kind}"{where}', "severity", INTERVAL)
    return Panel(
        title,
        "bars",
        description + " In each bar, by severity." + _events(kind),
        COUNT,
        [query(series, "{{severity}}")],
        12,
        links=(_BEHIND,),
    )


DENIALS = by_severity(
    "Denials",
    "Refused attempts to change memory that a seal explains or may explain.",
    "denial",
)
DENIALS_BY_OPERATION = Panel(
    "Denials by operation",
    "table",
    "Refused attempts to change memory in the time shown, by system call and verdict; not_sealed"
    " ones left out.",
    COUNT,
    [query(recorded("~denials_total", by="operation, verdict"))],
    6,
    columns={
        "operation": Column("Operation"),
        "verdict": VERDICT_COLUMN,
        "Value": Column("Denials", COUNT),
    },
)
UNVERIFIED_BY_REASON = Panel(
    "Not proved, and why",
    "table",
    "What kept the seal from being proved as the reason of a refusal, in the time shown. The"
    " process can bring about all of them but other_process by itself.",
    COUNT,
    [query(recorded("~unverified_denials_total", by="reason"))],
    6,
    columns={"reason": Column("Reason"), "Value": Column("Denials", COUNT)},
)

# ---- Changed all the same ------------------------------------------------------------------------

PARTIAL_UPDATES = Panel(
    "Partial updates over time",
    "bars",
    "Refused calls, in each bar, that left the part of the range before the seal changed."
    + _events("denial"),
    COUNT,
    [query(recorded("~partial_updates_total", within=INTERVAL) + " > 0", "partial updates")],
    6,
    6,
    links=(_BEHIND,),
)
PARTIAL_UPDATES_BY_OPERATION = Panel(
    "Partial updates by operation",
    "table",
    "In the time shown, by system call.",
    COUNT,
    [query(recorded("~partial_updates_total", by="operation"))],
    6,
    6,
    columns={"operation": Column("Operation"), "Value": Column("Partial updates", COUNT)},
)
BYPASSES = replace(
    by_severity(
        "Bypasses",
        "Changes of what sealed memory holds, made around its seal. Debuggers also do this.",
        "bypass",
    ),
    width=6,
    height=6,
)
BYPASSES_BY_METHOD = Panel(
    "Bypasses by method",
    "table",
    "In the time shown, by the way taken.",
    COUNT,
    [query(recorded("~bypasses_total", by="method"))],
    6,
    6,
    columns={"method": Column("Method"), "Value": Column("Bypasses", COUNT)},
)

# ---- Faults --------------------------------------------------------------------------------------

FAULTS_BY_SEVERITY = by_severity(
    "Faults",
    "Faults at guard pages and protections that made events. Those that a handler took, as in JVMs,"
    " V8 and Go, are in the table alone.",
    "fault",
)
FAULTS = Panel(
    "Faults by cause and disposition",
    "table",
    "In the time shown. default: the process died; handler: a handler of its own was called, as"
    " JVMs, V8 and Go do all day; handler_failed: its handler could not run; handler_ended: the"
    " process ended in it.",
    COUNT,
    [query(recorded("~faults_total", by="cause, disposition"))],
    12,
    columns={
        "cause": Column("Cause"),
        "disposition": Column("Disposition"),
        "Value": Column("Faults", COUNT),
    },
)

# ---- Seals ---------------------------------------------------------------------------------------

SEALS = Panel(
    "Seals",
    "bars",
    "Successful mseal calls, in each bar. With glibc that seals, each start of a program has some.",
    COUNT,
    [query(gained_by_all("~seals_total", INTERVAL), "seals")],
    12,
)
SEALED_BYTES = Panel(
    "Sealed bytes",
    "bars",
    "Address space in the ranges of successful mseal calls, in each bar.",
    "bytes",
    [query(gained_by_all("~sealed_bytes_total", INTERVAL), "sealed bytes")],
    12,
)
