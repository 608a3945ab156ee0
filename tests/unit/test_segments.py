"""Program headers of any content: what they say or nothing, in bounded time and memory."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from monitor.symbols.elf import Elf
from monitor.untrusted.segments import (
    NOTES_LIMIT,
    NOTHING,
    Code,
    Relro,
    Segments,
    build_id_of,
    read_segments,
)

LOAD, NOTE, RELRO = 1, 4, 0x6474E552
READ, READ_WRITE, READ_EXECUTE = 4, 6, 5
BUILD_ID = bytes(range(20))
BUILD_ID_NOTE = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + BUILD_ID

# type, flags, offset, address, size in the file, size in memory
Row = tuple[int, int, int, int, int, int]


def elf_file(*rows: Row, wide: bool = True, notes: bytes = BUILD_ID_NOTE) -> bytes:
    """Its header, its segments, and at 0x800 its notes."""
    if wide:
        header = struct.pack("<4sBBxxxxxxxxxx", b"\x7fELF", 2, 1) + struct.pack(
            "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0
        )
        table = b"".join(
            struct.pack("<IIQQQQQQ", kind, flags, offset, address, 0, size, memory, 0x1000)
            for kind, flags, offset, address, size, memory in rows
        )
    else:
        header = struct.pack("<4sBBxxxxxxxxxx", b"\x7fELF", 1, 1) + struct.pack(
            "<HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, 32, len(rows), 0, 0, 0
        )
        table = b"".join(
            struct.pack("<IIIIIIII", kind, offset, address, 0, size, memory, flags, 0x1000)
            for kind, flags, offset, address, size, memory in rows
        )
    return (header + table).ljust(0x800, b"\0") + notes.ljust(0x800, b"\0")


# As GNU ld lays a program out: code at 0x1000, RELRO from 0x3d50 up to the page's end.
PROGRAM = (
    (LOAD, READ, 0, 0, 0x600, 0x600),
    (LOAD, READ_EXECUTE, 0x1000, 0x1000, 0x1234, 0x1234),
    (LOAD, READ_WRITE, 0x2D50, 0x3D50, 0x400, 0x900),
    (NOTE, READ, 0x800, 0x800, 0x24, 0x24),
    (RELRO, READ, 0x2D50, 0x3D50, 0x2B0, 0x2B0),
)
FOUND = Segments((Code(0x1000, 0x3000, 0x1000),), Relro(0x3000, 0x4000, 0x2000), BUILD_ID.hex())


@pytest.mark.parametrize("wide", [True, False])
def test_what_a_program_says(wide: bool) -> None:
    assert read_segments(io.BytesIO(elf_file(*PROGRAM, wide=wide))) == FOUND


def test_where_relro_lies_in_a_process() -> None:
    # The second page of the code, mapped by itself, gives the same.
    expected = Relro(0x7F0000003000, 0x7F0000004000, 0x2000)
    assert FOUND.relro_of(0x7F0000001000, 0x1000) == expected
    assert FOUND.relro_of(0x7F0000002000, 0x2000) == expected
    assert FOUND.relro_of(0x7F0000001000, 0x3000) is None  # no code
    assert FOUND._replace(relro=None).relro_of(0x7F0000001000, 0x1000) is None


def test_this_python_as_pyelftools_has_it() -> None:
    with open(sys.executable, "rb") as file:
        found = read_segments(file)
    with open(sys.executable, "rb") as file:
        segments = list(ELFFile(file).iter_segments())
    with open(sys.executable, "rb") as file:
        assert found.build_id == Elf(file).build_id
    (relro,) = (s for s in segments if s["p_type"] == "PT_GNU_RELRO")
    code = [s for s in segments if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1]
    assert found.relro is not None
    assert found.relro.start == relro["p_vaddr"] & ~0xFFF
    assert found.relro.end == (relro["p_vaddr"] + relro["p_memsz"] + 0xFFF) & ~0xFFF
    assert [part.address for part in found.code] == [s["p_vaddr"] & ~0xFFF for s in code]


def with_header(content: bytes, place: int, layout: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, place, value)
    return bytes(changed)


WHOLE = elf_file(*PROGRAM)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n" * 100,
        WHOLE[:40],
        WHOLE[:200],  # its segments are cut off
        with_header(WHOLE, 4, "<B", 3),  # no class
        with_header(WHOLE, 5, "<B", 2),  # big-endian
        with_header(WHOLE, 54, "<H", 40),  # segments of another size
        with_header(WHOLE, 56, "<H", 65),  # more than there may be
        with_header(WHOLE, 32, "<Q", 2**64 - 1),  # segments beyond the end of all files
        with_header(WHOLE, 32, "<Q", 2**61),
    ],
)
def test_what_is_no_program_says_nothing(content: bytes) -> None:
    assert read_segments(io.BytesIO(content)) == NOTHING


def test_notes_are_read_up_to_a_limit_in_all() -> None:
    """The time of a look-up is short, whatever a user's file has: here 33 times 64 KiB."""
    full = (NOTE, READ, 0x1000, 0, NOTES_LIMIT, 0)
    read: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(size or 0)
            return super().read(size)

    data = elf_file(*[full] * 33) + bytes(NOTES_LIMIT)
    assert read_segments(Counting(data)).build_id is None
    assert sum(read) < NOTES_LIMIT + 0x1000  # with the headers


def test_no_build_id() -> None:
    for notes in (b"", BUILD_ID_NOTE[:20], b"\xff" * 64, struct.pack("<III4s", 4, 0, 3, b"GNU\0")):
        assert build_id_of(notes) is None
    other = struct.pack("<III4s", 4, 4, 1, b"GNU\0") + b"\0\0\0\0"
    assert build_id_of(other + BUILD_ID_NOTE) == BUILD_ID.hex()


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 6), max_size=64), st.binary(max_size=64))
def test_any_segments(rows: list[Row], notes: bytes) -> None:
    kinds = (0, LOAD, NOTE, RELRO)
    rows = [(kinds[row[0] % 4], row[1] % 8, *row[2:]) for row in rows]
    content = elf_file(*rows, notes=notes)
    found = read_segments(io.BytesIO(content))
    assert len(found.code) <= 64
    found.relro_of(0x1000, 0x1000)


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(elf_file((NOTE, READ, 0x800, 0, 2**62, 2**62)))
    with open(path, "r+b") as file:
        file.truncate(1 << 33)
    with open(path, "rb") as file:
        assert read_segments(file).build_id == BUILD_ID.hex()
