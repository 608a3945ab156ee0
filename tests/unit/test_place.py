"""Whose the path of a program is, who owns its file, and which build it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.evidence.image import UNKNOWN, Place, ProgramFile, build_id, place_of

PROC = Path("/proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and give files away")


def file_of(path: Path) -> ProgramFile:
    status = path.stat()
    return ProgramFile(status.st_dev, status.st_ino, 0)


def place(path: Path, program: ProgramFile | None = None) -> Place:
    return place_of(PROC, os.fsencode(path), program or file_of(path))


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
    assert place_of(tmp_path, os.fsencode(sleep), file_of(sleep)) == UNKNOWN


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
