"""Faults that go to a handler: runtimes go on and make no event; a crash handler's makes one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness, Made

from monitor.kernel.abi import Access, Cause, Disposition, Kind

Compiled = Callable[[str], Path]
HANDLED = ("fault", "prot_none", "handler")
ENDED = ("fault", "prot_none", "handler_ended")
KILLED = ("fault", "prot_none", "default")
WHERE = ("blocked", "stack")


def dispositions(made: Made) -> list[str]:
    """Of the faults that made a record."""
    return [Disposition(record.disposition).label for record in made.of_kind(Kind.FAULT)]


def faults(made: Made) -> dict[tuple[str, ...], int]:
    return {cell: number for cell, number in made.counted.items() if cell[0] == "fault"}


def crash(harness: Harness, compiled: Compiled, where: str, end: str, handled: int = 0) -> Made:
    with harness.configured(emit_handled=handled):
        return harness.run([compiled("crash"), where, end, "--wait"])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("end", "code"),
    [("exit", 11), ("abort", -signal.SIGABRT), ("raise", -signal.SIGSEGV)],
)
def test_a_process_that_ends_in_its_handler_makes_one_event(
    harness: Harness, compiled: Compiled, where: str, end: str, code: int
) -> None:
    made = crash(harness, compiled, where, end)
    assert made.exits == [code]
    assert dispositions(made) == ["handler_ended"]
    assert faults(made) == {HANDLED: 1, ENDED: 1}
    (record,) = made.of_kind(Kind.FAULT)
    assert (Cause(record.cause), Access(record.access)) == (Cause.PROT_NONE, Access.WRITE)
    assert (record.pid, record.signal_code, record.error_code & 6) == (made.child.pid, 2, 6)
    assert made.counted["event", "fault", "filtered"] == 1
    assert made.counted["event", "fault", "submitted"] == 1


def test_it_is_reported_as_it_was_at_the_fault(harness: Harness, compiled: Compiled) -> None:
    """Where: its instruction, stack and mapping, although the process is in abort() by now."""
    expected, ended = (
        crash(harness, compiled, "stack", end).of_kind(Kind.FAULT)[0]
        for end in ("default", "abort")
    )
    if not ended.mapping.end:
        pytest.skip("this kernel ends a process's memory before sched_process_exit")
    for record in (expected, ended):
        assert record.caller == record.instruction_pointer
        assert record.mapping.start <= record.address < record.mapping.end
        assert record.stack.addresses[0] == record.instruction_pointer
    assert ended.executable == expected.executable == b"crash"
    bases = [record.stack.module[0].base for record in (expected, ended)]
    assert expected.instruction_pointer - bases[0] == ended.instruction_pointer - bases[1]
    assert ended.stack.depth == expected.stack.depth >= 1


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("end", ["jump", "mend and exit", "mend and abort", "mend, block and exit"])
def test_what_goes_on_after_its_handler_makes_no_event(
    harness: Harness, compiled: Compiled, where: str, end: str
) -> None:
    made = crash(harness, compiled, where, end)
    assert faults(made) == {HANDLED: 1}
    assert made.records == []
    assert made.counted["event", "fault", "filtered"] == 1


@pytest.mark.parametrize("where", WHERE)
def test_threads_that_others_end_in_a_handler_make_no_event(
    harness: Harness, compiled: Compiled, where: str
) -> None:
    made = crash(harness, compiled, where, "pause")
    assert (faults(made), made.records) == ({HANDLED: 1}, [])


@pytest.mark.parametrize("where", WHERE)
def test_another_program_after_the_handler_makes_no_event(
    harness: Harness, compiled: Compiled, where: str
) -> None:
    made = crash(harness, compiled, where, "exec")
    assert made.exits == [0]
    assert (faults(made), made.records) == ({HANDLED: 1}, [])


@pytest.mark.parametrize("where", WHERE)
def test_back_at_the_fault_it_dies_of_that(
    harness: Harness, compiled: Compiled, where: str
) -> None:
    made = crash(harness, compiled, where, "default")
    assert made.exits == [-signal.SIGSEGV]
    assert dispositions(made) == ["default"]
    assert faults(made) == {HANDLED: 1, KILLED: 1}


def test_an_event_of_the_handler_is_the_only_one(harness: Harness, compiled: Compiled) -> None:
    made = crash(harness, compiled, "stack", "abort", handled=1 << Cause.PROT_NONE)
    assert dispositions(made) == ["handler"]
    assert faults(made) == {HANDLED: 1, ENDED: 1}
    assert made.counted["event", "fault", "filtered"] == 1


def test_handled_faults_make_events_by_their_cause(harness: Harness) -> None:
    with harness.configured(emit_causes=0, emit_handled=1 << Cause.PROT_NONE):
        page = harness.provoke("prot_none_handled")
        stack = harness.provoke("stack_overflow_altstack_handled")
    assert (dispositions(page), dispositions(stack)) == (["handler"], [])


# ---- Crash handlers of others --------------------------------------------------------------------

FAULTHANDLER = """
import ctypes, faulthandler, mmap
faulthandler.enable()
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
ctypes.string_at(LIBC.mmap(None, 4096, 0, 0x22, 2**64 - 1, 0), 1)
"""

SANITIZED = """
#include <sys/mman.h>
int main(void)
{
    volatile char *page = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return page[5];
}
"""


def one_crash(harness: Harness, *command: str | Path) -> Made:
    with harness.configured(emit_handled=0):
        made = harness.run(["sh", "-c", 'read _; exec "$0" "$@"', *command])
    assert dispositions(made) == ["handler_ended"]
    assert faults(made) == {HANDLED: 1, ENDED: 1}
    return made


def test_a_crash_under_faulthandler_makes_one_event(harness: Harness) -> None:
    made = one_crash(harness, sys.executable, "-S", "-c", FAULTHANDLER)
    assert made.exits == [-signal.SIGSEGV]


def test_a_crash_under_asan_makes_one_event(harness: Harness, tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    source, program = tmp_path / "sanitized.c", tmp_path / "sanitized"
    source.write_text(SANITIZED)
    command = ["gcc", "-fsanitize=address", str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=60)
    made = one_crash(harness, program)
    assert made.exits == [1]
