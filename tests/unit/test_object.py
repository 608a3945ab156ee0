"""The file of compiled programs: what is written is what is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from monitor.kernel import object as objects
from monitor.kernel.object import Form, Map, Object, ObjectError, Patch, Program

DIGESTS = {"sources": "a", "marks": "b", "records": "c"}
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def instruction(operation: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", operation, registers, offset, immediate)


def program(*instructions: bytes, maps: dict[int, int] | None = None) -> Program:
    return objects.take("p", b"".join(instructions) + EXIT, maps or {})


def fields(text: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<BBhi", text))


MADE = Object(
    "clang 14.0.6",
    DIGESTS,
    (Map("ring", 27, 0, 0, 4096, 0), Map("config", 2, 4, 88, 1, 1024)),
    {"one": program(instruction(0xB7, 1, 0, 0x5EA00003)), "two": program()},
)


def test_what_is_written_is_read() -> None:
    read = objects.parse(objects.serialize(MADE))
    assert dataclasses.replace(read, digest="") == dataclasses.replace(
        MADE,
        programs={
            name: Program(name, p.instructions, p.packed) for name, p in MADE.programs.items()
        },
    )
    assert read.digest == objects.sha256(
        objects.serialize(MADE)[len(b"seal-monitor object, format 1\n") + 32 :]
    )


def test_same_object_same_bytes() -> None:
    other = dataclasses.replace(
        MADE,
        digests=dict(reversed(DIGESTS.items())),
        programs=dict(reversed(list(MADE.programs.items()))),
    )
    assert objects.serialize(MADE) == objects.serialize(other)


@pytest.mark.parametrize("at", [0, 29, 30, 61, 62, 66, 100, -1])
def test_one_bit_that_differs_is_refused(at: int) -> None:
    data = bytearray(objects.serialize(MADE))
    data[at] ^= 1
    with pytest.raises(ObjectError):
        objects.parse(bytes(data))


@pytest.mark.parametrize("length", [0, 1, 29, 30, 61, 62, 65, 200])
def test_one_that_is_cut_is_refused(length: int) -> None:
    with pytest.raises(ObjectError):
        objects.parse(objects.serialize(MADE)[:length])


def test_problems_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "object"
    remedy = "run: make setup, in a checkout, or install the package again"
    with pytest.raises(FileNotFoundError):
        objects.read(path, DIGESTS)
    path.write_bytes(objects.serialize(MADE))
    assert objects.read(path, DIGESTS).compiler == "clang 14.0.6"
    cases = (
        (path.read_bytes()[:-1], DIGESTS, "is damaged: its digest does not match"),
        (b"\x7fELF", DIGESTS, "is no object of the format that this version loads"),
        (path.read_bytes(), DIGESTS | {"marks": "x"}, "was made from other marks"),
        (
            path.read_bytes(),
            dict.fromkeys(DIGESTS, "x"),
            "was made from other sources and marks and records",
        ),
    )
    for data, digests, problem in cases:
        path.write_bytes(data)
        with pytest.raises(ObjectError) as error:
            objects.read(path, digests)
        assert str(error.value) == f"{path} {problem}; {remedy}"


def test_every_form_is_found_and_put_in() -> None:
    found = program(
        instruction(0x18, 0x11, 0, 77),  # r1 = descriptor, in two slots
        instruction(0, 0, 0, 0),
        instruction(0xB7, 2, 0, 0x5EA00001),
        instruction(0x07, 3, 0, 0x5EB00002),
        instruction(0xB7, 4, 0, 0x5EC00003),
        instruction(0xB7, 4, 0, 0x5EC00001),
        instruction(0x85, 0x20, 0, 0x5ED00004),
        instruction(0x79, 0x10, 0x7000 + 1, 0),
        instruction(0x61, 0x10, 0x7000 + 2, 0),
        maps={77: 0},
    )
    assert list(found.patches()) == [
        Patch(0, Form.MAP, 0),
        Patch(16, Form.VALUE, 1),
        Patch(24, Form.ADD, 2),
        Patch(32, Form.HAS, 3),
        Patch(40, Form.HAS, 1),
        Patch(48, Form.KFUNC, 4),
        Patch(56, Form.LOAD, 1),
        Patch(64, Form.LOAD, 2),
    ]
    values = [None, 1000, 24, None, 5000]
    assert fields(found.patched([9], values)) == [
        (0x18, 0x11, 0, 9),
        (0, 0, 0, 0),
        (0xB7, 2, 0, 1000),
        (0x07, 3, 0, 24 - 8),
        (0xB7, 4, 0, 0),
        (0xB7, 4, 0, 1),
        (0x85, 0x20, 0, 5000),
        (0x79, 0x10, 1000, 0),
        (0x61, 0x10, 24, 0),
        (0x95, 0, 0, 0),
    ]
    assert found.maps() == {0}
    assert fields(found.instructions)[0] == (0x18, 0x11, 0, 0)  # whatever it was compiled with


def test_no_mark_is_seen_in_a_constant_of_64_bits() -> None:
    """The second half of LD_IMM64 is data, whatever it looks like."""
    text = instruction(0x18, 1, 0, 0x5EA00001) + instruction(0xB7, 0, 0, 0x5EA00001)
    assert list(program(text).patches()) == []


@pytest.mark.parametrize(
    "odd",
    [
        instruction(0x07, 1, 0, 0x5EA00001),  # an addition of what only a move may have
        instruction(0xB7, 1, 0, 0x5EB00001),
        instruction(0xB4, 1, 0, 0x5EA00001),  # a move of 32 bits
        instruction(0x85, 0x20, 0, 12345),  # a kfunc with its own number
    ],
)
def test_what_only_looks_like_a_mark_is_refused(odd: bytes) -> None:
    with pytest.raises(ObjectError):
        program(odd)


def test_a_program_misses_what_it_does_not_ask_for() -> None:
    value, asked = instruction(0xB7, 2, 0, 0x5EA00001), instruction(0xB7, 2, 0, 0x5EC00001)
    assert program(value).missing([0, None]) == {1}
    assert program(value).missing([None, 7]) == set()
    assert program(value, asked).missing([0, None]) == set()
    assert program(asked).missing([0, None]) == set()
