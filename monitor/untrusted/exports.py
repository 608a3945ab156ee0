"""What a shared library is, by what its ELF file defines and asks for; never by its name."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from monitor.untrusted.elf_layout import HEADER_SIZE, MAGIC, WIDE, layout_of
from monitor.untrusted.regular import open_regular

__all__ = ["Exports", "read_exports"]

_FILE_LIMIT = 1 << 28
_TABLE_LIMIT = 2 << 20  # bytes of a table; the C library's symbols take 70 KiB
_NAME_LIMIT = 64
_ENTRY = struct.Struct("<qQ")  # of the dynamic section: what, and its value
_PT_INTERP = 3
_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_DT_NEEDED = 1
_UNDEFINED = 0


class Exports(NamedTuple):
    """`defined`: which of the names asked for it defines for others. `stands_alone`: it needs
    neither another library nor a loader to start, as a loader itself.
    """

    defined: frozenset[bytes]
    stands_alone: bool


_NOTHING = Exports(frozenset(), False)


def read_exports(path: Path, inode: int, names: frozenset[bytes]) -> Exports:
    """Of the ELF file at the path, if it has this inode; else nothing. Waits for the disk."""
    try:
        with open_regular(path, _FILE_LIMIT) as file:
            if os.fstat(file.fileno()).st_ino != inode:
                return _NOTHING
            return _exports(file, names)
    except (OSError, ValueError, OverflowError):
        return _NOTHING


def _exports(file: BinaryIO, names: frozenset[bytes]) -> Exports:
    header = file.read(HEADER_SIZE)
    if not header.startswith(MAGIC) or layout_of(header) is not WIDE:
        return _NOTHING
    segments, sections, segment_size, segment_count, section_size, section_count, _ = (
        WIDE.header.unpack_from(header)
    )
    if (segment_size, section_size) != (WIDE.segment.size, WIDE.section.size):
        return _NOTHING
    parts = _rows(file, WIDE.section, sections, section_size * section_count)
    kinds = {row[0] for row in _rows(file, WIDE.segment, segments, segment_size * segment_count)}
    needs, defined = _PT_INTERP in kinds, set()
    for _name, kind, _flags, _address, offset, size, link, _info in parts:
        if kind == _SHT_DYNAMIC:
            needs |= any(tag == _DT_NEEDED for tag, _ in _rows(file, _ENTRY, offset, size))
        elif kind == _SHT_DYNSYM and link < len(parts):
            text = _read(file, parts[link][4], parts[link][5])
            for name, _, section, _, _ in _rows(file, WIDE.symbol, offset, size):
                if section != _UNDEFINED:
                    end = text[name : name + _NAME_LIMIT].partition(b"\0")[0]
                    if end in names:
                        defined.add(end)
    return Exports(frozenset(defined), not needs)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(min(size, _TABLE_LIMIT))


def _rows(file: BinaryIO, layout: struct.Struct, offset: int, size: int) -> list[tuple[int, ...]]:
    table = _read(file, offset, size)
    return list(layout.iter_unpack(table[: len(table) - len(table) % layout.size]))
