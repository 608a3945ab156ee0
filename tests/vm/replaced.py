"""Programs by fexit are replaced by another version's, in a storm: each run is one of either.

In a guest with one CPU: see tests/kernel/test_slots_kernel.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import started
from kept_storm import became, counted
from preempt import ROOT, daemon, series_of

TURNS = 3
STORM_SECONDS = 2
SETTLE_SECONDS = 60
PAUSE_US = "200000"
# What the storm makes, in its order; and the hook of it. The kernel skips and counts a run that
# preempted another one of the same hook (__bpf_prog_enter_recur).
MADE = {
    'seal_monitor_denials_total{operation="mprotect",verdict="sealed"}': "mprotect",
    'seal_monitor_faults_total{cause="guard_region",disposition="handler"}': "signal_deliver",
    'seal_monitor_bypasses_total{method="madvise_discard"}': "madvise_discard",
    'seal_monitor_bypasses_total{method="ptrace_poke"}': "ptrace_poke",
}
MISSED = 'seal_monitor_probe_missed_runs_total{probe="%s"}'
BY_FEXIT = 'seal_monitor_probe_attached{mode="fexit",probe="mprotect"}'
STARTS = 'seal_monitor_starts_total{kind="%s"}'


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    """Two versions of the code."""
    made = []
    for number in range(2):
        tree = tmp_path / f"version-{number}"
        shutil.copytree(ROOT / "monitor", tree / "monitor")
        shutil.copytree(ROOT / "bpf", tree / "bpf")
        file = tree / "monitor/version.py"
        text = re.sub(r"(?m)^VERSION = .*", f'VERSION = "0.{number}.0"', file.read_text())
        file.write_text(text)
        made.append(tree)
    return made


@pytest.fixture
def configuration(tmp_path: Path) -> Iterator[Path]:
    bpffs, file = tmp_path / "bpffs", tmp_path / "config.toml"
    bpffs.mkdir()
    file.write_text(
        f'attach = "fexit"\n[state]\npin = "{bpffs}/pins"\n[posture]\ninterval = 0\n'
        "[canary]\ninterval = 0\n",
        "utf-8",
    )
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
    yield file
    for each in bpffs.glob("pins/*"):
        each.unlink()
    subprocess.run(["umount", "--lazy", bpffs], check=True)


def settled(url: str) -> dict[str, float]:
    """A scrape when each event has its result."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        series = series_of(url)
        if became(series) == counted(series) or time.monotonic() > deadline:
            return series
        time.sleep(1)


def test_another_version_counts_each_run_once(
    compiled: Callable[[str], Path], trees: list[Path], configuration: Path
) -> None:
    with contextlib.ExitStack() as storms:
        for turn in range(TURNS + 1):
            with daemon(configuration, trees[turn % 2]) as url:
                if not turn:
                    before = series_of(url)
                    command = [compiled("kept_storm"), PAUSE_US]
                    (storm,) = storms.enter_context(started([command]))
                time.sleep(STORM_SECONDS)
                if turn == TURNS:
                    storm.send_signal(signal.SIGTERM)
                    assert storm.stdout
                    made = dict(zip(MADE, map(int, storm.stdout.read().split()), strict=True))
                    after = settled(url)
    missed = {name: int(after.get(MISSED % probe, 0)) for name, probe in MADE.items()}
    lost = {name: made[name] - int(after[name] - before.get(name, 0)) for name in MADE}
    assert after[BY_FEXIT] == 1
    assert (after[STARTS % "fresh"], after[STARTS % "replaced"]) == (1, TURNS)
    assert min(made.values()) > 0
    # The hook of madvise(2) is also skipped at calls that are no bypass.
    assert all(0 <= lost[name] <= missed[name] for name in MADE), (made, lost, missed)
    assert became(after) == counted(after)
