"""What is x86-64's own stands in arch.py; test_c_sources.py has the same for bpf/."""

from __future__ import annotations

import re
from pathlib import Path

from monitor.kernel import arch

MONITOR = Path(__file__).parents[2] / "monitor"
OF_THE_PROCESSOR = re.compile(
    r"__(x64|ia32)_sys_(?!NAME)|x86_64|i386|0x40000000|\\xcd\\x80|\b(PAGE|PAGE_SIZE) = \d"
)


def test_only_arch_knows_the_processor() -> None:
    found = {
        str(path.relative_to(MONITOR)): line.strip()
        for path in MONITOR.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if OF_THE_PROCESSOR.search(line)
    }
    del found["kernel/arch.py"]
    assert found == {}


def test_machine_code_of_a_compat_call() -> None:
    code = arch.compat_call(125, 0x1000, 4096)
    assert code.hex(" ", -5) == ("53b87d0000 00bb001000 00b9001000 00ba000000 00cd805b48 98c3")
