"""The stack of a real denial, from the kernel's record to the names of its functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Harness, Made

from monitor.evidence.stacks import frames
from monitor.kernel.abi import Kind
from monitor.symbols.resolver import Resolver

Compile = Callable[[str], Path]

DEPTH = 3


def named(made: Made, program: Path) -> list[dict[str, Any]]:
    """The frames of the one violation, when its process has gone."""
    (record,) = (record for record in made.records if record.kind != Kind.SEAL)
    event = {
        "process": {"pid": record.pid, "executable": str(program)},
        "stack": [dataclasses.asdict(frame) for frame in frames(record.stack)],
    }
    with Resolver({}) as resolver:
        stack: list[dict[str, Any]] = resolver.resolve(event)["stack"]
    return stack


def functions(stack: list[dict[str, Any]]) -> list[str]:
    return [(frame["symbol"] or "?").partition("+")[0] for frame in stack]


def test_the_names_of_a_denial(harness: Harness, compiled: Compile) -> None:
    program = compiled("frames")
    made = harness.run([program, str(DEPTH), "outermost", "denied", "--wait"])
    stack = named(made, program)
    # main's frame is above the outermost one.
    assert functions(stack) == ["mprotect", "violate", *["descend"] * (DEPTH + 1), "outermost"]
    (line,) = made.lines
    caller = int(stack[1]["address"], 16)
    assert stack[1]["symbol"] == f"violate+{caller - line['violate']:#x}"


def test_the_names_up_to_main(harness: Harness, compiled: Compile) -> None:
    program = compiled("frames")
    made = harness.run([program, "0", "libc", "denied", "--wait"])
    assert functions(named(made, program))[:4] == ["mprotect", "violate", "descend", "main"]


def test_the_names_of_a_jump_to_memory_that_is_not_code(
    harness: Harness, compiled: Compile
) -> None:
    program = compiled("frames")
    made = harness.run([program, "0", "outermost", "jump", "--wait"])
    assert functions(named(made, program)) == ["?", "violate", "descend", "outermost"]
