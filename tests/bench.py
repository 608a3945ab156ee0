"""What watching costs, next to empty BPF programs on the same hooks (`make bench`).

Timings are only printed. It fails when a count is not exact, an event is not accounted for, or
something stays attached. Every attachment lives in a process of its own: `bench.py --hold NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import cgroup_root, new_cgroup, own_programs, wait_until_reading, why_no_bpf

from monitor import config, loader
from monitor.abi import Kind, Outcome, Verdict
from monitor.daemon import Daemon
from monitor.operations import OPERATIONS
from monitor.probes import PROBES

ASSETS = Path(__file__).parent / "assets"
CPU = max(os.sched_getaffinity(0))  # the measured calls run here, everything else elsewhere
PROCESS_SIZES = (1, 24, 500, 5000)
RANGE_SIZES = (1, 2, 8, 64, 256)
STARTS = 5
RESULTS = ("delivered", "suppressed", "filtered", "dropped", "failed")

CALLS = {
    "getppid": "getppid",
    "mprotect": "mprotect ok",
    "munmap+mmap": "munmap+mmap",
    "madvise": "madvise ok",
    "denied": "mprotect denied",
    "io_uring nop": "io_uring nop",
}


class Measured(NamedTuple):
    """A row of the first table: what is attached, and how its events are limited."""

    text: str
    hold: str  # what HOLDS attaches; empty: nothing
    limit: str = ""


ROWS = {
    "nothing": Measured("nothing attached", ""),
    "empty": Measured("empty program, tracepoints", "empty_tracepoint"),
    "filtered": Measured("seal-monitor, events filtered", "tracepoint", "filtered"),
    "limited": Measured("seal-monitor, default limits", "tracepoint", "limited"),
    "unlimited": Measured("seal-monitor, event a denial", "tracepoint", "unlimited"),
    "compat": Measured("  filtered, watch.compat", "compat", "filtered"),
    "io_uring": Measured("  filtered, watch.io_uring", "io_uring", "filtered"),
    "empty_raw": Measured("empty program, raw sys_exit", "empty_raw_tracepoint"),
    "raw": Measured("seal-monitor raw, filtered", "raw_tracepoint", "filtered"),
}
WITH_SIZES = ("nothing", "empty", "filtered")

Command = list[str | Path]
Samples = dict[tuple[str, str], list[float]]  # by row and call: ns, a value a batch


class Failures(list[str]):
    def check(self, holds: bool, message: str) -> None:
        if not holds:
            self.append(message)


# ---- The process that holds an attachment --------------------------------------------------------


def _empty_programs(_request: loader.LoadRequest, _features: object) -> str:
    """For every program that the table of probes names one that does nothing."""
    programs = {hook.program for probe in PROBES for hook in probe.hooks}
    arrays = {"tracepoint_tails", "raw_tails"}
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"BPF_PROG_ARRAY({name}, 1);" for name in arrays),
            *(f"BPF_ARRAY({name}, u64, 1);" for name in loader._MAPS if name not in arrays),
            *(f"int {name}(void *context) {{ return 0; }}" for name in programs),
            *(f"int {name}(void *context) {{ return 0; }}" for name in ("denied", "raw_denied")),
        )
    )


def _hold_empty(attach: str) -> None:
    loader._program_text = _empty_programs  # type: ignore[assignment]
    loaded = loader.load(loader.LoadRequest(attach=attach))
    print("{}", flush=True)
    sys.stdin.read()
    loaded.close()


def _limit(daemon: Daemon, name: str) -> None:
    kernel = daemon.state.config
    if name == "filtered":
        kernel.emit_verdicts = 0
    else:
        kernel.emit_verdicts = (1 << len(Verdict)) - 1
    if name == "unlimited":
        kernel.event_interval_ns = kernel.host_interval_ns = 0


def _hold_monitor(attach: str, **watch: bool) -> None:
    """A line of input names the limit to set, an empty one none; a line of output has counts."""
    settings = config.parse("", "the defaults")
    settings = replace(
        settings,
        attach=attach,
        watch=replace(settings.watch, **watch),
        web=replace(settings.web, listen_address=("127.0.0.1", 0)),
    )
    mprotect = [operation.name for operation in OPERATIONS].index("mprotect")
    with Daemon(settings, []) as daemon:
        daemon.loop(until=lambda: not daemon.not_ready())
        name = ""
        while True:
            counters = daemon.state.counters()
            counts = {
                "sealed": counters.denials[mprotect][Verdict.SEALED],
                "dropped": counters.events[Kind.DENIAL][Outcome.DROPPED],
            }
            print(json.dumps(counts), flush=True)
            # Only this mode needs its ring read; otherwise this process sleeps, as an idle daemon.
            while not select.select([0], [], [], 0.0003 if name == "unlimited" else None)[0]:
                daemon.ring.drain()
            line = os.read(0, 64).decode()
            if not line:
                return
            name = line.strip() or name
            _limit(daemon, name)


HOLDS: dict[str, Callable[[], None]] = {
    "empty_tracepoint": lambda: _hold_empty("tracepoint"),
    "empty_raw_tracepoint": lambda: _hold_empty("raw_tracepoint"),
    "tracepoint": lambda: _hold_monitor("tracepoint"),
    "compat": lambda: _hold_monitor("tracepoint", compat=True),
    "io_uring": lambda: _hold_monitor("tracepoint", io_uring=True),
    "raw_tracepoint": lambda: _hold_monitor("raw_tracepoint"),
}


def _off_the_measured_cpu() -> None:
    others = os.sched_getaffinity(0) - {CPU}
    if others:
        os.sched_setaffinity(0, others)


class Holder:
    """What is attached while the block runs."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--hold", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = name
        self._counts()

    def _counts(self) -> dict[str, int]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"cannot attach {self._name}: see above")
        counts: dict[str, int] = json.loads(line)
        return counts

    def ask(self, limit: str = "") -> dict[str, int]:
        assert self._process.stdin
        self._process.stdin.write(f"{limit}\n")
        self._process.stdin.flush()
        return self._counts()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- Cost of a call ------------------------------------------------------------------------------


def _measure(program: Path, *arguments: object) -> dict[str, Any]:
    output = subprocess.run(
        [program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {CPU}),
    ).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


class Costs:
    """Samples of all rounds."""

    def __init__(self, program: Path, failures: Failures) -> None:
        self.calls: Samples = defaultdict(list)
        self.process: Samples = defaultdict(list)
        self.range: Samples = defaultdict(list)
        self.mappings: dict[str, int] = {}
        self.dropped = 0
        self._program = program
        self._failures = failures

    def round(self) -> None:
        """Each row once. Rows that one attachment serves follow each other."""
        held: dict[str, list[str]] = defaultdict(list)
        for name, row in ROWS.items():
            held[row.hold].append(name)
        for hold, names in held.items():
            if not hold:
                self._visit(names[0], None)
                continue
            with Holder(hold) as holder:
                for name in names:
                    self._visit(name, holder)

    def _visit(self, name: str, holder: Holder | None) -> None:
        limit = ROWS[name].limit
        watched = holder if limit else None
        before = watched.ask(limit) if watched else {}
        denied = self._calls(name)
        if name in WITH_SIZES:
            denied += self._sizes(name)
        if watched:
            after = watched.ask()
            self.dropped += after["dropped"] - before["dropped"]
            proved = after["sealed"] - before["sealed"]
            self._failures.check(
                proved >= denied, f"{ROWS[name].text}: {denied} denials made, {proved} proved"
            )

    def _calls(self, name: str) -> int:
        answer = _measure(self._program, "calls", 20)
        for call, values in answer["ns"].items():
            self.calls[name, call] += values
        return int(answer["denied"])

    def _sizes(self, name: str) -> int:
        denied = 0
        for size in PROCESS_SIZES:
            answer = _measure(self._program, "process", 10, size)
            self.process[name, str(size)] += answer["ns"][str(size)]
            self.mappings[str(size)] = answer["mappings"]
            denied += answer["denied"]
        answer = _measure(self._program, "range", 10, *RANGE_SIZES)
        for size, values in answer["ns"].items():
            self.range[name, size] += values
        return denied + int(answer["denied"])


# ---- The daemon ----------------------------------------------------------------------------------


class Running:
    """A real daemon, ready; `lines` are the events it has printed."""

    def __init__(self, directory: Path) -> None:
        empty = directory / "config.toml"
        empty.touch()
        command: Command = [sys.executable, "-m", "monitor", "run", "--config", empty]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "--output", "json", "--web.listen-address", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ASSETS.parent.parent,
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

    def metrics(self) -> Counter[str]:
        """By name and labels, as printed."""
        with urllib.request.urlopen(self._metrics, timeout=5) as answer:
            text = answer.read().decode()
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
        """The event that tells the final counts."""
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
    """Its counts hold nobody else's denials."""
    if cgroup_root() is None:
        yield None
        return
    with new_cgroup("bench") as path:
        yield path


def _storm(program: Path, threads: int, seconds: float, cgroup: Path | None) -> Storm:
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
    told: int  # denials among the events that were printed
    held_back: int  # the sum of the suppression events


def _sum(metrics: Counter[str], *parts: str) -> int:
    return sum(value for name, value in metrics.items() if all(part in name for part in parts))


def _weather(daemon: Running, program: Path, threads: int, seconds: float) -> Weathered:
    """A storm, and the end of the daemon."""
    with _own_cgroup() as cgroup:
        before, cpu, rss = daemon.metrics(), daemon.cpu_seconds(), daemon.rss()
        storm = _storm(program, threads, seconds, cgroup)
        cpu = (daemon.cpu_seconds() - cpu) / storm.seconds
        rss_after = daemon.rss()
        gained = daemon.metrics()
        gained.subtract(before)
    if cgroup:
        counted = _sum(gained, "_workload_denials_total", 'verdict="sealed"', cgroup.name)
    else:
        counted = _sum(gained, "_monitor_denials_total", 'verdict="sealed"')
    final = daemon.stop()["details"]
    return Weathered(
        storm,
        counted,
        _sum(gained, "_missed_runs_total"),
        cpu,
        (rss, rss_after),
        final,
        sum(event["kind"] == "denial" for event in daemon.lines),
        sum(event["count"] for event in daemon.lines if event.get("of") == "denial"),
    )


def _check(weathered: Weathered, threads: int, failures: Failures) -> None:
    made, counted, missed = weathered.storm.made, weathered.counted, weathered.missed
    failures.check(
        made - missed <= counted <= made,
        f"{threads} threads: {made} calls refused, {counted} counted, {missed} runs missed",
    )
    for kind, numbers in weathered.final.items():
        total = sum(numbers[result] for result in RESULTS)
        failures.check(
            numbers["counted"] == total,
            f"{threads} threads: {numbers['counted']} of kind {kind} counted, {total} events",
        )
    denials = weathered.final["denial"]
    failures.check(
        (weathered.told, weathered.held_back) == (denials["delivered"], denials["suppressed"]),
        f"{threads} threads: {denials} denials by result, {weathered.told} printed, "
        f"{weathered.held_back} in suppression events",
    )


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


def _daemons(directory: Path, seconds: float, failures: Failures) -> None:
    storm = _built(directory, "storm")
    alone = {threads: _storm(storm, threads, 1.5, None) for threads in (1, 8)}
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
                weathered[threads] = _weather(daemon, storm, threads, seconds)
                _check(weathered[threads], threads, failures)
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
    before = own_programs()
    failures = Failures()
    _off_the_measured_cpu()
    print(
        f"seal-monitor on Linux {os.uname().release}, {os.cpu_count()} CPUs; calls are measured on "
        f"CPU {CPU}, in {rounds} rounds.\nMachines are noisy: compare within a run; a difference "
        "below the spread is none. MISSED: above the budget.",
        flush=True,
    )
    if before:
        print("Another seal-monitor is attached on this host: no figure is what it says.")
    with tempfile.TemporaryDirectory(prefix="seal-monitor-bench-") as name:
        directory = Path(name)
        costs = Costs(_built(directory, "bench"), failures)
        for _ in range(rounds):
            costs.round()
        _show_calls(costs)
        _show_sizes(costs)
        _daemons(directory, seconds, failures)
    left = _left_attached(before)
    failures.check(not left, f"still attached: {', '.join(left)}")
    for failure in failures:
        print(f"\nFAILED: {failure}")
    if not failures:
        print("\nEvery denial was counted, every event accounted for, nothing is left attached.")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hold", choices=HOLDS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument("--seconds", type=float, default=10, help="of a storm; default: 10")
    arguments = parser.parse_args()
    if arguments.hold:
        HOLDS[arguments.hold]()
        return 0
    return run(arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
