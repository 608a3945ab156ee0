"""The host's own dynamic loaders, C libraries and allocators: whose code a caller's is.

A file is one of them by its owner and its inode, which are the kernel's word, and never by its name
alone: anybody may call a file of his own `libc.so.6`.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from monitor.kernel import abi
from monitor.kernel.arch import LIBRARY_DIRECTORIES

__all__ = ["Libraries", "Role", "role_of_name"]

Role = Literal["loader", "allocator"]

# By the beginning of a file's base name. The C library calls munmap and the like for free(), for
# thread stacks and for malloc_trim().
_ROLES: tuple[tuple[str, Role], ...] = (
    ("ld-linux", "loader"),
    ("ld-musl", "loader"),
    ("ld64.so", "loader"),
    ("ld.so", "loader"),
    ("ld-2.", "loader"),
    ("libc.so", "allocator"),
    ("libc-2.", "allocator"),
    ("libjemalloc", "allocator"),
    ("libtcmalloc", "allocator"),
    ("libmimalloc", "allocator"),
)
_ROOTS = (Path("/proc/1/root"), Path("/"))
_DIRECTORIES = ("lib", "lib64", "lib32", "usr/lib", "usr/lib64", "usr/lib32", "usr/local/lib")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_SCAN_SECONDS = 60.0  # between two looks at the directories
_KNOWN_MAX = 256  # those of packages that were replaced meanwhile are still mapped, and are kept


def role_of_name(name: str) -> Role | None:
    return next((role for start, role in _ROLES if name.startswith(start)), None)


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Base name and inode number of each file that only root can have put there."""
    places = [*_DIRECTORIES, *(f"usr/lib/{each}" for each in LIBRARY_DIRECTORIES)]
    for place in places:
        try:
            names = [name for name in os.listdir(root / place) if role_of_name(name)]
        except OSError:
            continue
        for name in names:
            path = root / place / name
            try:
                found = path.stat()
                target = os.path.basename(os.path.realpath(path))
            except OSError:
                continue
            if (
                stat.S_ISREG(found.st_mode)
                and found.st_uid == 0
                and not found.st_mode & _WRITABLE_BY_OTHERS
            ):
                yield target, found.st_ino


class Libraries:
    """Looks at the directories again, now and then, when a file is unknown."""

    def __init__(self, roots: tuple[Path, ...] = _ROOTS) -> None:
        """`roots`: the host's root directory, as far as it can be entered; the first one counts."""
        self._roots = roots
        self._known: dict[tuple[str, int], None] = {}
        self._next_scan = 0.0

    def role(self, module: abi.Module) -> Role | None:
        """What the module's file is on this host; None: neither loader nor allocator of its own."""
        name = os.fsdecode(module.file)
        role = role_of_name(name)
        if role is None or not module.is_roots:
            return None
        key = (name, module.inode)
        if key not in self._known and time.monotonic() >= self._next_scan:
            self._scan()
        return role if key in self._known else None

    def _scan(self) -> None:
        self._next_scan = time.monotonic() + _SCAN_SECONDS
        found = next((files for files in map(_list, self._roots) if files), [])
        for key in found:
            self._known.pop(key, None)
            self._known[key] = None
        while len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]


def _list(root: Path) -> list[tuple[str, int]]:
    return list(_files(root))
