"""Which files are the host's own loaders and allocators."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.evidence.libraries import Libraries
from monitor.kernel.abi import Module

LIBC, LOADER = "libc.so.6", "ld-linux-x86-64.so.2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("not root: no file here is root's")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for name in (LIBC, LOADER, "libcairo.so.2"):
        (tmp_path / "usr/lib" / name).write_bytes(b"")
        (tmp_path / "usr/lib" / name).chmod(0o755)
    return tmp_path


def module(path: Path, name: str = "", is_roots: bool = True) -> Module:
    return Module(file=(name or path.name).encode(), inode=path.stat().st_ino, is_roots=is_roots)


def test_the_hosts_own_files(root: Path) -> None:
    libraries = Libraries((root,))
    assert libraries.role(module(root / "lib" / LIBC)) == "allocator"
    assert libraries.role(module(root / "lib" / LOADER)) == "loader"
    assert libraries.role(module(root / "lib/libcairo.so.2")) is None


def test_what_only_looks_like_them(root: Path) -> None:
    libraries = Libraries((root,))
    own = root / LIBC
    own.write_bytes(b"")
    assert libraries.role(module(own)) is None
    assert libraries.role(module(root / "lib" / LIBC, is_roots=False)) is None
    assert libraries.role(module(root / "lib/libcairo.so.2", LIBC)) is None


@pytest.mark.parametrize("change", ["owner", "mode", "kind"])
def test_what_others_may_have_put_there(root: Path, change: str) -> None:
    path = root / "usr/lib" / LIBC
    if change == "owner":
        os.chown(path, 65534, 65534)
    elif change == "mode":
        path.chmod(0o777)
    else:
        path.unlink()
        path.mkdir()
    assert Libraries((root,)).role(module(path)) is None


def test_a_root_that_cannot_be_entered_gives_way_to_the_next(root: Path) -> None:
    libraries = Libraries((root / "none", root))
    assert libraries.role(module(root / "lib" / LIBC)) == "allocator"


def test_a_file_that_was_replaced_is_still_known(root: Path) -> None:
    libraries = Libraries((root,))
    old = module(root / "lib" / LIBC)
    assert libraries.role(old) == "allocator"
    (root / "usr/lib/new").write_bytes(b"")
    (root / "usr/lib/new").rename(root / "usr/lib" / LIBC)
    assert libraries.role(old) == "allocator"
