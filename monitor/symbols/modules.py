"""The files whose code a process has mapped, with their build ids.

The process chooses the files, and maybe their file system: one that it serves itself (FUSE) may
never answer. It can hold the lock that its maps need. So both are read in threads that can be given
up. PROCMAP_QUERY is not used: the kernel reads the file while it holds the process's mmap lock
(do_procmap_query() in fs/proc/task_mmu.c, 6.12 and later).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from monitor.evidence.memory_map import Mapping, bounded_lines, parse_smaps
from monitor.evidence.waiting import Held, Reads
from monitor.sizes import kibibytes
from monitor.untrusted.printable import printable
from monitor.untrusted.segments import read_mapped

__all__ = ["Modules", "find_modules"]

PATH_LIMIT = 512
FILE_LIMIT = 1 << 32


class Modules(NamedTuple):
    """`problem`: why some files or build ids are missing; empty where none are."""

    found: list[dict[str, object]]
    problem: str = ""


def _build_id(directory: int, mapping: Mapping) -> str | None:
    """The build id of the mapped file: at the path in the process's root, with the same inode."""
    process = f"/proc/self/fd/{directory}"
    paths = (f"{process}/root{os.fsdecode(mapping.path or b'')}", f"{process}/exe")
    return read_mapped(map(Path, paths), mapping.inode, FILE_LIMIT).build_id


def find_modules(directory: Held, reads: Reads, limit: int, read_bytes: int) -> Modules:
    """The files that are mapped executable, each once, in the order of addresses.

    `directory` is a descriptor of /proc/PID. It returns at most `limit` files and reads at most
    `read_bytes` of the map. Raises OSError, TooLong where the map lets it wait.
    """
    files, problem = reads.run(lambda: _mapped(directory, limit, read_bytes))
    if not files:
        return Modules([], problem or "there are none any more")
    found: list[str | None] = [None] * len(files)
    try:
        found = reads.run(lambda: [_build_id(directory.descriptor, file) for file in files])
    except OSError as error:
        problem = f"build ids: {error}"
    return Modules(
        [
            {
                "path": printable(mapping.path or b"", PATH_LIMIT),
                "build_id": build_id,
                "start": f"0x{mapping.start:x}",
            }
            for mapping, build_id in zip(files, found, strict=True)
        ],
        problem,
    )


def _mapped(directory: Held, limit: int, read_bytes: int) -> tuple[list[Mapping], str]:
    """The first mapping of each file, and why some are missing."""
    files: dict[tuple[str | None, int | None], Mapping] = {}
    problem = ""
    fd = os.open("maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.descriptor)
    with open(fd, "rb") as maps:
        for mapping in parse_smaps(_executable(bounded_lines(maps), read_bytes)):
            if len(files) == limit and (mapping.device, mapping.inode) not in files:
                problem = f"more than {limit}"
                break
            files.setdefault((mapping.device, mapping.inode), mapping)
        if maps.tell() > read_bytes:  # words: ignore
            problem = f"more than {kibibytes(read_bytes)} to read"
    return list(files.values()), problem


def _executable(lines: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The lines for executable mappings of files."""
    size = 0
    for line in lines:
        size += len(line)
        if size > limit:
            return
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and b"x" in fields[1] and fields[5].startswith(b"/"):
            yield line
