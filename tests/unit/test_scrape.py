"""How often a scrape is computed; that it is answered over HTTP is in test_web."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator

import pytest
from clocks import at_most
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from test_collector import Values, registry

from monitor.kernel.abi import Counters
from monitor.kernel.operations import OPERATIONS
from monitor.metrics.reading import ProbeState
from monitor.metrics.tally import Tally
from monitor.web.scrape import Scrapes

OPEN = {"accept": "application/openmetrics-text"}
GZIP = {"accept-encoding": "gzip"}


class Counted:
    """Each computation counts one, and takes `cost` seconds of a CPU."""

    def __init__(self, cost: float) -> None:
        self.now = self.cpu = 0.0
        self.computed = 0
        self.fails = False
        self._cost = cost
        collectors = CollectorRegistry(auto_describe=False)
        collectors.register(self)
        self.scrapes = Scrapes(collectors, lambda: self.now, lambda: self.cpu)

    def describe(self) -> list[CounterMetricFamily]:
        return []

    def collect(self) -> Iterator[CounterMetricFamily]:
        self.computed += 1
        if self.fails:
            raise ValueError("unreadable")
        self.cpu += self._cost
        yield CounterMetricFamily("computed", "How often.", value=self.computed)


def test_kept_for_twenty_times_what_it_took_a_second_at_most() -> None:
    for cost, seconds in ((0.002, 0.04), (0.04, 0.8), (3.0, 1.0)):
        counted = Counted(cost)
        first = counted.scrapes({})
        counted.now = seconds * 0.99
        assert counted.scrapes({}) == first
        assert counted.computed == 1
        counted.now = seconds
        assert b"computed_total 2.0\n" in counted.scrapes({}).body


def test_ten_seconds_of_looping_clients_takes_a_twentieth_of_a_cpu() -> None:
    counted = Counted(0.002)
    for _ in range(10_000):
        counted.scrapes({})
        counted.now += 0.001
    assert counted.cpu <= 0.05 * counted.now + 0.002


def test_each_format_is_computed_once_in_gzip_or_not() -> None:
    counted = Counted(0.01)
    plain, packed = counted.scrapes({}), counted.scrapes(GZIP)
    assert gzip.decompress(packed.body) == plain.body
    assert "Content-Encoding: gzip" in packed.headers
    assert counted.scrapes(GZIP).body is packed.body
    assert counted.computed == 1
    assert counted.scrapes(OPEN).body.endswith(b"# EOF\n")
    assert gzip.decompress(counted.scrapes({**OPEN, **GZIP}).body).endswith(b"# EOF\n")
    assert counted.computed == 2


def test_a_host_without_violations_takes_4_kib_and_little_time() -> None:
    probes = [ProbeState(operation.name, "fexit", True, 0) for operation in OPERATIONS]
    source = Values(Counters(), {}, probes)
    scrapes = Scrapes(registry(source, Tally(("stdout", "incidents"))), cpu_clock=lambda: 0.0)
    for accept in ({}, OPEN):
        assert len(scrapes({**accept, **GZIP}).body) <= 4096
        with at_most(1.0, "100 scrapes of 1 ms take 0.1 s", time.process_time):
            for _ in range(100):
                scrapes({**accept, **GZIP})


def test_what_failed_is_not_kept() -> None:
    counted = Counted(0.01)
    counted.fails = True
    with pytest.raises(ValueError, match="unreadable"):
        counted.scrapes({})
    counted.fails = False
    assert b"computed_total 2.0\n" in counted.scrapes({}).body
