"""ELF files of any content: what they say or an ElfError, in bounded time and memory."""

from __future__ import annotations

import io
import lzma
import struct
import subprocess
import time
from pathlib import Path

import pytest
from clocks import at_most
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_records import fuzzed

from monitor.symbols import elf
from monitor.symbols.elf import Elf, ElfError, Functions

Change = tuple[tuple[int, int], int, str]  # where, to what, how wide

ASSETS = Path(__file__).parents[1] / "assets"
# Offsets in Elf64_Ehdr.
E_PHOFF, E_SHOFF, E_PHNUM, E_SHNUM, E_SHSTRNDX = 32, 40, 56, 60, 62
SECTION = 64  # sizeof(Elf64_Shdr)
SECOND_LIMIT = 5.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """With every kind of part that is read."""
    folder = tmp_path_factory.mktemp("elf")
    path = folder / "callers"
    subprocess.run(["gcc", "-Os", "-rdynamic", ASSETS / "callers.c", "-o", path], check=True)
    packed = folder / "packed.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    subprocess.run(
        [
            *("objcopy", f"--add-gnu-debuglink={path}"),
            *("--add-section", f".gnu_debugdata={packed}", path),
        ],
        check=True,
    )
    return path.read_bytes()


def read_all(content: bytes) -> list[str]:
    """Whatever a resolver asks of a file; what was wrong."""
    errors = []
    try:
        file = Elf(io.BytesIO(content))
    except ElfError as error:
        return [str(error)]
    for offset in (0, 0x1000, 0x1234, len(content), 2**63, 2**64):
        file.address(offset)
    for table in ("SHT_SYMTAB", "SHT_DYNSYM"):
        try:
            functions = file.functions(table)
            for address in (0, 0x1200, 0x1234, 2**64 - 1):
                functions.find(address)
        except ElfError as error:
            errors.append(str(error))
    for read in (lambda: file.debug_link, file.mini_debug):
        try:
            read()
        except ElfError as error:
            errors.append(str(error))
    file.close()
    return errors


def test_a_sound_file(program: bytes) -> None:
    assert read_all(program) == []
    file = Elf(io.BytesIO(program))
    assert file.debug_link == "callers"
    assert file.build_id
    assert len(file.build_id) == 40
    more = file.mini_debug()
    assert more
    assert more.build_id == file.build_id


EDGES = st.sampled_from(
    [0, 1, 7, 0xFF, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**47, 2**63 - 1, 2**63, 2**64 - 1]
)
SIZES = st.sampled_from(["<B", "<H", "<I", "<Q"])
PLACES = st.tuples(st.integers(0, 2), st.integers(0, 3000))


def spoilt(content: bytes, changes: list[Change], end: int) -> bytes:
    """Numbers changed in the header, in the tables of sections or segments, or anywhere."""
    made = bytearray(content)
    (sections,) = struct.unpack_from("<Q", content, E_SHOFF)
    starts = (0, sections, 0)
    for (table, place), value, layout in changes:
        size = struct.calcsize(layout)
        position = starts[table] + place if table < 2 else place * 7919
        position %= len(made) - size
        struct.pack_into(layout, made, position, value % 2 ** (8 * size))
    return bytes(made[: len(made) - end])


CHANGES = st.lists(st.tuples(PLACES, EDGES | st.integers(0, 2**64 - 1), SIZES), max_size=8)
ENDS = st.just(0) | st.integers(0, 16_000)


@fuzzed
@given(CHANGES, ENDS)
def test_any_file(program: bytes, changes: list[Change], end: int) -> None:
    with at_most(SECOND_LIMIT, "the file may ask for any work", time.process_time):
        errors = read_all(spoilt(program, changes, end))
    assert all(isinstance(error, str) and error for error in errors)


@fuzzed
@given(st.binary(max_size=512), st.booleans())
def test_any_bytes(content: bytes, like_elf: bool) -> None:
    read_all((b"\x7fELF\2\1\1" if like_elf else b"") + content)


@pytest.mark.parametrize(
    ("position", "layout", "value", "error"),
    [
        (0, "<B", 0, "no ELF file"),
        (5, "<B", 2, "an ELF file of another machine"),
        (E_PHNUM, "<H", 0xFFFF, "65535 segments"),
        (E_SHNUM, "<H", 0xFFFF, "65535 sections"),
    ],
)
def test_what_is_wrong(program: bytes, position: int, layout: str, value: int, error: str) -> None:
    made = bytearray(program)
    struct.pack_into(layout, made, position, value)
    (complaint,) = read_all(bytes(made))
    assert complaint == error


def symbol_table(program: bytes) -> int:
    """Where the header of .symtab is."""
    (start,) = struct.unpack_from("<Q", program, E_SHOFF)
    return next(
        place
        for place in range(start, len(program), SECTION)
        if struct.unpack_from("<I", program, place + 4)[0] == 2
    )


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        (32, 24 << 40, f"{1 << 40} symbols"),
        (32, 24 << 20, "its table of symbols is cut off"),
        (24, 2**63, "broken table of symbols"),
    ],
)
def test_a_table_of_symbols_that_lies(program: bytes, field: int, value: int, error: str) -> None:
    """Its size (32), its offset (24)."""
    made = bytearray(program)
    struct.pack_into("<Q", made, symbol_table(program) + field, value)
    (complaint,) = read_all(bytes(made))
    assert complaint.startswith(error)


def test_too_many_functions(program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "FUNCTIONS_LIMIT", 3)
    assert "more than 3 functions" in read_all(program)


def test_32_bits(tmp_path: Path) -> None:
    """Assembled: gcc may have no 32-bit libraries."""
    source, made = tmp_path / "a.s", tmp_path / "a.o"
    source.write_text(
        ".text\n nop\n.globl first\n.type first,@function\nfirst: ret\n nop\n.size first,.-first\n"
    )
    subprocess.run(["as", "--32", source, "-o", made], check=True)
    functions = Elf(io.BytesIO(made.read_bytes())).functions("SHT_SYMTAB")
    assert functions.find(2) == (b"first", 1)
    assert functions.find(3) is None


# ---- Functions -----------------------------------------------------------------------------------

NAMES = {1: b"outer", 2: b"inner", 3: b"label", 4: b"__inner", 5: b"other"}


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (0x0F, None),
        (0x10, (b"outer", 0x10)),
        (0x20, (b"inner", 0x20)),
        (0x28, (b"inner", 0x20)),
        (0x30, (b"outer", 0x10)),
        (0x38, (b"outer", 0x10)),  # behind the label, but within
        (0x50, (b"label", 0x50)),
        (0x5F, (b"label", 0x50)),
        (0x60, (b"other", 0x60)),
        (0x61, None),
    ],
)
def test_the_innermost_function(address: int, found: tuple[bytes, int] | None) -> None:
    rows = [
        *((0x10, 0x40, 1), (0x20, 0x10, 2), (0x20, 0x10, 4), (0x34, 0, 3)),
        *((0x50, 0, 3), (0x60, 1, 5)),
    ]
    functions = Functions().fill(rows, lambda name: NAMES[name])
    assert functions.find(address) == found
