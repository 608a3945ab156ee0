"""What an exec could not remove, and what only looks like it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.execute.remains import new_prefix, remove_cgroups, remove_directories

MINE = new_prefix()
OF_THIS_BOOT = MINE.removesuffix(f"{os.getpid()}-")


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def kept(folder: Path, remove: Callable[[Path], None], *names: str) -> set[str]:
    """Which of the directories of these names are there afterwards."""
    for name in names:
        (folder / name).mkdir(mode=0o700)
        (folder / name / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    remove(folder)
    return {path.name for path in folder.iterdir()}


def test_directories_of_processes_that_are_gone(tmp_path: Path, gone: int) -> None:
    others = (
        f"{MINE}abc",
        f"{OF_THIS_BOOT}1-abc",
        f"{OF_THIS_BOOT}{gone}",
        f"{OF_THIS_BOOT}0-abc",
        f"{OF_THIS_BOOT}{'9' * 40}-abc",
        f"seal-monitor-exec-00000000-{gone}-abc",
        f"seal-monitor-exec-{gone}-abc",
    )
    assert kept(tmp_path, remove_directories, f"{OF_THIS_BOOT}{gone}-a_b1", *others) == set(others)


def test_directories_that_somebody_else_put_there(tmp_path: Path, gone: int) -> None:
    target, name = tmp_path / "target", f"{OF_THIS_BOOT}{gone}"
    target.mkdir()
    (target / "file").touch()
    (tmp_path / f"{name}-link").symlink_to(target)
    (tmp_path / f"{name}-file").touch()
    (tmp_path / f"{name}-open").mkdir()
    (tmp_path / f"{name}-open").chmod(0o770)
    if os.geteuid() == 0:
        (tmp_path / f"{name}-theirs").mkdir(mode=0o700)
        os.chown(tmp_path / f"{name}-theirs", 65534, 65534)
    before = set(tmp_path.iterdir())
    remove_directories(tmp_path)
    assert set(tmp_path.iterdir()) == before
    assert (target / "file").exists()


def test_cgroups_with_processes_stay(tmp_path: Path, gone: int) -> None:
    for name, is_populated in (("busy", 1), ("idle", 0)):
        (tmp_path / f"{OF_THIS_BOOT}{gone}-{name}" / "below").mkdir(parents=True)
        events = tmp_path / f"{OF_THIS_BOOT}{gone}-{name}" / "cgroup.events"
        events.write_text(f"populated {is_populated}\nfrozen 0\n")
    remove_cgroups(tmp_path)
    left = {
        str(path.relative_to(tmp_path)).partition(f"{gone}-")[2] for path in tmp_path.rglob("*")
    }
    # The kernel removes a cgroup's directory with its files; this is not a cgroup.
    assert left == {"busy", "busy/below", "busy/cgroup.events", "idle", "idle/cgroup.events"}


def test_no_directory_to_look_in(tmp_path: Path) -> None:
    remove_cgroups(tmp_path / "missing")
    remove_directories(tmp_path / "missing")
