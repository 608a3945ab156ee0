"""Each file of bpf/ on its own, as an editor's language server sees it: every name resolves."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.kernel import compiler
from monitor.kernel.arch import PROCESSORS, THIS, X86_64, Processor
from monitor.kernel.operations import OPERATIONS, Operation, c_definitions

BPF = Path(__file__).parents[2] / "bpf"
FILES = sorted(str(path.relative_to(BPF)) for path in BPF.rglob("*.[ch]"))
FLAGS = (BPF / "compile_flags.txt").read_text("utf-8").splitlines()
BY_NAME = {operation.name: operation for operation in OPERATIONS}
OF_THE_PROCESSOR = re.compile(
    r"\bregs->|\bX32_|\bTS_COMPAT\b|_TRAP_|\bPF_(WRITE|INSTR)\b|\bESR_|\b4096\b"
)
DEFINITIONS = "../build/definitions.h"
EACH = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)


def complaints(
    name: str,
    *unsaved: tuple[str, str],
    definitions: str | None = None,
    processor: Processor = THIS,
) -> list[str]:
    """What clang says of a file, with the definitions as they would be generated now."""
    flags = [*(flag for flag in FLAGS if flag not in X86_64.c_flags), *processor.c_flags]
    cindex = pytest.importorskip("clang.cindex", reason="libclang is not installed")
    unit = cindex.Index.create().parse(
        name,
        args=[f"-working-directory={BPF}", *flags],
        unsaved_files=[(DEFINITIONS, definitions or compiler.definitions(processor)), *unsaved],
    )
    return [str(each) for each in unit.diagnostics]


@EACH
@pytest.mark.parametrize("name", FILES)
def test_every_name_resolves(name: str, processor: Processor) -> None:
    if name.startswith("arch/") and name != processor.c_header:
        return
    assert complaints(name, processor=processor) == []


def test_a_name_that_nobody_defines_is_found() -> None:
    text = '#include "kernel.h"\nu64 a = KFUNC_bpf_rdonly_cast, b = KFUNC_bpf_rdonly_case;\n'
    assert len(complaints("new.c", ("new.c", text))) == 1


def with_row(row: Operation) -> str:
    """definitions.h, if the table of calls had one more row."""
    return compiler.definitions().replace(c_definitions(), c_definitions((*OPERATIONS, row)))


def test_a_new_call_is_a_row() -> None:
    row = replace(BY_NAME["munmap"], name="made_up", number=1000, number_32=1001)
    assert complaints("seal_monitor.bpf.c", definitions=with_row(row)) == []


@pytest.mark.parametrize(
    "change",
    [{"range": ()}, {"odd": True}, {"range": ("length", "addr")}],
    ids=["no range", "an odd one", "not the first arguments"],
)
def test_a_call_without_a_plain_range_needs_a_case(change: dict[str, Any]) -> None:
    row = replace(BY_NAME["munmap"], name="made_up", number=1000, number_32=1001, **change)
    (complaint,) = complaints("seal_monitor.bpf.c", definitions=with_row(row))
    assert "proof.h" in complaint
    assert "error: enumeration value 'OP_MADE_UP' not handled in switch" in complaint


@EACH
def test_page_sizes_agree(processor: Processor) -> None:
    text = f'#include "arch.h"\n_Static_assert(PAGE_SIZE == {max(processor.page_sizes)}, "");\n'
    if len(processor.page_sizes) == 1:  # else it is a mark
        text += '_Static_assert(PAGE_BYTES == PAGE_SIZE, "");\n'
    assert complaints("new.c", ("new.c", text), processor=processor) == []


def test_only_arch_knows_the_registers() -> None:
    wrong = [
        f"{name}: {line.strip()}"
        for name in FILES
        if not name.startswith("arch/")
        for line in (BPF / name).read_text("utf-8").splitlines()
        if OF_THE_PROCESSOR.search(line)
    ]
    assert wrong == []


def test_flags_are_the_compilers() -> None:
    """Those of x86-64: an editor looks at the sources as they are compiled there."""
    flags = compiler.flags(X86_64)
    assert FLAGS[: len(flags)] == list(flags)
