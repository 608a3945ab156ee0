"""The parts of the daemon that need no BPF programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monitor import abi
from monitor.config import parse
from monitor.daemon import configure, notify

DEFAULTS = parse("", "")


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        yield manager


@pytest.mark.parametrize("kind", ["path", "path with @", "abstract"])
def test_notify(
    kind: str, manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"seal-monitor-test-{os.getpid()}"
    address = {
        "path": str(tmp_path / "notify"),
        "path with @": str(tmp_path / "user@1000"),
        "abstract": f"@{name}",
    }[kind]
    manager.bind(f"\0{name}" if kind == "abstract" else address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    assert manager.recv(64) == b"READY=1"


def test_notify_without_a_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/gone")
    notify("READY=1")
    assert capfd.readouterr().err == (
        f"seal-monitor: cannot tell the service manager READY=1: {tmp_path}/gone: "
        "[Errno 2] No such file or directory\n"
    )


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
