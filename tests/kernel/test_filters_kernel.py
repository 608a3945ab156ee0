"""Where a seccomp filter refuses what loading needs: it says so, and blames no privilege."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.kernel.filters import REMEDY

ROOT = Path(__file__).parents[2]
FILTERED = (sys.executable, str(ROOT / "tests/filtered.py"))
MONITOR = (sys.executable, "-m", "monitor")
WEB = ("--web.listen-address", "127.0.0.1:0")


def filtered(name: str, error: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FILTERED, name, error, *MONITOR, *words],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_a_filter_that_forbids_bpf(require_bpf: None, error: str) -> None:
    said = f"bpf(2) fails with {error}: a seccomp filter forbids it"
    done = filtered("bpf", error, "doctor", "--json")
    rows = {row["check"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 3
    row = rows["bpf(2)"]
    assert (row["status"], row["finding"], row["remedy"]) == ("failed", said, REMEDY)
    assert (rows["privileges"]["status"], rows["CAP_BPF"]["status"]) == ("ok", "ok")
    done = filtered("bpf", error, "run", *WEB)
    assert done.returncode == 3
    assert done.stderr == f"seal-monitor: {said}\nseal-monitor: what to do: {REMEDY}\n"


def test_a_filter_that_forbids_tracepoints(require_bpf: None) -> None:
    done = filtered("perf_event_open", "EPERM", "run", "--attach", "tracepoint", *WEB)
    assert done.returncode == 3
    assert f"a seccomp filter forbids perf_event_open(2) (EPERM): {REMEDY}" in done.stderr
    assert "run as root" not in done.stderr
