"""Answers a scrape: reads the kernel's counters and the daemon's own, and fills the table."""

from __future__ import annotations

from collections.abc import Iterator

from monitor.kernel.abi import COUNTED_AGAIN, Cause, Disposition
from monitor.metrics.exposition import CollectorRegistry, Family, ProcessCollector
from monitor.metrics.reading import KernelFacts, Reading, Source
from monitor.metrics.table import METRICS
from monitor.metrics.tally import Tally

__all__ = ["build"]


class _Collector:
    """Not thread-safe: the web server allows one scrape at a time."""

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
        families = ((metric, metric.family(metric.samples(reading))) for metric in METRICS)
        return (family for metric, family in families if family.samples or not metric.optional)

    def _read(self) -> Reading:
        counters = self._source.counters()
        for cause in Cause:
            faults = counters.faults[cause]
            # A fault that went to a handler is counted as such, and a second time when the
            # handler's frame did not fit, or ended the process. Between the two a scrape may have
            # exported it as handled: a counter must not take that back, so it waits for the next
            # handled fault.
            once = faults[Disposition.HANDLER] - sum(faults[each] for each in COUNTED_AGAIN)
            self._handled[cause] = max(self._handled[cause], once)
        return Reading(
            counters=counters,
            announced=self._source.announced(),
            handled=tuple(self._handled),
            workload_denials=self._source.workload_denials(),
            violations=self._source.violations(),
            violating_programs=self._source.violating_programs(),
            probes=self._source.probes(),
            blind_spots=self._source.blind_spots(),
            ring_used_bytes=self._source.ring_used_bytes(),
            workloads_tracked=self._source.workloads_tracked(),
            workloads_maximum=self._source.workloads_maximum(),
            incident_store_bytes=self._source.incident_store_bytes(),
            incidents_removed=self._source.incidents_removed(),
            tally=self._tally,
            facts=self._facts,
            version=self._version,
            revision=self._revision,
        )


def build(
    source: Source, tally: Tally, facts: KernelFacts, version: str, revision: str
) -> CollectorRegistry:
    """A registry with every metric of the table and the standard `process_*` of the daemon, for one
    scrape at a time.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(source, tally, facts, version, revision))
    ProcessCollector(registry=registry)
    return registry
