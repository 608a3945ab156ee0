"""The table of watched calls: numbers, decoders, and the C made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from monitor.kernel.operations import MSEAL_NUMBER, OPERATIONS, c_definitions, decode_arguments

RunC = Callable[..., str]
BY_NAME = {operation.name: operation for operation in OPERATIONS}
HEADER_NAMES_32 = {"mmap": "mmap2"}  # i386's mmap(2) takes a structure and nobody calls it


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
    table = {op.name: op.number for op in OPERATIONS if op.number is not None}
    table["mseal"] = MSEAL_NUMBER
    found = system_numbers(run_c, "asm/unistd_64.h", list(table))
    assert table.keys() - found.keys() <= {"mseal"}  # younger than the headers of Debian 12
    assert found == {name: table[name] for name in found}


def test_32_bit_numbers_are_the_system_headers(run_c: RunC) -> None:
    table = {
        HEADER_NAMES_32.get(op.name, op.name): op.number_32
        for op in OPERATIONS
        if op.number_32 is not None
    }
    assert system_numbers(run_c, "asm/unistd_32.h", list(table)) == table


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
    assert f"#define NR_MSEAL {MSEAL_NUMBER}\n" in c_definitions()
