"""The panels that the overview and the dashboard of a host share."""

from __future__ import annotations

from colors import CRITICAL, WARNING
from model import COUNT, Column, Link, Panel, Variable, query
from queries import CANARY_OVERDUE, INTERVAL, gained, out_of

__all__ = [
    "BLIND",
    "BYPASSES",
    "BYPASSES_BY_METHOD",
    "DEATHS",
    "DENIALS",
    "DENIALS_BY_OPERATION",
    "EVENTS_OF_DENIALS",
    "FAULTS",
    "HOSTS",
    "HOSTS_THAT_ANSWER",
    "HOSTS_THAT_SEE",
    "HOST_COLUMN",
    "JOB",
    "NEEDED_BY_DAY",
    "NEEDED_NOW",
    "PARTIAL_UPDATES",
    "PARTIAL_UPDATES_BY_OPERATION",
    "SEALED_BYTES",
    "SEALS",
    "THIS_HOST",
    "THIS_WORKLOAD",
    "UNVERIFIED_BY_REASON",
]

DEADLY = 'disposition=~"default|handler_failed"'
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

_CHOSEN = "?${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
_HOST = f"/d/seal-monitor-host{_CHOSEN}"
_BEHIND = Link("What is behind it, on these hosts", _HOST + "&${instance:queryparam}")
_HEALTH = Link(
    "Which hosts, and why", f"/d/seal-monitor-health{_CHOSEN}" + "&${instance:queryparam}"
)
THIS_HOST = Link("This host", _HOST + "&var-instance=${__data.fields.instance}")
THIS_WORKLOAD = Link(
    "This workload", _HOST + "&${instance:queryparam}&var-workload=${__data.fields.Workload}"
)
HOST_COLUMN = Column("Host", links=(THIS_HOST,))

EVENTS_OF_DENIALS = (
    "\n\nThe incidents, on the host: `seal-monitor incidents list --since 1h --kind denial`; its"
    " events: `journalctl -t seal-monitor SEAL_MONITOR_KIND=denial --since '1 hour ago'`."
    '\n\nIn Loki, from a file of events: `{filename="/var/log/seal-monitor/events.jsonl"} | json'
    ' | kind="denial"`; of one unit: add `| workload_unit="UNIT"`.'
)
EVENTS_OF_FAULTS = EVENTS_OF_DENIALS.replace("denial", "fault")
EVENTS_OF_BYPASSES = EVENTS_OF_DENIALS.replace("denial", "bypass")

# ---- What needs a person -------------------------------------------------------------------------

# A monitor that answers, but may not see: its canary never came back or is overdue, or a probe is
# attached in no way.
BLIND = (
    "~canary_last_success_timestamp_seconds{SELECT} == 0"
    f" or {CANARY_OVERDUE}"
    " or ~probe_attached{SELECT} == 0"
)
_UP = "sum(up{SELECT})"
_SEEING = f"({_UP} - (count(count by (instance) ({BLIND})) or vector(0)))"

HOSTS_THAT_ANSWER = Panel(
    "Hosts that answer",
    "number",
    "Hosts whose monitor answers scrapes now, of all that Prometheus knows. Red: on another one"
    " nothing may be watching.",
    COUNT,
    [out_of(_UP, "count(up{SELECT})")],
    4,
    4,
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
    4,
    alarm=CRITICAL,
    name=True,
    links=(_HEALTH,),
)

NEEDED_NOW = (
    Panel(
        "Refused by a seal",
        "number",
        "Attempts to change sealed memory in the time shown, where a seal is proved to be the"
        " reason of the refusal. It should be 0." + EVENTS_OF_DENIALS,
        COUNT,
        [query(gained("~denials_total", 'verdict="sealed"'))],
        4,
        4,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    Panel(
        "Changed around a seal",
        "number",
        "Bypasses in the time shown: changes of what sealed memory holds that its seal does not"
        " stop. Debuggers also do this." + EVENTS_OF_BYPASSES,
        COUNT,
        [query(gained("~bypasses_total"))],
        4,
        4,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    Panel(
        "Partial updates",
        "number",
        "Refused calls in the time shown that had changed the part of the range before the seal."
        + EVENTS_OF_DENIALS,
        COUNT,
        [query(gained("~partial_updates_total"))],
        4,
        4,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    Panel(
        "Sealed memory hit",
        "number",
        "Accesses in the time shown that the protection of sealed memory does not allow: mostly"
        " writes to what was sealed read-only." + EVENTS_OF_FAULTS,
        COUNT,
        [query(gained("~faults_total", 'cause="sealed"'))],
        4,
        4,
        alarm=CRITICAL,
        links=(_BEHIND,),
    ),
    HOSTS_THAT_ANSWER,
    HOSTS_THAT_SEE,
)

NEEDED_BY_DAY = (
    Panel(
        "Perhaps by a seal",
        "number",
        "Refused calls in the time shown with a seal in their range, where something else may have"
        " been the reason (verdict unverified)." + EVENTS_OF_DENIALS,
        COUNT,
        [query(gained("~denials_total", 'verdict="unverified"'))],
        6,
        4,
        alarm=WARNING,
        links=(_BEHIND,),
    ),
    Panel(
        "Programs that stopped sealing",
        "number",
        "Executables that are known to seal memory and were last seen without, now.",
        COUNT,
        [query('sum(~posture_executables{SELECT,state="stopped"})')],
        6,
        4,
        alarm=WARNING,
        links=(_BEHIND,),
    ),
    Panel(
        "Deaths at guards",
        "number",
        "Faults in the time shown at guard regions, stack guards and inaccessible pages for which"
        " no handler ran. Programs with bugs have some; the alert is for many more than usual."
        + EVENTS_OF_FAULTS,
        COUNT,
        [query(gained("~faults_total", f"{GUARDS},{DEADLY}"))],
        6,
        4,
        links=(_BEHIND,),
    ),
    Panel(
        "Processes that seal",
        "number",
        "The part of all processes that has sealed memory of its own, at the last look.",
        "percentunit",
        [
            query(
                'sum(~posture_processes{SELECT,state="sealing"}) / sum(~posture_processes{SELECT})'
            )
        ],
        6,
        4,
    ),
)

# ---- Denials -------------------------------------------------------------------------------------

DENIALS = Panel(
    "Denials by verdict",
    "bars",
    "Refused attempts to change memory, in each bar. sealed: a seal is proved to be the reason;"
    " unverified: it may be; not_sealed: refused for another reason, with tracepoints only."
    + EVENTS_OF_DENIALS,
    COUNT,
    [query(gained("~denials_total", by="verdict", within=INTERVAL) + " > 0", "{{verdict}}")],
    12,
    links=(_BEHIND,),
)
DENIALS_BY_OPERATION = Panel(
    "Denials by operation",
    "table",
    "Refused attempts to change memory in the time shown, by system call and verdict.",
    COUNT,
    [query(gained("~denials_total", by="operation, verdict") + " > 0")],
    6,
    columns={
        "operation": Column("Operation"),
        "verdict": Column("Verdict"),
        "Value": Column("Denials", COUNT),
    },
)
UNVERIFIED_BY_REASON = Panel(
    "Not proved, and why",
    "table",
    "What kept the seal from being proved as the reason of a refusal, in the time shown. The"
    " process can bring about all of them but other_process by itself.",
    COUNT,
    [query(gained("~unverified_denials_total", by="reason") + " > 0")],
    6,
    columns={"reason": Column("Reason"), "Value": Column("Denials", COUNT)},
)

# ---- Changed all the same ------------------------------------------------------------------------

PARTIAL_UPDATES = Panel(
    "Partial updates over time",
    "bars",
    "Refused calls, in each bar, that left the part of the range before the seal changed."
    + EVENTS_OF_DENIALS,
    COUNT,
    [query(gained("~partial_updates_total", within=INTERVAL) + " > 0", "partial updates")],
    6,
    6,
    links=(_BEHIND,),
)
PARTIAL_UPDATES_BY_OPERATION = Panel(
    "Partial updates by operation",
    "table",
    "In the time shown, by system call.",
    COUNT,
    [query(gained("~partial_updates_total", by="operation") + " > 0")],
    6,
    6,
    columns={"operation": Column("Operation"), "Value": Column("Partial updates", COUNT)},
)
BYPASSES = Panel(
    "Bypasses over time",
    "bars",
    "Changes of what sealed memory holds, in each bar, made around its seal. Debuggers also do"
    " this." + EVENTS_OF_BYPASSES,
    COUNT,
    [query(gained("~bypasses_total", within=INTERVAL) + " > 0", "bypasses")],
    6,
    6,
    links=(_BEHIND,),
)
BYPASSES_BY_METHOD = Panel(
    "Bypasses by method",
    "table",
    "In the time shown, by the way taken.",
    COUNT,
    [query(gained("~bypasses_total", by="method") + " > 0")],
    6,
    6,
    columns={"method": Column("Method"), "Value": Column("Bypasses", COUNT)},
)

# ---- Faults --------------------------------------------------------------------------------------


def _deaths(where: str) -> str:
    return gained("~faults_total", f"{where},{DEADLY}", within=INTERVAL) + " > 0"


DEATHS = Panel(
    "Faults that no handler took",
    "bars",
    "In each bar. sealed memory: its protection did not allow the access; guards: guard regions,"
    " stack guards and inaccessible pages." + EVENTS_OF_FAULTS,
    COUNT,
    [
        query(_deaths('cause="sealed"'), "sealed memory"),
        query(_deaths(GUARDS), "guards"),
        query(_deaths('cause=~"pkey|other"'), "other faults"),
    ],
    12,
    links=(_BEHIND,),
)
FAULTS = Panel(
    "Faults by cause and disposition",
    "table",
    "In the time shown. default: the process died; handler: a handler of its own was called, as"
    " JVMs, V8 and Go do all day; handler_failed: its handler could not run.",
    COUNT,
    [query(gained("~faults_total", by="cause, disposition") + " > 0")],
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
    [query(gained("~seals_total", within=INTERVAL), "seals")],
    12,
)
SEALED_BYTES = Panel(
    "Sealed bytes",
    "bars",
    "Address space in the ranges of successful mseal calls, in each bar.",
    "bytes",
    [query(gained("~sealed_bytes_total", within=INTERVAL), "sealed bytes")],
    12,
)
