"""The host's own dynamic loaders, C libraries and allocators: whose code a caller's is.

A file is one of them by its owner and its inode, which are the kernel's word, and by what it
defines. It is never one by its name: anybody may call a file of his own `libc.so.6`, and musl's
`ld-musl-*.so.1` is the C library, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from monitor.kernel import abi
from monitor.kernel.arch import THIS
from monitor.untrusted.exports import Exports, read_exports
from monitor.untrusted.recent import Recent

__all__ = ["EXPORTS", "Libraries", "Role", "role_of_exports"]

# "libc": a C library that is its own loader. It never unloads a library.
Role = Literal["loader", "allocator", "libc"]

_ALLOCATES = frozenset((b"malloc", b"free"))
_LOADS = frozenset((b"__tls_get_addr", b"_r_debug"))
_STARTS = b"__libc_start_main"
# What of a file must be known to say what it is.
EXPORTS = _ALLOCATES | _LOADS | {_STARTS}

_ROOTS = (Path("/proc/1/root"), Path("/"))
_DIRECTORIES = ("lib", "lib64", "lib32", "usr/lib", "usr/lib64", "usr/lib32", "usr/local/lib")
_TRIPLETS = (*THIS.library_directories, THIS.musl_directory)
# Of other distributions' ways to have several C libraries side by side: Nix, Guix, snaps.
_STORES = (
    "nix/store/*-glibc-*/lib",
    "nix/store/*-musl-*/lib",
    "gnu/store/*-glibc-*/lib",
    *(f"snap/core*/current/{place}" for place in ("lib64", "lib", "usr/lib")),
)
_STORES_MAX = 256  # directories
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_UNKNOWN_SECONDS = 60.0  # until a file that was not found is looked for again
# Looks at the directories, some milliseconds each, that there may be in so many seconds.
_LOOKS, _LOOKS_SECONDS = 16, 2.0
_KNOWN_MAX = 256  # those of packages that were replaced meanwhile are still mapped, and are kept
_CUT = abi.Module.file.size - 1


def role_of_exports(exports: Exports) -> Role | None:
    """What a library is by what it defines. The C library calls munmap and the like for free(),
    for thread stacks and for malloc_trim(); loaders had a malloc of their own up to glibc 2.32.
    """
    if _STARTS in exports.defined and exports.stands_alone:
        return "libc"
    if exports.defined >= _LOADS and exports.stands_alone:
        return "loader"
    return "allocator" if exports.defined >= _ALLOCATES else None


def _places(root: Path) -> Iterator[Path]:
    triplets = (f"{top}/{each}" for top in ("lib", "usr/lib") for each in _TRIPLETS)
    yield from (root / place for place in (*_DIRECTORIES, *triplets))
    stores = (place for pattern in _STORES for place in root.glob(pattern))
    with contextlib.suppress(OSError):  # a directory that goes meanwhile
        for place in itertools.islice(stores, _STORES_MAX):
            yield place
            yield from (place / each for each in _TRIPLETS)


def _files(root: Path, inode: int) -> Iterator[Path]:
    """The files of this inode in the directories that only root can put one into."""
    for place in _places(root):
        try:
            with os.scandir(place) as entries:
                yield from (Path(each.path) for each in entries if each.inode() == inode)
        except OSError:
            continue


def _is_roots(path: Path) -> bool:
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == 0
        and not found.st_mode & _WRITABLE_BY_OTHERS
    )


class _Found(NamedTuple):
    """`is_hosts`: the file is the host's own, for good; else it is looked for again then."""

    role: Role | None
    is_hosts: bool
    expires: float


class Libraries:
    """Looks at the directories when a file is unknown, and again, now and then, if it stays so."""

    def __init__(
        self, roots: tuple[Path, ...] = _ROOTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`roots`: the host's root directory, as far as it can be entered; the first one counts."""
        self._roots = roots
        self._clock = clock
        self._known: Recent[tuple[str, int], _Found] = Recent(_KNOWN_MAX)
        self._looks, self._looks_end = 0, 0.0

    def role(self, module: abi.Module) -> Role | None:
        """What the module's file is on this host; None: neither loader nor allocator of its own."""
        name = os.fsdecode(module.file)
        # A shared library, or one whose name the kernel side has cut.
        if not module.is_roots or not (".so" in name or len(name) >= _CUT):
            return None
        key, now = (name, module.inode), self._clock()
        known = self._known.get(key)
        if known is None or (not known.is_hosts and now >= known.expires):
            if not self._may_look(now):
                return None
            known = self._look(name, module.inode, now)
            self._known.put(key, known)
        return known.role

    def _may_look(self, now: float) -> bool:
        if now >= self._looks_end:
            self._looks, self._looks_end = _LOOKS, now + _LOOKS_SECONDS
        self._looks -= 1
        return self._looks >= 0

    def _look(self, name: str, inode: int, now: float) -> _Found:
        for root in self._roots:
            if not os.path.isdir(root / _DIRECTORIES[0]):  # which a root may deny
                continue
            for path in _files(root, inode):
                if path.name.startswith(name) and _is_roots(path):
                    return _Found(role_of_exports(read_exports(path, inode, EXPORTS)), True, now)
            break
        return _Found(None, False, now + _UNKNOWN_SECONDS)
