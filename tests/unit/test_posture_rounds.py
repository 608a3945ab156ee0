from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from clocks import at_most
from test_posture import Line, program, record, smaps

from monitor.posture.drift import FILE
from monitor.posture.rounds import Outcome, PostureRounds
from monitor.posture.scan import STATES, Figures, Memory
from monitor.posture.smaps import patience


def scans() -> int:
    """Threads that scan."""
    return sum(thread.name == "posture" for thread in threading.enumerate())


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    path = tmp_path / "proc"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o750)
    return path


def rounds(proc: Path, state: Path | None = None, share: float = 1.0) -> PostureRounds:
    return PostureRounds(state, 2, proc=proc, share=share)


def finished(rounds: PostureRounds, now: float, interval: float = 10.0) -> Outcome:
    """The outcome of the scan that is due then."""
    assert rounds.turn(now, interval) is None
    deadline = time.monotonic() + 20
    while (outcome := rounds.turn(now, interval)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return outcome


def test_figures(proc: Path) -> None:
    services = {"a": 3, "b": 2, "c": 1, "d": 1, "e": 0}
    for pid, (name, pages) in enumerate(services.items(), 1):
        seal: Line = (0x90000, 0x90000 + pages * 4096, "r--p", 0, 0, True, "")
        record(
            proc,
            pid,
            smaps(*program(7, "/a", code=name == "a"), *([seal] if pages else [])),
            cgroup=f"/system.slice/{name}.service",
            executable=f"/usr/bin/{name}",
        )
    record(proc, 9, "x", tables_kib=1 << 30)
    before = time.time()
    figures = rounds(proc).scan().figures
    assert figures is not None
    nothing = dict.fromkeys(STATES, 0)
    assert figures.processes == nothing | {"sealing": 4, "not_sealing": 1, "too_large": 1}
    # Two have a figure of their own.
    assert figures.sealed_bytes == {"a.service": 0x5000, "b.service": 0x2000, "other": 0x2000}
    assert figures.memory == Memory(5, 0x9000, 5 * 0x2000, 0x2000, 0, 0)
    assert (figures.sealing_executables, figures.stopped_executables) == (4, 0)
    assert before <= figures.finished <= time.time()
    assert 0 < figures.duration < 20


def test_when_a_scan_is_due(proc: Path) -> None:
    record(proc, 1, smaps(*program(7, "/a")))
    posture = rounds(proc)
    assert posture.turn(100.0, 0) is None
    assert posture.turn(159.9, 3600) is None
    assert posture.turn(159.95, 3600) is None  # no scan had begun: its thread would run
    assert scans() == 0
    assert finished(posture, 160.0, 3600).figures
    assert posture.turn(160.0 + 3599, 3600) is None
    assert posture.turn(160.0 + 3599, 0) is None
    assert scans() == 0
    assert finished(posture, 160.0 + 3599, 1800).figures  # the interval was made shorter
    soon = rounds(proc)
    assert soon.turn(5.0, 1) is None
    assert finished(soon, 6.0, 1).figures


def test_drift_is_reported_once_and_over_restarts(proc: Path, state: Path) -> None:
    def appear(sealed: bool) -> None:
        shutil.rmtree(proc / "1", ignore_errors=True)
        record(proc, 1, smaps(*program(7, "/usr/bin/app", code=sealed)))

    def new_changes(posture: PostureRounds) -> list[str]:
        outcome = posture.scan()
        assert outcome.problems == ()
        return [change.event for change in outcome.changes]

    appear(sealed=True)
    assert new_changes(rounds(proc, state)) == []
    appear(sealed=False)
    posture = rounds(proc, state)
    outcome = posture.scan()
    assert [change.event for change in outcome.changes] == ["sealing_stopped"]
    assert outcome.figures is not None
    assert (outcome.figures.sealing_executables, outcome.figures.stopped_executables) == (0, 1)
    assert new_changes(posture) == []
    assert new_changes(rounds(proc, state)) == []
    appear(sealed=True)
    assert new_changes(rounds(proc, state)) == ["sealing_resumed"]
    assert new_changes(rounds(proc, state)) == []
    # Without a directory it is known in one run.
    posture = rounds(proc)
    assert new_changes(posture) == []
    appear(sealed=False)
    assert new_changes(posture) == ["sealing_stopped"]
    assert new_changes(rounds(proc)) == []


def test_a_young_process_is_no_drift(proc: Path, state: Path) -> None:
    record(proc, 1, smaps(*program(7, "/usr/bin/app", code=True)))
    posture = rounds(proc, state)
    posture.scan()
    shutil.rmtree(proc / "1")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    record(proc, 1, smaps(*program(7, "/usr/bin/app")), start=int((now - 50) * ticks))
    assert posture.scan().changes == ()


def test_children_of_the_daemon_do_not_count(proc: Path) -> None:
    """The canary seals, and so would the program that both run."""
    record(proc, 1, smaps(*program(7, "/a")))
    record(proc, 2, smaps(*program(7, "/a", code=True)), parent=os.getpid())
    figures = rounds(proc).scan().figures
    assert figures is not None
    assert sum(figures.processes.values()) == 1
    assert (figures.sealed_bytes, figures.sealing_executables) == ({}, 0)


def test_a_state_directory_that_cannot_be_used(proc: Path, state: Path) -> None:
    record(proc, 1, smaps(*program(7, "/usr/bin/app", code=True)))
    (state / FILE).write_bytes(b"nonsense")
    posture = rounds(proc, state)
    (problem,) = posture.scan().problems
    assert problem.endswith("set aside as posture.json.bad")
    shutil.rmtree(state)
    (problem,) = posture.scan().problems
    assert problem.startswith("cannot write posture.json: ")
    assert problem.endswith("; the next start will not know what used to seal")
    assert posture.scan().problems == ()  # reported once
    state.mkdir(mode=0o750)
    assert posture.scan().problems == ()
    assert (state / FILE).exists()


def test_a_scan_that_fails(proc: Path) -> None:
    posture = rounds(proc)
    proc.rmdir()
    posture.turn(0.0, 10)
    outcome = finished(posture, 10.0)
    assert outcome.figures is None
    (problem,) = outcome.problems
    assert problem.startswith("cannot look at processes: [Errno 2] ")
    proc.mkdir()
    assert finished(posture, 20.0).figures


def many(proc: Path, count: int = 20) -> None:
    lines: list[Line] = [
        (n << 13, (n << 13) + 0x1000, "r--p", 0, 0, False, "") for n in range(1, 1001)
    ]
    for pid in range(1, count + 1):
        record(proc, pid, smaps(*lines))


def test_its_share_of_a_core(proc: Path) -> None:
    many(proc)
    posture = rounds(proc, share=0.2)
    begun, busy = time.monotonic(), time.thread_time()
    figures = posture.scan().figures
    took, busy = time.monotonic() - begun, time.thread_time() - busy
    assert figures is not None
    assert figures.processes["not_sealing"] == 20
    assert busy / took < 0.25  # what follows the last pause is not waited for


def lock(proc: Path, pid: int) -> Path:
    """Whoever opens its smaps waits until `unlock`."""
    smaps_file = proc / str(pid) / "smaps"
    smaps_file.unlink()
    os.mkfifo(smaps_file)
    return smaps_file


def unlock(smaps_file: Path) -> None:
    """Those that wait find nothing, as of a process that has ended."""
    os.close(os.open(smaps_file, os.O_WRONLY | os.O_NONBLOCK))


def test_a_process_that_lets_the_scan_wait(proc: Path, state: Path) -> None:
    """It costs one thread, however many of them there are and however often they are looked at."""
    others = {*threading.enumerate()}
    for pid in range(1, 13):
        record(
            proc,
            pid,
            smaps(*program(7, "/usr/bin/app", code=True)),
            cgroup="/user.slice/user-1000.slice/x.scope" if pid > 2 else "/system.slice/a.service",
        )
    posture = PostureRounds(state, 2, proc=proc, share=1.0, waiting=patience(0.05))
    assert posture.scan().changes == ()
    locked = [lock(proc, pid) for pid in range(3, 13)]
    shutil.rmtree(proc / "1")
    shutil.rmtree(proc / "2")
    record(proc, 1, smaps(*program(7, "/usr/bin/app", code=True)), cgroup="/system.slice/a.service")
    for _ in range(3):
        outcome = posture.scan()
        assert outcome.figures is not None
        assert (outcome.changes, outcome.problems) == ((), ())
        found = {name: count for name, count in outcome.figures.processes.items() if count}
        assert found == {"sealing": 1, "timed_out": 10}
        assert outcome.figures.sealed_bytes == {"a.service": 0x2000}
        assert len({*threading.enumerate()} - others) == 1
    unlock(locked[0])
    for pid in range(3, 13):
        shutil.rmtree(proc / str(pid))
        record(proc, pid, smaps(*program(7, "/usr/bin/app")))
    with at_most(20, "the thread goes on"):
        while (figures := posture.scan().figures) and figures.processes["timed_out"]:
            time.sleep(0.01)
    assert figures is not None
    assert (figures.processes["sealing"], figures.processes["not_sealing"]) == (1, 10)
    with at_most(20, "the thread ends"):
        while {*threading.enumerate()} - others:
            posture.scan()
            time.sleep(0.01)


def test_stop_gives_up_a_scan(proc: Path) -> None:
    many(proc)
    posture = rounds(proc, share=0.001)  # minutes
    posture.turn(0.0, 1)
    assert posture.turn(1.0, 1) is None
    assert scans() == 1
    with at_most(30, "the scan takes minutes"):
        posture.stop()
    assert scans() == 0
    assert posture.turn(2.0, 1) is None
    assert posture.turn(9.0, 1) is None
    assert scans() == 0


def test_no_more_threads(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    posture = rounds(proc)
    posture.turn(0.0, 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        outcome = posture.turn(1.0, 1)
    assert outcome == Outcome(
        None, (), ("cannot start a thread to look at processes: can't start new thread",)
    )
    assert finished(posture, 2.0, 1).figures


def test_before_the_first_scan() -> None:
    figures = Figures()
    assert set(figures.processes.values()) == {0}
    assert (figures.sealed_bytes, figures.memory, figures.finished) == ({}, Memory(), 0.0)
