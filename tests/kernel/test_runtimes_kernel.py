"""A JVM, node and Chromium under load, as they are on every host: no event at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import Harness
from runtimes import LOADS, compile_java

from monitor.attach.attached import configure
from monitor.configuration.config import parse

SECONDS = 20
PROGRAMS = {"java": "javac", "node": "node", "chromium": "chromium-headless-shell"}
LEAST = {"java": 10_000, "node": 1000, "chromium": 0}  # faults that it handles meanwhile


@pytest.mark.parametrize("name", LOADS)
def test_a_runtime_under_load_makes_no_event(harness: Harness, tmp_path: Path, name: str) -> None:
    if not shutil.which(PROGRAMS[name]):
        pytest.skip(f"{PROGRAMS[name]} is not installed")
    if name == "java":
        compile_java(tmp_path)
    load = LOADS[name].replace("SECONDS", str(SECONDS)).replace("/root", str(tmp_path))
    with harness.configured():
        configure(harness.config, parse("", ""))
        made = harness.run(["sh", "-c", f"read _; ({load}) >/dev/null"])
    assert made.exits == [0]
    assert made.records == []
    faults = {cell: number for cell, number in made.counted.items() if cell[0] == "fault"}
    assert {disposition for _, _, disposition in faults} <= {"handler"}
    assert sum(faults.values()) >= LEAST[name]
    assert made.counted["event", "fault", "filtered"] == sum(faults.values())
