"""Whose the path of a program is, who owns its file, and which build it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from monitor.evidence.image import UNKNOWN, Place, ProgramFile, build_id, place_of, program_file

PROC = Path("/proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and give files away")


def file_of(path: Path) -> ProgramFile:
    status = path.stat()
    return ProgramFile(status.st_dev, status.st_ino, 0)


def place(path: Path, program: ProgramFile | None = None) -> Place:
    return place_of(PROC, PROC / "self", os.fsencode(path), program or file_of(path))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_hosts_own_file() -> None:
    assert place(Path("/usr/bin/sleep")) == Place("host", 0)


def test_another_file_is_there_on_the_host(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.touch()
    assert place(Path("/usr/bin/sleep"), file_of(own)) == Place("namespace", None)
    assert place(tmp_path / "nothing", file_of(own)) == Place("namespace", None)
    assert place(own / "below", file_of(own)) == Place("namespace", None)


@pytest.mark.parametrize("path", ["/usr/bin/sleep (deleted)", "/" + "x" * 300])
def test_what_cannot_be_compared(path: str) -> None:
    assert place(Path(path), ProgramFile(1, 1, 0)) == UNKNOWN


def test_without_the_hosts_root_nothing_is_known(tmp_path: Path) -> None:
    sleep = Path("/usr/bin/sleep")
    assert place_of(tmp_path, PROC / "self", os.fsencode(sleep), file_of(sleep)) == UNKNOWN


@needs_root
@pytest.mark.parametrize(("uid", "mode"), [(65534, 0o755), (0, 0o775)])
def test_the_owner(tmp_path: Path, uid: int, mode: int) -> None:
    own = tmp_path / "own"
    own.touch()
    own.chmod(mode)
    os.chown(own, uid, uid)
    assert place(own) == Place("host", uid)


def test_what_anybody_may_write_is_nobodys(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.touch()
    own.chmod(0o757)
    assert place(own) == Place("host", None)


@needs_root
@pytest.mark.parametrize(("options", "owner"), [("suid", 0), ("nosuid", None)])
def test_the_owner_counts_where_set_user_id_does(
    tmp_path: Path, options: str, owner: int | None
) -> None:
    with mounted(tmp_path, options) as folder:
        own = folder / "own"
        own.touch(mode=0o755)
        assert place(own) == Place("host", owner)


# ---- What was deleted ----------------------------------------------------------------------------


@contextmanager
def running(*command: object) -> Iterator[int]:
    """Once it has executed `sleep`, its pid."""
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
        try:
            line = (PROC / str(process.pid) / "cmdline").read_bytes
            while line().count(b"\0") != 2:  # it is what was executed last
                time.sleep(0.001)
            yield process.pid
        finally:
            process.kill()


def place_of_process(pid: int) -> tuple[str, Place]:
    """The path that /proc has, and whose it is."""
    directory = os.open(PROC / str(pid), os.O_DIRECTORY)
    try:
        program = program_file(directory)
    finally:
        os.close(directory)
    path = os.readlink(PROC / str(pid) / "exe")
    return path, place_of(PROC, PROC / str(pid), os.fsencode(path), program)


def copy_of_sleep(path: Path) -> Path:
    shutil.copy("/usr/bin/sleep", path)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", ["app", "app (deleted)"])
def test_an_upgraded_program_was_the_hosts(tmp_path: Path, name: str) -> None:
    own, new = copy_of_sleep(tmp_path / name), copy_of_sleep(tmp_path / "new")
    with running(own, "60") as pid:
        new.rename(own)
        assert place_of_process(pid) == (f"{own} (deleted)", Place("host", os.getuid(), True))


def test_a_file_that_is_really_called_deleted(tmp_path: Path) -> None:
    own = copy_of_sleep(tmp_path / "app (deleted)")
    copy_of_sleep(tmp_path / "app")
    with running(own, "60") as pid:
        assert place_of_process(pid) == (str(own), Place("host", os.getuid()))


@needs_root
def test_an_upgraded_program_in_mounts_of_its_own(tmp_path: Path) -> None:
    """As a service has them, whose unit hides or protects directories."""
    own = copy_of_sleep(tmp_path / "app")
    with running("unshare", "--mount", own, "60") as pid:
        own.unlink()
        assert place_of_process(pid) == (f"{own} (deleted)", Place("host", 0, True))


MOUNTED = {
    "a file system of his own": ("mount -t tmpfs none {there}; cp {mine}/app {there}", "true"),
    "a directory of his own": ("mount --bind {mine} {there}", "true"),
    "a file of his own": ("mount --bind {mine}/app {there}/app", "umount -l {there}/app"),
    "the host's over his": ("mount --bind {mine} {there}", "mount --bind {hosts} {there}"),
}


@needs_root
@pytest.mark.parametrize("how", MOUNTED)
def test_what_a_user_mounts_there_was_not_the_hosts(tmp_path: Path, how: str) -> None:
    """His program is executed by the path of the host's, and deleted while it runs."""
    places = {name: tmp_path / name for name in ("there", "mine", "hosts")}
    for folder in places.values():
        folder.mkdir()
        copy_of_sleep(folder / "app")
    before, after = (text.format(**places) for text in MOUNTED[how])
    script = f"{before}; {places['there']}/app 60 & read line; {after}; rm $1 $2; echo; wait"
    own = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    with subprocess.Popen(
        [*own, places["mine"] / "app", *([places["there"] / "app"] if "system" in how else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as shell:
        assert shell.stdin
        assert shell.stdout
        pid = child_of(shell.pid)
        try:
            assert place_of_process(pid)[1] == Place("namespace", None)
            shell.stdin.write(b"\n")
            shell.stdin.flush()
            shell.stdout.readline()
            path, found = place_of_process(pid)
            assert (path.endswith(" (deleted)"), found) == (True, UNKNOWN)
        finally:
            os.kill(pid, signal.SIGKILL)


def child_of(parent: int) -> int:
    """The pid of its child that runs `sleep`."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = (PROC / f"{parent}/task/{parent}/children").read_text().split()
        for child in children:
            with suppress(OSError):
                if (PROC / child / "cmdline").read_bytes().endswith(b"app\x0060\0"):
                    return int(child)
        time.sleep(0.005)
    raise AssertionError("it did not start")


# ---- Which build it is ---------------------------------------------------------------------------


def test_the_build_id_of_the_file_and_no_other(tmp_path: Path) -> None:
    sleep, copy = Path("/usr/bin/sleep"), tmp_path / "copy"
    shutil.copy(sleep, copy)
    found = build_id(copy, file_of(copy))
    assert found
    assert found == build_id(sleep, file_of(sleep))
    assert build_id(sleep, file_of(copy)) is None
    assert build_id(tmp_path / "nothing", file_of(copy)) is None


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF" + b"\xff" * 60])
def test_a_file_without_a_build_id(tmp_path: Path, content: bytes) -> None:
    own = tmp_path / "own"
    own.write_bytes(content)
    assert build_id(own, file_of(own)) is None
