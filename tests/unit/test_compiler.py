"""What the compiled object is made from, and when it is stale."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from monitor.kernel import abi, compiler, layouts
from monitor.kernel.arch import ARM64, THIS, X86_64


def test_text_has_every_file_once() -> None:
    text = compiler.program_text()
    assert re.findall(r"^#include (.*)$", text, re.MULTILINE) == ["<linux/types.h>"]
    assert text.count(compiler.definitions()) == 1
    counts = {}
    for path in [*compiler.SOURCES.glob("*.[ch]"), compiler.SOURCES / THIS.c_header]:
        _, _, after = path.read_text("utf-8").rpartition('\n#include "')
        counts[path.name] = text.count(after.partition("\n")[2])
    assert counts.pop("seal_monitor.bpf.c") > 1  # nothing follows its includes
    assert counts == dict.fromkeys(counts, 1)


def test_no_name_is_used_that_bcc_replaces() -> None:
    """bcc puts in another helper, depending on the kernel of the machine that compiles."""
    code = re.sub(r"/\*.*?\*/", "", compiler.program_text(), flags=re.DOTALL)
    assert "read_user(" in code
    assert not re.search(r"\bbpf_probe_read(_user|_kernel)?(_str)?\(", code)


def test_definitions_can_be_printed() -> None:
    command = [sys.executable, "-m", "monitor.kernel.compiler", "definitions"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == compiler.definitions()
    for line in (
        "#define BUCKETS_MAX 4096",
        "#define NR_MSEAL 462",
        "#define MARK_task_struct__mm 0",
        "#define OFF_task_struct__mm MARKED_VALUE(MARK_task_struct__mm)",
        "#define KFUNC_bpf_iter_num_new MARK_KFUNC_bpf_iter_num_new",
    ):
        assert f"{line}\n" in printed


def test_unknown_arguments_are_refused() -> None:
    command = [sys.executable, "-m", "monitor.kernel.compiler", "objekt"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "python -m monitor.kernel.compiler definitions" in ended.stderr


def test_digests_follow_what_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiler.digests()
    assert compiler.digests() == before
    monkeypatch.setattr(layouts, "marks", lambda _: tuple(reversed(layouts.MARKS)))
    changed = compiler.digests()
    assert {name for name in before if changed[name] != before[name]} == {"sources", "marks"}
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-O1"))
    changed = compiler.digests()
    assert {name for name in before if changed[name] != before[name]} == {"sources"}
    monkeypatch.undo()
    monkeypatch.setattr(abi, "description", lambda: ["other"])
    changed = compiler.digests()
    assert {name for name in before if changed[name] != before[name]} == {"records"}


CHILD_ALONE = ("attacher", "btf", "compiler", "layouts", "object", "programs", "tracefs")


def test_what_the_child_needs_its_parent_does_not_import() -> None:
    needed = {"bcc", "hashlib", *(f"monitor.kernel.{name}" for name in CHILD_ALONE)}
    code = f"import sys, monitor.daemon; print(sorted({needed!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_objects_of_other_processors_are_others() -> None:
    """Each has its own header alone, so a change of that one makes no other object stale."""
    x86_text, arm_text = compiler.program_text(X86_64), compiler.program_text(ARM64)
    assert ("orig_ax" in x86_text, "orig_x0" in x86_text) == (True, False)
    assert ("orig_ax" in arm_text, "orig_x0" in arm_text) == (False, True)
    x86, arm = compiler.digests(X86_64), compiler.digests(ARM64)
    assert {name for name in x86 if x86[name] != arm[name]} == {"processor", "sources", "marks"}
    assert (x86["processor"], arm["processor"]) == ("x86-64", "arm64")
