"""The table of watched calls: numbers, decoders, and the C made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.attach.calibrate import PARTIAL_OPERATIONS
from monitor.kernel.arch import COMPAT_NUMBERS, NUMBERS
from monitor.kernel.operations import OPERATIONS, c_definitions, decode_arguments

RunC = Callable[..., str]
BY_NAME = {operation.name: operation for operation in OPERATIONS}
ROOT = Path(__file__).parents[2]
HEADER_NAMES_32 = {"mmap": "mmap2"}  # i386's mmap(2) takes a structure; no program calls it


def test_names_are_those_of_the_contract() -> None:
    assert [operation.name for operation in OPERATIONS] == [
        "mprotect",
        "pkey_mprotect",
        "munmap",
        "mremap",
        "mmap",
        "madvise",
        "process_madvise",
        "shmat",
        "shmdt",
        "brk",
        "remap_file_pages",
        "io_uring_madvise",
        "other",
    ]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mprotect", [0x7F0000001000, 4096, 3], ["0x7f0000001000", 4096, "rw-"]),
        ("mprotect", [0, 0, 0], ["0x0", 0, "---"]),
        ("mprotect", [0, 0, 7], ["0x0", 0, "rwx"]),
        ("mprotect", [0, 0, 0x01000001], ["0x0", 0, "r--+growsdown"]),
        ("mprotect", [0, 0, 0x0200000A], ["0x0", 0, "-w-+growsup+sem"]),
        ("pkey_mprotect", [1, 2, 4, 2**64 - 1], ["0x1", 2, "--x", -1]),
        ("pkey_mprotect", [1, 2, 4, 15], ["0x1", 2, "--x", 15]),
        ("munmap", [4096, 2**64 - 1], ["0x1000", 2**64 - 1]),
        ("mremap", [1, 2, 3, 3, 4], ["0x1", 2, 3, ["MREMAP_MAYMOVE", "MREMAP_FIXED"], "0x4"]),
        ("mremap", [1, 2, 3, 0x84, 4], ["0x1", 2, 3, ["MREMAP_DONTUNMAP", "0x80"], "0x4"]),
        (
            "mmap",
            [0, 4096, 1, 0x32, 2**32 - 1, 8192],
            ["0x0", 4096, "r--", ["MAP_PRIVATE", "MAP_FIXED", "MAP_ANONYMOUS"], -1, 8192],
        ),
        (
            "mmap",
            [0, 1, 0, 0x100001, 3, 0],
            ["0x0", 1, "---", ["MAP_SHARED", "MAP_FIXED_NOREPLACE"], 3, 0],
        ),
        ("madvise", [0, 1, 4], ["0x0", 1, "MADV_DONTNEED"]),
        ("madvise", [0, 1, 102], ["0x0", 1, "MADV_GUARD_INSTALL"]),
        ("madvise", [0, 1, (5 << 32) + 8], ["0x0", 1, "MADV_FREE"]),  # an int to the kernel
        ("madvise", [0, 1, 4242], ["0x0", 1, "4242"]),
        ("process_madvise", [2**64 - 10000, 16, 2, 9, 0], [-10000, "0x10", 2, "MADV_REMOVE", 0]),
        ("shmat", [5, 4096, 0o60000], [5, "0x1000", ["SHM_RND", "SHM_REMAP"]]),
        ("shmat", [5, 4096, 0], [5, "0x1000", []]),
        ("shmdt", [4096], ["0x1000"]),
        ("brk", [4096], ["0x1000"]),
        ("remap_file_pages", [4096, 1, 0, 2, 0x10000], ["0x1000", 1, "---", 2, ["MAP_NONBLOCK"]]),
        ("io_uring_madvise", [1, 2, 18], ["0x1", 2, "MADV_WIPEONFORK"]),
    ],
)
def test_decoded_arguments(name: str, values: list[int], expected: list[Any]) -> None:
    operation = BY_NAME[name]
    names = [argument for argument, _ in operation.arguments]
    assert decode_arguments(operation, values) == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_six_registers_are_more_than_enough(operation: Any) -> None:
    """A record carries six arguments, whatever the call takes."""
    decoded = decode_arguments(operation, [2**64 - 1] * 6)
    assert list(decoded) == [name for name, _ in operation.arguments]
    json.dumps(decoded)


def system_numbers(run_c: RunC, header: str, names: list[str]) -> dict[str, int]:
    """Of those that the installed header knows."""
    tests = "\n".join(
        f'#ifdef __NR_{name}\nprintf("{name} %d\\n", __NR_{name});\n#endif' for name in names
    )
    out = run_c(f"#include <stdio.h>\n#include <{header}>\nint main(void)\n{{\n{tests}\n}}")
    return {name: int(number) for name, number in (line.split() for line in out.splitlines())}


def test_numbers_are_the_system_headers(run_c: RunC) -> None:
    found = system_numbers(run_c, "asm/unistd_64.h", list(NUMBERS))
    assert NUMBERS.keys() - found.keys() <= {"mseal"}  # younger than the headers of Debian 12
    assert found == {name: NUMBERS[name] for name in found}


def test_32_bit_numbers_are_the_system_headers(run_c: RunC) -> None:
    table = {HEADER_NAMES_32.get(name, name): number for name, number in COMPAT_NUMBERS.items()}
    found = system_numbers(run_c, "asm/unistd_32.h", list(table))
    assert table.keys() - found.keys() <= {"mseal"}
    assert found == {name: table[name] for name in found}


def test_what_is_no_system_call_has_no_number() -> None:
    assert [op.name for op in OPERATIONS if op.number is None] == ["io_uring_madvise", "other"]
    assert [op.name for op in OPERATIONS if op.number_32 is None] == ["io_uring_madvise", "other"]


def test_ranges_are_arguments() -> None:
    ranges = {op.name: op.range for op in OPERATIONS if op.range}
    assert ranges == {
        "mprotect": ("addr", "size"),
        "pkey_mprotect": ("addr", "size"),
        "munmap": ("addr", "length"),
        "mmap": ("addr", "length"),
        "madvise": ("addr", "length"),
        "shmat": ("shmaddr",),
        "shmdt": ("shmaddr",),
        "brk": ("addr",),
        "remap_file_pages": ("addr", "size"),
        "io_uring_madvise": ("addr", "length"),
    }
    for operation in OPERATIONS:
        assert {*operation.range} <= {name for name, _ in operation.arguments}
    plain = "case OP_MPROTECT: case OP_PKEY_MPROTECT: case OP_MUNMAP"
    assert f"#define PLAIN_RANGES {plain}\n" in c_definitions()


def test_what_a_refused_call_returns_and_leaves_behind() -> None:
    hiding = [operation.name for operation in OPERATIONS if operation.hides_refusal]
    assert hiding == ["process_madvise", "shmdt", "brk"]
    assert "#define HIDES_REFUSAL(operation) ((operation) == OP_BRK || " in c_definitions()
    partial = {operation.name: operation.partial for operation in OPERATIONS if operation.partial}
    assert partial == {
        "mprotect": "mprotect",
        "pkey_mprotect": "mprotect",
        "mremap": "mremap",
        "madvise": "madvise",
        "process_madvise": "madvise",
        "io_uring_madvise": "madvise",
    }
    assert set(partial.values()) == {*PARTIAL_OPERATIONS}
    cases = "case OP_MPROTECT: case OP_PKEY_MPROTECT"
    assert f"#define PARTIAL_LIKE_MPROTECT {cases}\n" in c_definitions()


def test_a_new_call_is_a_row() -> None:
    """Its name in the schema of events is all that is missed; C: test_c_sources.py."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.new_call"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(made.stdout) == {
        "hooks": [
            ["fexit", "vms_gather_munmap_vmas", "fexit_vms_gather_munmap_vmas"],
            ["fexit", "__ia32_sys_made_up", "fexit_call"],
            ["fexit", "__x64_sys_made_up", "fexit_call"],
            ["tracepoint", "syscalls:sys_exit_made_up", "exit_call"],
            ["raw_tracepoint", "sys_exit", "raw_exit"],
        ],
        "marks": ["RETURN___x64_sys_made_up", "RETURN___ia32_sys_made_up"],
        "reviewed": "watched",
        "counted": 0,
        "operation": "made_up",
        "arguments": {"addr": "0x1000", "length": 8192},
        "summary": "made_up of sealed memory refused: worker (pid 7) tried to make up "
        "0x1000-0x3000 (sealed r--p, anonymous)",
        "call": "made_up(addr = 0x1000, length = 8192)",
        "asked": [0x1000, 0x3000],
        "would": "It would have made 8 KiB at 0x1000 up.",
        "valid": False,
        "valid_by_another_name": True,
    }


def test_c_switches_are_the_table(run_c: RunC) -> None:
    out = run_c(
        "typedef unsigned int u32; typedef unsigned long long u64;\n"
        "#define __always_inline inline\n#include <stdio.h>\n"
        + c_definitions()
        + "int main(void) { for (u64 n = 0; n < 2048; n++)"
        ' printf("%u %u\\n", operation_of(n), operation_of_32(n));'
        ' printf("%u %u\\n", operation_of(1ULL << 32 | 10), operation_of_32(~0ULL)); }'
    )
    found = [[int(word) for word in line.split()] for line in out.splitlines()]
    none = len(OPERATIONS)
    native = {op.number: index for index, op in enumerate(OPERATIONS)}
    compat = {op.number_32: index for index, op in enumerate(OPERATIONS)}
    assert found[:-1] == [[native.get(n, none), compat.get(n, none)] for n in range(2048)]
    assert found[-1] == [none, none]


def test_c_enumerators_are_in_the_order_of_the_table() -> None:
    enumeration = re.search(r"enum operation \{ (.*) \};", c_definitions())
    assert enumeration is not None
    assert enumeration[1].split(", ") == [*(op.constant for op in OPERATIONS), "OPERATIONS"]
    assert "#define NR_MSEAL 462\n" in c_definitions()
