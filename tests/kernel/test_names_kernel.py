"""Identities that are hard to have: the first thread has ended, the path is too long, the program
was upgraded, the host was renamed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_daemon import Compile, Running, Start, start

from monitor.kernel.syscalls import call
from monitor.posture.scan import Reader

__all__ = ["start"]  # a fixture

Event = dict[str, Any]
SECONDS = 20.0
PTRACE_POKEDATA, PTRACE_ATTACH, PTRACE_DETACH = 5, 16, 17
WALL = 0x40000000  # waits for a thread that is no child
FILTERED = 'seal_monitor_events_total{kind="denial",result="filtered"}'


class Process:
    """The program `leaderless`, which makes a denial when it is asked."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin
        assert child.stdout
        self.pid, self._in, self._out = child.pid, child.stdin, child.stdout
        thread, page = self._out.readline().split()
        self.thread, self.page = int(thread), int(page)

    def deny(self) -> None:
        self._in.write(b"x")
        self._in.flush()
        assert self._out.readline() == b"-1\n"


@contextmanager
def running(*command: object, **popen: Any) -> Iterator[Process]:
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, **popen
    ) as child:
        yield Process(child)


def denial_of(daemon: Running, process: Process) -> Event:
    process.deny()
    return daemon.wait_for(
        lambda event: event["kind"] == "denial" and event["process"]["pid"] == process.pid
    )


def wait_until_muted(daemon: Running, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while daemon.metric(FILTERED) != count:
        assert not [event["process"] for event in daemon.events("denial")]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_goes_on_without_its_first_thread(start: Start, compiled: Compile) -> None:
    daemon = start()
    program = compiled("leaderless")
    with running(program, "--password", "x") as process:
        event = denial_of(daemon, process)
        found = event["process"]
        assert (found["tid"], found["identity"]["result"]) == (process.thread, "complete")
        assert (found["executable"], found["files"]) == (str(program), "host")
        assert found["command_line"] == f"{program} --password [redacted]"


def test_a_bypass_of_such_a_process_names_its_program(start: Start, compiled: Compile) -> None:
    daemon = start()
    program = compiled("leaderless")
    with running(program) as process:
        assert call("ptrace", PTRACE_ATTACH, process.thread) == 0
        os.waitpid(process.thread, WALL)
        assert call("ptrace", PTRACE_POKEDATA, process.thread, process.page, 7) == 0
        assert call("ptrace", PTRACE_DETACH, process.thread) == 0
        event = daemon.wait_for(lambda event: event["kind"] == "bypass")
        assert event["method"] == "ptrace_poke"
        target = event["target"]
        assert (target["pid"], target["executable"]) == (process.pid, str(program))
        assert target["files"] == "host"


def test_a_mute_knows_such_a_process(start: Start, compiled: Compile) -> None:
    mute = f'[[mute]]\nexecutable = "{compiled("leaderless")}"\nreason = "known"\n'
    daemon = start(mute)
    with running(compiled("leaderless")) as process:
        process.deny()
        wait_until_muted(daemon, 1)


def test_a_path_too_long_to_be_shown_loses_only_itself(
    start: Start, compiled: Compile, tmp_path: Path
) -> None:
    daemon = start()
    here, name = tmp_path, "d" * 250
    opened = os.open(here, os.O_DIRECTORY)
    try:
        for _ in range(17):
            os.mkdir(name, dir_fd=opened)
            below = os.open(name, os.O_DIRECTORY, dir_fd=opened)
            os.close(opened)
            opened = below
        shutil.copy(compiled("leaderless"), f"/proc/self/fd/{opened}/app")
        with running("./app", "--token=x", cwd=f"/proc/{os.getpid()}/fd/{opened}") as process:
            event = denial_of(daemon, process)
            shown = Reader().process(process.pid)
            assert shown is not None
            assert (shown.executable, shown.state) == (None, "sealing")
    finally:
        os.close(opened)
        subprocess.run(["rm", "-rf", here / name], check=True)
    found = event["process"]
    assert (found["executable"], found["command_line"]) == ("app", "./app --token=[redacted]")
    assert (found["user_name"], found["group_name"]) == ("root", "root")
    assert found["executable_build_id"]
    assert found["identity"] == {
        "result": "partial",
        "reason": "its path is longer than the kernel shows",
    }


@pytest.fixture
def app(compiled: Compile, tmp_path: Path) -> Path:
    return Path(shutil.copy(compiled("leaderless"), tmp_path / "app"))


def upgrade(program: Path) -> None:
    new = Path(shutil.copy(program, program.with_name("new")))
    new.rename(program)


@pytest.mark.parametrize("by", ["{app}", "app"])
def test_an_upgraded_program_stays_muted(start: Start, app: Path, by: str) -> None:
    mute = f'[[mute]]\nexecutable = "{by.format(app=app)}"\nreason = "known"\n'
    daemon = start(mute)
    with running(app) as process:
        process.deny()
        wait_until_muted(daemon, 1)
        upgrade(app)
        process.deny()
        wait_until_muted(daemon, 2)


def test_a_file_called_deleted_is_another_program(start: Start, app: Path) -> None:
    mute = f'[[mute]]\nexecutable = "{app}"\nreason = "known"\n'
    daemon = start(mute)
    other = app.rename(app.with_name("app (deleted)"))
    with running(other) as process:
        event = denial_of(daemon, process)
    assert event["process"]["executable"] == str(other)


def test_a_host_that_is_renamed(start: Start, compiled: Compile) -> None:
    daemon = start(prefix=("unshare", "--uts"))
    rename = ("nsenter", f"--target={daemon.process.pid}", "--uts", sys.executable, "-c")
    with running(compiled("leaderless")) as process:
        subprocess.run([*rename, "import socket; socket.sethostname('renamed')"], check=True)
        assert denial_of(daemon, process)["host"]["name"] == "renamed"
    assert daemon.health("started")["host"]["name"] != "renamed"
