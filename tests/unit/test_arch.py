"""What is a processor's own stands in arch.py; test_c_sources.py has the same for bpf/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitor.kernel.arch import ARM64, PROCESSORS, X86_64, Processor
from monitor.kernel.operations import OPERATIONS

MONITOR = Path(__file__).parents[2] / "monitor"
HEADERS = Path("/usr/include")
OF_THE_PROCESSOR = re.compile(
    r"__(x64|ia32|arm64)_sys_(?!NAME)|x86_64|aarch64|i386|0x40000000|\\xcd\\x80"
    r"|\b(PAGE|PAGE_SIZE) = \d"
)
EACH = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)


def test_only_arch_knows_the_processor() -> None:
    found = {
        str(path.relative_to(MONITOR)): line.strip()
        for path in MONITOR.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if OF_THE_PROCESSOR.search(line)
    }
    del found["kernel/arch.py"]
    assert found == {}


def test_processors_are_found_by_machine() -> None:
    assert PROCESSORS == {"x86_64": X86_64, "aarch64": ARM64}


@EACH
def test_tables_have_the_same_calls(processor: Processor) -> None:
    assert processor.numbers.keys() == X86_64.numbers.keys()
    assert processor.compat_numbers.keys() == X86_64.compat_numbers.keys()
    watched = {operation.name for operation in OPERATIONS if operation.number is not None}
    assert watched <= processor.numbers.keys()
    assert watched <= processor.compat_numbers.keys()
    assert len(set(processor.numbers.values())) == len(processor.numbers)


def numbers_in(header: Path) -> dict[str, int]:
    pattern = r"^#define __NR(?:3264)?_(\w+) (\d+)$"
    text = re.sub(r"__NR(?:3264)?_(\w+) +", r"__NR_\1 ", header.read_text("utf-8"))
    return {name: int(number) for name, number in re.findall(pattern, text, re.M)}


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        ("x86_64-linux-gnu/asm/unistd_64.h", X86_64.numbers),
        ("x86_64-linux-gnu/asm/unistd_32.h", {**X86_64.compat_numbers, "mmap2": 192, "mmap": 90}),
        ("asm-generic/unistd.h", ARM64.numbers),
    ],
    ids=["x86-64", "i386", "arm64"],
)
def test_numbers_are_those_of_the_headers(header: str, numbers: dict[str, int]) -> None:
    if not (HEADERS / header).exists():
        pytest.skip("linux-libc-dev of this processor is not installed")
    known = numbers_in(HEADERS / header)
    newer = {"mseal"}  # than the headers of Debian 12
    assert {name: known.get(name) for name in numbers if name not in newer} == {
        name: number for name, number in numbers.items() if name not in newer
    }


@pytest.mark.parametrize(
    ("processor", "call", "expected"),
    [
        (X86_64, "munmap", ("__x64_sys_munmap", "__ia32_sys_munmap")),
        (ARM64, "munmap", ("__arm64_sys_munmap", "__arm64_sys_munmap")),
        (ARM64, "mmap", ("__arm64_sys_mmap", "__arm64_compat_sys_aarch32_mmap2")),
    ],
)
def test_functions_of_a_call(processor: Processor, call: str, expected: tuple[str, str]) -> None:
    assert (processor.native_function(call), processor.compat_function(call)) == expected


def test_machine_code_of_a_compat_call() -> None:
    assert X86_64.compat_call is not None
    code = X86_64.compat_call(125, 0x1000, 4096)
    assert code.hex(" ", -5) == ("53b87d0000 00bb001000 00b9001000 00ba000000 00cd805b48 98c3")
