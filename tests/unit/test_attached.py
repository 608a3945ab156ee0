"""What of the configuration is written into the kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.attach.attached import configure, limit_workloads
from monitor.configuration.config import parse
from monitor.kernel import abi

DEFAULTS = parse("", "")


def test_configure() -> None:
    kernel = abi.Config()
    limit = replace(DEFAULTS.rate_limit, per_caller=10, burst=100, host=1000)
    configure(kernel, replace(DEFAULTS, rate_limit=limit))
    assert (kernel.event_interval_ns, kernel.event_burst_ns) == (100_000_000, 9_900_000_000)
    assert (kernel.host_interval_ns, kernel.host_burst_ns) == (1_000_000, 999_000_000)
    assert kernel.emit_verdicts == 1 << abi.Verdict.SEALED | 1 << abi.Verdict.UNVERIFIED
    assert kernel.emit_causes == (1 << len(abi.Cause)) - 1 - (1 << abi.Cause.OTHER)
    assert kernel.emit_handled == 1 << abi.Cause.SEALED
    assert kernel.emit_seals == 0


def test_a_host_without_a_limit() -> None:
    kernel = abi.Config(host_interval_ns=1, host_burst_ns=1)
    configure(kernel, replace(DEFAULTS, rate_limit=replace(DEFAULTS.rate_limit, host=0)))
    assert (kernel.host_interval_ns, kernel.host_burst_ns) == (0, 0)


@pytest.mark.parametrize(
    ("maximum", "subtree", "ordinary"), [(1, 1, 1), (64, 64, 48), (1000, 250, 750)]
)
def test_places_of_workloads(maximum: int, subtree: int, ordinary: int, tmp_path: Path) -> None:
    (tmp_path / "system.slice").mkdir()
    kernel = abi.Config()
    limit_workloads(kernel, maximum, tmp_path)
    assert (kernel.workloads_max, kernel.subtree_workloads) == (maximum, subtree)
    assert kernel.ordinary_workloads == ordinary
    assert kernel.system_slice == (tmp_path / "system.slice").stat().st_ino
