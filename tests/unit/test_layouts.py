"""Offsets from the running kernel's BTF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.kernel import layouts
from monitor.kernel.layouts import KIND_FUNC, KIND_STRUCT, Btf, LayoutError, Member, c_definitions

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF"
)


@pytest.fixture
def btf() -> Iterator[Btf]:
    with Btf() as btf:
        yield btf


def defined(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)$", text, re.M)}


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


def test_known_sizes(btf: Btf) -> None:
    values = defined(c_definitions(btf))
    assert (values["SIZE_upid"], values["SIZE_rlimit"]) == (16, 16)


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


def test_every_definition_is_used_and_every_use_defined(btf: Btf) -> None:
    sources = "".join(
        path.read_text("utf-8")
        for path in (Path(layouts.__file__).parents[2] / "bpf").glob("*.[ch]")
    )
    used = {
        f"task_struct__{name}"
        for name in re.findall(r"TASK_FIELD\([^,]+, (?:task|leader), (\w+)\)", sources)
    }
    used.remove("task_struct__member")  # the macro's own
    used |= set(re.findall(r"(?:READ_KERNEL|KERNEL_WORD)\([^;]*?, (\w+__\w+)\)", sources))
    used |= set(re.findall(r"OFF_(\w+__\w+)", sources))
    assert used == {layouts._constant(member) for member in layouts.MEMBERS}


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
    monkeypatch.setattr(layouts, "MEMBERS", (*layouts.MEMBERS, member))
    with pytest.raises(LayoutError, match=rf"^this kernel's BTF has no {re.escape(missing)}$"):
        c_definitions(btf)


@pytest.mark.parametrize(
    "member",
    [
        Member("task_struct", "no_such_member", required=False),
        Member("no_such_struct", "member", required=False),
    ],
)
def test_missing_optional_member_is_not_defined(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, member: Member
) -> None:
    plain = c_definitions(btf)
    monkeypatch.setattr(layouts, "MEMBERS", (*layouts.MEMBERS, member))
    assert c_definitions(btf) == plain


def test_present_member_is_defined_twice(btf: Btf) -> None:
    values = defined(c_definitions(btf))
    assert values["HAS_mm_struct__exe_file"] == 1
    assert values["OFF_mm_struct__exe_file"] > 0


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        ("SIZES", "no_such_struct", "this kernel's BTF has no struct no_such_struct"),
        ("KFUNCS", "no_such_kfunc", "this kernel has no no_such_kfunc; Linux 6.4 or later has"),
    ],
)
def test_missing_size_or_kfunc(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, table: str, name: str, message: str
) -> None:
    monkeypatch.setattr(layouts, table, (name,))
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        c_definitions(btf)


def test_close_twice(btf: Btf) -> None:
    btf.close()
    btf.close()
