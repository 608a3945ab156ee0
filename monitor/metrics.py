"""Every metric, declared once; a collector that reads the kernel's counters at scrape.

`python -m monitor.metrics` prints docs/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, Protocol

from monitor.exposition import (
    CollectorRegistry,
    CounterMetricFamily,
    Family,
    GaugeMetricFamily,
    HistogramMetricFamily,
    ProcessCollector,
)
from monitor.kernel.abi import Cause, Counters, Disposition, Kind, Method, Outcome, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.posture.scan import STATES
from monitor.tally import (
    CANARY_RESULTS,
    DELAY_BUCKETS,
    EVENT_KINDS,
    LOOKUP_RESULTS,
    SNAPSHOT_RESULTS,
    Tally,
)

__all__ = [
    "METRICS",
    "KernelFacts",
    "Metric",
    "ProbeState",
    "Source",
    "build",
    "page",
]

PREFIX = "seal_monitor_"

OPERATION_NAMES = tuple(operation.name for operation in OPERATIONS)
# Where a refusal may leave the part before the seal changed.
PARTIAL_OPERATIONS = ("mprotect", "madvise", "mremap")
VERDICT_NAMES = tuple(verdict.label for verdict in Verdict)
CAUSE_NAMES = tuple(cause.label for cause in Cause)
METHOD_NAMES = tuple(method.label for method in Method)
DISPOSITION_NAMES = tuple(disposition.label for disposition in Disposition)
EVENT_RESULTS = ("delivered", "suppressed", "filtered", "dropped", "failed")
OTHER_WORKLOADS = "other"


@dataclass(frozen=True, slots=True)
class ProbeState:
    """A probe, how it is attached (fexit, tracepoint, raw_tracepoint), and the runs it missed.

    `missed_runs` is None where the kernel does not say.
    """

    probe: str
    mode: str
    attached: bool
    missed_runs: int | None


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What calibration found on the running kernel; operations left out count as not possible."""

    release: str
    seal_supported: bool
    partial_update_possible: Mapping[str, bool]


class Source(Protocol):
    """What the daemon knows and the collector asks for at every scrape: from another thread, but
    from one at a time.
    """

    def counters(self) -> Counters:
        """The host's bank, all CPUs added up."""

    def workload_denials(self) -> Mapping[str, tuple[int, int, int]]:
        """Denials by Verdict of each workload's name; `other` are those that found no place."""

    def probes(self) -> Sequence[ProbeState]: ...

    def ring_used_bytes(self) -> int: ...

    def workloads_tracked(self) -> int: ...

    def incident_store_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one scrape exports, read once."""

    counters: Counters
    handled: Sequence[int]  # by Cause, faults whose handler was invoked
    workload_denials: Mapping[str, tuple[int, int, int]]
    probes: Sequence[ProbeState]
    ring_used_bytes: int
    workloads_tracked: int
    incident_store_bytes: int
    tally: Tally
    facts: KernelFacts
    version: str
    revision: str


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
    """`labels` are each label's values: all that are known, or in words where they vary."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Reading], Iterable[Sample]]
    labels: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def family(self, samples: Iterable[Sample] = ()) -> Family:
        made = _FAMILIES[self.type](self.full_name, self.help, labels=tuple(self.labels))
        for sample in samples:
            made.add_metric(*sample)
        family: Family = made
        return family


def _one(value: Callable[[Reading], float]) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((), value(reading))]


def _by(value: Callable[[Reading], Mapping[str, float]]) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((key,), number) for key, number in value(reading).items()]


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
    for workload, counts in {OTHER_WORKLOADS: (0, 0, 0), **reading.workload_denials}.items():
        for verdict, count in zip(VERDICT_NAMES, counts, strict=True):
            yield (workload, verdict), count


def _events(reading: Reading) -> Iterator[Sample]:
    kernel_kinds = {kind.label: kind for kind in Kind}
    kernel_outcomes = {
        "suppressed": Outcome.SUPPRESSED,
        "filtered": Outcome.FILTERED,
        "dropped": Outcome.DROPPED,
    }
    for kind in EVENT_KINDS:
        for result in EVENT_RESULTS:
            count = reading.tally.events.get((kind, result), 0)
            if kind in kernel_kinds and result in kernel_outcomes:
                count += reading.counters.events[kernel_kinds[kind]][kernel_outcomes[result]]
            yield (kind, result), count


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
    """A probe of which it is not known has no series: that is not 0."""
    missed: dict[str, int] = {}
    unknown: set[str] = set()
    for state in reading.probes:
        if state.missed_runs is None:
            unknown.add(state.probe)
        else:
            missed[state.probe] = missed.get(state.probe, 0) + state.missed_runs
    return {probe: runs for probe, runs in missed.items() if probe not in unknown}


# The numbers are exact up to 2^53, from where on they are rounded to the nearest double, as
# Prometheus stores them; sealed_bytes_total alone, which counts address space, may get there.
METRICS: tuple[Metric, ...] = (
    Metric(
        "denials_total",
        "counter",
        "Refused attempts to change memory, by operation and by whether a seal explains it.",
        _denials,
        {"operation": OPERATION_NAMES, "verdict": VERDICT_NAMES},
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
        "Changes of what sealed memory holds, made around its seal, by the way taken.",
        lambda reading: [
            ((name,), count)
            for name, count in zip(METHOD_NAMES, reading.counters.bypasses, strict=True)
        ],
        {"method": METHOD_NAMES},
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
        "events_total",
        "counter",
        "Events, by what became of them: delivered (at least one sink took it), suppressed (rate"
        " limit), filtered (configuration), dropped (ring buffer full), failed (no sink took it).",
        _events,
        {"kind": EVENT_KINDS, "result": EVENT_RESULTS},
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
        "Whether a probe is attached (1) or not (0).",
        lambda reading: [
            ((state.probe, state.mode), int(state.attached)) for state in reading.probes
        ],
        {"probe": "the probe's name", "mode": ("fexit", "tracepoint", "raw_tracepoint")},
    ),
    Metric(
        "probe_missed_runs_total",
        "counter",
        "Runs of a probe that the kernel skipped; above 0, the counts are a lower bound.",
        _by(_missed_runs),
        {"probe": "the probe's name"},
    ),
    Metric(
        "canary_runs_total",
        "counter",
        "Runs of the canary, a violation of the monitor's own that has to come back as an event.",
        _by(lambda reading: reading.tally.canary_runs),
        {"result": CANARY_RESULTS},
    ),
    Metric(
        "canary_last_success_timestamp_seconds",
        "gauge",
        "Unix time of the canary's last success; 0 before the first.",
        _one(lambda reading: reading.tally.canary_last_success),
    ),
    Metric(
        "identity_lookups_total",
        "counter",
        "Look-ups of a process in /proc, by result: complete, partial (something could not be read"
        " or the process has executed another program), gone (it has exited), reused (the pid is"
        " another process's).",
        _by(lambda reading: reading.tally.identity_lookups),
        {"result": LOOKUP_RESULTS},
    ),
    Metric(
        "snapshots_total",
        "counter",
        "Snapshots of violating processes, by result: taken, partial (something could not be read,"
        " and the snapshot says what), gone (the process had ended or executed another program),"
        " dropped (more at once than a small part of a core may be spent on), failed (the store"
        " did not take it).",
        _by(lambda reading: reading.tally.snapshots),
        {"result": SNAPSHOT_RESULTS},
    ),
    Metric(
        "sink_errors_total",
        "counter",
        "Events that a sink did not take: it failed, or its queue was full, or the monitor ended.",
        _by(lambda reading: reading.tally.sink_errors),
        {"sink": "the sinks that the configuration names"},
    ),
    Metric(
        "sink_queue_events",
        "gauge",
        "Events that wait for a sink to take them.",
        _by(lambda reading: reading.tally.sink_queue_events),
        {"sink": "the sinks that the configuration names"},
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
        "Workloads with a count of their own.",
        _one(lambda reading: reading.workloads_tracked),
    ),
    Metric(
        "incident_store_bytes",
        "gauge",
        "Bytes on disk of the database of incidents and the files beside it; 0 without one.",
        _one(lambda reading: reading.incident_store_bytes),
    ),
    Metric(
        "posture_processes",
        "gauge",
        "Processes at the last look, by whether they have sealed memory of their own: sealing, "
        "not_sealing, unreadable (not permitted), too_large (more than 4 MiB of page tables, "
        "as 2 GiB in small pages have; reading would hold them up). What the kernel maps and seals "
        "itself is left out.",
        lambda reading: [
            ((state,), count) for state, count in reading.tally.posture.processes.items()
        ],
        {"state": STATES},
    ),
    Metric(
        "posture_sealed_bytes",
        "gauge",
        "Bytes of address space that were sealed at the last look, by workload; one that seals "
        "nothing is not there.",
        _by(lambda reading: {OTHER_WORKLOADS: 0, **reading.tally.posture.sealed_bytes}),
        {"workload": "as above, those with the most bytes; `other` for the rest together"},
    ),
    Metric(
        "posture_sealed_ratio",
        "gauge",
        "The part of the memory of all processes that could be read that was sealed at the last "
        "look: of executable memory, and of RELRO, which the dynamic linker makes read-only after "
        "relocation.",
        _sealed_ratios,
        {"memory": ("executable", "relro")},
    ),
    Metric(
        "posture_executables",
        "gauge",
        "Executables (in a service: by service) that are known to seal memory, by whether they did "
        "when last seen (sealing) or ran without (stopped; forgotten after a week).",
        lambda reading: [
            (("sealing",), reading.tally.posture.sealing_executables),
            (("stopped",), reading.tally.posture.stopped_executables),
        ],
        {"state": ("sealing", "stopped")},
    ),
    Metric(
        "posture_scan_duration_seconds",
        "gauge",
        "Duration of the last look at all processes, most of it waiting: it takes a hundredth of a "
        "core at most.",
        _one(lambda reading: reading.tally.posture.duration),
    ),
    Metric(
        "posture_last_success_timestamp_seconds",
        "gauge",
        "Unix time at which the last look at all processes ended; 0 before the first, a minute "
        "after the start.",
        _one(lambda reading: reading.tally.posture.finished),
    ),
    Metric(
        "config_last_reload_successful",
        "gauge",
        "Whether all that the configuration asked for when last read is in force (1). 0: it had a "
        "mistake, or a change that waits for a restart; an event names it.",
        _one(lambda reading: int(reading.tally.reload_successful)),
    ),
    Metric(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "Unix time at which a configuration was last read that is all in force.",
        _one(lambda reading: reading.tally.reload_last_success),
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
        "Whether a refusal on this kernel may leave the part before the seal changed (1) or not.",
        lambda reading: [
            ((name,), int(reading.facts.partial_update_possible.get(name, False)))
            for name in PARTIAL_OPERATIONS
        ],
        {"operation": PARTIAL_OPERATIONS},
    ),
)


class _Collector:
    """Not for threads: the web server sees to one scrape at a time."""

    def __init__(
        self, source: Source, tally: Tally, facts: KernelFacts, version: str, revision: str
    ) -> None:
        self._source = source
        self._tally = tally
        self._facts = facts
        self._version = version
        self._revision = revision
        self._handled = [0] * len(Cause)

    def describe(self) -> Iterator[Family]:
        return (metric.family() for metric in METRICS)

    def collect(self) -> Iterator[Family]:
        reading = self._read()
        return (metric.family(metric.samples(reading)) for metric in METRICS)

    def _read(self) -> Reading:
        counters = self._source.counters()
        for cause in Cause:
            faults = counters.faults[cause]
            # A fault whose handler's frame did not fit is delivered twice and counted under both.
            # Between the two a scrape may have exported it as handled: a counter must not take
            # that back, so it waits for the next handled fault.
            once = faults[Disposition.HANDLER] - faults[Disposition.HANDLER_FAILED]
            self._handled[cause] = max(self._handled[cause], once)
        return Reading(
            counters=counters,
            handled=tuple(self._handled),
            workload_denials=self._source.workload_denials(),
            probes=self._source.probes(),
            ring_used_bytes=self._source.ring_used_bytes(),
            workloads_tracked=self._source.workloads_tracked(),
            incident_store_bytes=self._source.incident_store_bytes(),
            tally=self._tally,
            facts=self._facts,
            version=self._version,
            revision=self._revision,
        )


def build(
    source: Source, tally: Tally, facts: KernelFacts, version: str, revision: str
) -> CollectorRegistry:
    """A registry with every metric above and the standard `process_*` of the daemon itself, for one
    scrape at a time.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(source, tally, facts, version, revision))
    ProcessCollector(registry=registry)
    return registry


def page() -> str:
    """The page that documents every metric, in Markdown."""
    rows = []
    for metric in METRICS:
        labels = [
            f"`{label}`: "
            + (values if isinstance(values, str) else ", ".join(f"`{v}`" for v in values))
            for label, values in metric.labels.items()
        ]
        rows.append(
            f"| `{metric.full_name}` | {metric.type} | {'<br>'.join(labels)} | {metric.help} |"
        )
    return "\n".join((_PAGE_HEAD, *rows, _PAGE_TAIL))


_PAGE_HEAD = """\
<!-- Generated by `python -m monitor.metrics`; do not edit. -->

# Metrics

`/metrics` exports these. Counts of denials, partial updates, faults, bypasses and seals are read
from the kernel's counters at every scrape: they are exact whatever becomes of the events. The
canary's own violations are in none of them. Every combination of the label values listed here is
there from the start, as 0.

| Metric | Type | Labels | Meaning |
|---|---|---|---|"""

_PAGE_TAIL = """
For the kinds `denial`, `fault`, `seal` and `bypass`, once the probes are detached and the ring
buffer is empty, what was counted equals the sum of `seal_monitor_events_total` over its results
(for faults, those with disposition `handler_failed` counted twice).

A fault whose handler could not be started, because its frame did not fit on the stack, is delivered
twice: it makes two events, but counts once above, as `handler_failed`. A scrape between the two
deliveries may have shown it as `handler`.

The standard `process_*` metrics (CPU time, memory, start time, open file descriptors) describe the
monitor itself.
"""

if __name__ == "__main__":
    sys.stdout.write(page())
