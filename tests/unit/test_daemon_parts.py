"""The parts of the daemon that need no BPF programs."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.attach.attached import configure
from monitor.configuration.config import parse
from monitor.daemon import Daemon
from monitor.kernel import abi
from monitor.web.server import WebError

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


class Told:
    """In the place of the pipeline."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def health(self, name: str, message: str) -> None:
        self.events.append((name, message))


class Idle(Daemon):
    """One that loads and watches nothing."""

    def _start(self) -> None:
        self.told = Told()
        self.pipeline = self.told  # type: ignore[assignment]
        self._has_read("configuration", True)


def test_only_the_loop_tells_and_counts_what_other_threads_have_read() -> None:
    mistake = WebError("web.yml: no")
    daemon = Idle(DEFAULTS, [])
    with daemon:
        assert daemon.tally.reload_successful
        for outcome, said, is_in_force in (
            (
                mistake,
                ("reload_failed", f"{mistake}; the web configuration stays as it was"),
                False,
            ),
            (None, ("reloaded", "the web configuration was read anew and is in force"), True),
        ):
            before = daemon.tally.reload_successful
            with ThreadPoolExecutor() as other:
                other.submit(daemon._web_read.append, outcome).result()
            assert daemon.told.events == []
            assert daemon.tally.reload_successful == before
            daemon._tell_pending()
            assert daemon.told.events.pop() == said
            assert daemon.tally.reload_successful == is_in_force


@pytest.mark.parametrize("closed", [[1], [0, 1], [0, 1, 2], []])
def test_closed_standard_descriptors_are_nobody_elses(closed: list[int], tmp_path: Path) -> None:
    code = f"""
import os
from monitor.start import _occupy_standard_descriptors
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
