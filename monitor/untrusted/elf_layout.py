"""The headers of ELF files, of both classes: elf(5)."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = [
    "HEADER_SIZE",
    "MAGIC",
    "PF_X",
    "PT_GNU_RELRO",
    "PT_LOAD",
    "PT_NOTE",
    "WIDE",
    "Layout",
    "layout_of",
]

MAGIC = b"\x7fELF"
HEADER_SIZE = 64  # of the larger class
PT_LOAD, PT_NOTE, PT_GNU_RELRO = 1, 4, 0x6474E552
PF_X = 1


class Layout(NamedTuple):
    """`header` has of Ehdr where segments and sections are, size and number of each, and which
    section has the names. `fields` of Phdr: type, flags, offset, address, size in the file, size in
    memory. Shdr has its fields in the same order in both classes.
    """

    header: struct.Struct
    segment: struct.Struct
    fields: tuple[int, ...]
    section: struct.Struct
    symbol: struct.Struct


WIDE = Layout(
    struct.Struct("<32xQQ6x5H"),
    struct.Struct("<2I6Q"),
    (0, 1, 2, 3, 5, 6),
    struct.Struct("<2I4Q2I16x"),
    struct.Struct("<IBxHQQ"),
)
_NARROW = Layout(
    struct.Struct("<28xII6x5H"),
    struct.Struct("<8I"),
    (0, 6, 1, 2, 4, 5),
    struct.Struct("<8I8x"),
    struct.Struct("<IIIBxH"),
)
_LAYOUTS = {b"\2\1": WIDE, b"\1\1": _NARROW}  # class, and little-endian


def layout_of(header: bytes) -> Layout | None:
    """None where the class is not known, or the file is not of a little-endian machine."""
    return _LAYOUTS.get(header[4:6])
