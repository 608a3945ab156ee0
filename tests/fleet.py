"""Hours in the life of a fleet, as Prometheus would have stored them: every metric of the registry,
with violations and troubles for the dashboards to show.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product

from monitor.evidence.severities import KINDS, SEVERITIES
from monitor.kernel.probes import PROBES
from monitor.kernel.sight import BLIND_SPOTS
from monitor.metrics.table import METRICS, Metric
from monitor.metrics.tally import DELAY_BUCKETS

__all__ = ["JOB", "MINUTE", "exposition"]

JOB = "seal-monitor"
MINUTE = 60

Labels = tuple[str, ...]
Values = Mapping[Labels, float]
# Values of the labels -> what a host gains in a minute, or has. None: there is no such series.
Minute = Callable[["Host", int], Values]

WORKLOADS = ("image-worker.service", "web.service", "cron.service", "pod/2f1c", "other")
STORM = "image-worker.service"
NEWCOMER = "payments.service"  # its first denial comes when four fifths of the time have gone
SINKS = ("file", "incidents", "journal")


class Host:
    """One host of the fleet. The first ten have a trouble each; the others are quiet."""

    def __init__(self, index: int, minutes: int, begin: int) -> None:
        self.index, self.minutes, self.begin = index, minutes, begin
        self.name = f"web-{index:03}.example:10462"
        self.random = random.Random(index)
        self.restart = minutes // 2 + 5 if index == 3 else None
        self.gone_from = minutes * 9 // 10 if index == 5 else minutes + 1
        self.storm = (
            range(minutes // 3, minutes // 3 + 20)
            if index == 2
            else range(minutes - 40, minutes - 35)
            if index == 0
            else range(0)
        )

    def now_and_then(self, mean: float) -> int:
        """A number of events in a minute."""
        return sum(self.random.random() < mean / 4 for _ in range(4))

    def started(self, minute: int) -> float:
        is_second = self.restart is not None and minute >= self.restart
        return self.begin + (MINUTE * (self.restart or 0) if is_second else -86400) - 5

    def mode(self) -> str:
        return "tracepoint" if self.index % 4 == 1 else "fexit"

    def blind(self) -> tuple[str, ...]:
        """Its blind spots."""
        if self.mode() == "fexit":
            return ()
        return "hidden refusals", "32-bit callers", "io_uring", "/proc/PID/mem", "userfaultfd"


def _denied(host: Host, minute: int) -> dict[tuple[str, str, str], int]:
    """Denials in this minute, by workload, operation and verdict."""
    found: dict[tuple[str, str, str], int] = {}
    if minute in host.storm:
        found[STORM, "munmap", "sealed"] = 180 + host.random.randrange(40)
        found[STORM, "madvise", "sealed"] = host.random.randrange(20)
    if host.index % 6 == 1:
        found["web.service", "mprotect", "sealed"] = host.now_and_then(0.02)
        found["cron.service", "brk", "unverified"] = host.now_and_then(0.02)
        found["pod/2f1c", "mremap", "not_sealed"] = host.now_and_then(0.1)
    if host.index == 1 and minute == host.minutes * 4 // 5:
        found[NEWCOMER, "mprotect", "sealed"] = 1
    return found


def _denials(host: Host, minute: int) -> Values:
    gained: dict[Labels, float] = {}
    for (_, operation, verdict), count in _denied(host, minute).items():
        gained[operation, verdict] = gained.get((operation, verdict), 0) + count
    return gained


def _workload_denials(host: Host, minute: int) -> Values:
    gained: dict[Labels, float] = {}
    for (workload, _, verdict), count in _denied(host, minute).items():
        if count:
            gained[workload, verdict] = gained.get((workload, verdict), 0) + count
    return gained


def _faults(host: Host, minute: int) -> Values:
    return {
        ("guard_region", "default"): host.now_and_then(0.01),
        ("stack_guard", "default"): host.now_and_then(0.005),
        ("stack_guard", "handler_failed"): host.now_and_then(0.002),
        ("prot_none", "handler"): host.now_and_then(2.0) if host.index % 3 == 0 else 0,
        ("sealed", "default"): int(
            host.index == 1 and minute in (host.minutes // 4, host.minutes * 3 // 4)
        ),
        ("other", "default"): host.now_and_then(0.05),
    }


def _violations(host: Host, minute: int) -> Values:
    """What asks for memory that stays is a leak; what asks for other permissions is an attack."""
    gained: dict[Labels, float] = {
        ("other", kind, severity): 0 for kind in KINDS for severity in SEVERITIES
    }
    for (workload, operation, verdict), count in _denied(host, minute).items():
        severity = "critical" if operation in ("mprotect", "madvise") else "warning"
        if count and verdict != "not_sealed":
            key = workload, "denial", severity
            gained[key] = gained.get(key, 0) + count
    if host.index == 1 and minute in (host.minutes // 4, host.minutes * 3 // 4):
        gained["web.service", "fault", "critical"] = 1
    if minute % 36 == host.index % 36:
        gained["web.service", "fault", "warning"] = 1
    if minute % 18 == host.index % 18:
        gained["cron.service", "fault", "info"] = 1
    if host.index == 1 and minute % 50 == 40:
        gained["web.service", "bypass", "warning"] = 1
    return gained


def _events(host: Host, minute: int) -> Values:
    denied = sum(_denied(host, minute).values())
    shown = min(denied, 40)
    return {
        ("denial", "delivered"): shown,
        ("denial", "suppressed"): denied - shown,
        ("denial", "dropped"): 3 if minute in host.storm and host.index == 2 else 0,
        ("fault", "delivered"): host.now_and_then(0.05),
        ("fault", "filtered"): host.now_and_then(0.05),
        ("suppression", "delivered"): int(denied > shown),
        ("health", "delivered"): int(minute == 0),
        ("seal", "failed"): int(host.index == 8 and minute % 90 == 7),
    }


def _canary(host: Host, minute: int) -> Values:
    fails = host.index == 4 and minute % 120 in range(30, 35)
    return {("success",): int(not fails), ("failure",): int(fails)}


def _probes(host: Host, _minute: int) -> Values:
    unseen = {"compat", "io_uring_madvise"}
    if host.mode() == "tracepoint":
        unseen |= {"other", "proc_mem_write", "userfaultfd_copy", "userfaultfd_move"}
    names = [probe.name for probe in PROBES if probe.name not in unseen]
    return {
        (name, "raw_tracepoint" if name == "signal_deliver" else host.mode()): int(
            not (host.index == 7 and name == "shmdt")
        )
        for name in names
    }


def _missed(host: Host, minute: int) -> Values:
    is_busy = host.index == 8 and minute % 100 < 10
    return {(probe,): 7 if is_busy and probe == "madvise" else 0 for probe, _ in _probes(host, 0)}


# Of a counter, what it gains in a minute; of a gauge, its value.
GAINED: dict[str, Minute] = {
    "starts_total": lambda _host, minute: {("fresh",): int(minute == 0)},
    "unread_seconds_total": lambda _host, _minute: {},
    "records_found_total": lambda _host, _minute: {},
    "denials_total": _denials,
    "unverified_denials_total": lambda host, minute: {
        ("seccomp",): int(host.index == 2 and minute % 60 == 20)
    },
    "partial_updates_total": lambda host, minute: {
        ("madvise",): host.random.randrange(2) if minute in host.storm else 0
    },
    "faults_total": _faults,
    "bypasses_total": lambda host, minute: {
        ("ptrace_poke",): int(host.index == 1 and minute % 50 == 40)
    },
    "announced_violations_total": lambda _host, _minute: {("denial",): 0},
    "seals_total": lambda host, _: {(): host.now_and_then(2.0)},
    "sealed_bytes_total": lambda host, _: {(): 8192 * host.now_and_then(2.0)},
    "workload_denials_total": _workload_denials,
    "violations_total": _violations,
    "events_total": _events,
    "probe_missed_runs_total": _missed,
    "canary_runs_total": _canary,
    "identity_lookups_total": lambda host, _: {
        ("complete",): host.now_and_then(0.4),
        ("partial",): host.now_and_then(0.1),
        ("gone",): host.now_and_then(0.05),
        ("reused",): 0,
    },
    "sink_errors_total": lambda host, minute: {
        (sink,): int(host.index == 8 and sink == "file" and minute % 90 == 7) for sink in SINKS
    },
    "sink_sent_total": lambda host, minute: {
        ("otlp", "accepted"): 2 * int(host.index % 4 == 0 and minute % 3 == 0),
        ("otlp", "refused"): int(host.index == 4 and minute % 70 == 9),
    },
    "sink_spool_dropped_total": lambda host, minute: {
        ("otlp", "info"): 5 * int(host.index == 4 and minute % 110 == 11)
    },
    "incidents_removed_total": lambda host, minute: {
        ("info",): 20 * int(host.index == 1 and minute % 60 == 30)
    },
    "snapshots_total": lambda host, _: {
        ("taken",): host.now_and_then(0.02),
        ("gone",): host.now_and_then(0.01),
    },
    "decode_errors_total": lambda _host, _minute: {(): 0},
    "events_file_removed_bytes_total": lambda host, _: {(): 4096 * host.now_and_then(0.01)},
}
HAD: dict[str, Minute] = {
    "probe_attached": _probes,
    "blind_spot": lambda host, _: {(name,): int(name in host.blind()) for name in BLIND_SPOTS},
    "last_violation_timestamp_seconds": lambda _host, _minute: {},
    "canary_last_success_timestamp_seconds": lambda host, minute: {
        (): 0
        if host.index == 6
        else host.begin
        + MINUTE * minute
        - 20
        - (MINUTE * (minute % 120 - 29) if _canary(host, minute)["failure",] else 0)
    },
    "canary_interval_seconds": lambda _host, _minute: {(): MINUTE},
    "sink_queue_events": lambda host, minute: {
        (sink,): host.random.randrange(60) if minute in host.storm else 0 for sink in SINKS
    },
    "sink_spool_bytes": lambda host, minute: {
        ("otlp",): 4096 * (minute % 40 if host.index == 4 else int(minute in host.storm))
    },
    "sink_spool_oldest_seconds": lambda host, minute: {
        ("otlp",): MINUTE * (minute % 40 + 1) if host.index == 4 else 0
    },
    "ring_used_bytes": lambda host, minute: {
        (): 1024 * host.random.randrange(900) if minute in host.storm else 0
    },
    "workloads_tracked": lambda host, _: {(): 3 if host.index % 6 == 1 else 0},
    "workloads_maximum": lambda _host, _minute: {(): 64},
    "posture_processes": lambda host, _: {
        ("sealing",): 12 + host.index % 3,
        ("not_sealing",): 140 + host.index % 11,
        ("unreadable",): 0,
        ("too_large",): int(host.index % 9 == 0),
        ("timed_out",): 0,
    },
    "posture_sealed_bytes": lambda host, _: {
        ("image-worker.service",): 2**20 * (3 + host.index % 4),
        ("web.service",): 2**18,
        ("other",): 2**16,
    },
    "posture_sealed_ratio": lambda host, _: {
        ("executable",): 0.05 + host.index % 5 / 100,
        ("relro",): 0.02,
    },
    "posture_executables": lambda host, minute: {
        ("sealing",): 4 - int(host.index == 1 and minute > 100),
        ("stopped",): int(host.index == 1 and minute > 100),
    },
    "posture_scan_duration_seconds": lambda host, minute: {(): 4 + host.index % 3 + minute % 2},
    "posture_last_success_timestamp_seconds": lambda host, minute: {
        (): host.begin + MINUTE * (minute - minute % 10) - 5
    },
    "posture_interval_seconds": lambda _host, _minute: {(): 10 * MINUTE},
    "incident_store_bytes": lambda host, minute: {
        (): 4096 * (20 + host.index % 7 + (minute // 30 if host.index in (0, 1, 2) else 0))
    },
    "config_last_reload_successful": lambda host, minute: {(): int(host.index != 9 or minute < 60)},
    "config_last_reload_success_timestamp_seconds": lambda host, minute: {
        (): host.started(minute) + 1
    },
    "counters_since_timestamp_seconds": lambda host, _: {(): host.started(0) + 1},
    "build_info": lambda host, _: {("0.1.0" if host.index % 5 else "0.1.1", "c19c26ef7800"): 1},
    "kernel_info": lambda host, _: {("6.12.107-amd64" if host.index % 4 else "6.18.44",): 1},
    "seal_supported": lambda _host, _minute: {(): 1},
    "partial_update_possible": lambda host, _: {
        ("mprotect",): 1,
        ("madvise",): int(host.index % 4 > 0),
        ("mremap",): 1,
    },
}
PROCESS: dict[str, tuple[str, Callable[[Host, int], float]]] = {
    "up": ("gauge", lambda host, minute: int(minute < host.gone_from)),
    "process_start_time_seconds": ("gauge", lambda host, minute: host.started(minute)),
    "process_resident_memory_bytes": (
        "gauge",
        lambda host, minute: 2**20 * (30 + host.index % 5 + 3 * (minute in host.storm)),
    ),
    "process_cpu_seconds_total": (
        "counter",
        lambda host, minute: (
            (MINUTE * minute + host.begin - host.started(minute)) * 0.0005
            + sum(4 for each in host.storm if each <= minute)
        ),
    ),
    "process_open_fds": ("gauge", lambda host, _: 40 + host.index % 3),
}


def _known(metric: Metric) -> list[Labels]:
    """The series that are there from the start."""
    if any(isinstance(values, str) for values in metric.labels.values()):
        return []
    return list(product(*metric.labels.values()))


def _counted(metric: Metric, host: Host) -> Iterator[tuple[Labels, int, float]]:
    """Labels, minute and value of a counter."""
    counts: dict[Labels, float] = dict.fromkeys(_known(metric), 0.0)
    for minute in range(host.minutes):  # also after a restart, which is resumed
        for labels, gained in GAINED[metric.name](host, minute).items():
            counts[labels] = counts.get(labels, 0.0) + gained
        for labels, count in counts.items():
            yield labels, minute, count


def _histogram(host: Host) -> Iterator[tuple[str, str, int, float]]:
    """Suffix, bound, minute and value."""
    counts = [0] * (len(DELAY_BUCKETS) + 1)
    seconds = 0.0
    for minute in range(host.minutes):
        if minute == host.restart:
            counts, seconds = [0] * len(counts), 0.0
        for _ in range(host.now_and_then(1.0)):
            bucket = min(int(host.random.expovariate(0.6)), len(DELAY_BUCKETS) - 1)
            counts[bucket] += 1
            seconds += DELAY_BUCKETS[bucket]
        for index, bound in enumerate([*map(str, DELAY_BUCKETS), "+Inf"]):
            yield "_bucket", bound, minute, sum(counts[: index + 1])
        yield "_count", "", minute, sum(counts)
        yield "_sum", "", minute, seconds


def _samples(metric: Metric, host: Host) -> Iterator[tuple[str, str, int, float]]:
    """Suffix of the name, labels, minute and value."""
    if metric.type == "histogram":
        for suffix, bound, minute, value in _histogram(host):
            yield suffix, f',le="{bound}"' if bound else "", minute, value
        return
    found = (
        _counted(metric, host)
        if metric.type == "counter"
        else (
            (labels, minute, value)
            for minute in range(host.minutes)
            for labels, value in HAD[metric.name](host, minute).items()
        )
    )
    for labels, minute, value in found:
        text = "".join(
            f',{label}="{given}"' for label, given in zip(metric.labels, labels, strict=True)
        )
        yield "", text, minute, value


def exposition(hosts: int, minutes: int, end: float | None = None) -> Iterator[str]:
    """Lines of OpenMetrics with a sample a minute, up to the Unix time `end` (now)."""
    begin = int(end if end is not None else time.time()) - MINUTE * minutes

    def line(name: str, host: Host, labels: str, minute: int, value: float) -> str:
        at = begin + MINUTE * minute
        return f'{name}{{job="{JOB}",instance="{host.name}"{labels}}} {value:.15g} {at}\n'

    for metric in METRICS:
        if metric.type != "histogram" and metric.name not in (*GAINED, *HAD):
            continue
        family = metric.full_name.removesuffix("_total")
        yield f"# TYPE {family} {metric.type}\n"
        for index in range(hosts):
            host = Host(index, minutes, begin)
            for suffix, labels, minute, value in _samples(metric, host):
                if minute < host.gone_from:
                    yield line(metric.full_name + suffix, host, labels, minute, value)
    for name, (kind, value_at) in PROCESS.items():
        yield f"# TYPE {name.removesuffix('_total')} {kind}\n"
        for index in range(hosts):
            host = Host(index, minutes, begin)
            for minute in range(minutes):
                if minute < host.gone_from or name == "up":
                    yield line(name, host, "", minute, value_at(host, minute))
    yield "# EOF\n"
