"""Where the file of a frame may lie; whether it is that file, its build id tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.printable import printable

__all__ = ["Hints", "binaries", "debug_files"]

MAPS_LIMIT = 1 << 23
DIRECTORIES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "usr/local/lib64",
    "usr/lib/i386-linux-gnu",
    "lib/i386-linux-gnu",
    "usr/lib32",
    "usr/bin",
    "usr/sbin",
    "bin",
    "sbin",
    "usr/local/bin",
    "usr/local/sbin",
)


@dataclass(frozen=True, slots=True)
class Hints:
    """What an event says of its process: pid, and paths of mapped files."""

    pid: int | None = None
    paths: tuple[str, ...] = ()


def binaries(
    module: str, hints: Hints, search: Sequence[Path], root: Path, proc: Path
) -> Iterator[Path]:
    """Paths where the mapped file `module` (a base name, maybe cut) may be, the likeliest first.

    Of a process that is alive, the very files: also those deleted, or in its container.
    """
    if hints.pid is not None:
        yield from _mapped(proc / str(hints.pid), module)
    named = [path for path in hints.paths if path.startswith("/") and "\0" not in path]
    for path in named:
        if os.path.basename(path).startswith(module):
            yield root / path[1:]
    if "/" in module or "\0" in module or module in ("", ".", ".."):
        return
    yield from (directory / module for directory in search)
    directories = (os.path.dirname(path)[1:] for path in named)
    for directory in dict.fromkeys((*directories, *DIRECTORIES)):
        yield root / directory / module


def _mapped(process: Path, module: str) -> Iterator[Path]:
    try:
        with open(process / "maps", "rb") as file:
            lines = file.read(MAPS_LIMIT).splitlines()
    except OSError:
        return
    seen: set[bytes] = set()
    for line in lines:
        # address perms offset dev inode path: proc_pid_maps(5)
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[5] in seen or not fields[5].startswith(b"/"):
            continue
        seen.add(fields[5])
        if printable(os.path.basename(fields[5])).startswith(module):
            # Without leading zeroes, unlike in maps.
            area = "-".join(f"{int(end, 16):x}" for end in fields[0].split(b"-"))
            yield process / "map_files" / area
            yield process / "root" / os.fsdecode(fields[5])[1:]


def debug_files(build_id: str, binary: Path | None, link: str | None, root: Path) -> Iterator[Path]:
    """Where the symbols of a file may be kept apart, in the order of gdb (Separate Debug Files)."""
    debug = root / "usr/lib/debug"
    yield debug / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    if binary is None or link is None:
        return
    try:
        directory = binary.resolve().parent
    except (OSError, RuntimeError):  # a loop of links
        return
    yield directory / link
    yield directory / ".debug" / link
    yield debug / directory.relative_to("/") / link
