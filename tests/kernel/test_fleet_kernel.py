"""The benchmark of a fleet, small: a real Prometheus that scrapes the page of a real daemon."""

from __future__ import annotations

import time
from pathlib import Path

from bench_daemon import Running
from bench_fleet import BUSY, TREND, fleet, overview, phase, stored
from panels import DOCUMENTS

INTERVAL = 1
HOSTS = BUSY + 2  # of which two have denials
UP = "instance:seal_monitor_up"


def test_quiet_hosts_store_nothing(tmp_path: Path, require_bpf: None) -> None:
    """But that they are there, and the deaths that a trend is made of."""
    with Running(tmp_path) as daemon:
        page = daemon.scrape()
        daemon.stop()
    with fleet(tmp_path, page, HOSTS, INTERVAL) as found:
        found.load_rules(True)
        deadline = time.monotonic() + 30
        while len(kept := stored(found.server)) < HOSTS:
            assert time.monotonic() < deadline, f"rules of {len(kept)} hosts"
            time.sleep(INTERVAL)
        busy = {f"host-{host:05}:10462" for host in (0, BUSY)}
        # The trend is evaluated every 4 minutes: it may have been, or not yet.
        assert {host for host, names in kept.items() if set(names) - {TREND} != {UP}} == busy
        assert len(kept) == HOSTS
        for host in busy:
            assert "instance_operation_verdict:seal_monitor_denials:nonzero" in kept[host]
        recorded = "count(instance_workload_kind_severity:seal_monitor_violations:nonzero) == 2"
        while not found.server.instant(recorded, time.time()):  # by a later rule
            assert time.monotonic() < deadline, "the violations of two hosts"
            time.sleep(INTERVAL)
        scraped = phase(found.server, 3 * INTERVAL)
        assert HOSTS * found.series < scraped.series
        assert scraped.cpu > 0
        panels = overview(found.server, 60, DOCUMENTS["overview.json"], scraped.cpu)
        assert "Critical denials" in panels.seconds
