"""Paths where the file of a frame may be. The caller compares its build id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.evidence.waiting import Reads, TooLong
from monitor.kernel.arch import THIS
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import number_of

__all__ = ["Hints", "debug_files", "is_name", "mapped_files", "named_files", "usual_files"]

MAPS_LIMIT = 1 << 23
MAPPED_LIMIT = 8
_NATIVE, _COMPAT = THIS.library_directories
DIRECTORIES = (
    f"usr/lib/{_NATIVE}",
    f"lib/{_NATIVE}",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "usr/local/lib64",
    f"usr/lib/{_COMPAT}",
    f"lib/{_COMPAT}",
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
    """Facts of an event that lead to files: the pid, and paths of mapped files."""

    pid: int | None = None
    paths: tuple[str, ...] = ()


def is_name(module: str) -> bool:
    """Whether it can be a file's base name, or the beginning of one."""
    return module not in ("", ".", "..") and "/" not in module and "\0" not in module


def usual_files(module: str, search: Sequence[Path], root: Path) -> Iterator[Path]:
    """Paths that no monitored process has named."""
    yield from (directory / module for directory in search)
    yield from (root / directory / module for directory in DIRECTORIES)


def named_files(module: str, hints: Hints, root: Path) -> Iterator[Path]:
    """Paths that the event names, and files next to them."""
    named = [path for path in hints.paths if path.startswith("/") and "\0" not in path]
    for path in named:
        if os.path.basename(path).startswith(module):
            yield root / path[1:]
    for directory in dict.fromkeys(os.path.dirname(path)[1:] for path in named):
        yield root / directory / module


def mapped_files(module: str, hints: Hints, proc: Path, reads: Reads) -> Iterator[Path]:
    """The mapped files themselves while the process lives, even if deleted or in a container.

    Raises TooLong where the process lets it wait.
    """
    if hints.pid is None:
        return
    try:
        process = proc / str(number_of(proc, hints.pid))
        lines = reads.run(lambda: _lines(process / "maps"))
    except TooLong:
        raise
    except OSError:
        return
    seen: set[bytes] = set()
    for line in lines:
        # address perms offset dev inode path: proc_pid_maps(5)
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[5] in seen or not fields[5].startswith(b"/"):
            continue
        if printable(os.path.basename(fields[5])).startswith(module):
            seen.add(fields[5])
            # Without leading zeroes, unlike in maps.
            area = "-".join(f"{int(end, 16):x}" for end in fields[0].split(b"-"))
            yield process / "map_files" / area
            yield process / "root" / os.fsdecode(fields[5])[1:]
            if len(seen) == MAPPED_LIMIT:
                return


def _lines(maps: Path) -> list[bytes]:
    with open(maps, "rb") as file:
        return file.read(MAPS_LIMIT).splitlines()


def debug_files(build_id: str, binary: Path, link: str | None, root: Path) -> Iterator[Path]:
    """Paths of a file's separate symbols, in the order of gdb ("Separate Debug Files")."""
    debug = root / "usr/lib/debug"
    yield debug / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    if link is None:
        return
    try:
        directory = binary.resolve().parent
    except (OSError, RuntimeError):  # a loop of links
        return
    yield directory / link
    yield directory / ".debug" / link
    yield debug / directory.relative_to("/") / link
