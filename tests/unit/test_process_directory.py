"""A process whose first thread has ended: real ones, and what comes and goes meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitor.evidence.identity import TICK_NS, Identities
from monitor.incidents.snapshot import Request, patience, take
from monitor.posture.scan import Reader
from monitor.untrusted.process_directory import find, number_of, stat_of
from monitor.untrusted.process_stat import parse_stat

PROC = Path("/proc")
NO_MEMORY, MEMORY = "0", "1"


@pytest.fixture
def leaderless(compiled: Callable[[str], Path]) -> Iterator[tuple[int, int]]:
    """Pid, and the id of the thread that lives."""
    with subprocess.Popen(
        [compiled("leaderless"), "--token=x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline().split()[0])


def test_it_has_the_identity_of_its_program(
    leaderless: tuple[int, int], compiled: Callable[[str], Path]
) -> None:
    pid, thread = leaderless
    stat = parse_stat((PROC / str(pid) / "stat").read_bytes())
    assert (stat.state, stat.start_code) == (b"Z", 0)
    identity = Identities().lookup(pid, stat.start_ticks * TICK_NS, os.getuid(), b"leaderless")
    path = compiled("leaderless")
    assert (identity.executable, identity.result) == (str(path), "complete")
    assert identity.command_line == f"{path} --token=[redacted]"
    assert identity.build_id
    assert identity.files == "host"
    assert number_of(PROC, pid) == thread


def test_its_start_is_that_of_the_first_thread(leaderless: tuple[int, int]) -> None:
    pid, thread = leaderless
    first = parse_stat((PROC / str(pid) / "stat").read_bytes())
    found = find(PROC, pid)
    try:
        stat = stat_of(found.descriptor, pid)
    finally:
        os.close(found.descriptor)
    assert found.number == thread
    assert (stat.start_ticks, stat.name) == (first.start_ticks, b"leaderless")
    assert stat.has_memory


def test_what_it_has_sealed_is_shown(leaderless: tuple[int, int]) -> None:
    process = Reader(keep=10).process(leaderless[0])
    assert process is not None
    assert (process.state, process.name) == ("sealing", "leaderless")
    assert process.memory is not None
    assert (process.memory.sealed_ranges, process.memory.sealed_bytes) == (1, 4096)


def test_its_snapshot_has_its_memory(leaderless: tuple[int, int]) -> None:
    pid, thread = leaderless
    start = parse_stat((PROC / str(pid) / "stat").read_bytes()).start_ticks * TICK_NS
    asked = Request("e", pid, thread, start, "s", b"leaderless", 0)
    found = take(asked, patience(), start_offset_ns=0, reports_guards=True)
    snapshot = json.loads(found.text)
    assert (found.result, snapshot["missing"]) == ("taken", {})
    assert sum(mapping["sealed"] for mapping in snapshot["memory_map"]) >= 1
    assert snapshot["parents"][0]["pid"] == os.getpid()


def test_a_process_that_has_ended_is_none() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert number_of(PROC, process.pid) == process.pid
        assert Reader().process(process.pid) is None
    with pytest.raises(FileNotFoundError):
        find(PROC, process.pid)


def record(proc: Path, number: int, memory: str, *, of: int, state: str = "S") -> None:
    """A thread as /proc shows it."""
    directory = proc / str(number)
    (directory / "task" / str(of)).mkdir(parents=True, exist_ok=True)
    fields = [state, *["0"] * 18, str(number), "0", "0", "0", memory, *["1"] * 20]
    (directory / "stat").write_text(f"{number} (t{number}) {' '.join(fields)}\n")
    (proc / str(of) / "task" / str(number)).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("number", "memory", "of", "found"),
    [
        (43, MEMORY, 42, 43),
        (43, NO_MEMORY, 42, 42),  # it ends as well
        (43, MEMORY, 41, 42),  # its number is another process's by now
    ],
)
def test_the_thread_must_live_and_be_its(
    tmp_path: Path, number: int, memory: str, of: int, found: int
) -> None:
    record(tmp_path, 42, NO_MEMORY, of=42, state="Z")
    record(tmp_path, number, memory, of=of)
    (tmp_path / "42/task/43").mkdir(exist_ok=True)
    assert number_of(tmp_path, 42) == found


def test_no_more_threads_are_tried_than_so_many(tmp_path: Path) -> None:
    record(tmp_path, 42, NO_MEMORY, of=42, state="Z")
    for number in range(43, 1043):
        record(tmp_path, number, NO_MEMORY, of=42, state="Z")
    opened = os.open("/dev/null", os.O_RDONLY)
    os.close(opened)
    assert number_of(tmp_path, 42) == 42
    again = os.open("/dev/null", os.O_RDONLY)
    os.close(again)
    assert again == opened  # nothing was left open
