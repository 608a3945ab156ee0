"""Frames from the kernel's record."""

from __future__ import annotations

import pytest

from monitor.evidence.events import Frame
from monitor.evidence.stacks import frames
from monitor.kernel.abi import NO_MODULE, Module, Stack

BUILD_ID = bytes(range(20))


def module(base: int, file: bytes, build_id: bytes = BUILD_ID) -> Module:
    made = Module(base=base, inode=7, device=0xFE00001, file=file, build_id_size=len(build_id))
    made.build_id[: len(build_id)] = build_id
    return made


def stack(*placed: tuple[int, int], modules: tuple[Module, ...] = ()) -> Stack:
    made = Stack(depth=len(placed), module_count=len(modules))
    for index, (address, number) in enumerate(placed):
        made.addresses[index], made.modules[index] = address, number
    for index, each in enumerate(modules):
        made.module[index] = each
    return made


def test_frames_with_their_modules() -> None:
    made = stack(
        (0x7F0000101020, 1),
        (0x401234, 0),
        (0x7F0000200000, NO_MODULE),
        modules=(module(0x400000, b"app", BUILD_ID[:8]), module(0x7F0000000000, b"libc.so.6")),
    )
    assert frames(made) == (
        Frame("0x7f0000101020", "libc.so.6", BUILD_ID.hex(), 0x101020, None),
        Frame("0x401234", "app", "0001020304050607", 0x1234, None),
        Frame("0x7f0000200000", None, None, None, None),
    )


def test_a_module_without_build_id() -> None:
    (frame,) = frames(stack((0x2000, 0), modules=(module(0x1000, b"app", b""),)))
    assert frame == Frame("0x2000", "app", None, 0x1000, None)


def test_a_file_that_has_no_name() -> None:
    (frame,) = frames(stack((0x2000, 0), modules=(module(0x1000, b""),)))
    assert frame.module is None


def test_a_mapping_of_a_high_offset_low_in_memory() -> None:
    """A program may map a file's end at an address lower than that."""
    (frame,) = frames(stack((0x11000, 0), modules=(module(0x10000 - 0x80000000 + 2**64, b"a"),)))
    assert frame.offset == 0x80001000


def test_names_are_not_trusted() -> None:
    (frame,) = frames(stack((0x2000, 0), modules=(module(0x1000, b"a\x1b[2J\xff"),)))
    assert frame.module == "a\\x1b[2J\\xff"


def test_a_module_that_is_not_there_costs_no_frame() -> None:
    assert frames(stack((0x1000, 1), modules=(module(0, b"a"),))) == (
        Frame("0x1000", None, None, None, None),
    )


def test_no_stack() -> None:
    assert frames(Stack()) == ()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Stack(depth=17), "a stack of 17 frames and 0 modules"),
        (Stack(depth=1, module_count=9), "a stack of 1 frames and 9 modules"),
        (stack((0x1000, 0), modules=(Module(build_id_size=21),)), "a build id of 21 bytes"),
    ],
)
def test_what_no_program_writes(broken: Stack, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        frames(broken)
