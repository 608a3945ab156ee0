"""User stacks, gathered in the kernel: the very frames, their files and their build ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Harness, Made

from monitor.evidence.events import Frame
from monitor.evidence.stacks import frames
from monitor.kernel.abi import STACK_FRAMES, Kind, Record
from monitor.kernel.arch import ARM64, THIS

Compile = Callable[[str], Path]
NOTE = b"\4\0\0\0\x14\0\0\0\3\0\0\0GNU\0"  # a GNU build id of 20 bytes follows


def build_id(file: Path) -> str:
    content = file.read_bytes()
    start = content.index(NOTE) + len(NOTE)
    return content[start : start + 20].hex()


def only_stack(made: Made) -> tuple[Record, dict[str, Any], tuple[Frame, ...]]:
    (record,) = (record for record in made.records if record.kind != Kind.SEAL)
    (line,) = made.lines
    return record, line, frames(record.stack)


def addresses(stack: tuple[Frame, ...]) -> list[int]:
    return [int(frame.address, 16) for frame in stack]


def test_the_frames_of_a_denial(harness: Harness, compiled: Compile) -> None:
    made = harness.run([compiled("frames"), "3", "outermost", "denied", "--wait"])
    record, line, stack = only_stack(made)
    instruction, caller, *callers = addresses(stack)
    assert instruction == record.instruction_pointer
    assert caller == record.caller
    assert 0 < caller - line["violate"] < 256
    assert callers == line["returns"][:-1]  # main is above the outermost
    assert record.stack.complete == 1


def test_the_frames_of_a_jump_to_memory_that_is_not_code(
    harness: Harness, compiled: Compile
) -> None:
    """The return address that the call left shows where it came from."""
    made = harness.run([compiled("frames"), "2", "outermost", "jump", "--wait"])
    record, line, stack = only_stack(made)
    instruction, caller, *callers = addresses(stack)
    assert instruction == record.address == record.instruction_pointer
    assert stack[0] == Frame(hex(instruction), None, None, None, None)
    assert 0 < caller - line["violate"] < 256
    assert callers == line["returns"][:-1]
    assert record.stack.complete == 1


def test_modules(harness: Harness, compiled: Compile) -> None:
    program = compiled("frames")
    made = harness.run([program, "0", "libc", "denied", "--wait"])
    record, line, stack = only_stack(made)
    child = made.child
    assert addresses(stack)[2:5] == line["returns"]
    for frame in stack[:5]:
        address = int(frame.address, 16)
        area = child.area(address)
        assert area
        file = Path(area.path)
        assert frame.module == file.name
        assert frame.build_id == build_id(file)
        first = min(each.start for each in child.areas if each.path == area.path)
        if file.name == program.name:
            assert frame.offset == address - first
    assert [frame.module for frame in stack[1:4]] == [program.name] * 3
    assert (stack[0].module or "").startswith("libc")
    assert stack[4].module == stack[0].module  # main returns to libc
    numbers = {module.file.decode(): module.inode for module in record.stack.module if module.file}
    assert numbers[program.name] == program.stat().st_ino


def test_a_file_with_headers_without_end(harness: Harness, compiled: Compile) -> None:
    """It costs the other files nothing."""
    program = compiled("headers")
    made = harness.run([program, "--wait"])
    _, line, stack = only_stack(made)
    assert line == {"result": -1}
    assert (stack[0].module, stack[0].build_id) == ("memfd:headers", None)
    assert (stack[1].module, stack[1].build_id) == (program.name, build_id(program))


def test_a_deep_stack_is_cut(harness: Harness, compiled: Compile) -> None:
    made = harness.run([compiled("frames"), "50", "outermost", "denied", "--wait"])
    record, line, stack = only_stack(made)
    assert len(stack) == STACK_FRAMES
    assert addresses(stack)[2:] == line["returns"][: STACK_FRAMES - 2]
    assert record.stack.complete == 0


@pytest.mark.parametrize("depth", [STACK_FRAMES - 5, STACK_FRAMES - 4, STACK_FRAMES - 3])
def test_a_stack_that_just_fits(harness: Harness, compiled: Compile, depth: int) -> None:
    """ip, its caller, the violating function's and each nested one's."""
    made = harness.run([compiled("frames"), str(depth), "outermost", "denied", "--wait"])
    record, line, stack = only_stack(made)
    assert addresses(stack)[2:] == line["returns"][:-1][: STACK_FRAMES - 2]
    assert bool(record.stack.complete) is (depth + 4 <= STACK_FRAMES)


def test_a_frame_without_a_frame_pointer_ends_the_walk(harness: Harness, compiled: Compile) -> None:
    """libc's start code keeps no frame pointers: the walk ends there, and says so. On arm64 it does
    keep them, and the walk comes to the outermost frame.
    """
    made = harness.run([compiled("frames"), "1", "libc", "denied", "--wait"])
    record, line, stack = only_stack(made)
    assert addresses(stack)[2 : 2 + len(line["returns"])] == line["returns"]
    assert record.stack.complete == (THIS == ARM64)
