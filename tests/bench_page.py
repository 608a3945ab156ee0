"""From samples to sections of the report: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench_attach import CALLS
from bench_calls import (
    PROCESS_SIZES,
    RANGE_SIZES,
    ROWS,
    WITH_SIZES,
    Costs,
    Samples,
)
from bench_daemon import RESULTS, Storm, Weathered
from bench_growth import AfterProcesses, AfterWorkloads
from bench_report import Section, Table, spread

__all__ = [
    "INTRODUCTION",
    "Instructions",
    "Service",
    "calls_section",
    "growth_section",
    "instructions_section",
    "median",
    "service_section",
    "storms_section",
]

INTRODUCTION = (
    "Made by `make bench`, which measures all this on your machine and writes this page. "
    "Only the instructions of a call are the same everywhere; all else belongs to the machine that "
    "is named below."
)

Instructions = Mapping[str, Any]  # tests/vm/instructions.json


class Service(NamedTuple):
    """A daemon that has nothing to do; how it grows."""

    ready: Sequence[float]  # seconds, a value a start
    rss: Sequence[float]  # MiB, likewise
    idle: float  # of a core
    workloads: Sequence[AfterWorkloads]
    processes: Sequence[AfterProcesses]


def median(samples: Samples, row: str, what: object) -> float:
    """Median of a row's call, or of its size; NaN where it was not measured."""
    return statistics.median(samples.get((row, str(what))) or [float("nan")])


# ---- Calls ---------------------------------------------------------------------------------------


def _share(reported: int, made: int) -> str:
    """`all` also where more were reported than made: other processes may be refused something."""
    if not made:
        return ""
    return "all" if reported >= made else f"{reported * 1000 // made / 10} %"


def _observers(
    costs: Costs, cell: Callable[[str, str], str], reported: bool
) -> Iterator[tuple[str, ...]]:
    for name, row in ROWS.items():
        if name in costs.absent:
            yield (row.text, *["-"] * len(CALLS), *["-"] * reported)
            continue
        made = costs.made[name]
        seen = (_share(costs.reported[name], made),) if reported else ()
        yield (row.text, *(cell(name, call) for call in CALLS), *seen)


def calls_section(costs: Costs) -> Section:
    def ratio(name: str, call: str) -> str:
        value = median(costs.calls, name, call) / median(costs.calls, "nothing", call)
        return f"{value:.2f}" if value < 10 else f"{value:,.0f}"

    absent: dict[str, list[str]] = {}
    for name, reason in costs.absent.items():
        absent.setdefault(reason, []).append(ROWS[name].text)
    notes = [f"Not measured: {', '.join(names)}: {reason}." for reason, names in absent.items()]
    if costs.dropped:
        notes.append(
            f"{costs.dropped} events found no room in the ring: `an event each` looks cheaper."
        )
    return Section(
        "A call, by observer",
        (
            "All observers take turns, round by round; they watch the whole host, but for strace, "
            "which sees one process. seal-monitor counts and proves every refusal; unless a row "
            "says more, its events are filtered. A page fault is the first touch of anonymous "
            "memory, a handled SIGSEGV a write to an inaccessible page whose handler steps over "
            "it. No observer is asked for `getppid` or page faults.",
        ),
        (
            Table(
                "Nanoseconds a call",
                ("observer", *CALLS.values(), "refusals reported"),
                list(
                    _observers(
                        costs, lambda name, call: spread(costs.calls.get((name, call), ())), True
                    )
                ),
                "Median of all batches ± half of the range that holds the middle half of them.",
            ),
            Table(
                "The same in multiples of nothing",
                ("observer", *CALLS.values()),
                list(_observers(costs, ratio, False)),
                "\n\n".join(notes),
            ),
        ),
    )


# ---- Instructions --------------------------------------------------------------------------------


def instructions_section(kept: Instructions, architecture: str = "amd64") -> Section:
    on, suffix, kept_by = "", "", "a test fails when one has grown by more than 5 %"
    if architecture != "amd64":
        on, suffix = f" on {architecture}", f"_{architecture}"
        kept_by += " and by more than 60: rows that do the same differ by some 50"
    nothing = kept["instructions"]["nothing"]
    rows = [
        (text, *(f"{figures[call]:,}" for call in kept["calls"]))
        for text, figures in kept["instructions"].items()
    ]
    more = [
        (text, *(f"{figures[call] - nothing[call]:+,}" for call in kept["calls"]))
        for text, figures in kept["instructions"].items()
        if text != "nothing"
    ]
    header = ("observer", *kept["calls"].values())
    return Section(
        f"A call{on}, in instructions",
        (
            f"In a guest with Linux {kept['kernel']} whose clock counts the instructions that it "
            "runs, and whose addresses are not random: the least of many calls, which no interrupt "
            "met, is exact and the same in every run. They are kept in "
            f"`tests/vm/instructions{suffix}.json`; {kept_by}.",
        ),
        (Table("Instructions a call", header, rows), Table("More than nothing", header, more)),
    )


# ---- Growth --------------------------------------------------------------------------------------


def _three(samples: Samples, size: int) -> tuple[float, float, float]:
    """Nothing attached, the empty program, seal-monitor."""
    nothing, empty, watched = (median(samples, name, size) for name in WITH_SIZES)
    return nothing, empty, watched


def _by_mappings(costs: Costs) -> Table:
    rows = []
    for size in PROCESS_SIZES:
        values = _three(costs.process, size)
        figures = (f"{value:,.0f}" for value in values)
        rows.append((f"{size:,}", *figures, f"{values[2] - values[1]:+,.0f}"))
    return Table(
        "A refused mprotect of one page, by the mappings of its process (ns)",
        ("mappings", "nothing", "empty program", "seal-monitor", "the proof"),
        rows,
        "The process has exactly so many mappings; one of a single mapping has nothing left but "
        "the sealed page that its code runs on.",
    )


def _by_range(costs: Costs) -> Table:
    rows = []
    _, empty, watched = _three(costs.range, 1)
    first = watched - empty
    for size in RANGE_SIZES:
        values = _three(costs.range, size)
        proof = values[2] - values[1]
        further = f"{(proof - first) / (size - 1):+,.0f}" if size > 1 else ""
        figures = (f"{value:,.0f}" for value in values)
        rows.append((f"{size:,}", *figures, f"{proof:+,.0f}", further, "sealed"))
    return Table(
        "A refused mprotect of several mappings, the last one sealed (ns)",
        (
            *("mappings in range", "nothing", "empty program", "seal-monitor"),
            *("the proof", "each further", "verdict"),
        ),
        rows,
        "It goes on like this up to 65,536 mappings, as many as a process may have: some "
        "milliseconds, in a call for which the kernel itself needs tens of them.",
    )


def growth_section(costs: Costs) -> Section:
    return Section(
        "How the cost of a refusal grows",
        ("What the proof costs is the difference between seal-monitor and the empty program.",),
        (_by_mappings(costs), _by_range(costs)),
    )


# ---- Storms --------------------------------------------------------------------------------------


def storms_section(
    alone: Mapping[int, Storm], weathered: Mapping[int, Weathered], seconds: float
) -> Section:
    def row(text: str, value: Callable[[int, Weathered], str]) -> tuple[str, ...]:
        return (text, *(value(threads, result) for threads, result in weathered.items()))

    def events(name: str) -> tuple[str, ...]:
        return row(f"events {name}", lambda _, w: f"{w.final['denial'][name]:,}")

    return Section(
        "Storms",
        (
            f"Threads of one process that do nothing but be refused, for {seconds:.0f} s, against "
            "a daemon with its defaults.",
        ),
        (
            Table(
                "",
                ("", *(f"{threads} thread{'s' if threads > 1 else ''}" for threads in weathered)),
                [
                    row("refusals a second", lambda _, w: f"{w.storm.rate:,.0f}"),
                    row("without seal-monitor", lambda n, _: f"{alone[n].rate:,.0f}"),
                    row("refused, the program says", lambda _, w: f"{w.storm.made:,}"),
                    row("refused, the kernel counted", lambda _, w: f"{w.counted:,}"),
                    row("runs missed", lambda _, w: f"{w.missed:,}"),
                    row(
                        "on the whole host, to the end",
                        lambda _, w: f"{w.final['denial']['counted']:,}",
                    ),
                    *(events(result) for result in RESULTS),
                    row(
                        "sum of the results",
                        lambda _, w: f"{sum(w.final['denial'][result] for result in RESULTS):,}",
                    ),
                    row("daemon, % of a core", lambda _, w: f"{100 * w.cpu:.1f}"),
                    row("daemon, MiB before", lambda _, w: f"{w.rss[0]:.1f}"),
                    row("daemon, MiB after", lambda _, w: f"{w.rss[1]:.1f}"),
                ],
            ),
        ),
    )


# ---- The daemon ----------------------------------------------------------------------------------


def service_section(service: Service) -> Section:
    tables = [
        Table(
            "At rest",
            ("", "median", "least", "most"),
            [
                ("start to ready, s", *_middle_and_ends(service.ready, "{:.2f}")),
                ("RSS when ready, MiB", *_middle_and_ends(service.rss, "{:.1f}")),
                ("idle, % of a core", f"{100 * service.idle:.2f}", "", ""),
            ],
        )
    ]
    if service.workloads:
        tables.append(
            Table(
                "A scrape, by workloads with denials",
                ("workloads", "ms", "KiB", "daemon, MiB"),
                [
                    (
                        f"{after.workloads:,}",
                        f"{statistics.median(after.milliseconds):.1f}",
                        f"{after.size / 1024:.1f}",
                        f"{after.rss:.1f}",
                    )
                    for after in service.workloads
                ],
                "Each workload is a cgroup; a denial before each scrape, over HTTP on loopback.",
            )
        )
    tables.append(
        Table(
            "Memory, by processes that were refused something",
            ("processes", "events", "held back", "daemon, MiB"),
            [
                (
                    f"{after.processes:,}",
                    f"{after.delivered:,}",
                    f"{after.held_back:,}",
                    f"{after.rss:.1f}",
                )
                for after in service.processes
            ],
        )
    )
    return Section("The daemon", (), tables)


def _middle_and_ends(values: Sequence[float], form: str) -> tuple[str, ...]:
    return tuple(form.format(pick(values)) for pick in (statistics.median, min, max))
