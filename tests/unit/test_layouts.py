"""Offsets from the running kernel's BTF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.kernel import compiler, layouts
from monitor.kernel.arch import PROCESSORS, Processor
from monitor.kernel.btf import KIND_FUNC, KIND_STRUCT, Btf, LayoutError
from monitor.kernel.layouts import MARKS, Member, values

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF"
)


@pytest.fixture
def btf() -> Iterator[Btf]:
    with Btf() as btf:
        yield btf


def by_name(btf: Btf) -> dict[str, int | None]:
    return dict(zip(MARKS, values(btf), strict=True))


# Fixed by the processor, by user space or by the code that reads them.
KNOWN = {
    ("upid", "nr"): 0,
    ("rlimit", "rlim_cur"): 0,
    ("io_uring_cqe", "res"): 8,
    ("kernel_siginfo", "si_code"): 8,
    ("kernel_siginfo", "_sifields._sigfault._addr"): 16,
    ("maple_range_64", "pivot"): 8,
    ("maple_range_64", "slot"): 128,
}


@pytest.mark.parametrize(("where", "offset"), KNOWN.items(), ids=map(".".join, KNOWN))
def test_known_offset(btf: Btf, where: tuple[str, str], offset: int) -> None:
    struct = btf.find(where[0], KIND_STRUCT)
    assert struct is not None
    found = btf.member(struct, where[1])
    assert found is not None
    assert found[0] == offset


def test_known_values(btf: Btf) -> None:
    found = by_name(btf)
    assert (found["SIZE_upid"], found["SIZE_rlimit"]) == (16, 16)
    assert found["ARG_mprotect_fixup__vma"] == 16  # the third parameter
    assert found["RETURN___x64_sys_mseal"] == 8  # after the registers
    assert found["OPERATION"] is None
    assert found["TYPE_maple_range_64"] == btf.find("maple_range_64", KIND_STRUCT)
    assert found["KFUNC_bpf_rdonly_cast"] == btf.find("bpf_rdonly_cast", KIND_FUNC)


def test_members_of_a_structure_add_up(btf: Btf) -> None:
    """A dotted path is the sum of its steps, and goes through anonymous members."""
    task, seccomp = btf.find("task_struct", KIND_STRUCT), btf.find("seccomp", KIND_STRUCT)
    assert task is not None
    assert seccomp is not None
    whole, outer = btf.member(task, "seccomp.filter"), btf.member(task, "seccomp")
    inner = btf.member(seccomp, "filter")
    assert whole is not None
    assert outer is not None
    assert inner is not None
    assert whole[0] == outer[0] + inner[0]


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_every_mark_is_used_and_every_use_is_a_mark(processor: Processor) -> None:
    marks = layouts.marks(processor)
    files = [*compiler.SOURCES.glob("*.[ch]"), compiler.SOURCES / processor.c_header]
    sources = "".join(path.read_text("utf-8") for path in sorted(files))
    used = {
        f"task_struct__{name}"
        for name in re.findall(r"TASK_FIELD\([^,]+, (?:task|leader), (\w+)\)", sources)
    }
    used |= set(re.findall(r"(?:READ_KERNEL|KERNEL_WORD)\([^;]*?, (\w+__\w+)\)", sources))
    used |= set(re.findall(r"\bOFF_(\w+__\w+)", sources))
    used |= set(re.findall(r"\bHAS\((\w+__\w+)\)", sources))
    used |= set(re.findall(r"\b((?:SIZE|TYPE|KFUNC)_[a-z]\w+)", sources))
    for function, parameter in re.findall(r"\bARGUMENT\(ctx, (\w+), (\w+)\)", sources):
        used.add(f"ARG_{function}__{parameter}")
    used |= {f"RETURN_{name}" for name in re.findall(r"\bRESULT\(ctx, (\w+)\)", sources)}
    # The macros' own, and those of a comment.
    used -= {"task_struct__member", "ARG_function__parameter", "RETURN_function"}
    used -= {"struct__member", "SIZE_struct", "TYPE_struct"}
    used.add(layouts.OPERATION)
    used.add("maple_range_64__pivot")  # known to the C, as FIRST_PIVOT
    used |= set(re.findall(r"\bMARKED_VALUE\(MARK_(PAGE_\w+)\)", sources))
    assert used - set(marks) == set()
    # Of some functions only the arguments matter.
    unread = {mark for mark in marks if mark.startswith("RETURN_")}
    assert set(marks) - used - unread == set()


def test_marks_are_numbered_in_the_definitions() -> None:
    numbered = re.findall(r"^#define MARK_(\w+) (\d+)$", layouts.c_definitions(), re.M)
    assert numbered == [(name, str(number)) for number, name in enumerate(MARKS)]


@pytest.mark.parametrize(
    ("mark", "meaning"),
    [
        ("mm_struct__context_untag_mask", "mm_struct.context.untag_mask"),
        ("ARG_check_prep_vma__vrm", "check_prep_vma()"),
        ("RETURN_check_prep_vma", "check_prep_vma()"),
        ("SIZE_upid", "SIZE_upid"),
    ],
)
def test_what_a_mark_stands_for(mark: str, meaning: str) -> None:
    assert mark in MARKS
    assert layouts.describe(mark) == meaning


def test_unknown_names(btf: Btf) -> None:
    task = btf.find("task_struct", KIND_STRUCT)
    assert task is not None
    assert btf.find("no_such_struct", KIND_STRUCT) is None
    assert btf.find("task_struct", KIND_FUNC) is None
    assert btf.member(task, "no_such_member") is None
    assert btf.member(task, "mm.no_such_member") is None  # a pointer has no members
    assert btf.member(task, "seccomp.no_such_member") is None


@pytest.mark.parametrize(
    ("member", "missing"),
    [
        (Member("task_struct", "no_such_member"), "task_struct.no_such_member"),
        (Member("no_such_struct", "member"), "no_such_struct.member"),
    ],
)
def test_missing_required_member(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, member: Member, missing: str
) -> None:
    monkeypatch.setitem(layouts._MEMBERS, layouts._constant(member), member)
    with pytest.raises(LayoutError, match=rf"^this kernel's BTF has no {re.escape(missing)}$"):
        values(btf)


OPTIONAL = [name for name, member in layouts._MEMBERS.items() if not member.required]


@pytest.mark.parametrize("name", OPTIONAL)
def test_missing_optional_member_has_no_value(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = by_name(btf)
    gone = Member("no_such_struct", "member", required=False)
    monkeypatch.setitem(layouts._MEMBERS, name, gone)
    assert by_name(btf) == before | {name: None}


def test_pivots_elsewhere_are_refused(btf: Btf, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Member("maple_range_64", "slot")
    monkeypatch.setitem(layouts._MEMBERS, "maple_range_64__pivot", slot)
    with pytest.raises(LayoutError, match=r"^this kernel's maple_range_64.pivot is at 128, not 8$"):
        values(btf)


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        ("SIZES", "no_such_struct", "this kernel's BTF has no struct no_such_struct"),
        (
            "KFUNCS",
            "no_such_kfunc",
            "this kernel has no no_such_kfunc; boot Linux 6.10 or later, which has it",
        ),
    ],
)
def test_missing_size_or_kfunc(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, table: str, name: str, message: str
) -> None:
    monkeypatch.setattr(layouts, table, (name,))
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        values(btf)


def test_close_twice(btf: Btf) -> None:
    btf.close()
    btf.close()
