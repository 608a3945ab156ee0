"""Each file of bpf/ on its own, as an editor's language server sees it: every name resolves."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.kernel import compiler

BPF = Path(__file__).parents[2] / "bpf"
FILES = sorted(str(path.relative_to(BPF)) for path in BPF.rglob("*.[ch]"))
FLAGS = (BPF / "compile_flags.txt").read_text("utf-8").splitlines()
DEFINITIONS = "../build/definitions.h"


def complaints(name: str, *unsaved: tuple[str, str]) -> list[str]:
    """What clang says of a file, with the definitions as they would be generated now."""
    cindex = pytest.importorskip("clang.cindex", reason="libclang is not installed")
    unit = cindex.Index.create().parse(
        name,
        args=[f"-working-directory={BPF}", *FLAGS],
        unsaved_files=[(DEFINITIONS, compiler.definitions()), *unsaved],
    )
    return [str(each) for each in unit.diagnostics]


@pytest.mark.parametrize("name", FILES)
def test_every_name_resolves(name: str) -> None:
    assert complaints(name) == []


def test_a_name_that_nobody_defines_is_found() -> None:
    text = '#include "kernel.h"\nu64 a = KFUNC_bpf_rdonly_cast, b = KFUNC_bpf_rdonly_case;\n'
    assert len(complaints("new.c", ("new.c", text))) == 1


def test_flags_are_the_compilers() -> None:
    assert FLAGS[: len(compiler._FLAGS)] == list(compiler._FLAGS)
