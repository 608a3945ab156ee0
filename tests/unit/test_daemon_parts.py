"""The parts of the daemon that need no BPF programs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from monitor import abi
from monitor.attached import configure
from monitor.config import parse

DEFAULTS = parse("", "")


def test_configure() -> None:
    kernel = abi.Config()
    limit = replace(DEFAULTS.rate_limit, per_caller=10, burst=100, host=1000)
    configure(kernel, replace(DEFAULTS, rate_limit=limit))
    assert (kernel.event_interval_ns, kernel.event_burst_ns) == (100_000_000, 9_900_000_000)
    assert (kernel.host_interval_ns, kernel.host_burst_ns) == (1_000_000, 999_000_000)
    assert kernel.emit_verdicts == 1 << abi.Verdict.SEALED | 1 << abi.Verdict.UNVERIFIED
    assert kernel.emit_causes == (1 << len(abi.Cause)) - 1 - (1 << abi.Cause.OTHER)
    assert kernel.emit_seals == 0


@pytest.mark.parametrize("closed", [[1], [0, 1], [0, 1, 2], []])
def test_closed_standard_descriptors_are_nobody_elses(closed: list[int], tmp_path: Path) -> None:
    code = f"""
import os
from monitor.daemon import _occupy_standard_descriptors
for descriptor in {closed}:
    os.close(descriptor)
_occupy_standard_descriptors()
fresh = os.open({str(tmp_path / "result")!r}, os.O_RDWR | os.O_CREAT)
errors = []
for descriptor in (1, 2):
    try:
        os.write(descriptor, b"event")
    except OSError as error:
        errors.append((descriptor, error.errno))
os.write(fresh, repr((fresh, errors)).encode())
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    fresh, errors = eval((tmp_path / "result").read_text())
    assert fresh > 2
    assert errors == [(descriptor, 9) for descriptor in closed if descriptor]
