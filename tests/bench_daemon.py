"""A real daemon in a storm of denied calls, and at rest: figures for tests/bench.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from harness import cgroup_root, new_cgroup, wait_until_reading

from monitor.metrics.accounts import RESULTS

__all__ = ["RESULTS", "Running", "Storm", "Weathered", "problems", "storm", "total", "weather"]

ROOT = Path(__file__).parents[1]
Command = list[str | Path]


class Running:
    """A real daemon, ready; `lines` are the events it has printed."""

    def __init__(self, directory: Path) -> None:
        settings = directory / "config.toml"
        settings.write_text("workloads.maximum = 4096\n")  # a thousand fit in one subtree's quarter
        command: Command = [sys.executable, "-m", "monitor", "run", "--config", settings]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "--output", "json", "--web.listen-address", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid
        self.lines: list[dict[str, Any]] = []
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1].get("event") == "started":
                break
        else:
            raise RuntimeError(f"seal-monitor ended with {self._process.wait()}")
        self.ready_seconds = time.monotonic() - began
        self._metrics = self.lines[-1]["details"]["metrics"]
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def scrape(self) -> str:
        with urllib.request.urlopen(self._metrics, timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def metrics(self) -> Counter[str]:
        """By name and labels, as printed."""
        text = self.scrape()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return Counter({name: int(float(value)) for name, value in lines})

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> float:
        """MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0]) / 1024

    def stop(self) -> dict[str, Any]:
        """The event with the final counts."""
        self._process.terminate()
        code = self._process.wait(20)
        self._reader.join(5)
        if code:
            raise RuntimeError(f"seal-monitor ended with {code}")
        return self.lines[-1]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()


class Storm(NamedTuple):
    made: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.made / self.seconds


@contextmanager
def _own_cgroup() -> Iterator[Path | None]:
    """Its counts hold only its own denials."""
    if cgroup_root() is None:
        yield None
        return
    with new_cgroup("bench") as path:
        yield path


def storm(program: Path, threads: int, seconds: float, cgroup: Path | None) -> Storm:
    command: Command = [program, str(threads), "0", str(seconds), "mixed", "--wait"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until_reading(process)
            if cgroup:
                (cgroup / "cgroup.procs").write_text(str(process.pid))
            output, _ = process.communicate("x", timeout=seconds + 30)
        finally:
            process.kill()
    line = json.loads(output)
    return Storm(line["total"], line["seconds"])


class Weathered(NamedTuple):
    """What a daemon went through, and what it says of it."""

    storm: Storm
    counted: int  # by the kernel, in the storm's cgroup
    missed: int
    cpu: float  # of one core
    rss: tuple[float, float]  # MiB, before and after
    final: dict[str, Any]  # by kind: counted, and events by result
    printed: int  # denials among the events that were printed
    held_back: int  # the sum of the suppression events


def total(metrics: Counter[str], *parts: str) -> int:
    """The sum of the metrics whose name and labels have all these parts."""
    return sum(value for name, value in metrics.items() if all(part in name for part in parts))


def weather(daemon: Running, program: Path, threads: int, seconds: float) -> Weathered:
    """A storm, and the end of the daemon."""
    with _own_cgroup() as cgroup:
        before, cpu, rss = daemon.metrics(), daemon.cpu_seconds(), daemon.rss()
        made = storm(program, threads, seconds, cgroup)
        cpu = (daemon.cpu_seconds() - cpu) / made.seconds
        rss_after = daemon.rss()
        gained = daemon.metrics()
        gained.subtract(before)
    if cgroup:
        counted = total(gained, "_workload_denials_total", 'verdict="sealed"', cgroup.name)
    else:
        counted = total(gained, "_monitor_denials_total", 'verdict="sealed"')
    final = daemon.stop()["details"]
    return Weathered(
        made,
        counted,
        total(gained, "_missed_runs_total"),
        cpu,
        (rss, rss_after),
        final,
        sum(event["kind"] == "denial" for event in daemon.lines),
        sum(event["count"] for event in daemon.lines if event.get("of") == "denial"),
    )


def problems(weathered: Weathered) -> Iterator[str]:
    """A line for each count that is not exact and each kind of event not accounted for."""
    made, counted, missed = weathered.storm.made, weathered.counted, weathered.missed
    if not made - missed <= counted <= made:
        yield f"{made} calls refused, {counted} counted, {missed} runs missed"
    for kind, numbers in weathered.final.items():
        total = sum(numbers[result] for result in RESULTS)
        if numbers["counted"] != total:
            yield f"{numbers['counted']} of kind {kind} counted, {total} events"
    denials = weathered.final["denial"]
    if (weathered.printed, weathered.held_back) != (denials["delivered"], denials["suppressed"]):
        yield (
            f"{denials['delivered']} denials delivered, {weathered.printed} printed; "
            f"{denials['suppressed']} suppressed, {weathered.held_back} in suppression events"
        )
