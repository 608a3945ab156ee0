"""Which program a process runs whose executable is a dynamic loader: `ld.so PROGRAM`.

The kernel has executed the loader alone; the program is only an argument, which the process can
change. It counts where the process has that file mapped as code, and has the path that the kernel
gives for it. That is as much as a path of an executable proves: whoever runs the program can put
code of his own beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from monitor.evidence.image import Files, ProgramFile, place_of
from monitor.evidence.libraries import EXPORTS, role_of_exports
from monitor.untrusted.exports import read_exports

__all__ = ["Loaded", "argument", "loaded"]

_ARGUMENTS_READ = 1 << 16
_MAPS_READ = 1 << 20  # the program is mapped first, above or below all else
# Of the loaders of glibc and musl, those that take the next argument as their value.
_WITH_VALUE = frozenset(
    (
        *(b"--library-path", b"--preload", b"--argv0", b"--audit", b"--inhibit-rpath"),
        *(b"--glibc-hwcaps-prepend", b"--glibc-hwcaps-mask"),
    )
)
_MAPPING = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ ..x. [0-9a-f]+ [0-9a-f:]+ ([1-9]\d*) +(/.*)$", re.MULTILINE
)


class Loaded(NamedTuple):
    """The program's path, and whose path it is."""

    path: bytes
    files: Files | None


def argument(argv: Sequence[bytes]) -> bytes | None:
    """The program in the command line of a loader; None where it was not to run any."""
    rest = iter(argv[1:])
    for word in rest:
        if word == b"--":
            return next(rest, None)
        if word == b"--list":  # as ldd does it
            return None
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith(b"-"):
            return word or None
    return None


def loaded(proc: Path, pid: int, executable: bytes, file: ProgramFile) -> Loaded | None:
    """The program that the loader runs; None where the executable is no loader, or the process has
    no such file mapped. It may wait for a lock of the process and for file systems.
    """
    process = proc / str(pid)
    if b".so" not in os.path.basename(executable):
        return None
    if role_of_exports(read_exports(process / "exe", file.inode, EXPORTS)) not in (
        "loader",
        "libc",
    ):
        return None
    try:
        name = argument(_read(process / "cmdline", _ARGUMENTS_READ).split(b"\0"))
        code = list(_code(_read(process / "maps", _MAPS_READ)))
    except OSError:
        return None
    if name is None:
        return None
    start = process / ("root" if name.startswith(b"/") else "cwd")
    wanted = _inode(os.path.join(os.fsencode(start), name.lstrip(b"/")))
    by_name = (path for _, path in code if os.path.basename(path) == os.path.basename(name))
    path = next((path for inode, path in code if inode == wanted), next(by_name, None))
    if path is None or path == executable:
        return None
    inode = next(inode for inode, each in code if each == path)
    return Loaded(path, _files(proc, process, path, inode))


def _files(proc: Path, process: Path, path: bytes, inode: int) -> Files | None:
    try:
        status = os.stat(os.path.join(os.fsencode(process / "root"), path.lstrip(b"/")))
    except OSError:
        return None
    if status.st_ino != inode:
        return None
    return place_of(proc, process, path, ProgramFile(status.st_dev, inode, 0)).files


def _read(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)


def _code(maps: bytes) -> Iterator[tuple[int, bytes]]:
    """Inode number and path of each file that is mapped as code."""
    for inode, path in _MAPPING.findall(maps):
        yield int(inode), path


def _inode(path: bytes) -> int | None:
    try:
        return os.stat(path).st_ino
    except (OSError, ValueError):
        return None
