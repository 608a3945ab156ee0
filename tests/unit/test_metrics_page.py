"""The page of metrics, and the description of every one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from monitor.metrics.page import page
from monitor.metrics.table import METRICS

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def test_no_label_names_a_process_or_an_address() -> None:
    """`name` of a blind spot is none of them: its values are all known."""
    labels = {
        label
        for metric in METRICS
        for label, values in metric.labels.items()
        if isinstance(values, str)
    }
    assert not labels & {"pid", "tid", "comm", "name", "executable", "address", "path", "uid"}


def test_the_page_is_current() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "monitor.metrics"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PAGE.parents[1],
    ).stdout
    assert printed == page()
    assert PAGE.read_text() == printed, "run: python -m monitor.metrics > docs/metrics.md"
