"""What real processes have sealed, by their own account: shown, counted, and missed when gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_privileges_kernel as privileged
from harness import cgroup_path, new_cgroup
from test_daemon import Collected, Running, Start, start
from test_privileges_kernel import ALL, with_only

from monitor.configuration import config
from monitor.daemon import Daemon
from monitor.evidence.cgroups import workload_name
from monitor.kernel import arch
from monitor.kernel.privileges import Capability
from monitor.posture.rounds import PostureRounds
from monitor.posture.scan import STATES, Memory, Process, Reader

ROOT = Path(__file__).parents[2]
Compile = Callable[[str], Path]
Worker = Callable[..., AbstractContextManager[tuple[int, Memory]]]
SCAN_SECONDS = 90.0  # at a hundredth of a core, of an emulated machine

program, start_privileged = privileged.program, privileged.start  # fixtures
__all__ = ["start"]
root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root to make a cgroup or be another user"
)


@pytest.fixture
def worker(compiled: Compile) -> Worker:
    """A process that seals WHAT of itself: its pid, and what it says of its memory."""

    @contextmanager
    def run(what: str, path: Path | None = None, **popen: Any) -> Iterator[tuple[int, Memory]]:
        with subprocess.Popen(
            [path or compiled("posture"), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **popen,
        ) as process:
            assert process.stdout
            yield process.pid, Memory(**json.loads(process.stdout.readline()))

    return run


def look(pid: int) -> Process:
    process = Reader(keep=1000).process(pid)
    assert process is not None
    return process


@pytest.mark.parametrize("what", ["none", "pages", "code", "relro", "all"])
def test_what_a_process_has_sealed(worker: Worker, compiled: Compile, what: str) -> None:
    with worker(what) as (pid, said):
        process = look(pid)
        assert process.memory == said
        assert process.state == ("not_sealing" if what == "none" else "sealing")
        assert process.executable == str(compiled("posture"))
        assert sum(mapping.size for mapping in process.sealed) == said.sealed_bytes
    assert said.executable_bytes > 0 < said.relro_bytes
    if what == "pages":
        assert said[:2] == (2, 8 * 4096)
        sizes = sorted((mapping.permissions, mapping.size) for mapping in process.sealed)
        assert sizes == [("rw-p", 12288), ("rw-p", 20480)]
    if what == "all":
        assert said.executable_sealed_bytes == said.executable_bytes
        assert said.relro_sealed_bytes == said.relro_bytes
    assert Reader().process(pid) is None


def command(*arguments: str) -> Any:
    shown = subprocess.run(
        [sys.executable, "-m", "monitor", "posture", "--json", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return json.loads(shown.stdout)


def test_the_command(worker: Worker, tmp_path: Path, compiled: Compile) -> None:
    path = tmp_path / "worker"
    shutil.copy(compiled("posture"), path)
    with worker("all", path) as (pid, said), worker("none", path) as (other, idle):
        row = command("--pid", str(pid))
        assert (row["pid"], row["state"], row["executable"]) == (pid, "sealing", str(path))
        assert {name: row[name] for name in Memory._fields} == said._asdict()
        assert {pid} == {row["pid"] for row in command()["rows"]} & {pid, other}
        (group,) = (
            row for row in command("--by", "executable")["rows"] if row["executable"] == str(path)
        )
        states = dict.fromkeys(STATES, 0) | {"sealing": 1, "not_sealing": 1}
        assert group.pop("processes") == states
        assert group == {"executable": str(path)} | said.plus(idle)._asdict()


def life(state: Path) -> PostureRounds:
    """Rounds for which processes are old at once, and the test's own processes count."""
    return PostureRounds(state, 10, settled=0.0, share=1.0, parent=-1)


def test_drift_over_scans_and_restarts(worker: Worker, tmp_path: Path, compiled: Compile) -> None:
    state, path = tmp_path / "state", tmp_path / "worker"
    state.mkdir(mode=0o750)
    shutil.copy(compiled("posture"), path)

    def new_changes(rounds: PostureRounds) -> list[tuple[str, object]]:
        """The changes of that program."""
        outcome = rounds.scan()
        assert outcome.problems == ()
        return [
            (change.event, change.details["processes"])
            for change in outcome.changes
            if change.details["executable"] == str(path)
        ]

    rounds = life(state)
    with worker("relro", path), worker("none", path):
        assert new_changes(rounds) == []
    assert new_changes(rounds) == []  # it does not run
    # An update that no longer seals: the file is another one.
    path.unlink()
    shutil.copy(compiled("posture"), path)
    with worker("none", path), worker("none", path):
        patient = PostureRounds(state, 10, share=1.0, parent=-1)
        assert new_changes(patient) == []  # they are too young: they may still seal
        rounds = life(state)
        assert new_changes(rounds) == [("sealing_stopped", 2)]
        assert new_changes(rounds) == []
        assert new_changes(life(state)) == []
    with worker("pages", path):
        assert new_changes(life(state)) == [("sealing_resumed", 1)]
        assert new_changes(life(state)) == []


def test_ten_thousand_mappings(worker: Worker) -> None:
    """The map is read piece by piece, with pauses."""
    code = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
area = mmap.mmap(-1, 20000 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
for page in range(0, 20000, 2):
    libc.mprotect(ctypes.c_void_p(start + page * 4096), 4096, 1)
for page in (0, 2, 3):
    assert libc.syscall(NUMBER, ctypes.c_void_p(start + page * 4096), ctypes.c_size_t(4096), 0) == 0
print("ready", flush=True)
sys.stdin.read()
""".replace("NUMBER", str(arch.NUMBERS["mseal"]))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        pauses = []
        found = Reader(pause=lambda: pauses.append(time.thread_time())).process(process.pid)
        assert found is not None
        assert found.memory is not None
        assert found.memory[:2] == (2, 3 * 4096)
        assert len(pauses) >= 20_000 // 256


# ---- In the daemon -------------------------------------------------------------------------------


def until_scraped(daemon: Running, series: str, value: float | None = None) -> None:
    """Wait until a scrape has the series, with that value or one above 0."""
    deadline = time.monotonic() + SCAN_SECONDS
    while True:
        _, text = daemon.get("/metrics")
        found = [line for line in text.splitlines() if line.startswith(series + " ")]
        number = float(found[0].rpartition(" ")[2]) if found else 0.0
        if number == value or (value is None and number > 0):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_drift_is_an_event(
    worker: Worker, tmp_path: Path, compiled: Compile, require_bpf: None
) -> None:
    state, path = tmp_path / "state", tmp_path / "worker"
    state.mkdir(mode=0o750)
    (state / "posture.json").write_text("nonsense")
    shutil.copy(compiled("posture"), path)
    settings = config.load(
        None, {"posture.interval": 1, "web.listen_address": "127.0.0.1:0"}, default=Path("/none")
    )
    collected = Collected()

    def drift() -> list[tuple[str, str]]:
        return [
            (event["event"], event["severity"])
            for event in list(collected.events)
            if event["kind"] == "health" and event["details"].get("executable") == str(path)
        ]

    with Daemon(settings, [collected]) as daemon:
        rounds = life(state)
        daemon._posture = rounds
        deadline = time.monotonic() + SCAN_SECONDS

        def loop(until: Callable[[], bool]) -> None:
            daemon.loop(lambda: until() or time.monotonic() > deadline)
            assert until()

        with worker("pages", path):
            loop(lambda: daemon.tally.posture.sealing_executables > 0)
        with worker("none", path):
            loop(lambda: drift() == [("sealing_stopped", "warning")])
        with worker("relro", path):
            loop(lambda: drift() == [("sealing_stopped", "warning"), ("sealing_resumed", "info")])
        rounds.stop()
        assert daemon.delivery.wait(5)
    (failed,) = (e for e in collected.events if e.get("event") == "state_failed")
    assert failed["message"].endswith("set aside as posture.json.bad")


@root
def test_a_scrape(start: Start, worker: Worker, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o750)
    with new_cgroup("posture") as cgroup:
        workload = workload_name(cgroup_path(cgroup))
        with worker("all") as (first, _), worker("pages") as (second, pages):
            for pid in (first, second):
                (cgroup / "cgroup.procs").write_text(str(pid))
            daemon = start(f'[posture]\ninterval = 1\n[state]\ndirectory = "{state}"\n')
            with worker("all", user=65534, group=65534) as (third, said):
                (cgroup / "cgroup.procs").write_text(str(third))
                # Three of them; the last came when the daemon had given up the capabilities that
                # it does not need.
                expected = 2 * said.sealed_bytes + pages.sealed_bytes
                series = f'seal_monitor_posture_sealed_bytes{{workload="{workload}"}}'
                until_scraped(daemon, series, expected)
                metric = {
                    name: daemon.metric(f"seal_monitor_posture_{name}")
                    for name in (
                        'processes{state="sealing"}',
                        'sealed_ratio{memory="executable"}',
                        'sealed_ratio{memory="relro"}',
                        "scan_duration_seconds",
                        "last_success_timestamp_seconds",
                    )
                }
    assert metric['processes{state="sealing"}'] >= 3
    assert 0 < metric['sealed_ratio{memory="executable"}'] < 1
    assert 0 < metric['sealed_ratio{memory="relro"}'] < 1
    assert metric["scan_duration_seconds"] > 0
    assert abs(metric["last_success_timestamp_seconds"] - time.time()) < SCAN_SECONDS
    assert daemon.stop()
    assert (state / "posture.json").exists()


@root
@pytest.mark.parametrize(
    ("capabilities", "state"),
    [(ALL, "sealing"), (ALL - {Capability.CAP_SYS_PTRACE}, "unreadable")],
    ids=["all", "without CAP_SYS_PTRACE"],
)
def test_as_a_service(
    start_privileged: Callable[..., Running],
    worker: Worker,
    capabilities: Collection[Capability],
    state: str,
) -> None:
    """Another user's process is read by what the daemon keeps, and counted where it can't be."""
    daemon = start_privileged(with_only(capabilities), "[posture]\ninterval = 1\n")
    series = f'seal_monitor_posture_processes{{state="{state}"}}'
    with worker("pages"):
        until_scraped(daemon, series)
    daemon.stop()
