"""What watching costs, next to empty BPF programs on the same hooks (`make bench`).

Timings are only printed. It fails when a count is not exact, an event is not accounted for, or
something stays attached.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench_calls import (
    CALLS,
    CPU,
    PROCESS_SIZES,
    RANGE_SIZES,
    ROWS,
    WITH_SIZES,
    Costs,
    Samples,
)
from bench_daemon import RESULTS, Running, Storm, Weathered, problems, storm, weather
from harness import own_programs, why_no_bpf

ASSETS = Path(__file__).parent / "assets"
STARTS = 5


# ---- Tables --------------------------------------------------------------------------------------


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, numbers to the right."""
    cells = [header, *rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = [
        "  ".join((row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:])))).rstrip()
        for row in cells
    ]
    print(f"\n{title}\n\n{lines[0]}\n{'  '.join('-' * width for width in widths)}")
    print("\n".join(lines[1:]), flush=True)


def _cell(values: Sequence[float]) -> str:
    """Median, and half of the range that holds the middle half."""
    if len(values) < 2:
        return "-"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ±{(high - low) / 2:.0f}"


def _against(budget: float, value: float, form: str) -> str:
    return form.format(value) + (" MISSED" if value > budget else "")


def _show_calls(costs: Costs) -> None:
    _table(
        "Nanoseconds a call: median of all batches ± half of the range of the middle half",
        ("attached", *CALLS.values()),
        [
            (row.text, *(_cell(costs.calls.get((name, call), ())) for call in CALLS))
            for name, row in ROWS.items()
        ],
    )
    if costs.dropped:
        print(f"{costs.dropped} events found no room in the ring: `event a denial` looks cheaper")

    def median(row: str, call: str) -> float:
        return statistics.median(costs.calls.get((row, call)) or [float("nan")])

    def ratio(call: str, budget: float) -> tuple[str, ...]:
        pairs = (("filtered", "empty"), ("raw", "empty_raw"))
        values = [median(row, call) / median(empty, call) for row, empty in pairs]
        return (
            f"{CALLS[call]}, times the empty program",
            f"{budget:.2f}x",
            *(_against(budget, value, "{:.2f}x") for value in values),
        )

    def more(text: str, call: str, budget: float, *pairs: tuple[str, str]) -> tuple[str, ...]:
        values = [median(row, call) - median(base, call) for row, base in pairs]
        shown = [_against(budget, value, "{:+.0f} ns") for value in values]
        limit = f"+{budget:.0f} ns" if budget < float("inf") else "-"
        return (text, limit, *shown, *[""] * (2 - len(shown)))

    any_cost = float("inf")
    _table(
        "Against the empty program on the same hooks",
        ("", "budget", "tracepoint", "raw_tracepoint"),
        [
            ratio("getppid", 1.05),
            *(ratio(call, 1.10) for call in ("mprotect", "munmap+mmap", "madvise")),
            more("a denial, proved", "denied", 200, ("filtered", "empty"), ("raw", "empty_raw")),
            more("its event", "denied", 100, ("unlimited", "filtered")),
            more("its event, held back", "denied", any_cost, ("limited", "filtered")),
            more("any call, watch.compat", "getppid", any_cost, ("compat", "filtered")),
            more(
                "io_uring nop, watch.io_uring", "io_uring nop", any_cost, ("io_uring", "filtered")
            ),
        ],
    )


def _show_sizes(costs: Costs) -> None:
    def medians(samples: Samples, size: int) -> list[float]:
        return [statistics.median(samples[name, str(size)]) for name in WITH_SIZES]

    def row(label: str, values: list[float]) -> tuple[str, ...]:
        proof = _against(200, values[2] - values[1], "{:+.0f}")
        return (label, *(f"{value:.0f}" for value in values), proof)

    columns = ("nothing", "empty program", "seal-monitor", "proof")
    _table(
        "A denied mprotect of one page, ns, by the number of mappings of the process "
        "(budget of the proof: +200)",
        ("mappings", *columns),
        [
            row(str(costs.mappings[str(size)]), medians(costs.process, size))
            for size in PROCESS_SIZES
        ],
    )
    rows = []
    for size in RANGE_SIZES:
        values = medians(costs.range, size)
        if size == 1:
            first = values[2] - values[1]
            rows.append((*row("1", values), ""))
            continue
        proof = values[2] - values[1]
        further = _against(80, (proof - first) / (size - 1), "{:+.0f}")
        rows.append((str(size), *(f"{value:.0f}" for value in values), f"{proof:+.0f}", further))
    _table(
        "The same, ns, by the number of mappings in its range, the last one sealed "
        "(budget of each further one: +80)",
        ("in range", *columns, "each further"),
        rows,
    )


def _show_storms(alone: dict[int, Storm], weathered: dict[int, Weathered]) -> None:
    def row(text: str, value: Callable[[int, Weathered], str]) -> tuple[str, ...]:
        return (text, *(value(threads, result) for threads, result in weathered.items()))

    def events(name: str) -> tuple[str, ...]:
        return row(f"  {name}", lambda _, w: f"{w.final['denial'][name]:,}")

    _table(
        "A storm of denied calls against the daemon, default limits",
        ("", *(f"{threads} thread{'s' if threads > 1 else ''}" for threads in weathered)),
        [
            row("seconds", lambda _, w: f"{w.storm.seconds:.1f}"),
            row("refused, the program says", lambda _, w: f"{w.storm.made:,}"),
            row("refused, the kernel counted", lambda _, w: f"{w.counted:,}"),
            row("runs missed", lambda _, w: f"{w.missed:,}"),
            row("on the whole host, to the end", lambda _, w: f"{w.final['denial']['counted']:,}"),
            *(events(result) for result in RESULTS),
            row(
                "  sum of the results",
                lambda _, w: f"{sum(w.final['denial'][result] for result in RESULTS):,}",
            ),
            row("refusals a second", lambda _, w: f"{w.storm.rate:,.0f}"),
            row("  without seal-monitor", lambda threads, _: f"{alone[threads].rate:,.0f}"),
            row(
                "daemon, % of a core (budget 25)",
                lambda _, w: _against(25, 100 * w.cpu, "{:.1f}"),
            ),
            row("daemon, MiB before and after", lambda _, w: f"{w.rss[0]:.1f} {w.rss[1]:.1f}"),
        ],
    )


# ---- The whole -----------------------------------------------------------------------------------


def _built(directory: Path, name: str) -> Path:
    program = directory / name
    source = ASSETS / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-pthread", source, "-o", program], check=True)
    return program


def _daemons(directory: Path, seconds: float) -> list[str]:
    """Starts, storms and rest; what is wrong with the counts."""
    program = _built(directory, "storm")
    alone = {threads: storm(program, threads, 1.5, None) for threads in (1, 8)}
    ready, rss, idle = [], [], 0.0
    weathered: dict[int, Weathered] = {}
    for number in range(STARTS):
        with Running(directory) as daemon:
            ready.append(daemon.ready_seconds)
            rss.append(daemon.rss())
            if number == STARTS - 1:
                before = daemon.cpu_seconds()
                time.sleep(seconds)
                idle = (daemon.cpu_seconds() - before) / seconds
            threads = {STARTS - 2: 1, STARTS - 1: 8}.get(number)
            if threads:
                weathered[threads] = weather(daemon, program, threads, seconds)
            else:
                daemon.stop()
    _show_storms(alone, weathered)
    spread = f"{min(ready):.2f} to {max(ready):.2f}"
    _table(
        "The daemon",
        ("", "budget", "measured", ""),
        [
            (
                f"start to ready, s, median of {STARTS}",
                "0.60",
                _against(0.6, statistics.median(ready), "{:.2f}"),
                spread,
            ),
            ("RSS when ready, MiB", "32", _against(32, statistics.median(rss), "{:.1f}"), ""),
            ("idle, % of a core", "0.20", _against(0.2, 100 * idle, "{:.2f}"), ""),
        ],
    )
    return [
        f"{threads} threads: {problem}"
        for threads, result in weathered.items()
        for problem in problems(result)
    ]


def _left_attached(before: dict[int, str]) -> list[str]:
    """The kernel frees programs a grace period after their end."""
    deadline = time.monotonic() + 5
    while True:
        left = {number: name for number, name in own_programs().items() if number not in before}
        if not left or time.monotonic() > deadline:
            return sorted(set(left.values()))
        time.sleep(0.05)


def run(rounds: int, seconds: float) -> int:
    problem = why_no_bpf()
    if problem:
        print(f"bench: nothing can be measured here: {problem}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, too
    before = own_programs()
    others = os.sched_getaffinity(0) - {CPU}
    if others:
        os.sched_setaffinity(0, others)
    print(
        f"seal-monitor on Linux {os.uname().release}, {os.cpu_count()} CPUs; calls are measured on "
        f"CPU {CPU}, in {rounds} rounds.\nMachines are noisy: compare within a run; a difference "
        "below the spread is none. MISSED: above the budget.",
        flush=True,
    )
    if before:
        print("Another seal-monitor is attached on this host: the timings mean nothing.")
    with tempfile.TemporaryDirectory(prefix="seal-monitor-bench-") as name:
        directory = Path(name)
        costs = Costs(_built(directory, "bench"))
        for _ in range(rounds):
            costs.round()
        _show_calls(costs)
        _show_sizes(costs)
        failures = [*costs.failures, *_daemons(directory, seconds)]
    failures += [f"still attached: {name}" for name in _left_attached(before)]
    for failure in failures:
        print(f"\nFAILED: {failure}")
    if not failures:
        print("\nEvery denial was counted, every event accounted for, nothing is left attached.")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument("--seconds", type=float, default=10, help="of a storm; default: 10")
    arguments = parser.parse_args()
    return run(arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
