"""ELF files: build id, addresses and functions.

They belong to monitored processes and may contain anything, so memory and time are bounded, and
whatever is wrong with one is an ElfError. `segments.py` reads the little that the daemon needs.
"""

from __future__ import annotations

import io
import lzma
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from monitor.untrusted.elf_layout import (
    HEADER_SIZE,
    MAGIC,
    PF_X,
    PT_LOAD,
    PT_NOTE,
    WIDE,
    layout_of,
)
from monitor.untrusted.segments import NOTES_LIMIT, SEGMENTS_LIMIT, build_id_of

__all__ = ["Elf", "ElfError", "Functions"]

SECTIONS_LIMIT = 512
NAMES_LIMIT = 1 << 16
NAME_READ = 4096
SYMBOLS_LIMIT = 1 << 21
FUNCTIONS_LIMIT = 1 << 19
MINI_PACKED_LIMIT = 1 << 24
MINI_LIMIT = 1 << 25
# How many symbols find() looks at: some end before the address, some name the same place.
NEIGHBOURS = 256
_SYMBOLS_READ = 4096  # at a time

# elf(5)
_SHT_NOTE, _SHT_NOBITS, _SHF_EXECINSTR = 7, 8, 4
_TABLES = {"SHT_SYMTAB": 2, "SHT_DYNSYM": 11}
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_LOCAL = 0
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00


class ElfError(Exception):
    """Not an ELF file, or one that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment or a section."""

    kind: int
    flags: int
    offset: int
    size: int
    address: int
    name: bytes = b""
    link: int = 0


def _segment(row: tuple[int, ...], fields: tuple[int, ...]) -> _Part:
    kind, flags, offset, address, size, _ = (row[index] for index in fields)
    return _Part(kind, flags, offset, size, address)


def _section(row: tuple[int, ...], names: bytes = b"") -> _Part:
    name, kind, flags, address, offset, size, link, _info = row
    return _Part(kind, flags, offset, size, address, names[name:].partition(b"\0")[0], link)


class Functions:
    """Functions by address: 21 bytes each; names are read when asked for."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._names = array("Q")
        self._sized = bytearray()
        self._read_name: Callable[[int], bytes] = lambda _: b""

    def __len__(self) -> int:
        return len(self._starts)

    def fill(
        self, rows: list[tuple[int, int, int]], read_name: Callable[[int], bytes]
    ) -> Functions:
        """Fill it with rows of start, size, name. A function of size 0 ends at the next one."""
        following = 2**64 - 1
        ends = array("Q", bytes(8 * len(rows)))
        rows.sort()
        for index in range(len(rows) - 1, -1, -1):
            start, size, _ = rows[index]
            ends[index] = min(start + size, 2**64 - 1) if size else following
            if index and rows[index - 1][0] != start:
                following = start
        self._starts = array("Q", (row[0] for row in rows))
        self._ends = ends
        self._names = array("Q", (row[2] for row in rows))
        self._sized = bytearray(row[1] > 0 for row in rows)
        self._read_name = read_name
        return self

    def find(self, address: int) -> tuple[bytes, int] | None:
        """Name and start of the innermost function there, by the plainest of its names.

        Functions with a size are preferred: symbols without one may be labels in a function.
        """
        last = bisect_right(self._starts, address) - 1
        near = range(last, max(last - NEIGHBOURS, -1), -1)
        covering = [index for index in near if self._ends[index] > address]
        chosen = [index for index in covering if self._sized[index]] or covering
        if not chosen:
            return None
        start = self._starts[chosen[0]]
        names = {
            self._read_name(self._names[index]) for index in chosen if self._starts[index] == start
        } - {b""}
        return (min(names, key=_plainness), start) if names else None


def _plainness(name: bytes) -> tuple[int, int, bytes]:
    underscores = 0 if name.startswith((b"_Z", b"_R")) else len(name) - len(name.lstrip(b"_"))
    return underscores, len(name), name


class Elf:
    """An ELF file. It takes over `file`, which is open for reading. Raises ElfError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            self._parse()
        except ElfError:
            file.close()
            raise
        except (OSError, OverflowError, ValueError, struct.error) as error:
            file.close()
            raise ElfError(f"broken ELF file ({error})"[:200]) from error

    def close(self) -> None:
        self._file.close()

    def _parse(self) -> None:
        head = self._read(0, HEADER_SIZE)
        if not head.startswith(MAGIC):
            raise ElfError("no ELF file")
        layout = layout_of(head)
        if layout is None:
            raise ElfError("an ELF file of another machine")
        segments, sections, segment_size, segment_count, section_size, section_count, names_at = (
            layout.header.unpack_from(head)
        )
        if segment_count > SEGMENTS_LIMIT:
            raise ElfError(f"{segment_count} segments")
        if section_count > SECTIONS_LIMIT:
            raise ElfError(f"{section_count} sections")
        self._layout = layout
        self._segments = [
            _segment(row, layout.fields)
            for row in self._rows(layout.segment, segments, segment_size, segment_count)
        ]
        rows = self._rows(layout.section, sections, section_size, section_count)
        names = self._bytes(_section(rows[names_at]), NAMES_LIMIT) if names_at < len(rows) else b""
        self._sections = [_section(row, names) for row in rows]
        self.build_id = self._find_build_id()

    def _rows(
        self, layout: struct.Struct, offset: int, size: int, count: int
    ) -> list[tuple[int, ...]]:
        places = (offset + size * index for index in range(count))
        return [layout.unpack(self._read(place, layout.size)) for place in places]

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def _bytes(self, part: _Part, limit: int) -> bytes:
        if part.kind == _SHT_NOBITS:
            return b""
        return self._read(part.offset, min(part.size, limit))

    def _find_build_id(self) -> str | None:
        """The build id from the note that the linker wrote (ld --build-id), in hexadecimal."""
        notes = [part for part in self._sections if part.kind == _SHT_NOTE]
        notes += [part for part in self._segments if part.kind == PT_NOTE]
        for part in notes:
            if found := build_id_of(self._bytes(part, NOTES_LIMIT)):
                return found
        return None

    def address(self, offset: int) -> int | None:
        """The linked address of the code at this offset of the file; None without code there."""
        for part in self._segments:
            is_code = part.kind == PT_LOAD and part.flags & PF_X
            if is_code and part.offset <= offset < part.offset + part.size:
                return part.address + offset - part.offset
        return None

    def _named(self, name: bytes) -> _Part | None:
        return next((part for part in self._sections if part.name == name), None)

    @property
    def debug_link(self) -> str | None:
        """Base name of the file with the symbols, as objcopy --add-gnu-debuglink wrote it."""
        part = self._named(b".gnu_debuglink")
        name = self._guarded(lambda: self._bytes(part, 4096) if part else b"").partition(b"\0")[0]
        if not name or b"/" in name or name in (b".", b".."):
            return None
        return name.decode("utf-8", "surrogateescape")

    def mini_debug(self) -> Elf | None:
        """The ELF file with more symbols that some distributions pack into .gnu_debugdata."""
        part = self._named(b".gnu_debugdata")
        if part is None:
            return None
        if part.size > MINI_PACKED_LIMIT:
            raise ElfError(f".gnu_debugdata of {part.size} bytes")
        packed = self._guarded(lambda: self._bytes(part, MINI_PACKED_LIMIT))
        try:
            # The limit includes the dictionary: xz -9 takes 64 MiB.
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=3 * MINI_LIMIT)
            content = unpacker.decompress(packed, max_length=MINI_LIMIT + 1)
        except lzma.LZMAError as error:
            raise ElfError(f"broken .gnu_debugdata ({error})") from error
        if len(content) > MINI_LIMIT:
            raise ElfError(f".gnu_debugdata of more than {MINI_LIMIT} bytes")
        return Elf(io.BytesIO(content))

    @staticmethod
    def _guarded(read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, OverflowError, ValueError) as error:
            raise ElfError(f"broken ELF file ({error})") from error

    def functions(self, table: str) -> Functions:
        """The functions in the table SHT_SYMTAB or SHT_DYNSYM. Raises ElfError."""
        try:
            return self._functions(table)
        except (OSError, OverflowError, ValueError, struct.error) as error:
            raise ElfError(f"broken table of symbols ({error})") from error

    def _functions(self, table: str) -> Functions:
        part = next((part for part in self._sections if part.kind == _TABLES[table]), None)
        if part is None or part.link >= len(self._sections):
            return Functions()
        strings = self._sections[part.link]
        rows: list[tuple[int, int, int]] = []
        labels: list[tuple[int, int, int]] = []
        complete = False
        for name, info, section, start, size in self._symbols(part):
            kind = info & 15
            if not name or section == _SHN_UNDEF or section >= _SHN_LORESERVE:
                continue
            if kind in (_STT_FUNC, _STT_GNU_IFUNC):
                complete = complete or info >> 4 == _STB_LOCAL
            elif kind != _STT_NOTYPE:
                continue
            home = self._sections[section] if section < len(self._sections) else None
            if home is None or not home.flags & _SHF_EXECINSTR:
                continue
            (rows if size else labels).append((start, size, name))
            if len(rows) + len(labels) > FUNCTIONS_LIMIT:
                raise ElfError(f"more than {FUNCTIONS_LIMIT} functions")
        # A function without a size ends where the next one begins, if the table has all functions:
        # the one with local symbols does.
        if complete and table == "SHT_SYMTAB":
            ends = ((code.address + code.size, 0, 0) for code in self._sections if code.size)
            rows += labels
            rows += ends if labels else ()

        def read_name(position: int) -> bytes:
            if position >= strings.size:
                return b""
            size = min(NAME_READ, strings.size - position)
            name = self._guarded(lambda: self._read(strings.offset + position, size))
            return name.partition(b"\0")[0].partition(b"@")[0]

        return Functions().fill(rows, read_name)

    def _symbols(self, part: _Part) -> Iterator[tuple[int, int, int, int, int]]:
        """Name, info, section, value, size of each (Elf32_Sym, Elf64_Sym)."""
        layout = self._layout.symbol
        count = part.size // layout.size
        if count > SYMBOLS_LIMIT:
            raise ElfError(f"{count} symbols")
        for first in range(0, count, _SYMBOLS_READ):
            size = layout.size * min(_SYMBOLS_READ, count - first)
            data = self._read(part.offset + layout.size * first, size)
            if len(data) < size:
                raise ElfError("its table of symbols is cut off")
            if self._layout is WIDE:
                yield from layout.iter_unpack(data)
            else:
                for name, start, length, info, section in layout.iter_unpack(data):
                    yield name, info, section, start, length
