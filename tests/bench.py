"""What watching costs (`make bench`): a report on the terminal, and as docs/cost.md.

Timings are only reported. It fails when a count is not exact, an event is not accounted for, or
something stays attached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_page as page
from bench_budgets import budgets, budgets_section, slower
from bench_calls import CPU, Costs
from bench_daemon import Running, Storm, Weathered, problems, storm, weather
from bench_growth import with_processes, with_workloads
from bench_report import Report, Section, Table, markdown, terminal
from harness import own_programs, why_no_bpf

from monitor.host import facts as host
from monitor.version import revision, version

TESTS = Path(__file__).parent
INSTRUCTIONS = TESTS / "vm/instructions.json"
INSTRUCTIONS_ARM64 = TESTS / "vm/instructions_arm64.json"
ASSETS = ("bench", "bench_mappings", "bench_workloads", "crowd", "storm")
STORMS = (1, 2, 8)  # threads
STARTS = 5
ALONE_SECONDS = 1.5
BUSY = 0.5  # load average


# ---- The machine ---------------------------------------------------------------------------------


def _first(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
    return found[1] if found else "unknown"


def _mitigations() -> str:
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    found = {path.name: path.read_text().strip() for path in sorted(directory.glob("*"))}
    words = (f"{name} ({value})" for name, value in found.items() if value != "Not affected")
    return "; ".join(words) or "none"


def machine(rounds: int) -> Section:
    """Where and when this was measured."""
    is_guest = re.search(r"^flags\s*:.*\bhypervisor\b", Path("/proc/cpuinfo").read_text(), re.M)
    commit = revision()
    rows = [
        ("measured", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"),
        ("seal-monitor", f"{version()}{f', commit {commit}' if commit else ''}"),
        ("processor", _first(r"^model name\s*: (.+)$", "/proc/cpuinfo")),
        ("CPUs", f"{os.cpu_count()}, {'of a virtual machine' if is_guest else 'no hypervisor'}"),
        ("kernel", f"Linux {os.uname().release}, preemption model {host.preemption().model}"),
        ("load average before", " ".join(f"{load:.1f}" for load in os.getloadavg())),
        ("memory, MiB", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20:,}"),
    ]
    return Section(
        "The machine",
        (
            f"Calls are measured on CPU {CPU}, everything else runs elsewhere. {rounds} rounds "
            "visit every observer in turn, so that a disturbance meets all alike; each call is "
            "timed in short batches, and a batch is made again when something else got its CPU. "
            "Machines are noisy: compare within a table, and take a difference below the spread "
            "for none.",
            f"CPU vulnerabilities that the kernel names: {_mitigations()}.",
        ),
        (Table("", ("", ""), rows),),
    )


# ---- Measuring -----------------------------------------------------------------------------------


def _build(directory: Path) -> dict[str, Path]:
    for name in ASSETS:
        command = ("gcc", "-O2", "-Wall", "-pthread", TESTS / f"assets/{name}.c")
        subprocess.run([*command, "-o", directory / name], check=True)
    return {name: directory / name for name in ASSETS}


def _daemons(
    directory: Path, programs: dict[str, Path], seconds: float
) -> tuple[dict[int, Storm], dict[int, Weathered], page.Service]:
    """Starts, rest, growth and storms: each daemon that is started then goes through a storm."""
    ready, rss = [], []
    alone, weathered = {}, {}
    for number in range(STARTS):
        if number < len(STORMS):
            threads = STORMS[number]
            alone[threads] = storm(programs["storm"], threads, ALONE_SECONDS, None)
        with Running(directory) as daemon:
            ready.append(daemon.ready_seconds)
            rss.append(daemon.rss())
            if number < len(STORMS):
                weathered[threads] = weather(daemon, programs["storm"], threads, seconds)
                continue
            if number == STARTS - 2:
                before = daemon.cpu_seconds()
                time.sleep(seconds)
                idle = (daemon.cpu_seconds() - before) / seconds
                workloads = with_workloads(daemon, programs["bench_workloads"])
            else:
                processes = with_processes(daemon, programs["crowd"])
            daemon.stop()
    return alone, weathered, page.Service(ready, rss, idle, workloads, processes)


def _left_attached(before: dict[int, str]) -> list[str]:
    """The kernel frees programs a grace period after their end."""
    deadline = time.monotonic() + 5
    while True:
        left = {number: name for number, name in own_programs().items() if number not in before}
        if not left or time.monotonic() > deadline:
            return sorted(set(left.values()))
        time.sleep(0.05)


def _show(section: Section) -> Section:
    print(terminal(section), flush=True)
    return section


def measure(rounds: int, seconds: float) -> tuple[Report, list[str]]:
    """The report, which is shown as it grows, and what was not exact."""
    before = own_programs()
    others = os.sched_getaffinity(0) - {CPU}
    if others:
        os.sched_setaffinity(0, others)
    sections = [_show(machine(rounds))]
    if before:
        print("\nAnother seal-monitor is attached on this host: the timings mean nothing.")
    if os.getloadavg()[0] > BUSY:
        print("\nThis machine is busy: others take part in what is measured.")
    kept = json.loads(INSTRUCTIONS.read_text("utf-8"))
    with tempfile.TemporaryDirectory(prefix="seal-monitor-bench-") as name:
        directory = Path(name)
        programs = _build(directory)
        costs = Costs(programs["bench"], programs["bench_mappings"])
        for _ in range(rounds):
            costs.round()
        sections.append(_show(page.calls_section(costs)))
        sections.append(_show(page.instructions_section(kept)))
        other = json.loads(INSTRUCTIONS_ARM64.read_text("utf-8"))
        sections.append(_show(page.instructions_section(other, "arm64")))
        sections.append(_show(page.growth_section(costs)))
        alone, weathered, service = _daemons(directory, programs, seconds)
    sections.append(_show(page.storms_section(alone, weathered, seconds)))
    sections.append(_show(page.service_section(service)))
    found = budgets(costs, weathered, service, kept)
    sections.insert(1, _show(budgets_section(found, slower(costs))))
    failures = [*costs.failures]
    for threads, result in weathered.items():
        failures += [f"{threads} threads: {problem}" for problem in problems(result)]
    failures += [f"still attached: {name}" for name in _left_attached(before)]
    return Report("What watching costs", (page.INTRODUCTION,), sections), failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument("--seconds", type=float, default=10, help="of a storm; default: 10")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the report as a page")
    arguments = parser.parse_args()
    problem = why_no_bpf()
    if problem:
        print(f"bench: nothing can be measured here: {problem}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends what was started
    report, failures = measure(arguments.rounds, arguments.seconds)
    if arguments.write:
        arguments.write.write_text(markdown(report), "utf-8")
    for failure in failures:
        print(f"\nFAILED: {failure}")
    if not failures:
        print("\nEvery denial was counted, every event accounted for, nothing is left attached.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
