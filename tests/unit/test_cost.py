"""What the benchmark says, and that the page and the kept figures agree."""

from __future__ import annotations

import copy
import math
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/vm"))

import bench_budgets  # noqa: E402
import bench_page  # noqa: E402
import instructions  # noqa: E402
from bench_attach import CALLS  # noqa: E402
from bench_calls import PROCESS_SIZES, RANGE_SIZES, ROWS  # noqa: E402
from bench_report import (  # noqa: E402
    Budget,
    Report,
    Section,
    Table,
    budget_table,
    markdown,
    replaced,
    spread,
    terminal,
)

PAGE = (ROOT / "docs/cost.md").read_text("utf-8")
KEPT = instructions.kept()


# ---- Showing -------------------------------------------------------------------------------------

SECTION = Section(
    "Storms",
    ("Threads that do nothing but be refused, `mprotect` and others.",),
    (
        Table("Refusals", ("threads", "a second"), [("1", "905,000"), ("", "8")], "Not `all`."),
        Table("", ("", "at most", ""), [("its event", "100", "**missed**")]),
    ),
)


def test_markdown() -> None:
    assert markdown(Report("What watching costs", ("Made by `make bench`.",), [SECTION])) == (
        "# What watching costs\n"
        "\n"
        "Made by `make bench`.\n"
        "\n"
        "## Storms\n"
        "\n"
        "Threads that do nothing but be refused, `mprotect` and others.\n"
        "\n"
        "### Refusals\n"
        "\n"
        "| threads | a second |\n"
        "|---|---:|\n"
        "| 1 | 905,000 |\n"
        "| | 8 |\n"
        "\n"
        "Not `all`.\n"
        "\n"
        "| | at most | |\n"
        "|---|---:|---:|\n"
        "| its event | 100 | **missed** |\n"
    )


def test_one_section_is_replaced() -> None:
    other = Section("Calls", ("First.",), ())
    last = Section("Storms", ("None.",), ())
    page = markdown(Report("Costs", ("All.",), [other, SECTION]))
    assert replaced(page, last) == markdown(Report("Costs", ("All.",), [other, last]))
    assert replaced(page, SECTION) == page
    changed = Section("Calls", ("Second.",), ())
    assert replaced(page, changed) == markdown(Report("Costs", ("All.",), [changed, SECTION]))


def test_terminal() -> None:
    assert terminal(SECTION) == (
        "\n"
        "== Storms ==\n"
        "\n"
        "Threads that do nothing but be refused, mprotect and others.\n"
        "\n"
        "Refusals\n"
        "\n"
        "threads  a second\n"
        "-------  --------\n"
        "1         905,000\n"
        "                8\n"
        "\n"
        "Not all.\n"
        "\n"
        "           at most\n"
        "---------  -------  ------\n"
        "its event      100  missed"
    )


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], "-"),
        ([5.0], "-"),
        ([100.0, 110.0, 120.0, 130.0, 140.0], "120 ±15"),
        ([112_000.0] * 3, "112,000 ±0"),
    ],
)
def test_spread(values: list[float], shown: str) -> None:
    assert spread(values) == shown


def test_budgets_are_met_as_measured_or_when_scaled_or_missed() -> None:
    table = budget_table(
        [
            Budget("ratio", 1.05, 1.05, "{:.2f}", "never shown"),
            Budget("time", 200, 254, "{:+.0f} ns", "a slow machine", 2),
            Budget("event", 100, 644, "{:+.0f} ns", "it says more", 2),
            Budget("memory", 32, 32.9, "{:.1f} MiB", "it says more"),
        ]
    )
    assert table.rows == [
        ("ratio", "1.05", "1.05", "", "met"),
        ("time", "+200 ns", "+254 ns", "+127 ns", "met when scaled"),
        ("event", "+100 ns", "+644 ns", "+322 ns", "**missed**"),
        ("memory", "32.0 MiB", "32.9 MiB", "", "**missed**"),
    ]
    assert table.note == "a slow machine\n\nit says more"


def test_what_was_not_measured_misses_its_budget() -> None:
    assert Budget("ratio", 1.05, math.nan, "{:.2f}").result == "**missed**"


# ---- Kept instructions ---------------------------------------------------------------------------


def grown(row: str, call: str, more: int, kernel: str = "") -> instructions.Counted:
    counted = copy.deepcopy(KEPT)
    counted["kernel"] = kernel or KEPT["kernel"]
    counted["absent"] = {}
    counted["instructions"][row][call] += more
    return counted


WATCHED = "seal-monitor, tracepoint"
EMPTY = "empty programs, tracepoint"


def test_every_figure_may_grow_by_a_twentieth() -> None:
    for row, figures in KEPT["instructions"].items():
        for call, number in figures.items():
            allowed = number // 20
            assert instructions.compare(KEPT, grown(row, call, allowed)) == []
            assert instructions.compare(KEPT, grown(row, call, allowed + 1)) == [
                f"{row}, {call}: {number + allowed + 1} instructions instead of {number}"
            ]
            assert instructions.compare(KEPT, grown(row, call, -number)) == []


def test_rows_of_the_same_work_may_differ() -> None:
    noise = 60
    assert KEPT["instructions"][WATCHED]["getppid"] < 20 * noise
    assert instructions.compare(KEPT, grown(WATCHED, "getppid", noise), noise) == []
    assert len(instructions.compare(KEPT, grown(WATCHED, "getppid", noise + 1), noise)) == 1
    assert len(instructions.compare(KEPT, grown(WATCHED, "getppid", noise))) == 1


def test_on_another_kernel_the_added_part_may_grow_a_twentieth() -> None:
    other = "6.12.999-cloud-amd64"
    for row in KEPT["instructions"]:
        if not row.startswith("seal-monitor"):
            assert instructions.compare(KEPT, grown(row, "getppid", 9999, other)) == []
    figures = KEPT["instructions"]
    added = figures[WATCHED]["denied"] - figures[EMPTY]["denied"]
    allowed = max(added // 20, instructions.SLACK)
    assert instructions.compare(KEPT, grown(WATCHED, "denied", allowed, other)) == []
    assert instructions.compare(KEPT, grown(WATCHED, "denied", allowed + 1, other)) == [
        f"{WATCHED}, denied: {added + allowed + 1} instructions more than the empty program "
        f"instead of {added}"
    ]
    # A few instructions are no growth, however few there were.
    slack = instructions.SLACK
    assert instructions.compare(KEPT, grown(WATCHED, "getppid", slack, other)) == []
    assert len(instructions.compare(KEPT, grown(WATCHED, "getppid", slack + 1, other))) == 1


def test_a_mode_that_is_no_longer_counted_is_reported() -> None:
    counted = grown(WATCHED, "denied", 0)
    del counted["instructions"][WATCHED]
    counted["absent"]["tracepoint"] = "refused"
    assert instructions.compare(KEPT, counted) == [
        f"{WATCHED}: not counted any more (tracepoint: refused)"
    ]


def test_the_file_is_written_as_it_is_read(tmp_path: Path) -> None:
    assert instructions._text(KEPT) == instructions.FILE.read_text("utf-8")


def test_a_kernel_is_chosen() -> None:
    offered = [(release, Path(release)) for release in ("6.1.5-x", "6.12.8-x", "6.12.7-x")]
    assert instructions.choose("6.12.7-x", offered) == Path("6.12.7-x")
    assert instructions.choose("6.12.1-x", offered) == Path("6.12.8-x")
    with pytest.raises(LookupError, match=r"no kernel of the series 6\.18"):
        instructions.choose("6.18.1-x", offered)


def test_the_budgets_of_instructions_are_met() -> None:
    found = bench_budgets.instruction_budgets(KEPT)
    assert [budget.what for budget in found if budget.result != "met"] == []
    assert len(found) == 5


def test_fexit_costs_no_other_call_anything() -> None:
    figures = KEPT["instructions"]
    assert figures["seal-monitor, fexit"]["getppid"] == figures["nothing"]["getppid"]
    for row, costs in figures.items():
        assert costs["page fault"] == figures["nothing"]["page fault"], row


# ---- The page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", instructions.FILES)
def test_the_page_has_the_kept_instructions(architecture: str) -> None:
    kept = instructions.kept(architecture)
    section = bench_page.instructions_section(kept, architecture)
    shown = markdown(Report("", (), [section])).removeprefix("# \n\n")
    assert shown in PAGE


ATTACH_CALLS = ("getppid", "mprotect", "munmap+mmap", "madvise", "denied")


def test_the_ways_to_attach_have_the_kept_instructions() -> None:
    text = (ROOT / "docs/attach.md").read_text("utf-8")
    shown = {"nothing": "nothing attached"}
    for row in (
        "nothing",
        "seal-monitor, fexit",
        "empty programs, tracepoint",
        "seal-monitor, tracepoint",
        "seal-monitor, raw_tracepoint",
    ):
        costs = [f"{KEPT['instructions'][row][call]:,}" for call in ATTACH_CALLS]
        assert f"| {shown.get(row, row)} | {' | '.join(costs)} |\n" in text


def test_the_page_has_every_section_and_observer() -> None:
    assert re.findall("^## (.+)$", PAGE, re.MULTILINE) == [
        "The machine",
        "Budgets",
        "A call, by observer",
        "A call, in instructions",
        "A call on arm64, in instructions",
        "How the cost of a refusal grows",
        "Storms",
        "The daemon",
    ]
    for row in ROWS.values():
        assert f"| {row.text} |" in PAGE
    for call in CALLS.values():
        assert f" {call} |" in PAGE
    for size in (*PROCESS_SIZES, *RANGE_SIZES):
        assert f"\n| {size:,} |" in PAGE


def test_the_page_says_why_a_budget_is_missed() -> None:
    """The reason of each missed budget that has one."""
    text = " ".join(PAGE.split())
    reasons = {
        "its event": bench_budgets.EVENT,
        "start to ready": bench_budgets.READY,
        "memory when ready": bench_budgets.MEMORY,
        "a refusal, counted and proved": bench_budgets.PROOF,
    }
    for name, reason in reasons.items():
        (line,) = re.findall(rf"^\| {name} \|.*$", PAGE, re.MULTILINE)
        assert (reason in text) or line.endswith("| met |"), name
