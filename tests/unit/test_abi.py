"""bpf/abi.h and monitor/kernel/abi.py are the same: every size, offset and enumerator."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest

from monitor.kernel import abi, compiler, operations

BPF = Path(__file__).parent.parent.parent / "bpf"
HEADER = (BPF / "abi.h").read_text("utf-8")
RunC = Callable[..., str]

# Of enumerators that do not begin with the name of their enum.
PREFIXES = {"shared_bucket": "SHARED_"}


def python_name(c_name: str) -> str:
    return "".join(word.capitalize() for word in c_name.split("_"))


def c_structs() -> dict[str, list[str]]:
    """Members of each struct, by its name, as the header has them."""
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    found = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        found[name] = re.findall(r"(\w+)(?:\[[^;]*\])?;", body)
    return found


def c_enums() -> dict[str, list[str]]:
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    return {
        name: re.findall(r"\w+", re.sub("=[^,]*", "", body))
        for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, re.DOTALL)
    }


def python_structs() -> dict[str, type[ctypes.Structure]]:
    return {
        name: value
        for name, value in vars(abi).items()
        if isinstance(value, type) and issubclass(value, ctypes.Structure)
    }


def python_enums() -> dict[str, type[IntEnum]]:
    return {
        name: value
        for name, value in vars(abi).items()
        if isinstance(value, type) and issubclass(value, IntEnum) and len(value)
    }


@pytest.fixture
def ask_c(run_c: RunC) -> Callable[[list[str]], dict[str, int]]:
    """Values of C constant expressions that use abi.h."""

    def ask(expressions: list[str]) -> dict[str, int]:
        prints = "".join(
            f'printf("%s\\"{text}\\": %lld", separator, (long long)({text})); separator = ", ";'
            for text in expressions
        )
        program = "\n".join(
            (
                compiler.flatten("abi.h"),
                "#define offsetof __builtin_offsetof",
                "int printf(const char *, ...);",
                f'int main() {{ char *separator = ""; printf("{{"); {prints} printf("}}"); }}',
            )
        )
        answer: dict[str, int] = json.loads(run_c(program, "-I", str(BPF / "include")))
        return answer

    return ask


def test_every_struct_has_its_mirror() -> None:
    assert {python_name(name) for name in c_structs()} == set(python_structs())


def test_every_enum_has_its_mirror() -> None:
    assert {python_name(name) for name in c_enums()} == set(python_enums())


@pytest.mark.parametrize("name", c_structs())
def test_members_have_the_same_names_and_order(name: str) -> None:
    mirror: Any = python_structs()[python_name(name)]
    assert [field[0] for field in mirror._fields_] == c_structs()[name]


@pytest.mark.parametrize("name", c_structs())
def test_size_and_offsets(name: str, ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    mirror: Any = python_structs()[python_name(name)]
    expected = {f"sizeof(struct {name})": ctypes.sizeof(mirror)}
    for member in c_structs()[name]:
        expected[f"offsetof(struct {name}, {member})"] = getattr(mirror, member).offset
        expected[f"sizeof(((struct {name} *)0)->{member})"] = getattr(mirror, member).size
    assert ask_c(list(expected)) == expected


def test_nothing_is_padded(ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    """Padding would show kernel memory to readers, and break the bucket's key."""
    for name, mirror in python_structs().items():
        fields: Any = mirror._fields_
        assert sum(ctypes.sizeof(field[1]) for field in fields) == ctypes.sizeof(mirror), name


@pytest.mark.parametrize("name", sorted(c_enums()))
def test_enumerators(name: str, ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    *members, count = c_enums()[name]
    prefix = PREFIXES.get(name, f"{name.upper()}_")
    mirror = python_enums()[python_name(name)]
    expected = {prefix + member.name: member.value for member in mirror}
    assert list(expected) == members
    assert ask_c(c_enums()[name]) == expected | {count: max(mirror) + 1}


def test_record_flags(ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    expected = {f"RECORD_{flag.name}": flag.value for flag in abi.RecordFlag}
    assert set(re.findall(r"^#define (RECORD_\w+)", HEADER, re.MULTILINE)) == set(expected)
    assert issubclass(abi.RecordFlag, IntFlag)
    assert ask_c(list(expected)) == expected


def test_constants(ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    names = [
        name
        for name in re.findall(r"^#define (\w+) ", HEADER, re.MULTILINE)
        if not name.startswith("RECORD_")
    ]
    assert ask_c(names) == {name: getattr(abi, name) for name in names}


def test_operations_are_counted_alike(ask_c: Callable[[list[str]], dict[str, int]]) -> None:
    assert ask_c(["OPERATIONS"]) == {"OPERATIONS": len(operations.OPERATIONS)}


def test_a_record_is_whole_words() -> None:
    """The ring keeps records at multiples of eight bytes."""
    assert ctypes.sizeof(abi.Record) % 8 == 0
    assert ctypes.sizeof(abi.Counters) % 8 == 0


@pytest.mark.parametrize(
    ("member", "label"),
    [
        (abi.Verdict.NOT_SEALED, "not_sealed"),
        (abi.Reason.RANGE_TOO_LONG, "range_too_long"),
        (abi.Disposition.HANDLER_FAILED, "handler_failed"),
    ],
)
def test_label(member: Any, label: str) -> None:
    assert member.label == label
