"""What is reported of runs that the kernel skipped and of events that found no room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from monitor.keep.ledger import Ledger
from monitor.kernel.abi import Counters, Kind, Outcome
from monitor.kernel.loader import AttachedProbe, Loaded
from monitor.watch.losses import Losses

ONE, TWO = 21, 22  # descriptors of programs


class Report(NamedTuple):
    name: str
    message: str
    details: dict[str, object]


class Setting:
    """Counts in place of the kernel's, and what was reported of them."""

    def __init__(self, proc: Path, *probes: AttachedProbe, ledger: Ledger | None = None) -> None:
        (proc / "fdinfo").mkdir(exist_ok=True)
        self.proc = proc
        self.kernel = Counters()
        self.reports: list[Report] = []
        loaded = Loaded({}, list(probes), [])
        self.losses = Losses(loaded, self, self.report, proc, ledger)  # type: ignore[arg-type]

    def counters(self) -> Counters:
        return self.kernel

    def report(self, name: str, message: str, *, details: dict[str, object] | None = None) -> None:
        assert details
        self.reports.append(Report(name, message, details))

    def missed(self, runs: Mapping[int, int | None]) -> None:
        """What fdinfo says of each program; None: nothing."""
        for program, missed in runs.items():
            line = "" if missed is None else f"recursion_misses:\t{missed}\n"
            (self.proc / "fdinfo" / str(program)).write_text(f"prog_type:\t5\n{line}")

    def look(self) -> list[Report]:
        """What this look reports."""
        before = len(self.reports)
        self.losses.look()
        return self.reports[before:]


def probe(name: str, program: int, *also: int, error: str = "") -> AttachedProbe:
    return AttachedProbe(name, "tracepoint", name, error, program, also=also)


def missed(name: str, more: int, in_all: int) -> Report:
    return Report(
        "runs_missed",
        f"the kernel skipped {more} runs of probe {name}; counts are a lower bound",
        {"probe": name, "missed_runs": in_all},
    )


def dropped(more: int, in_all: int) -> Report:
    return Report(
        "events_dropped",
        f"{more} events found no room in the ring; all are counted",
        {"dropped": in_all},
    )


def test_runs_missed_at_hooks_of_an_earlier_life_stay(tmp_path: Path) -> None:
    ledger = Ledger()
    before = Setting(tmp_path, probe("munmap", ONE), ledger=ledger)
    before.missed({ONE: 5})
    assert before.look() == [missed("munmap", 5, 5)]
    (tmp_path / "after/fdinfo").mkdir(parents=True)
    for directory, skipped in ((tmp_path / "after", 0), (tmp_path / "after", 3)):
        (directory / "fdinfo" / str(TWO)).write_text(f"recursion_misses:\t{skipped}\n")
        # The second life has another hook, the third the same as the second.
        after = Setting(directory, probe("munmap", TWO), ledger=ledger)
        assert after.losses.missed_before == {"munmap": 5}
        expected = [missed("munmap", skipped, 5 + skipped)] if skipped else []
        assert after.look() == expected


def test_nothing_is_reported_where_nothing_is_lost(tmp_path: Path) -> None:
    setting = Setting(tmp_path, probe("munmap", ONE))
    setting.missed({ONE: 0})
    setting.kernel.events[Kind.DENIAL][Outcome.SUPPRESSED] = 5
    setting.kernel.events[Kind.FAULT][Outcome.FILTERED] = 6
    assert setting.look() == setting.look() == []


def test_missed_runs_are_reported_when_they_rise(tmp_path: Path) -> None:
    setting = Setting(tmp_path, probe("munmap", ONE), probe("mprotect", TWO))
    setting.missed({ONE: 3, TWO: 0})
    assert setting.look() == [missed("munmap", 3, 3)]
    assert setting.look() == []
    setting.missed({ONE: 10, TWO: 1})
    assert setting.look() == [missed("munmap", 7, 10), missed("mprotect", 1, 1)]
    assert setting.look() == []


def test_a_probe_of_two_programs_misses_what_both_miss(tmp_path: Path) -> None:
    setting = Setting(tmp_path, probe("mremap", ONE, TWO))
    setting.missed({ONE: 3, TWO: 4})
    assert setting.look() == [missed("mremap", 7, 7)]


def test_a_probe_that_is_not_attached_misses_nothing(tmp_path: Path) -> None:
    setting = Setting(tmp_path, probe("munmap", -1, error="refused"))
    assert setting.look() == []


@pytest.mark.parametrize("text", [None, "gone"])
def test_what_is_not_known_is_an_error_and_hides_nothing(tmp_path: Path, text: str | None) -> None:
    setting = Setting(tmp_path, probe("munmap", ONE), probe("mprotect", TWO))
    setting.missed({TWO: 2} if text else {ONE: None, TWO: 2})
    setting.kernel.events[Kind.SEAL][Outcome.DROPPED] = 1
    with pytest.raises(OSError, match=rf"fdinfo/{ONE}'$"):
        setting.look()
    assert setting.reports == [dropped(1, 1), missed("mprotect", 2, 2)]
    setting.missed({ONE: 0})
    assert setting.look() == []


def test_dropped_events_are_reported_when_they_rise(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    setting.kernel.events[Kind.DENIAL][Outcome.DROPPED] = 2
    setting.kernel.events[Kind.BYPASS][Outcome.DROPPED] = 5
    assert setting.look() == [dropped(7, 7)]
    assert setting.look() == []
    setting.kernel.events[Kind.FAULT][Outcome.DROPPED] = 1
    assert setting.look() == [dropped(1, 8)]
    assert setting.look() == []
