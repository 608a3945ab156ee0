"""Program headers of an ELF file: where its code, its RELRO and its build id are.

This is all that the daemon needs of a file, in two or three reads; `elf.py` reads the rest, for
commands. The file belongs to a monitored process and may contain anything.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from monitor.untrusted.elf_layout import (
    HEADER_SIZE,
    MAGIC,
    PF_X,
    PT_GNU_RELRO,
    PT_LOAD,
    PT_NOTE,
    layout_of,
)
from monitor.untrusted.regular import open_regular

__all__ = ["Code", "Relro", "Segments", "build_id_of", "read_mapped", "read_segments"]

SEGMENTS_LIMIT = 64
NOTES_LIMIT = 1 << 16  # bytes, of all segments; a build id is among the first few hundred
_PAGE = mmap.PAGESIZE

_NT_GNU_BUILD_ID = 3


class Code(NamedTuple):
    """An executable PT_LOAD, in whole pages: offsets in the file, and the linked address."""

    start: int
    end: int
    address: int


class Relro(NamedTuple):
    """PT_GNU_RELRO in whole pages, at its linked address; its bytes are at `offset` in the file."""

    start: int
    end: int
    offset: int


class Segments(NamedTuple):
    code: tuple[Code, ...]
    relro: Relro | None
    build_id: str | None

    def relro_of(self, start: int, offset: int) -> Relro | None:
        """Where RELRO is in a process that has the code at this offset mapped at `start`."""
        for code in self.code:
            if self.relro is not None and code.start <= offset < code.end:
                moved = start - (code.address + offset - code.start)
                return Relro(self.relro.start + moved, self.relro.end + moved, self.relro.offset)
        return None


NOTHING = Segments((), None, None)


def build_id_of(notes: bytes) -> str | None:
    """The build id that the linker wrote (ld --build-id), in hexadecimal."""
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        start = position + 12 + (name_size + 3 & ~3)
        name = notes[position + 12 : position + 12 + name_size]
        is_build_id = kind == _NT_GNU_BUILD_ID and name == b"GNU\0" and 0 < size <= 64
        if is_build_id and start + size <= len(notes):
            return notes[start : start + size].hex()
        position = start + (size + 3 & ~3)
    return None


def _down(address: int) -> int:
    return address & -_PAGE


def _up(address: int) -> int:
    return -(-address & -_PAGE)


def read_segments(file: BinaryIO) -> Segments:
    """The file's segments; none when it is not an ELF file of this machine. Raises OSError."""
    header = file.read(HEADER_SIZE)
    layout = layout_of(header) if len(header) == HEADER_SIZE else None
    if layout is None or not header.startswith(MAGIC):
        return NOTHING
    row, fields = layout.segment, layout.fields
    offset, _sections, size, count, *_ = layout.header.unpack_from(header)
    if size != row.size or count > SEGMENTS_LIMIT or offset >= 1 << 62:
        return NOTHING
    file.seek(offset)
    rows = file.read(size * count)
    if len(rows) < size * count:
        return NOTHING
    return _interpret(file, [tuple(part[i] for i in fields) for part in row.iter_unpack(rows)])


def read_mapped(paths: Iterable[Path], inode: int | None, limit: int) -> Segments:
    """The segments of the first path that leads to that inode; none where none can be read.

    `limit`: larger files, in bytes, are not opened.
    """
    for path in paths:
        try:
            with open_regular(path, limit) as file:
                # Not the device: on some file systems maps and stat show different ones.
                if os.fstat(file.fileno()).st_ino == inode:
                    return read_segments(file)
        except OSError:
            continue
    return NOTHING


def _interpret(file: BinaryIO, segments: list[tuple[int, ...]]) -> Segments:
    code: list[Code] = []
    relro: Relro | None = None
    build_id: str | None = None
    left = NOTES_LIMIT
    for kind, flags, offset, address, size, memory_size in segments:
        if kind == PT_LOAD and flags & PF_X:
            code.append(Code(_down(offset), _up(offset + size), _down(address)))
        elif kind == PT_GNU_RELRO and relro is None:
            relro = Relro(_down(address), _up(address + memory_size), _down(offset))
        elif kind == PT_NOTE and build_id is None and offset < 1 << 62:
            file.seek(offset)
            notes = file.read(min(size, left))
            left -= len(notes)
            build_id = build_id_of(notes)
    return Segments(tuple(code), relro, build_id)
