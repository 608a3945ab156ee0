"""Files that only their owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from monitor.report.private_file import PrivateFile, write_private

ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


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
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), Path("/"), Path()):
        with pytest.raises(OSError, match="not a regular file"):
            write_private(path, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "page.html"
    with pytest.raises(OSError, match=f"^cannot write {missing}: No such file or directory$"):
        write_private(missing, b"x")
    with pytest.raises(TypeError):
        write_private(tmp_path / "page.html", None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    name = "n" * 255
    write_private(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_cannot_be_made_is_reported_first(tmp_path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    for path in (Path("/sys/page.html"), tmp_path / ("n" * 256), Path("/dev/null/page.html")):
        with pytest.raises(OSError, match="cannot write "):
            PrivateFile(path)
    assert os.listdir("/proc/self/fd") == descriptors


def test_what_is_there_stays_until_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"old")
    with PrivateFile(path):
        pass
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_comes_later_is_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "page.html"
    target.write_bytes(b"mine")
    with PrivateFile(path) as file:
        path.symlink_to(target)
        with pytest.raises(OSError, match="not a regular file"):
            file.write(b"yours")
        path.unlink()
        path.hardlink_to(target)
        file.write(b"yours")
    assert (target.read_bytes(), path.read_bytes()) == (b"mine", b"yours")


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    named, moved, other = tmp_path / "named", tmp_path / "moved", tmp_path / "other"
    named.mkdir()
    other.mkdir()
    with PrivateFile(named / "page.html") as file:
        named.rename(moved)
        named.symlink_to(other)
        file.write(b"x")
    assert (moved / "page.html").read_bytes() == b"x"
    assert list(other.iterdir()) == []


@ROOT_ALONE
def test_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with PrivateFile(path) as file:
        file.write(b"x", (65534, 65533))
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65533, 0o600)
