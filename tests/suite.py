"""All tests, as make test runs them: side by side where they can, and what took longest.

    suite.py [--again] [PYTEST'S ARGUMENTS]

Unit tests run on all CPUs, then the kernel tests that see nothing but what they start themselves,
and last, one after the other, those marked host_wide. With --again, what failed runs once more by
itself: what passes then is flaky, and is listed and counted in the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SLOWEST = 10
NOTHING_TO_RUN = 5  # pytest's exit code

CPUS = len(os.sched_getaffinity(0))
# Kernel tests wait for daemons and for systemd more than they work.
KERNEL_SESSIONS = CPUS + 1


class Phase(NamedTuple):
    name: str
    arguments: tuple[str, ...]


PHASES = (
    Phase("unit tests", ("tests/unit", "-n", str(CPUS))),
    Phase(
        "kernel tests side by side",
        (
            *("tests/kernel", "-m", "not host_wide", "-n", str(KERNEL_SESSIONS)),
            # In the order of their names: adversary_* are few and take long, and come first. By
            # their numbers they came last, when the other sessions had no more to do.
            *("--dist", "loadscope", "--no-loadscope-reorder"),
        ),
    ),
    Phase("kernel tests one by one", ("tests/kernel", "-m", "host_wide")),
)


class Results(NamedTuple):
    """Of some tests: the seconds that each took, and which failed."""

    seconds: dict[str, float]
    failed: list[str]
    well: bool  # pytest's exit code, which also covers what no test reports

    def plus(self, other: Results) -> Results:
        return Results(
            self.seconds | other.seconds, self.failed + other.failed, self.well and other.well
        )


def read(lines: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """From a log that conftest.py writes: a JSON object for each step of a test."""
    seconds: dict[str, float] = {}
    failed: list[str] = []
    for step in map(json.loads, lines):
        test = step["test"]
        seconds[test] = seconds.get(test, 0.0) + step["seconds"]
        if step["failed"] and test not in failed:
            failed.append(test)
    return seconds, failed


def run(arguments: Sequence[str]) -> Results:
    with tempfile.NamedTemporaryFile("r", prefix="seal-monitor-results-") as log:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            cwd=ROOT,
            env=os.environ | {"SEAL_MONITOR_RESULTS": log.name},
            check=False,
        )
        seconds, failed = read(log.readlines())
    return Results(seconds, failed, done.returncode in (0, NOTHING_TO_RUN))


def slowest(seconds: dict[str, float]) -> list[str]:
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    return [f"{took:7.1f} s  {test}" for test, took in longest]


def failed_once(first: Results, again: Results) -> list[str]:
    """What failed the first time and passed the second: the flaky tests."""
    return [test for test in first.failed if test not in again.failed]


def outcome(first: Results, again: Results | None) -> tuple[list[str], int]:
    """The last lines, and the exit code. `again`: of what failed, run once more."""
    if again is None:
        return [f"failed: {len(first.failed)}", *first.failed], int(not first.well)
    flaky = failed_once(first, again)
    lines = [f"failed twice: {len(again.failed)}", *again.failed] if again.failed else []
    # When no test failed, something else did, such as a process that was left behind.
    well = again.well and bool(first.failed or first.well)
    return [*lines, f"flaky: {len(flaky)}{':' if flaky else ''}", *flaky], int(not well)


def main() -> int:
    arguments = sys.argv[1:]
    try_again = "--again" in arguments
    arguments = [argument for argument in arguments if argument != "--again"]
    named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
    phases = (Phase("tests", ()),) if named else PHASES
    results, took = Results({}, [], True), []
    for phase in phases:
        began = time.monotonic()
        results = results.plus(run([*phase.arguments, *arguments]))
        took.append(f"{phase.name}: {time.monotonic() - began:.0f} s")
    again = run(results.failed) if try_again and results.failed else None
    lines, code = outcome(results, again)
    print(f"\nslowest tests ({'; '.join(took)}):")
    print("\n".join([*slowest(results.seconds), *lines]), flush=True)
    if again and (log := os.environ.get("SEAL_MONITOR_FLAKY")):  # .ci/run's
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(f"{test}\n" for test in failed_once(results, again))
    return code


if __name__ == "__main__":
    sys.exit(main())
