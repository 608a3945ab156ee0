"""A process that is killed leaves none of its children behind, nor what they would hold."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STARTS = {
    "loader": """
from monitor.kernel import attacher, loader
attacher.load_and_attach = lambda *_: time.sleep(600)
child = loader.Loading(loader.LoadRequest())._child
""",
    "calibrate": """
from monitor.attach import calibrate
child = calibrate.start().pid
""",
    "provoke": """
from monitor.provoke import child as provoke
child = provoke.run("munmap", wait=True).pid
""",
}
BEFORE = """
import fcntl, os, sys, time
directory = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
fcntl.flock(directory, fcntl.LOCK_EX)
"""
AFTER = """
print(child, flush=True)
time.sleep(600)
"""


def _until(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def is_there(pid: int) -> bool:
    """Whether the process runs; a zombie waits only for a parent that asks."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text("utf-8")
    except FileNotFoundError:
        return False


def descriptors(pid: int) -> list[str]:
    """What each is open on."""
    folder = f"/proc/{pid}/fd"
    return [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]


@pytest.mark.parametrize("child", STARTS)
def test_it_ends_with_its_parent(child: str, tmp_path: Path) -> None:
    program = BEFORE + STARTS[child] + AFTER
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        assert _until(lambda: not is_there(pid), 20)
    finally:
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(directory)


def test_the_loader_holds_no_lock_of_its_parents(tmp_path: Path) -> None:
    """Also while it runs: it has none of the descriptors but its own."""
    program = BEFORE + STARTS["loader"] + AFTER
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        try:
            assert _until(lambda: str(tmp_path) not in descriptors(pid), 20), descriptors(pid)
            assert len(descriptors(pid)) == 5
        finally:
            parent.kill()


@pytest.mark.parametrize("module", ["monitor.attach.calibrate", "monitor.provoke.table"])
def test_who_starts_after_its_parent_has_ended_does_nothing(module: str) -> None:
    """Its parent, by then, is another."""
    arguments = ["1" if module.endswith("calibrate") else "--parent=1", "munmap"]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, b"")
