"""Each file of bpf/ on its own, as an editor's language server sees it: every name resolves."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.kernel import arch, compiler
from monitor.kernel.operations import OPERATIONS, Operation, c_definitions

BPF = Path(__file__).parents[2] / "bpf"
FILES = sorted(str(path.relative_to(BPF)) for path in BPF.rglob("*.[ch]"))
FLAGS = (BPF / "compile_flags.txt").read_text("utf-8").splitlines()
BY_NAME = {operation.name: operation for operation in OPERATIONS}
OF_THE_PROCESSOR = re.compile(r"\bregs->|\bX32_|\bTS_COMPAT\b|_TRAP_|\bPF_(WRITE|INSTR)\b|\b4096\b")
DEFINITIONS = "../build/definitions.h"


def complaints(name: str, *unsaved: tuple[str, str], definitions: str | None = None) -> list[str]:
    """What clang says of a file, with the definitions as they would be generated now."""
    cindex = pytest.importorskip("clang.cindex", reason="libclang is not installed")
    unit = cindex.Index.create().parse(
        name,
        args=[f"-working-directory={BPF}", *FLAGS],
        unsaved_files=[(DEFINITIONS, definitions or compiler.definitions()), *unsaved],
    )
    return [str(each) for each in unit.diagnostics]


@pytest.mark.parametrize("name", FILES)
def test_every_name_resolves(name: str) -> None:
    assert complaints(name) == []


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


def test_page_sizes_agree() -> None:
    text = f'#include "arch.h"\n_Static_assert(PAGE_SIZE == {arch.PAGE_SIZE}, "");\n'
    assert complaints("new.c", ("new.c", text)) == []


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
    assert FLAGS[: len(compiler._FLAGS)] == list(compiler._FLAGS)
