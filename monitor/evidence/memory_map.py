"""The mappings of one process, from the text of /proc/PID/smaps.

It takes lines and gives mappings one by one, so a process with a million mappings needs no more
memory than one with ten. Names and paths are the process's choice. They are raw here: the caller
escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["DELETED", "LINE_LIMIT", "Mapping", "bounded_lines", "parse_smaps", "take"]

DELETED = " (deleted)"  # d_path() in fs/d_path.c: the end of an unlinked file's path
LINE_LIMIT = 8192  # a path has at most 4,096 bytes, unless directories were entered step by step

# show_vma_header_prefix() and show_map_vma() in fs/proc/task_mmu.c
_HEADER = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
# The other lines all begin with a capital letter; these are read.
_RSS, _FLAGS = b"Rss:", b"VmFlags:"
_SEALED, _GUARD = b"sl", b"gu"


class Mapping(NamedTuple):
    """One mapping. Addresses and `offset` are in bytes; `permissions` is as in "r-xp".

    `path` is as the kernel writes it: a newline as \\012, and DELETED after an unlinked file's.
    A mapping without a path may have a `name`: the kernel's, as [heap], or the program's, as
    [anon:x]. `device` (major:minor, decimal), `inode` and `offset` are None where no file is
    mapped.
    """

    start: int
    end: int
    permissions: str
    sealed: bool | None  # None: the kernel did not say
    guard: bool | None  # True: it may have guard regions; None: the kernel did not say
    path: bytes | None
    device: str | None
    inode: int | None
    offset: int | None
    name: bytes | None
    rss_kib: int | None

    @property
    def size(self) -> int:
        return self.end - self.start


def bounded_lines(file: BinaryIO, limit: int = LINE_LIMIT) -> Iterator[bytes]:
    """The lines of a file; a longer line is cut to `limit` bytes."""
    while line := file.readline(limit):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(limit)


def parse_smaps(lines: Iterable[bytes], reports_guards: bool = False) -> Iterator[Mapping]:
    """The mappings that the lines of /proc/PID/smaps describe, in their order.

    VmFlags has `sl` for a sealed mapping (Linux 6.10 on) and `gu` for one that may have guard
    regions (VM_MAYBE_GUARD, 6.19 on and in some stable kernels). `reports_guards`: this kernel has
    `gu`, so a mapping without it has no guard regions.
    """
    header: re.Match[bytes] | None = None
    rss_kib: int | None = None
    flags: list[bytes] | None = None
    no_guard = False if reports_guards else None

    def mapping(found: re.Match[bytes]) -> Mapping:
        start, end, permissions, offset, major, minor, inode, text = found.groups()
        is_file = inode != b"0" or text.startswith(b"/")
        is_path = text.startswith(b"/")
        return Mapping(
            int(start, 16),
            int(end, 16),
            permissions.decode("ascii"),
            None if flags is None else _SEALED in flags,
            None if flags is None else (_GUARD in flags or no_guard),
            text if is_path else None,
            f"{int(major, 16)}:{int(minor, 16)}" if is_file else None,
            int(inode) if is_file else None,
            int(offset, 16) if is_file else None,
            None if is_path else text or None,
            rss_kib,
        )

    for line in lines:
        if not line[:1].isupper():
            if (found := _HEADER.match(line)) is None:
                continue
            if header is not None:
                yield mapping(header)
            header, rss_kib, flags = found, None, None
        elif line.startswith(_FLAGS):
            flags = line.split()[1:]
        elif line.startswith(_RSS):
            value = line.split()[1:2]
            rss_kib = int(value[0]) if value and value[0].isdigit() else None
    if header is not None:
        yield mapping(header)


def take(mappings: Iterable[Mapping], limit: int) -> tuple[list[Mapping], bool]:
    """The first `limit` mappings, and whether these are all."""
    taken: list[Mapping] = []
    for mapping in mappings:
        if len(taken) == limit:
            return taken, False
        taken.append(mapping)
    return taken, True
