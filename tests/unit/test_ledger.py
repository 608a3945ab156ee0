"""Counts in memory that outlives the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.keep.ledger import Counts, Joined, Ledger, LedgerError, Numbers, restored
from monitor.kernel.abi import Kind
from monitor.metrics.tally import Tally

ROOT = Path(__file__).parents[2]


def again(ledger: Ledger) -> Ledger:
    """The same memory, as the next process maps it."""
    return Ledger.found(os.dup(ledger.descriptor))


def test_counts_go_on_in_the_next_life() -> None:
    first = Ledger.shared()
    tally = Tally(["stdout", "file"], first)
    tally.event("denial", "delivered", 3)
    tally.delay(0.02)
    tally.sink_error("file")
    tally.decode_error(2)
    tally.started("fresh", 100.0)
    second = Tally(["stdout", "journal"], again(first))
    second.started("resumed", 100.0, 1.5, 7)
    assert second.events["denial", "delivered"] == 3
    assert (sum(second.delays), second.delay_seconds) == (1, 0.02)
    assert second.sink_errors == {"stdout": 0, "journal": 0}
    assert second.decode_errors == 2
    assert second.starts == {"fresh": 1, "resumed": 1, "replaced": 0}
    assert (second.unread_seconds, second.records_found) == (1.5, 7)


def test_what_was_begun_and_not_ended_has_failed() -> None:
    first = Ledger.shared()
    tally = Tally(["stdout"], first)
    for _ in range(5):
        tally.made("health")
    tally.event("health", "delivered", 3)
    tally.event("denial", "delivered", 4)
    tally.event("denial", "filtered", 1)
    second = Tally(["stdout"], again(first))
    taken = {**dict.fromkeys(Kind, 0), Kind.DENIAL: 8}
    assert second.lost(taken) == 5
    assert second.events["denial", "failed"] == 3
    assert second.events["health", "failed"] == 2
    assert second.lost(taken) == 0


def test_what_was_not_judged_is_found_once() -> None:
    first = Ledger.shared()
    first.words("gaps")[Kind.FAULT] = 10
    tally = Tally([], first)
    tally.judged("denial", 3)
    second = Tally([], again(first))
    taken = {**dict.fromkeys(Kind, 0), Kind.DENIAL: 5}
    assert second.unjudged(taken) == {"denial": 2, "fault": 10}
    assert second.unjudged(taken) == {}


def test_a_file_shortened_goes_on_from_what_was_removed_before() -> None:
    first = Ledger.shared()
    assert Tally([], first).removed_from_file(100)
    second = Tally([], again(first))
    assert not second.removed_from_file(0)
    assert second.removed_from_file(50)
    assert second.events_file_removed_bytes == 150


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    )
)
def test_a_table_is_what_was_put_there(steps: list[tuple[str, int | None]]) -> None:
    ledger, model = Ledger(), dict[str, int]()
    ledger.words("format")  # the same memory in another table, as after a restart
    table = ledger.table("sinks")
    for name, value in steps:
        if value is None:
            table.pop(name.encode(), None)
            model.pop(name, None)
        else:
            table[name.encode()] = (value,)
            model[name] = value
    assert Numbers(table) == model
    ledger._tables.clear()
    assert Numbers(ledger.table("sinks")) == model


def test_a_full_table_keeps_the_rest_in_memory() -> None:
    ledger = Ledger.shared()
    table = ledger.table("sinks")
    for number in range(40):
        table[b"%d" % number] = (number,)
    assert len(table) == 40
    assert len(again(ledger).table("sinks")) == 32
    table[b"x" * 65] = (1,)  # longer than a row
    del table[b"0"]
    table[b"new"] = (7,)
    assert again(ledger).table("sinks")[b"new"] == (7,)


def test_names_of_any_bytes_are_kept() -> None:
    ledger = Ledger.shared()
    names = (b"a\xff \xe2\x82".decode("utf-8", "surrogateescape"), "denial", "critical")
    Joined(ledger.table("violations"))[names] = 3
    assert Joined(again(ledger).table("violations")).copy() == {names: 3}


def test_fixed_keys_refuse_others() -> None:
    counts = Counts(Ledger().words("canary"), ("success", "failure"))
    counts["success"] += 1
    assert counts == {"success": 1, "failure": 0}
    with pytest.raises(KeyError):
        counts["other"] += 1
    with pytest.raises(TypeError):
        del counts["success"]


def test_names_that_are_gone_are_removed() -> None:
    numbers = {"old": 1, "kept": 2}
    restored(numbers, {"kept": 0, "new": 0})
    assert numbers == {"kept": 2, "new": 0}


def _short() -> int:
    descriptor = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    return descriptor


def _other_format() -> int:
    ledger = Ledger.shared()
    ledger.words("format")[0] += 1
    return ledger.descriptor


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (_short, "its size is another or not fixed"),
        (lambda: os.open(ROOT, os.O_RDONLY), "it is no memory"),
        (_other_format, "its format is another"),
    ],
)
def test_what_is_no_ledger_is_refused(made: object, why: str) -> None:
    assert callable(made)
    with pytest.raises(LedgerError, match=why):
        Ledger.found(made())


def test_a_table_that_lies_is_refused() -> None:
    ledger = Ledger.shared()
    ledger._words[:]  # mapped
    ledger.table("sinks")[b"a"] = (1,)
    table = again(ledger)
    start = table.table("sinks")._words
    start[1] = 1 << 40
    with pytest.raises(LedgerError, match="a key is too long"):
        again(ledger).check()
    start[0] = 1 << 40
    with pytest.raises(LedgerError, match="a table has too many rows"):
        again(ledger).check()


def test_a_kill_loses_nothing_that_was_counted() -> None:
    """Another process counts, and prints each number once it is stored; then it is killed."""
    ledger = Ledger.shared()
    code = f"""
from monitor.keep.ledger import Ledger
from monitor.metrics.tally import Tally
tally = Tally([], Ledger.found({ledger.descriptor}))
while True:
    tally.event("denial", "delivered")
    print(tally.events["denial", "delivered"], flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[ledger.descriptor],
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1000)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    printed = int([line for line in lines if line.endswith("\n")][-1])
    assert Tally([], ledger).events["denial", "delivered"] in (printed, printed + 1)
