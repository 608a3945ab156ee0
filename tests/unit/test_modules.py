"""Modules of recorded processes and of real ones; build ids are those that readelf shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clocks import at_most

from monitor.evidence.waiting import Held, Reads, TooLong, Waiting
from monitor.symbols.elf import Elf
from monitor.symbols.modules import Modules, find_modules
from monitor.untrusted.regular import open_regular
from monitor.untrusted.segments import read_segments

MIB = 1 << 20


def found(
    process: Path, waiting: Waiting | None = None, limit: int = 256, read_bytes: int = MIB
) -> Modules:
    directory = Held(os.open(process, os.O_RDONLY | os.O_DIRECTORY))
    reads = Reads(waiting or Waiting(seconds=10.0), 0)
    return find_modules(directory, reads, limit, read_bytes)


def build_id(path: str) -> str | None:
    elf = Elf(open_regular(Path(path), MIB << 10))
    elf.close()
    return elf.build_id


@contextmanager
def process_of(*command: str) -> Iterator[Path]:
    """Once it has written a byte; until its input ends."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        yield Path(f"/proc/{child.pid}")
        child.communicate()


@contextmanager
def cat_of(folder: Path) -> Iterator[Path]:
    """A running copy of cat."""
    with subprocess.Popen([folder / "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        yield Path(f"/proc/{child.pid}")


WAITS = "import sys; print(end='.', flush=True); sys.stdin.read()"


# ---- Real processes ------------------------------------------------------------------------------


def test_every_file_with_its_build_id() -> None:
    with process_of(sys.executable, "-c", WAITS) as process:
        result = found(process)
        lines = (process / "maps").read_text().splitlines()
    paths = [line.split(maxsplit=5)[5] for line in lines if " r-xp " in line and "/" in line]
    assert result.problem == ""
    assert [module["path"] for module in result.found] == list(dict.fromkeys(paths))
    for module in result.found:
        assert module["build_id"] == build_id(str(module["path"]))
        assert module["build_id"]


def test_an_executable_that_was_deleted(tmp_path: Path) -> None:
    shutil.copy(os.path.realpath("/bin/cat"), tmp_path / "cat")
    with cat_of(tmp_path) as process:
        (tmp_path / "cat").unlink()
        first = found(process).found[0]
    assert first["path"] == f"{tmp_path}/cat (deleted)"
    assert first["build_id"] == build_id("/bin/cat")


def test_another_file_of_the_same_name_is_not_asked(tmp_path: Path) -> None:
    for name in ("cat", "ls"):
        shutil.copy(os.path.realpath(f"/bin/{name}"), tmp_path / name)
    with cat_of(tmp_path) as process:
        (tmp_path / "cat").rename(tmp_path / "old")
        (tmp_path / "ls").rename(tmp_path / "cat")
        assert found(process).found[0]["build_id"] == build_id("/bin/cat")


# ---- A recorded /proc ----------------------------------------------------------------------------


def recorded(tmp_path: Path, paths: list[str], inode: int = 7) -> Path:
    lines = [
        f"{0x1000 * n:x}-{0x1000 * n + 4096:x} r-xp 00000000 fe:00 {inode + n}       {path}\n"
        for n, path in enumerate(paths)
    ]
    (tmp_path / "maps").write_text("".join(lines))
    (tmp_path / "root").mkdir(exist_ok=True)
    return tmp_path


def test_they_are_bounded(tmp_path: Path) -> None:
    process = recorded(tmp_path, [f"/lib/{n}" for n in range(10)])
    assert (len(found(process, limit=10).found), found(process, limit=10).problem) == (10, "")
    result = found(process, limit=9)
    assert (len(result.found), result.problem) == (9, "more than 9")
    process = recorded(tmp_path, [f"/lib/{n}" for n in range(100)])
    result = found(process, read_bytes=2048)
    assert 20 < len(result.found) < 50
    assert result.problem == "more than 2 KiB to read"


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    assert found(recorded(tmp_path, [])) == Modules([], "there are none any more")


def test_a_file_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs build ids, not more: neither now nor for the next process."""
    go = threading.Event()
    monkeypatch.setattr(
        "monitor.untrusted.segments.read_segments",
        lambda file: (go.wait(30), read_segments(file))[1],
    )
    waiting = Waiting(seconds=0.05, at_once=10.0)
    shutil.copy(os.path.realpath("/bin/cat"), tmp_path / "cat")
    (tmp_path / "root").mkdir()
    (tmp_path / "cat").rename(tmp_path / "root/cat")
    inode = (tmp_path / "root/cat").stat().st_ino
    process = recorded(tmp_path, ["/cat"], inode)
    before = threading.active_count()
    result = found(process, waiting)
    assert result.problem == "build ids: the look-up took longer than 50 ms"
    assert result.found == [{"path": "/cat", "build_id": None, "start": "0x0"}]
    for _ in range(3):
        with pytest.raises(TooLong, match="another look-up of this user's still waits"):
            found(process, waiting)
    assert threading.active_count() <= before + 2
    go.set()
    with at_most(10.0, "it would wait for ever"):
        while threading.active_count() > before:
            waiting.rest()
            time.sleep(0.002)
    assert found(process, Waiting(seconds=30.0)).found[0]["build_id"] == build_id("/bin/cat")


def test_a_map_that_lets_it_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "maps")
    with pytest.raises(TooLong, match="longer than 50 ms"):
        found(tmp_path, Waiting(seconds=0.05))
    os.close(os.open(tmp_path / "maps", os.O_WRONLY | os.O_NONBLOCK))


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.mkfifo(tmp_path / "root/pipe")
    inode = (tmp_path / "root/pipe").stat().st_ino
    result = found(recorded(tmp_path, ["/pipe"], inode))
    assert (result.found[0]["build_id"], result.problem) == (None, "")


def test_names_are_escaped(tmp_path: Path) -> None:
    result = found(recorded(tmp_path, ["/tmp/\x1b[2J"]))
    assert result.found[0]["path"] == r"/tmp/\x1b[2J"
