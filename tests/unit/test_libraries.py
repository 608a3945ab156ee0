"""Which files are the host's own loaders and allocators."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from monitor.evidence.libraries import Libraries
from monitor.kernel.abi import Module

LIBC, LOADER = "libc.so.6", "ld-linux-x86-64.so.2"
MUSL = Path("/lib/ld-musl-x86_64.so.1")


def file_of(name: str) -> Path:
    """The file of this name that this process has mapped."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return next(Path(line.split()[-1]) for line in lines if line.endswith(f"/{name}"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("not root: no file here is root's")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for name, source in ((LIBC, LIBC), (LOADER, LOADER), ("libcairo.so.2", "libm.so.6")):
        shutil.copy(file_of(LIBC).parent / source, tmp_path / "usr/lib" / name)
    return tmp_path


def module(path: Path, name: str = "", is_roots: bool = True) -> Module:
    return Module(file=(name or path.name).encode(), inode=path.stat().st_ino, is_roots=is_roots)


def test_the_hosts_own_files(root: Path) -> None:
    libraries = Libraries((root,))
    assert libraries.role(module(root / "lib" / LIBC)) == "allocator"
    assert libraries.role(module(root / "lib" / LOADER)) == "loader"
    assert libraries.role(module(root / "lib/libcairo.so.2")) is None


def test_those_of_this_host() -> None:
    libraries = Libraries()
    assert libraries.role(module(file_of(LIBC))) == "allocator"
    assert libraries.role(module((file_of(LIBC).parent / LOADER).resolve())) == "loader"


@pytest.mark.parametrize(
    ("name", "source", "role"),
    [
        ("ld-2.31.so", LOADER, "loader"),
        ("libc-2.31.so", LIBC, "allocator"),
        ("libfoo.so", LOADER, "loader"),
        ("ld-linux-x86-64.so.2", "libm.so.6", None),
        ("ld-musl-x86_64.so.1", LIBC, "allocator"),
    ],
)
def test_what_a_file_is_decides_and_not_its_name(
    root: Path, name: str, source: str, role: str | None
) -> None:
    path = root / "usr/lib" / name
    path.unlink(missing_ok=True)
    shutil.copy(file_of(LIBC).parent / source, path)
    assert Libraries((root,)).role(module(path)) == role


def test_musl_is_loader_and_library_in_one() -> None:
    if not MUSL.exists():
        pytest.skip("musl is not installed")
    assert Libraries().role(module(MUSL.resolve())) == "libc"


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("void *malloc(long n){return 0;} void free(void *p){}", "allocator"),
        ("void *malloc(long n); void *f(void){return malloc(1);}", None),
        ("void *malloc(long n){return 0;}", None),
        ("int __tls_get_addr, _r_debug;", "loader"),
    ],
)
def test_an_allocator_is_what_defines_its_functions(
    root: Path, text: str, role: str | None
) -> None:
    source, path = root / "a.c", root / "usr/lib/liba.so"
    source.write_text(text)
    command = ["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", "-nostdlib", str(source)]
    subprocess.run([*command, "-o", str(path)], check=True)
    assert Libraries((root,)).role(module(path)) == role


@pytest.mark.parametrize("place", ["nix/store/abc-glibc-2.40/lib", "snap/core24/current/lib64"])
def test_stores_of_other_distributions(root: Path, place: str) -> None:
    (root / place).mkdir(parents=True)
    shutil.copy(root / "lib" / LOADER, root / place / LOADER)
    assert Libraries((root,)).role(module(root / place / LOADER)) == "loader"


def test_looks_are_bounded(root: Path) -> None:
    """Unknown files of containers do not keep the directories busy."""
    libraries = Libraries((root,), clock=lambda: 1.0)
    for number in range(20):
        assert libraries.role(Module(file=b"libx.so", inode=number, is_roots=True)) is None
    assert libraries.role(module(root / "lib" / LIBC)) is None
    libraries = Libraries((root,), clock=iter([1.0] * 20 + [3.0]).__next__)
    for number in range(20):
        libraries.role(Module(file=b"libx.so", inode=number, is_roots=True))
    assert libraries.role(module(root / "lib" / LIBC)) == "allocator"


@pytest.mark.parametrize("cut", [3, 64, 1000, 100_000])
def test_a_broken_file_is_none_of_them(root: Path, cut: int) -> None:
    path = root / "usr/lib" / LIBC
    os.truncate(path, cut)
    assert Libraries((root,)).role(module(path)) is None


def test_what_only_looks_like_them(root: Path) -> None:
    libraries = Libraries((root,))
    own = root / LIBC
    shutil.copy(root / "lib" / LIBC, own)
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
