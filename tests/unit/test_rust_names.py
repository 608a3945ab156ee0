"""Names of Rust functions. Most of these are of a program that rustc 1.95 made."""

from __future__ import annotations

import time

import pytest
from clocks import at_most
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_records import fuzzed

from monitor.symbols.rust_names import LENGTH_LIMIT, legacy_name, v0_name

SHOWN = {
    "_RNvCskK7mfDs1mzF_1m4main": "m::main",
    "_RNvCskK7mfDs1mzF_1m4main.llvm.0123ABCD": "m::main",
    "_RNvCskK7mfDs1mzF_1m4main.cold": "m::main.cold",
    "_RNCNvC1m4main0B3_": "m::main::{closure#0}",
    "_RNCNvC1m4mains_0B3_": "m::main::{closure#1}",
    "_RNSC1m6vtable": "m::{shim:vtable#0}",
    "_RINvNtCskK7mfDs1mzF_1m4deep3genKj7_NCNvB4_4main0EB4_": (
        "m::deep::gen::<7, m::main::{closure#0}>"
    ),
    "_RINvMNtCsgEmfK2I1SDS_4core3stre18trim_start_matchesReECsgY6Mt91CT9J_14rustc_demangle": (
        "<str>::trim_start_matches::<&str>"
    ),
    "_RNvXC1mNtB2_1SNtB2_1T2go": "<m::S as m::T>::go",
    "_RNvYhNtC1m1T2go": "<u8 as m::T>::go",
    "_RINvC1m1fTuEAhj10_SbPcOdQRLL_jE": None,
    "_RINvC1m1fTuEAhj10_SbPcOdQReE": (
        "m::f::<((),), [u8; 16], [bool], *const char, *mut f64, &mut &str>"
    ),
    "_RINvC1m1fFUKCheEuE": 'm::f::<unsafe extern "C" fn(u8, str)>',
    "_RINvC1m1fFG_RL0_hERL0_bE": "m::f::<for<'a> fn(&'a u8) -> &'a bool>",
    "_RINvC1m1fDINtC1m1ThEp4ItemjEL_E": "m::f::<dyn m::T<u8, Item = usize>>",
    "_RINvC1m1fDNtC1m1Tp4ItemjNtC1m1SEL_E": "m::f::<dyn m::T<Item = usize> + m::S>",
    "_RINvC1m1fLRL_hE": None,
    "_RINvC1m1fL_hE": "m::f::<'_, u8>",
    "_RINvC1m1fKan1_Kb1_Kc41_Ko10000000000000000_KpE": (
        "m::f::<-1, true, 'A', 0x10000000000000000, _>"
    ),
    "_RNvC1mu8gdel_5qa": "m::gödel",
    "_RNvC1m4mai": None,
    "_RNvC1m4mainX": None,
    "_R": None,
    "_Rust": None,
    "_ZN3fooE": None,
    "main": None,
    "_RNvB_1f": None,  # refers to itself
    "_RINvC1m1fRL1_hE": None,  # a lifetime that nothing binds
    "_RINvC1m1fFGzzzzzz_hEuE": None,  # thousands of millions of them
    "_RINvC1m1fKc110000_E": None,  # no character
}


@pytest.mark.parametrize(("mangled", "shown"), SHOWN.items(), ids=SHOWN.keys())
def test_the_second_scheme(mangled: str, shown: str | None) -> None:
    assert v0_name(mangled) == shown


def base62(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return digits[number // 62] + digits[number % 62]


def doubling(times: int) -> str:
    """Each type is a pair of the one before."""
    name, place = "INvC1m1fThhE", 8
    for _ in range(times):
        back = f"B{base62(place - 1)}_"
        place = len(name)
        name += f"T{back}{back}E"
    return f"_R{name}E"


def test_a_name_that_doubles() -> None:
    assert v0_name(doubling(1)) == "m::f::<(u8, u8), ((u8, u8), (u8, u8))>"
    with at_most(1, "the name has 2^60 parts", time.process_time):
        assert v0_name(doubling(60)) is None


def test_a_name_that_is_deep() -> None:
    assert v0_name(f"_RINvC1m1f{'S' * 50}hE") == f"m::f::<{'[' * 50}u8{']' * 50}>"
    assert v0_name(f"_RINvC1m1f{'S' * 5000}hE") is None


ALPHABET = "BCDEFGIKLMNOPQRSTUXYabcdefghijlmnopstuvxyz0123456789_"


@fuzzed
@given(st.sampled_from(sorted(SHOWN)), st.integers(0, 80), st.text(ALPHABET, max_size=8))
def test_any_name(mangled: str, place: int, change: str) -> None:
    name = mangled[: place + 2] + change + mangled[place + 2 + len(change) :]
    shown = v0_name(name)
    assert shown is None or len(shown) <= LENGTH_LIMIT + len(name)


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("core::fmt::Write::write_fmt::h0123456789abcdef", "core::fmt::Write::write_fmt"),
        ("core::ptr::drop_in_place$LT$$u5b$u8$u5d$$GT$", "core::ptr::drop_in_place<[u8]>"),
        ("_$LT$T$u20$as$u20$a..B$GT$::f::h0123456789abcdef", "<T as a::B>::f"),
        ("$RF$$BP$$LP$$RP$$C$$SP$$uzz$", "&*(),@$uzz$"),
    ],
)
def test_the_first_scheme(shown: str, name: str) -> None:
    assert legacy_name(shown) == name
