"""The budgets, which of them are met, and why the others are missed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench_calls import PROCESS_SIZES, RANGE_LIMIT, ROWS, Costs, Samples
from bench_daemon import Weathered
from bench_page import Instructions, Service, median
from bench_report import Budget, Section, budget_table

__all__ = ["budgets", "budgets_section", "instruction_budgets", "slower"]

# ns that unwatched calls took on the machine where the budgets were set.
REFERENCE = {"getppid": 75.0, "mprotect": 500.0, "madvise": 147.0, "denied": 122.0}

RATIOS = {
    "getppid": ("`getppid`", 1.05),
    "mprotect": ("`mprotect` that succeeds", 1.10),
    "munmap+mmap": ("`munmap` and `mmap`", 1.10),
    "madvise": ("`madvise` that succeeds", 1.10),
}

RAW = (
    "`--attach raw_tracepoint` runs a program for every system call of the host, which looks at "
    "its number and result. It is for those who want no run missed, and not what `auto` takes."
)
PROOF = (
    "A proof walks the tree of the caller's mappings without a lock, looks for earlier reasons to "
    "refuse, and counts for the workload, too."
)
EVENT = (
    "The budget of an event was set for a record of addresses alone. It now also names the "
    "process, its parent, its executable and the file of the mapping, and is limited by its "
    "caller, to find which the code before the return address is looked at. Only the few events "
    "within the rate limit pay all of this."
)
READY = (
    "Three processes share the start: the daemon imports its modules while a child loads the "
    "programs, which the verifier takes most of, and a third waits to try them; then the canary "
    "must come back. Any other load on two cores delays one of them."
)
MEMORY = (
    "Nearly all of the memory is Python's own and that of its modules, of which those alone are "
    "imported that the configuration asks for. The ring is mapped only while it is read."
)


def slower(costs: Costs) -> float:
    """How many times slower this machine is, at least, than the one that set the budgets."""
    return min(median(costs.calls, "nothing", call) / taken for call, taken in REFERENCE.items())


def _ratios(costs: Costs) -> list[Budget]:
    """Calls that are not refused, against the empty programs at the same hooks."""
    found = []
    for row, empty in (("filtered", "empty"), ("raw", "empty_raw"), ("fexit", "empty_fexit")):
        if row in costs.absent:
            continue
        mode = ROWS[row].text.rpartition(" ")[2]
        for call, (what, limit) in RATIOS.items():
            measured = median(costs.calls, row, call) / median(costs.calls, empty, call)
            name = f"{what}, {mode}: times the empty program"
            found.append(Budget(name, limit, measured, "{:.2f}", RAW if row == "raw" else ""))
    return found


def _refusals(costs: Costs, machine: float) -> list[Budget]:
    def budget(what: str, limit: float, measured: float, why: str) -> Budget:
        return Budget(what, limit, measured, "{:+.0f} ns", why, machine)

    def more(samples: Samples, row: str, base: str, what: object) -> float:
        return median(samples, row, what) - median(samples, base, what)

    def proof(samples: Samples, what: object) -> float:
        return more(samples, "filtered", "empty", what)

    worst = max(proof(costs.process, size) for size in PROCESS_SIZES)
    further = (proof(costs.range, RANGE_LIMIT) - proof(costs.range, 1)) / (RANGE_LIMIT - 1)
    sizes = f"{min(PROCESS_SIZES)} to {max(PROCESS_SIZES):,}"
    return [
        budget("a refusal, counted and proved", 200, proof(costs.calls, "denied"), PROOF),
        budget(f"the same in processes of {sizes} mappings, the worst", 200, worst, PROOF),
        budget(f"each further mapping of the range, of {RANGE_LIMIT}", 80, further, PROOF),
        budget("its event", 100, more(costs.calls, "unlimited", "filtered", "denied"), EVENT),
    ]


def instruction_budgets(kept: Instructions) -> list[Budget]:
    """Budgets of exact figures: of one attach mode, or of the worst one."""
    figures = kept["instructions"]
    modes = [row.partition(", ")[2] for row in figures if row.startswith("empty programs, ")]
    empty, watched = figures["empty programs, tracepoint"], figures["seal-monitor, tracepoint"]
    proof = {call: watched[call] - empty[call] for call in watched}
    further = max((proof[size] - proof["denied"]) / (int(size) - 1) for size in ("16", "256"))
    event = max(
        figures[f"seal-monitor, {mode}, with its event"]["denied"]
        - figures[f"seal-monitor, {mode}, event held back"]["denied"]
        for mode in modes
    )
    found = [
        Budget(
            "`madvise` that discards, tracepoint: times the instructions of the empty program",
            *(1.10, watched["madvise"] / empty["madvise"], "{:.2f}"),
        ),
        Budget("a refusal, proved, tracepoint: instructions", 1200, proof["denied"], "{:+,.0f}"),
        Budget(
            "each further mapping of the range, tracepoint: instructions", 350, further, "{:+.0f}"
        ),
        Budget("the event of a refusal: instructions, the worst way", 4500, event, "{:+,.0f}"),
    ]
    if "fexit" in modes:
        more = figures["seal-monitor, fexit"]["getppid"] - figures["nothing"]["getppid"]
        name = "`getppid`, fexit: instructions more than nothing"
        found.insert(0, Budget(name, 0, more, "{:+.0f}"))
    return found


def budgets(
    costs: Costs, weathered: Mapping[int, Weathered], service: Service, kept: Instructions
) -> list[Budget]:
    """Every budget, with what was measured."""
    machine = slower(costs)
    ready, rss = statistics.median(service.ready), statistics.median(service.rss)
    storms = weathered.values()
    gained = max(storm.rss[1] - storm.rss[0] for storm in storms)
    return [
        *instruction_budgets(kept),
        *_ratios(costs),
        *_refusals(costs, machine),
        Budget("a storm: % of a core", 25, max(100 * storm.cpu for storm in storms), "{:.1f}"),
        Budget("a storm: MiB more", 1, gained, "{:+.1f}"),
        Budget("start to ready", 0.3, ready, "{:.2f} s", READY, machine),
        Budget("memory when ready", 22, rss, "{:.1f} MiB", MEMORY),
        Budget("idle, % of a core", 0.2, 100 * service.idle, "{:.2f}"),
    ]


def budgets_section(found: Sequence[Budget], slower: float) -> Section:
    """What the project holds itself to, and whether it does."""
    return Section(
        "Budgets",
        (
            "What the project holds itself to. Times were set on another machine: there a "
            f"`getppid` that nobody watches took {REFERENCE['getppid']:.0f} ns and a refused "
            f"mprotect {REFERENCE['denied']:.0f} ns. Here each of four such calls takes at least "
            f"{slower:.1f} times as long; `scaled` is the time measured here divided by that.",
        ),
        (budget_table(found),),
    )
