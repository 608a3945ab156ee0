from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.canary import TIMEOUT, Canary, Outcome, Rounds, _matches, _missing
from monitor.kernel.abi import Access, Cause, Config, Disposition, Kind, Mapping, Record, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.syscalls import call

needs_mseal = pytest.mark.skipif(
    call("mseal", 0, 0, 0) == -errno.ENOSYS, reason="this kernel has no mseal"
)
PID = 42
NAMES = ("mprotect", "guard_region_handled")
DENIAL_LINE: dict[str, Any] = {
    "name": "mprotect",
    "kind": "denial",
    "pid": PID,
    "operation": "mprotect",
    "verdict": "sealed",
    "sealed_start": 0x1000,
    "sealed_end": 0x2000,
}
FAULT_LINE: dict[str, Any] = {
    "name": "guard_region_handled",
    "kind": "fault",
    "pid": PID,
    "cause": "guard_region",
    "disposition": "handler",
    "access": "write",
    "address": 0x5000,
}


def denial(**values: Any) -> Record:
    values = {"kind": Kind.DENIAL, "pid": PID, "verdict": Verdict.SEALED, **values}
    values.setdefault("mapping", Mapping(start=0x1000, end=0x2000))
    return Record(**values)


def fault(**values: Any) -> Record:
    facts: dict[str, Any] = {
        "kind": Kind.FAULT,
        "pid": PID,
        "cause": Cause.GUARD_REGION,
        "disposition": Disposition.HANDLER,
        "access": Access.WRITE,
        "address": 0x5000,
    }
    return Record(**{**facts, **values})


@pytest.mark.parametrize(
    ("line", "record", "matches"),
    [
        (DENIAL_LINE, denial(), True),
        (DENIAL_LINE, denial(verdict=Verdict.UNVERIFIED), False),
        (DENIAL_LINE, denial(operation=1), False),
        (DENIAL_LINE, denial(mapping=Mapping(start=0x1000, end=0x3000)), False),
        (DENIAL_LINE, denial(mapping=Mapping(start=0, end=0x2000)), False),
        (DENIAL_LINE, fault(), False),
        (DENIAL_LINE, denial(kind=9, operation=99, verdict=77), False),
        (FAULT_LINE, fault(), True),
        (FAULT_LINE, fault(cause=Cause.OTHER), False),
        (FAULT_LINE, fault(disposition=Disposition.DEFAULT), False),
        (FAULT_LINE, fault(access=Access.READ), False),
        (FAULT_LINE, fault(address=0x5001), False),
        (FAULT_LINE, denial(), False),
        (FAULT_LINE, fault(cause=99, disposition=99, access=99), False),
    ],
)
def test_matches(line: dict[str, Any], record: Record, matches: bool) -> None:
    assert _matches(line, record) is matches


@pytest.mark.parametrize(
    ("lines", "records", "problem"),
    [
        ([DENIAL_LINE, FAULT_LINE], [fault(), denial()], ""),
        (
            [DENIAL_LINE, FAULT_LINE],
            [denial()],
            "guard_region_handled was not seen with its verdict",
        ),
        (
            [DENIAL_LINE, FAULT_LINE],
            [denial(verdict=Verdict.NOT_SEALED), fault()],
            "mprotect was not seen with its verdict",
        ),
        ([], [denial(), fault()], "its process did not make mprotect"),
        ([DENIAL_LINE], [denial(), fault()], "its process did not make guard_region_handled"),
        (
            [DENIAL_LINE, {**FAULT_LINE, "unsupported": "madvise: Invalid argument"}],
            [denial(), fault()],
            "guard_region_handled cannot be made: madvise: Invalid argument",
        ),
    ],
)
def test_missing(lines: list[dict[str, Any]], records: list[Record], problem: str) -> None:
    assert _missing(NAMES, lines, records) == problem


# ---- The real process ----------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def config() -> Config:
    return Config()


@pytest.fixture
def canary(config: Config, clock: Clock) -> Iterator[Canary]:
    canary = Canary(config, clock, guard_regions=False)
    yield canary
    canary.stop()


def ended(canary: Canary) -> list[dict[str, Any]]:
    """What the process says it did, once it has ended."""
    assert canary._child is not None
    canary._child.wait(20)
    assert canary.result() is None  # nothing has come back
    return canary._lines


def records_of(lines: list[dict[str, Any]]) -> list[Record]:
    made, stopped = lines
    mapping = Mapping(start=made["sealed_start"], end=made["sealed_end"])
    operation = [operation.name for operation in OPERATIONS].index("mprotect")
    return [
        denial(pid=made["pid"], operation=operation, mapping=mapping),
        fault(pid=stopped["pid"], cause=Cause.PROT_NONE, address=stopped["address"]),
    ]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@needs_mseal
def test_a_run_that_comes_back(canary: Canary, config: Config) -> None:
    assert canary.result() is None
    canary.start()
    assert canary.running
    assert config.canary_pid
    for record in records_of(ended(canary)):
        canary.collect(record)
    assert canary.result() == ""
    assert not canary.running
    assert config.canary_pid == 0
    assert canary.result() is None


@needs_mseal
def test_a_record_that_does_not_come_is_waited_for(canary: Canary, clock: Clock) -> None:
    canary.start()
    first, _ = records_of(ended(canary))
    canary.collect(first)
    clock.now = TIMEOUT - 0.1
    assert canary.result() is None
    clock.now = TIMEOUT
    assert canary.result() == "prot_none_handled was not seen with its verdict"


@needs_mseal
def test_records_of_another_process_are_none_of_this_run(canary: Canary, clock: Clock) -> None:
    canary.start()
    for record in records_of(ended(canary)):
        record.pid += 1
        canary.collect(record)
    clock.now = TIMEOUT
    assert canary.result() == "mprotect was not seen with its verdict"


def test_a_process_that_does_not_end_in_time(canary: Canary, config: Config, clock: Clock) -> None:
    canary.start()
    pid = config.canary_pid
    os.kill(pid, signal.SIGSTOP)
    clock.now = TIMEOUT
    assert canary.result() == "its process did not end in time"
    assert not is_alive(pid)
    assert config.canary_pid == 0


def test_a_process_that_is_killed(canary: Canary, config: Config, clock: Clock) -> None:
    canary.start()
    os.kill(config.canary_pid, signal.SIGKILL)
    assert canary._child is not None
    canary._child.wait()
    clock.now = TIMEOUT
    problem = canary.result()
    assert problem in {
        "its process did not make mprotect (status -9)",
        "its process did not make prot_none_handled (status -9)",
    }


def test_half_a_line_is_no_line(canary: Canary, clock: Clock, tmp_path: Path) -> None:
    canary.start()
    child = canary._child
    assert child is not None
    child.wait()
    assert child.stdout is not None
    child.stdout.close()
    cut = tmp_path / "cut"
    cut.write_text('{"name": "mprotect", "kind": "den', "utf-8")
    with cut.open("r", encoding="utf-8") as child.stdout:
        clock.now = TIMEOUT
        problem = canary.result()
    assert problem is not None
    assert problem.startswith("its process did not make mprotect")


def test_stop_leaves_no_process(canary: Canary, config: Config) -> None:
    canary.start()
    pid = config.canary_pid
    canary.stop()
    canary.stop()
    assert not is_alive(pid)
    assert config.canary_pid == 0
    assert not canary.running


def test_the_kernel_knows_the_process_until_it_is_gone(clock: Clock) -> None:
    """Without this its last violations would be counted as those of others."""

    class Watched(Config):
        def __setattr__(self, name: str, value: int) -> None:
            if name == "canary_pid" and value == 0 and self.canary_pid:
                assert not is_alive(self.canary_pid)
            super().__setattr__(name, value)

    canary = Canary(Watched(), clock, guard_regions=False)
    canary.start()
    canary.stop()


def test_a_process_that_cannot_be_started_leaves_nothing(
    canary: Canary, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(FileNotFoundError):
        canary.start()
    assert not canary.running
    assert config.canary_pid == 0
    assert canary.result() is None


# ---- Rounds --------------------------------------------------------------------------------------


class Run:
    """Stands for the canary: `ends` is what its run comes to, None while it lasts."""

    def __init__(self) -> None:
        self.running = True
        self.ends: str | None = None
        self.fails_to_start = False

    def result(self) -> str | None:
        if self.ends is not None:
            self.running = False
        ends, self.ends = self.ends, None
        return ends

    def start(self) -> None:
        if self.fails_to_start:
            raise OSError("no process left")
        self.running = True

    def stop(self) -> None:
        self.running = False


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def rounds(run: Run) -> Rounds:
    return Rounds(run, 100.0)  # type: ignore[arg-type]


def test_rounds_are_an_interval_apart_from_end_to_start(run: Run, rounds: Rounds) -> None:
    assert rounds.problem == "the canary has not come back yet"
    assert rounds.turn(101.0, 60) is None
    run.ends = ""
    assert rounds.turn(102.0, 60) == Outcome("", 2.0)
    assert rounds.problem is None
    assert rounds.turn(161.9, 60) is None
    assert not run.running
    assert rounds.turn(162.0, 60) is None
    assert run.running
    run.ends = ""
    assert rounds.turn(163.0, 60) == Outcome("", None)


def test_blind_from_the_last_that_passed_to_the_next(run: Run, rounds: Rounds) -> None:
    for at, ends, outcome in (
        (102.0, "", Outcome("", 2.0)),
        (170.0, "not seen", Outcome("not seen", None)),
        (240.0, "not seen", Outcome("not seen", None)),
        (310.0, "", Outcome("", 208.0)),
    ):
        run.ends = ends
        assert rounds.turn(at, 60) == outcome
        assert rounds.problem == (ends or None)


def test_an_interval_of_none_means_once(run: Run, rounds: Rounds) -> None:
    run.ends = "not seen"
    rounds.turn(105.0, 0)
    assert rounds.turn(164.9, 0) is None
    assert not run.running
    rounds.turn(165.0, 0)  # a minute later it tries again
    assert run.running
    run.ends = ""
    rounds.turn(166.0, 0)
    rounds.turn(100_000.0, 0)
    assert not run.running
    assert not rounds.is_late


def test_a_process_that_cannot_be_started(run: Run, rounds: Rounds) -> None:
    run.ends = ""
    rounds.turn(102.0, 60)
    run.fails_to_start = True
    outcome = rounds.turn(162.0, 60)
    assert outcome == Outcome("its process cannot be started: no process left", None)


def test_late(run: Run, rounds: Rounds) -> None:
    run.ends = ""
    rounds.turn(102.0, 60)
    rounds.turn(162.0, 60)
    rounds.turn(177.0, 60)
    assert not rounds.is_late
    rounds.turn(177.1, 60)
    assert rounds.is_late
    run.ends = ""
    rounds.turn(178.0, 60)
    assert not rounds.is_late
