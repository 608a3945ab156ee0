"""The health of the monitors themselves."""

from __future__ import annotations

from dataclasses import replace

from colors import CRITICAL, WARNING
from host import FAILED_CANARIES, LOST, RUNS_MISSED
from model import COUNT, TILE, Column, Dashboard, Panel, Query, Row, query
from queries import CANARY_OVERDUE, INTERVAL, gained, host, out_of
from violations import HOST_COLUMN, HOSTS, HOSTS_THAT_SEE, HOSTS_UP, JOB

__all__ = ["HEALTH"]

# What is wrong with a monitor, as series of the hosts where it is so.
TROUBLES = {
    "does not answer": "up{SELECT} == 0",
    "was never ready": "~canary_last_success_timestamp_seconds{SELECT} == 0",
    "its canary is overdue": CANARY_OVERDUE,
    "a probe is not attached": "~probe_attached{SELECT} == 0",
    "its configuration is not in force": "~config_last_reload_successful{SELECT} == 0",
}


def _troubles() -> str:
    """Hosts with what is wrong as the label `trouble`, and the last success of the canary.

    That is in milliseconds, and 0 where none is known.
    """
    found = " or ".join(
        f'label_replace({series}, "trouble", "{text}", "", "")' for text, series in TROUBLES.items()
    )
    success = "last_over_time(~canary_last_success_timestamp_seconds{SELECT}[$__range])"
    return (
        f"0 * count by (instance, trouble, probe) ({found}) + on (instance) group_left ()"
        f" (1000 * max by (instance) ({success})"
        " or on (instance) 0 * max by (instance) (up{SELECT}))"
    )


def _highest(title: str, description: str, unit: str, series: str, width: int = 6) -> Panel:
    """Of all hosts; the table of those that take most names them."""
    return Panel(
        title,
        "lines",
        description + " The median of the hosts, and the highest.",
        unit,
        [query(f"quantile(0.5, {series})", "median"), query(f"max({series})", "highest")],
        width,
    )


def _oldest(title: str, description: str, series: str, what: str, width: int = 8) -> Panel:
    """The hosts where it is longest ago."""
    return Panel(
        title,
        "table",
        description + " The ten hosts where it is longest ago.",
        COUNT,
        [query(host(f"1000 * bottomk(10, max by (instance) ({series} > 0))"))],
        width,
        columns={"host": HOST_COLUMN, "Value": Column(what, "dateTimeFromNow")},
        ascending=True,
        hidden=("instance",),
    )


def _by_sink(title: str, description: str, series: str) -> Panel:
    """The hosts and sinks with most."""
    return Panel(
        title,
        "table",
        description + " The ten hosts with most.",
        COUNT,
        [query(host(f"topk(10, {series} > 0)"))],
        8,
        6,
        columns={
            "host": HOST_COLUMN,
            "sink": Column("Sink"),
            "Value": Column("Events", COUNT),
        },
        hidden=("instance",),
    )


def _results(title: str, description: str, metric: str) -> Panel:
    return Panel(
        title,
        "bars",
        description,
        COUNT,
        [query(gained(metric, by="result", within=INTERVAL) + " > 0", "{{result}}")],
        8,
    )


_MEMORY = "process_resident_memory_bytes{SELECT}"
_CPU = "rate(process_cpu_seconds_total{SELECT}[$__rate_interval])"
_FILES = "process_open_fds{SELECT}"
_STORE = "~incident_store_bytes{SELECT}"
_MOST = " or ".join(f"topk(3, {series})" for series in (_MEMORY, _CPU, _FILES, _STORE))


def _of_most(series: str) -> Query:
    """Of the hosts that are among the three with most of anything."""
    return query(host(f"max by (instance) ({series} and on (instance) ({_MOST}))"))


_OLDEST = "max by (instance) (~sink_spool_oldest_seconds{SELECT})"
_LONGEST = f"topk(10, {_OLDEST} > 0)"
_SPOOLED = "max by (instance) (~sink_spool_bytes{SELECT})"


def _most_gained(metric: str, where: str = "") -> Query:
    """The ten hosts with most, in the time shown."""
    return query(host(f"topk(10, {gained(metric, where, by='instance')} > 0)"))


HEALTH = Dashboard(
    "seal-monitor-health",
    "seal-monitor / Monitor health",
    "Whether the monitors see, report and hold what they promise.",
    (JOB, HOSTS),
    (
        Row(
            "Needs a person now, where it is red",
            (
                HOSTS_UP,
                HOSTS_THAT_SEE,
                Panel(
                    "Corrupt records",
                    "number",
                    "Records of the kernel that could not be decoded, in the time shown.",
                    COUNT,
                    [query(gained("~decode_errors_total"))],
                    4,
                    TILE,
                    alarm=CRITICAL,
                ),
                Panel(
                    "Configuration in force",
                    "number",
                    "Hosts whose configuration is in force, of those that answer. Orange: another"
                    " one has a mistake, or a change that waits for a restart.",
                    COUNT,
                    [
                        out_of(
                            "sum(~config_last_reload_successful{SELECT})",
                            "count(~config_last_reload_successful{SELECT})",
                        )
                    ],
                    4,
                    TILE,
                    alarm=WARNING,
                    name=True,
                ),
                Panel(
                    "Events lost",
                    "number",
                    "Events in the time shown that found no room in the ring buffer, or no sink.",
                    COUNT,
                    [query(gained("~events_total", 'result=~"dropped|failed"'))],
                    4,
                    TILE,
                    alarm=WARNING,
                ),
                Panel(
                    "Restarts",
                    "number",
                    "Starts of the monitor after the first, in the time shown.",
                    COUNT,
                    [query("sum(changes(process_start_time_seconds{SELECT}[$__range]))")],
                    4,
                    TILE,
                ),
                Panel(
                    "Hosts that need a person",
                    "table",
                    "Now: hosts whose monitor does not answer, may not see, or does not run as it"
                    " was configured, and when its canary last came back. The runbooks say what to"
                    " do. An empty table is good news.",
                    COUNT,
                    [query(host(_troubles()))],
                    24,
                    7,
                    columns={
                        "host": HOST_COLUMN,
                        "trouble": Column("What is wrong", least=240),
                        "probe": Column("Probe", sparse=True),
                        "Value": Column(
                            "Last canary", "dateTimeFromNow", words={"0": "not in the time shown"}
                        ),
                    },
                    ascending=True,
                    hidden=("instance",),
                ),
            ),
        ),
        Row(
            "Does it see?",
            (
                replace(FAILED_CANARIES, width=8),
                replace(RUNS_MISSED, width=8),
                _oldest(
                    "Canaries longest ago",
                    "Last success of the canary; a minute is normal.",
                    "~canary_last_success_timestamp_seconds{SELECT}",
                    "Last success",
                ),
                Panel(
                    "Hosts by probe and mode",
                    "table",
                    "On how many hosts each probe is attached in each way, the rarest first. fexit"
                    " costs least and sees most.",
                    COUNT,
                    [query("count by (probe, mode) (~probe_attached{SELECT} == 1)")],
                    8,
                    columns={
                        "probe": Column("Probe"),
                        "mode": Column("Mode"),
                        "Value": Column("Hosts", COUNT),
                    },
                    ascending=True,
                ),
                Panel(
                    "Blind spots",
                    "table",
                    "On how many hosts the way to watch does not see what happens there;"
                    " docs/limits.md says what closes each. The dashboard of a host has its own.",
                    COUNT,
                    [query("count by (name) (~blind_spot{SELECT} == 1)")],
                    8,
                    columns={"name": Column("Blind spot"), "Value": Column("Hosts", COUNT)},
                ),
                _oldest(
                    "Looks at what is sealed, longest ago",
                    "End of the last look at all processes.",
                    "~posture_last_success_timestamp_seconds{SELECT}"
                    " and on (instance) ~posture_interval_seconds{SELECT} > 0",
                    "Last look",
                ),
            ),
        ),
        Row(
            "Does it report?",
            (
                _results(
                    "Events by result",
                    "In each bar. delivered: a sink took it; suppressed: rate limit; filtered:"
                    " configuration; dropped: ring buffer full; failed: no sink took it.",
                    "~events_total",
                ),
                replace(LOST, title="Events lost over time"),
                Panel(
                    "Delay of events",
                    "lines",
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
                _results(
                    "Identities",
                    "Look-ups of processes in /proc, in each bar: complete; partial, something"
                    " could not be read; gone, it had exited; reused, the pid is another"
                    " process's.",
                    "~identity_lookups_total",
                ),
                _results(
                    "Snapshots",
                    "Snapshots of violating processes, in each bar: taken; partial, something"
                    " could not be read; gone, it had ended; dropped, too many at once; failed,"
                    " the store did not take it.",
                    "~snapshots_total",
                ),
                Panel(
                    "Incidents removed",
                    "bars",
                    "Incidents removed from the databases, in each bar, by severity: too old, or"
                    " beyond their owner's share of a full one.",
                    COUNT,
                    [
                        query(
                            gained("~incidents_removed_total", by="severity", within=INTERVAL)
                            + " > 0",
                            "{{severity}}",
                        )
                    ],
                    8,
                ),
                _by_sink(
                    "Not taken by sinks",
                    "Events in the time shown that a sink did not take: it failed, or its queue was"
                    " full.",
                    gained("~sink_errors_total", by="instance, sink"),
                ),
                _by_sink(
                    "Longest queues",
                    "The most events that waited for a sink at once, in the time shown.",
                    "max by (instance, sink) (max_over_time(~sink_queue_events{SELECT}[$__range]))",
                ),
                Panel(
                    "Removed from the events file",
                    "table",
                    "Bytes in the time shown between the oldest and the newest events, to keep its"
                    " bound. The ten hosts with most.",
                    COUNT,
                    [
                        query(
                            host(
                                "topk(10, "
                                + gained("~events_file_removed_bytes_total", by="instance")
                                + " > 0)"
                            )
                        )
                    ],
                    8,
                    6,
                    columns={"host": HOST_COLUMN, "Value": Column("Removed", "bytes")},
                    hidden=("instance",),
                ),
            ),
        ),
        Row(
            "Does the collector take it?",
            (
                _results(
                    "Sent to a collector",
                    "Events by hosts with [otlp], in each bar: accepted, or refused for good.",
                    "~sink_sent_total",
                ),
                Panel(
                    "Waiting for the collector",
                    "table",
                    "Now, on disk: the age of the oldest event that waits, and the bytes of all."
                    " The ten hosts where it waits longest. Minutes mean that the collector is"
                    " away.",
                    COUNT,
                    [
                        query(host(_LONGEST)),
                        query(host(f"{_SPOOLED} and on (instance) {_LONGEST}")),
                    ],
                    8,
                    columns={
                        "host": HOST_COLUMN,
                        "Value #A": Column("Oldest", "s"),
                        "Value #B": Column("On disk", "bytes"),
                    },
                    hidden=("instance",),
                ),
                Panel(
                    "Never at the collector",
                    "table",
                    "Events in the time shown that it refused, or that were lost while they waited"
                    " for it. The ten hosts with most of each.",
                    COUNT,
                    [
                        _most_gained("~sink_sent_total", 'result="refused"'),
                        _most_gained("~sink_spool_dropped_total"),
                    ],
                    8,
                    columns={
                        "host": HOST_COLUMN,
                        "Value #A": Column("Refused", COUNT),
                        "Value #B": Column("Lost", COUNT),
                    },
                    hidden=("instance",),
                ),
            ),
        ),
        Row(
            "What does it take?",
            (
                _highest("Memory", "Resident memory.", "bytes", _MEMORY),
                _highest("CPU", "Time of one CPU.", "percentunit", _CPU),
                _highest(
                    "Ring buffer",
                    "Bytes that wait to be read.",
                    "bytes",
                    "~ring_used_bytes{SELECT}",
                ),
                _highest(
                    "Duration of the look",
                    "How long the look at all processes takes, mostly waiting.",
                    "s",
                    "~posture_scan_duration_seconds{SELECT}",
                ),
                Panel(
                    "Hosts that take most",
                    "table",
                    "Those among the three with most memory, CPU, open files or incidents.",
                    COUNT,
                    [_of_most(series) for series in (_MEMORY, _CPU, _FILES, _STORE)],
                    16,
                    columns={
                        "host": HOST_COLUMN,
                        "Value #A": Column("Memory", "bytes"),
                        "Value #B": Column("CPU", "percentunit"),
                        "Value #C": Column("Open files", COUNT),
                        "Value #D": Column("Incidents", "bytes"),
                    },
                    hidden=("instance",),
                ),
                Panel(
                    "Places for workloads in use",
                    "lines",
                    "Of those in workloads.maximum, on the host that has most. From three quarters"
                    " on only services get one.",
                    "percentunit",
                    [
                        query(
                            "max(~workloads_tracked{SELECT} / ~workloads_maximum{SELECT})",
                            "highest",
                        )
                    ],
                    8,
                    highest=1,
                ),
            ),
        ),
        Row(
            "What is it?",
            (
                Panel(
                    "Versions",
                    "table",
                    "Hosts with each version of the monitor.",
                    COUNT,
                    [query("count by (version, revision) (~build_info{SELECT})")],
                    8,
                    6,
                    columns={
                        "version": Column("Version"),
                        "revision": Column("Revision"),
                        "Value": Column("Hosts", COUNT),
                    },
                ),
                Panel(
                    "Last started",
                    "table",
                    "The ten monitors that were started last.",
                    COUNT,
                    [
                        query(
                            host(
                                "1000 * topk(10, max by (instance)"
                                " (process_start_time_seconds{SELECT}))"
                            )
                        )
                    ],
                    8,
                    6,
                    columns={"host": HOST_COLUMN, "Value": Column("Started", "dateTimeFromNow")},
                    hidden=("instance",),
                ),
                replace(
                    _oldest(
                        "Configuration read",
                        "When a monitor last read a configuration that is all in force.",
                        "~config_last_reload_success_timestamp_seconds{SELECT}",
                        "Read",
                    ),
                    height=6,
                ),
            ),
        ),
    ),
)
