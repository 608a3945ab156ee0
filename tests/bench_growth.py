"""How a daemon's scrapes and memory grow with workloads and processes: for tests/bench.py."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench_daemon import Running, total
from harness import cgroup_root, new_cgroup

__all__ = [
    "PROCESSES",
    "WORKLOADS",
    "AfterProcesses",
    "AfterWorkloads",
    "with_processes",
    "with_workloads",
]

WORKLOADS = (1, 10, 100, 1000)
PROCESSES = (1, 100, 1000, 10_000, 20_000)
SCRAPES = 20
AT_ONCE = 200  # processes


class AfterWorkloads(NamedTuple):
    """`milliseconds` of each scrape, over HTTP, a denial before each."""

    workloads: int
    milliseconds: list[float]
    size: int  # bytes of a scrape
    rss: float  # MiB


class AfterProcesses(NamedTuple):
    processes: int
    delivered: int
    held_back: int
    rss: float  # MiB


class Visitor:
    """A process that enters cgroups and makes a denial in each."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def visit(self, cgroup: Path) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{cgroup}\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError(f"no denial in {cgroup}: see above")

    def end(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def _visitor(program: Path) -> Iterator[Visitor]:
    visitor = Visitor(program)
    try:
        yield visitor
    finally:
        visitor.end()


def _remove(directories: list[Path]) -> None:
    for path in directories:
        path.rmdir()


def with_workloads(daemon: Running, program: Path) -> list[AfterWorkloads]:
    """Real cgroups with a denial in each; empty where cgroup2 is not mounted."""
    if cgroup_root() is None:
        return []
    results = []
    with ExitStack() as cleanup:
        parent = cleanup.enter_context(new_cgroup("workloads"))
        made: list[Path] = []
        cleanup.callback(_remove, made)
        visitor = cleanup.enter_context(_visitor(program))
        for wanted in WORKLOADS:
            for number in range(len(made), wanted):
                made.append(parent / f"{number}")
                made[-1].mkdir()
                visitor.visit(made[-1])
            times = []
            for number in range(SCRAPES + 1):
                visitor.visit(made[number % wanted])
                begin = time.perf_counter()
                text = daemon.scrape()
                times.append((time.perf_counter() - begin) * 1e3)
            results.append(AfterWorkloads(wanted, times[1:], len(text), daemon.rss()))
    return results


def _settled(daemon: Running) -> Counter[str]:
    """The metrics, once every event has reached its sinks."""
    before = daemon.metrics()
    while True:
        time.sleep(0.3)
        after = daemon.metrics()
        if total(after, "events_total") == total(before, "events_total"):
            return after
        before = after


def with_processes(daemon: Running, crowd: Path) -> list[AfterProcesses]:
    """Processes that come, make one denial each, and go."""
    results, made = [], 0
    for wanted in PROCESSES:
        while made < wanted:
            count = min(AT_ONCE, wanted - made)
            subprocess.run([crowd, str(count)], stdout=subprocess.DEVNULL, check=True)
            made += count
        metrics = _settled(daemon)
        delivered = total(metrics, "events_total", 'kind="denial"', 'result="delivered"')
        held_back = total(metrics, "events_total", 'kind="denial"', 'result="suppressed"')
        results.append(AfterProcesses(made, delivered, held_back, daemon.rss()))
    return results
