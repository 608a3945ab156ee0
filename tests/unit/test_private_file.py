"""Files for their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from monitor.private_file import write_private


def test_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    old = os.umask(0)
    try:
        write_private(path, b"one")
        path.chmod(0o644)
        write_private(path, b"two")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match="link: not a regular file; name another, or - for standard"):
        write_private(link, b"yours")
    assert (target.read_bytes(), link.is_symlink()) == (b"mine", True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_directory_or_a_pipe_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            write_private(path, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_private(tmp_path / "none" / "page.html", b"x")
    with pytest.raises(TypeError):
        write_private(tmp_path / "page.html", None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    name = "n" * 255
    write_private(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
