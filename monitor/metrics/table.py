"""Every metric, declared once: its name, help and labels, and its samples of one reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, get_args

from monitor.attach.calibrate import PARTIAL_OPERATIONS
from monitor.evidence.events import Severity
from monitor.evidence.severities import KINDS, SEVERITIES
from monitor.evidence.workloads import OTHER
from monitor.kernel.abi import Cause, Disposition, Kind, Method, Outcome, Reason, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import MODES
from monitor.kernel.sight import BLIND_SPOTS
from monitor.metrics import accounts
from monitor.metrics.exposition import (
    CounterMetricFamily,
    Family,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from monitor.metrics.reading import Reading
from monitor.metrics.tally import (
    CANARY_RESULTS,
    DELAY_BUCKETS,
    EVENT_KINDS,
    LOOKUP_RESULTS,
    SENT_RESULTS,
    SNAPSHOT_RESULTS,
    STARTS,
    Spooled,
    Tally,
)
from monitor.posture.scan import STATES

__all__ = ["METRICS", "Metric"]

PREFIX = "seal_monitor_"

OPERATION_NAMES = tuple(operation.name for operation in OPERATIONS)
VERDICT_NAMES = tuple(verdict.label for verdict in Verdict)
CAUSE_NAMES = tuple(cause.label for cause in Cause)
REASONS = tuple(reason for reason in Reason if reason is not Reason.NONE)
METHOD_NAMES = tuple(method.label for method in Method)
DISPOSITION_NAMES = tuple(disposition.label for disposition in Disposition)


Labels = tuple[str, ...]  # the values
Buckets = Sequence[tuple[str, float]]  # bounds, and how many are up to each
Sample = tuple[Labels, float] | tuple[Labels, Buckets, float]  # of a histogram: and their sum

_FAMILIES: Mapping[str, Callable[..., Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


@dataclass(frozen=True, slots=True)
class Metric:
    """`labels`: for each label all of its values or, where they vary, a description. `more` is for
    docs/metrics.md alone: every scrape carries `help`, and its size has a budget. An `optional`
    one is left out of a scrape where it has no samples.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Reading], Iterable[Sample]]
    labels: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    more: str = ""
    optional: bool = False

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def family(self, samples: Iterable[Sample] = ()) -> Family:
        made = _FAMILIES[self.type](self.full_name, self.help, labels=tuple(self.labels))
        for sample in samples:
            made.add_metric(*sample)
        family: Family = made
        return family


_ONLY_OTLP = "Only with otlp.endpoint."


def _one(value: Callable[[Reading], float]) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((), value(reading))]


def _by(value: Callable[[Reading], Mapping[str, float]]) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((key,), number) for key, number in value(reading).items()]


def _of_spools(
    values: Callable[[Tally, Spooled], Mapping[Labels, float]],
) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [
        ((sink, *labels), number)
        for sink, spool in reading.tally.spools.items()
        for labels, number in values(reading.tally, spool).items()
    ]


def _denials(reading: Reading) -> Iterator[Sample]:
    for name, by_verdict in zip(OPERATION_NAMES, reading.counters.denials, strict=True):
        for verdict, count in zip(VERDICT_NAMES, by_verdict, strict=True):
            yield (name, verdict), count


def _faults(reading: Reading) -> Iterator[Sample]:
    for cause in Cause:
        for disposition in Disposition:
            count = (
                reading.handled[cause]
                if disposition is Disposition.HANDLER
                else reading.counters.faults[cause][disposition]
            )
            yield (cause.label, disposition.label), count


def _workload_denials(reading: Reading) -> Iterator[Sample]:
    for workload, counts in {OTHER: (0, 0, 0), **reading.workload_denials}.items():
        for verdict, count in zip(VERDICT_NAMES, counts, strict=True):
            yield (workload, verdict), count


def _violations(reading: Reading) -> Iterator[Sample]:
    """Of a record that found no room nobody knows whose it was, nor how bad: it weighs most."""
    found: dict[tuple[str, str, str], int] = {
        (OTHER, kind, severity): 0 for kind in KINDS for severity in SEVERITIES
    }
    found.update(reading.violations)
    for kind in Kind:
        if kind.label in KINDS:
            dropped = reading.counters.events[kind][Outcome.DROPPED]
            found[OTHER, kind.label, "critical"] += dropped
    yield from found.items()


def _sealed_ratios(reading: Reading) -> Iterator[Sample]:
    memory = reading.tally.posture.memory
    for name, sealed, whole in (
        ("executable", memory.executable_sealed_bytes, memory.executable_bytes),
        ("relro", memory.relro_sealed_bytes, memory.relro_bytes),
    ):
        yield (name,), sealed / whole if whole else 0.0


def _delays(reading: Reading) -> Iterator[Sample]:
    up_to = accumulate(list(reading.tally.delays))
    buckets = list(zip([*map(str, DELAY_BUCKETS), "+Inf"], up_to, strict=True))
    yield (), buckets, reading.tally.delay_seconds


def _missed_runs(reading: Reading) -> Mapping[str, int]:
    """A probe has no series when its missed runs are unknown: that is not 0."""
    missed: dict[str, int] = {}
    unknown: set[str] = set()
    for state in reading.probes:
        if state.missed_runs is None:
            unknown.add(state.probe)
        else:
            missed[state.probe] = missed.get(state.probe, 0) + state.missed_runs
    return {probe: runs for probe, runs in missed.items() if probe not in unknown}


# The numbers are exact up to 2^53. Larger ones are rounded to the nearest double, as Prometheus
# stores them; only sealed_bytes_total, which counts address space, may get there.
METRICS: tuple[Metric, ...] = (
    Metric(
        "denials_total",
        "counter",
        "Refused attempts to change memory, by operation and by whether a seal explains it.",
        _denials,
        {"operation": OPERATION_NAMES, "verdict": VERDICT_NAMES},
    ),
    Metric(
        "unverified_denials_total",
        "counter",
        "Denials with the verdict unverified, by what keeps them from being proved.",
        lambda reading: [
            ((reason.label,), reading.counters.unverified[reason]) for reason in REASONS
        ],
        {"reason": tuple(reason.label for reason in REASONS)},
    ),
    Metric(
        "partial_updates_total",
        "counter",
        "Denials that left the part of the range before the seal changed.",
        lambda reading: [
            ((name,), count)
            for name, count in zip(OPERATION_NAMES, reading.counters.partial_updates, strict=True)
        ],
        {"operation": OPERATION_NAMES},
    ),
    Metric(
        "faults_total",
        "counter",
        "Guard-page and protection faults that raised a signal, by cause and what the signal did.",
        _faults,
        {"cause": CAUSE_NAMES, "disposition": DISPOSITION_NAMES},
    ),
    Metric(
        "bypasses_total",
        "counter",
        "Changes of sealed memory around its seal, by method.",
        lambda reading: [
            ((name,), count)
            for name, count in zip(METHOD_NAMES, reading.counters.bypasses, strict=True)
        ],
        {"method": METHOD_NAMES},
    ),
    Metric(
        "announced_violations_total",
        "counter",
        "Violations of announced trials by doctor, exec and demo; in no other count.",
        _by(lambda reading: accounts.violations(reading.announced)),
        {"kind": KINDS},
    ),
    Metric(
        "seals_total",
        "counter",
        "Successful mseal calls.",
        _one(lambda reading: reading.counters.seals),
    ),
    Metric(
        "sealed_bytes_total",
        "counter",
        "Bytes of address space in the ranges of successful mseal calls.",
        _one(lambda reading: reading.counters.sealed_bytes),
    ),
    Metric(
        "workload_denials_total",
        "counter",
        "Refused attempts to change memory, by workload.",
        _workload_denials,
        {
            "workload": "the systemd unit, else `pod/<uid>`, `container/<id>`, the cgroup's path or"
            " `cgroup:<id>`; `other` for those beyond the number tracked",
            "verdict": VERDICT_NAMES,
        },
    ),
    Metric(
        "violations_total",
        "counter",
        "Violations, by workload and by the severity of their events.",
        _violations,
        {
            "workload": "as above, but `user-<uid>.slice` for all that a user runs",
            "kind": KINDS,
            "severity": SEVERITIES,
        },
        more="Counted as their events are made, muted and undelivered ones included; those that the"
        " rate limit held back as their summary is made. What is dropped, or held back of several"
        " processes together, is critical. Denials that no seal explains are left out. What a"
        " removed cgroup had counts as `other` and `info`, once another needs its place.",
    ),
    Metric(
        "last_violation_timestamp_seconds",
        "gauge",
        "When a program made its last violation.",
        lambda reading: reading.violating_programs.items(),
        {
            "workload": "as above",
            "kind": KINDS,
            "program": "its base name, where it is the host's own file and root's, else `other`",
        },
        more="Of the last hour, four programs of each workload and kind at most. Alerts name them.",
    ),
    Metric(
        "events_total",
        "counter",
        "Events, by what became of them.",
        lambda reading: accounts.results(reading.counters, reading.tally).items(),
        {"kind": EVENT_KINDS, "result": accounts.RESULTS},
        more="Results: delivered (at least one sink took it), suppressed (rate limit), "
        "filtered (configuration), dropped (ring buffer full), failed (no sink took "
        "it).",
    ),
    Metric(
        "event_delay_seconds",
        "histogram",
        "Time from the kernel's time stamp of an event to its delivery.",
        _delays,
    ),
    Metric(
        "probe_attached",
        "gauge",
        "1: attached; 0: lost.",
        lambda reading: [
            ((state.probe, state.mode), int(state.attached)) for state in reading.probes
        ],
        {"probe": "the probe's name", "mode": MODES},
        more="What the mode cannot see is no loss: see `blind_spot`.",
    ),
    Metric(
        "blind_spot",
        "gauge",
        "Whether this host's way to watch does not see what happens there (1).",
        _by(lambda reading: reading.blind_spots),
        {"name": BLIND_SPOTS},
    ),
    Metric(
        "probe_missed_runs_total",
        "counter",
        "Runs of a probe that the kernel skipped.",
        _by(_missed_runs),
        {"probe": "the probe's name"},
        more="Above 0, the counts are a lower bound.",
    ),
    Metric(
        "canary_runs_total",
        "counter",
        "Runs of the canary, a violation of the monitor's own.",
        _by(lambda reading: reading.tally.canary_runs),
        {"result": CANARY_RESULTS},
        more="The monitor has to see it.",
    ),
    Metric(
        "canary_last_success_timestamp_seconds",
        "gauge",
        "Unix time of the canary's last success; 0 before the first.",
        _one(lambda reading: reading.tally.canary_last_success),
    ),
    Metric(
        "canary_interval_seconds",
        "gauge",
        "Time from one canary to the next, as configured; 0: only at start.",
        _one(lambda reading: reading.tally.canary_interval),
    ),
    Metric(
        "identity_lookups_total",
        "counter",
        "Look-ups of a process in /proc, by result.",
        _by(lambda reading: reading.tally.identity_lookups),
        {"result": LOOKUP_RESULTS},
        more="Results: complete, partial (something could not be read or the process has executed"
        " another program), gone (it has exited), reused (the pid is another process's).",
    ),
    Metric(
        "snapshots_total",
        "counter",
        "Snapshots of violating processes, by result.",
        _by(lambda reading: reading.tally.snapshots),
        {"result": SNAPSHOT_RESULTS},
        more="Results: taken, partial (something could not be read, it says what), gone (the"
        " process had ended or executed another program), dropped (beyond their small part of a"
        " core), failed (the store did not take it).",
    ),
    Metric(
        "sink_errors_total",
        "counter",
        "Events that a sink did not take.",
        _by(lambda reading: reading.tally.sink_errors),
        {"sink": "the sinks that the configuration names"},
        more="It failed, or its queue was full, or the monitor ended.",
    ),
    Metric(
        "events_file_removed_bytes_total",
        "counter",
        "Bytes of events removed to keep the events file within its bound.",
        _one(lambda reading: reading.tally.events_file_removed_bytes),
        more="Between the oldest and the newest; the bound is output.events_file_max_size.",
    ),
    Metric(
        "sink_queue_events",
        "gauge",
        "Events that wait for a sink to take them.",
        _by(lambda reading: reading.tally.sink_queue_events),
        {"sink": "the sinks that the configuration names"},
    ),
    Metric(
        "sink_spool_bytes",
        "gauge",
        "Bytes of events on disk that wait for a collector.",
        _of_spools(lambda _, spool: {(): spool.used_bytes}),
        {"sink": "otlp"},
        more=_ONLY_OTLP + " The bound is otlp.spool_max_size.",
        optional=True,
    ),
    Metric(
        "sink_spool_oldest_seconds",
        "gauge",
        "For how long the oldest of them has waited; 0: none waits.",
        _of_spools(lambda _, spool: {(): spool.oldest_seconds}),
        {"sink": "otlp"},
        more=_ONLY_OTLP,
        optional=True,
    ),
    Metric(
        "sink_sent_total",
        "counter",
        "Events that a collector answered for good.",
        _of_spools(lambda tally, _: {(key,): number for key, number in tally.sent.items()}),
        {"sink": "otlp", "result": SENT_RESULTS},
        more=_ONLY_OTLP
        + " An event that was sent twice counts twice; refused ones are lost there.",
        optional=True,
    ),
    Metric(
        "sink_spool_dropped_total",
        "counter",
        "Events that waited for a collector and were lost.",
        _of_spools(
            lambda tally, _: {(key,): number for key, number in tally.spool_dropped.items()}
        ),
        {"sink": "otlp", "severity": SEVERITIES},
        more=_ONLY_OTLP + " The spool was full, or damaged.",
        optional=True,
    ),
    Metric(
        "decode_errors_total",
        "counter",
        "Records of the kernel that could not be understood.",
        _one(lambda reading: reading.tally.decode_errors),
    ),
    Metric(
        "ring_used_bytes",
        "gauge",
        "Bytes of the ring buffer that hold records not yet read.",
        _one(lambda reading: reading.ring_used_bytes),
    ),
    Metric(
        "workloads_tracked",
        "gauge",
        "Workloads that are counted separately.",
        _one(lambda reading: reading.workloads_tracked),
    ),
    Metric(
        "workloads_maximum",
        "gauge",
        "Places for workloads with a count of their own (workloads.maximum).",
        _one(lambda reading: reading.workloads_maximum),
        more="A quarter for each cgroup subtree, such as user-1000.slice, and the last "
        "quarter for services.",
    ),
    Metric(
        "incident_store_bytes",
        "gauge",
        "Bytes on disk of the database of incidents; 0 without one.",
        _one(lambda reading: reading.incident_store_bytes),
        more="With the files beside it.",
    ),
    Metric(
        "incidents_removed_total",
        "counter",
        "Incidents removed, by severity.",
        _by(lambda reading: reading.incidents_removed),
        {"severity": get_args(Severity)},
        more="Too old, or beyond their owner's share of a full database.",
    ),
    Metric(
        "posture_processes",
        "gauge",
        "Processes at the last look, by whether they have sealed memory.",
        lambda reading: [
            ((state,), count) for state, count in reading.tally.posture.processes.items()
        ],
        {"state": STATES},
        more="States: sealing, not_sealing, unreadable (not permitted), too_large (2 GiB in small"
        " pages; reading would hold them up), timed_out (a read of them, or of another process of"
        " their owner, waited for 2 s). What the kernel maps and seals itself is left out.",
    ),
    Metric(
        "posture_sealed_bytes",
        "gauge",
        "Sealed bytes of address space at the last look, by workload.",
        _by(lambda reading: {OTHER: 0, **reading.tally.posture.sealed_bytes}),
        {"workload": "as above, those with the most bytes; `other` for the rest together"},
        more="A workload that seals nothing has no series.",
    ),
    Metric(
        "posture_sealed_ratio",
        "gauge",
        "Sealed part of all readable processes' memory at the last look.",
        _sealed_ratios,
        {"memory": ("executable", "relro")},
        more="Of executable memory, and of RELRO, read-only after relocation.",
    ),
    Metric(
        "posture_executables",
        "gauge",
        "Executables that are known to seal memory, by whether they did when last seen.",
        lambda reading: [
            (("sealing",), reading.tally.posture.sealing_executables),
            (("stopped",), reading.tally.posture.stopped_executables),
        ],
        {"state": ("sealing", "stopped")},
        more="States: sealing, or stopped: they did not, and are forgotten after a week. In "
        "a service they are counted by service.",
    ),
    Metric(
        "posture_scan_duration_seconds",
        "gauge",
        "Duration of the last look, which takes at most a hundredth of a core.",
        _one(lambda reading: reading.tally.posture.duration),
    ),
    Metric(
        "posture_last_success_timestamp_seconds",
        "gauge",
        "Unix time of the end of the last look; 0 before the first.",
        _one(lambda reading: reading.tally.posture.finished),
        more="The first is a minute after the start.",
    ),
    Metric(
        "posture_interval_seconds",
        "gauge",
        "Time from one look to the next, as configured; 0: never.",
        _one(lambda reading: reading.tally.posture_interval),
    ),
    Metric(
        "config_last_reload_successful",
        "gauge",
        "Whether all of the configuration is in force (1) or not (0).",
        _one(lambda reading: int(reading.tally.reload_successful)),
        more="As it was when last read. Not in force are a mistake, and a change that waits for a"
        " restart; an event names it.",
    ),
    Metric(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "Unix time of reading the last configuration that is all in force.",
        _one(lambda reading: reading.tally.reload_last_success),
    ),
    Metric(
        "starts_total",
        "counter",
        "Starts since the counters began.",
        _by(lambda reading: reading.tally.starts),
        {"kind": STARTS},
        more="The first is fresh; a resumed one goes on with what is attached; a replaced one "
        "with its counts, by other programs.",
    ),
    Metric(
        "counters_since_timestamp_seconds",
        "gauge",
        "Unix time at which the counters began.",
        _one(lambda reading: reading.tally.since),
    ),
    Metric(
        "unread_seconds_total",
        "counter",
        "Seconds in which no monitor ran.",
        _one(lambda reading: reading.tally.unread_seconds),
        more="Before starts that were not fresh: what happened was counted and waited in the ring.",
    ),
    Metric(
        "records_found_total",
        "counter",
        "Records that had waited.",
        _one(lambda reading: reading.tally.records_found),
        more="In the ring, at starts that were not fresh.",
    ),
    Metric(
        "build_info",
        "gauge",
        "Always 1; the labels are the facts.",
        lambda reading: [((reading.version, reading.revision), 1)],
        {"version": "the monitor's version", "revision": "the commit of a checkout, else empty"},
    ),
    Metric(
        "kernel_info",
        "gauge",
        "Always 1; the label is the fact.",
        lambda reading: [((reading.facts.release,), 1)],
        {"release": "the kernel's release"},
    ),
    Metric(
        "seal_supported",
        "gauge",
        "Whether this kernel has mseal (1) or not (0).",
        _one(lambda reading: int(reading.facts.seal_supported)),
    ),
    Metric(
        "partial_update_possible",
        "gauge",
        "Whether a refusal may have changed what is before the seal (1).",
        lambda reading: [
            ((name,), int(reading.facts.partial_update_possible.get(name, False)))
            for name in PARTIAL_OPERATIONS
        ],
        {"operation": PARTIAL_OPERATIONS},
        more="That is a property of the kernel.",
    ),
)
