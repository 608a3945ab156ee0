"""Names as in the source, and hostile ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import at_most

from monitor.symbols import demangle
from monitor.symbols.demangle import Demangler


@pytest.fixture(scope="module")
def demangler() -> Iterator[Demangler]:
    made = Demangler()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("main", "main"),
        ("_Zoo", "operator||"),
        ("_Zq", "_Zq"),
        ("_ZN3foo3barEv", "foo::bar()"),
        ("_ZN3foo3barEv.cold", "foo::bar() [clone .cold]"),
        (
            "_ZNSt6vectorIiSaIiEE9push_backERKi",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
        ),
        ("_ZN5queueC1Ev", "queue::queue()"),
        ("_ZN4main4main17h0123456789abcdefE", "main::main"),
        ("_ZN4main4main17h0123456789abcdefE.llvm.0123456789ABCDEF", "main::main"),
        (
            "_ZN70_$LT$alloc..vec..Vec$LT$T$C$A$GT$$u20$as$u20$core..ops..drop..Drop$GT$"
            "4drop17h0123456789abcdefE",
            "<alloc::vec::Vec<T,A> as core::ops::drop::Drop>::drop",
        ),
        ("_RNvCs1234_7mycrate4main", "mycrate::main"),
        ("_RNvCs1234_7mycrate4mai", "_RNvCs1234_7mycrate4mai"),
        ("_ZN3foo\nbarEv", "_ZN3foo\nbarEv"),
        ("_Z" + "v" * 5000, "_Z" + "v" * 5000),
    ],
)
def test_names(demangler: Demangler, name: str, shown: str) -> None:
    assert demangler.demangle(name) == shown


def doubling(times: int) -> str:
    """Each parameter is a pair of the one before: some 2 to the power of `times` characters."""
    pairs = "St4pairIiiE" + "".join(f"S_I{s}{s}E" for s in substitutions(times))
    return f"_Z1f{pairs}"


def substitutions(times: int) -> Iterator[str]:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    yield "S0_"
    for number in range(1, times):
        yield f"S{digits[number]}_"


def test_a_name_without_end() -> None:
    """Some hundred characters that stand for gigabytes: it stays, and the next one works."""
    made = Demangler()
    try:
        assert len(made.demangle(doubling(4))) > 100
        name = doubling(34)
        with at_most(10 * demangle.ANSWER_SECONDS, "the name has gigabytes"):
            assert made.demangle(name) == name
        assert made.demangle("_ZN3foo3barEv") == "foo::bar()"
    finally:
        made.close()


def test_children_that_keep_dying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Demangler()
    monkeypatch.setattr(demangle, "_CHILD", tmp_path / "none")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(demangle.CHILDREN_LIMIT + 1):
        assert made.demangle("_ZN3foo3barEv") == "_ZN3foo3barEv"
    monkeypatch.undo()
    assert made.demangle("_ZN3foo3barEv") == "_ZN3foo3barEv"
    assert len(os.listdir("/proc/self/fd")) == before
