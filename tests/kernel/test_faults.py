"""Faults as their SIGSEGV is delivered: what the record and the counters say of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness, Made

from monitor.evidence import events
from monitor.evidence.classify import classify
from monitor.kernel.abi import Access, Cause, Disposition, Kind, Record, RecordFlag
from monitor.kernel.arch import ARM64, NUMBERS, THIS
from monitor.kernel.layouts import FUNCTIONS
from monitor.kernel.syscalls import PAGE
from monitor.provoke import table as provoke

FAULTS = [p.name for p in provoke.PROVOCATIONS if p.kind == "fault"]
PRESENT, WRITE, USER, FETCH = 1, 2, 4, 16

# Of the fault itself: si_code, x86 error code, permissions of the mapping, inferred.
MAPERR, ACCERR, PKUERR, FROM_KERNEL = 1, 2, 4, 0x80
GUARD, ANY = "guard", None
ORIGIN = events.Origin("i", "t", 0, events.Host("h", "b", "r"), None, None)
EXPECTED: dict[str, tuple[int, int | None, str | None, bool | str]] = {
    "guard_region_write": (MAPERR, USER | WRITE, "rw-", GUARD),
    "guard_region_read": (MAPERR, USER, "rw-", GUARD),
    "guard_region_handled": (MAPERR, USER | WRITE, "rw-", GUARD),
    "prot_none": (ACCERR, ANY, "---", False),
    "prot_none_handled": (ACCERR, ANY, "---", False),
    "stack_overflow": (MAPERR, USER | WRITE, None, True),
    "stack_overflow_handler_failed": (MAPERR, USER | WRITE, None, True),
    "stack_overflow_altstack_handled": (MAPERR, USER | WRITE, None, True),
    "sealed_write": (ACCERR, PRESENT | USER | WRITE, "r--", False),
    "sealed_exec": (ACCERR, PRESENT | USER | FETCH, "r--", False),
    "sealed_prot_none": (ACCERR, ANY, "---", False),
    "pkey": (PKUERR, ANY, "rw-", False),
    "unmapped": (MAPERR, USER | WRITE, None, True),
    "null": (MAPERR, USER, None, True),
    "non_canonical": (FROM_KERNEL, ANY, None, False),
    "execute_nx": (ACCERR, PRESENT | USER | FETCH, "rw-", False),
    "read_only_write": (ACCERR, PRESENT | USER | WRITE, "r--", False),
}
if THIS == ARM64:  # the highest bits of an address are a tag there, which nobody asks for
    EXPECTED["non_canonical"] = EXPECTED["null"]


def x86_code(error_code: int) -> int:
    """The bits of the processor's code of a page fault, in terms of x86."""
    if THIS != ARM64:
        return error_code & (PRESENT | WRITE | USER | FETCH)
    # arch/arm64/include/asm/esr.h: a class for code and one for data, the kind of fault, WnR
    return (
        USER
        | (PRESENT if error_code & 0x3C == 0x0C else 0)
        | (WRITE if error_code & 0x40 else 0)
        | (FETCH if error_code >> 26 == 0x20 else 0)
    )


def facts_of(record: Record) -> dict[str, object]:
    return {
        "cause": Cause(record.cause).label,
        "access": Access(record.access).label,
        "address": record.address,
        "disposition": Disposition(record.disposition).label,
        "mapping_start": record.mapping.start,
        "mapping_end": record.mapping.end,
    }


def permissions(record: Record) -> str | None:
    if not record.mapping.end:
        return None
    return "".join(
        letter if record.mapping.flags & bit else "-"
        for letter, bit in (("r", 1), ("w", 2), ("x", 4))
    )


def faults_counted(made: Made) -> dict[tuple[str, ...], int]:
    return {cell: number for cell, number in made.counted.items() if cell[0] == "fault"}


def test_every_fault_has_its_row() -> None:
    assert sorted(EXPECTED) == sorted(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(harness: Harness, name: str) -> None:
    made = harness.provoke(name)
    facts = made.line
    *first, last = made.of_kind(Kind.FAULT)
    code, error_code, permission, inferred = EXPECTED[name]
    if inferred == GUARD:  # certain on kernels that mark mappings with guard regions
        inferred = not harness.config.maybe_guard_mask

    assert made.exits == [facts["exit"]]
    assert facts_of(last) == {key: facts[key] for key in facts_of(last)}
    assert last.signal_code == code
    assert permissions(last) == permission
    assert bool(last.flags & RecordFlag.INFERRED) == inferred
    if error_code is not None:
        assert x86_code(last.error_code) == error_code
    assert last.caller == last.instruction_pointer

    cause = facts["cause"]
    counted = {("fault", cause, facts["disposition"]): 1}
    if facts["disposition"] == "handler_failed":
        counted["fault", cause, "handler"] = 1
        (handler,) = first
        assert facts_of(handler) == facts_of(last) | {"disposition": "handler"}
        assert (handler.instruction_pointer, handler.stack_pointer, handler.error_code) == (
            last.instruction_pointer,
            last.stack_pointer,
            last.error_code,
        )
    else:
        assert first == []
    assert made.counted["event", "fault", "submitted"] == len(counted)
    if facts["disposition"] == "handler":  # which is _exit(): the process ends there
        counted["fault", cause, "handler_ended"] = 1
        assert made.counted["event", "fault", "filtered"] == 1
    assert faults_counted(made) == counted
    assert not made.of_kind(Kind.DENIAL)


@pytest.mark.parametrize("name", ["guard_region_write", "sealed_write", "null"])
def test_fault_has_its_process_and_place(harness: Harness, name: str) -> None:
    made = harness.provoke(name)
    (record,) = made.of_kind(Kind.FAULT)
    place = made.child.area(record.instruction_pointer)
    assert place is not None
    assert place.permissions == "r-xp"
    assert (record.pid, record.tid) == (made.child.pid, made.child.pid)
    assert record.task_name.decode() == made.child.task_name
    assert record.executable.decode() == made.child.executable
    assert record.cgroup_id == harness.cgroup.stat().st_ino


HANDLED = """
pages = lay({layout!r})
LIBC.signal(11, LIBC._exit)
{access}
"""


@pytest.mark.parametrize(
    ("access", "words", "row"),
    [
        (
            ("S", "ctypes.CFUNCTYPE(None)(pages.start)()"),
            "execution of sealed memory at 0x{address:x} (r--p, anonymous): {who} got SIGSEGV, "
            "a handler was called; looks like an attack: a jump into sealed data",
            ("sealed_executed", "attack", "critical"),
        ),
        (
            ("S", "ctypes.c_ubyte.from_address(pages.start).value = 1"),
            "write to sealed memory at 0x{address:x} (r--p, anonymous): {who} got SIGSEGV, "
            "a handler was called; looks like an attack: "
            "a write to memory that is sealed against writing",
            ("sealed_written", "attack", "critical"),
        ),
        (
            ("N", "print(ctypes.c_ubyte.from_address(pages.start).value)"),
            "read of sealed memory at 0x{address:x} (---p, anonymous): {who} got SIGSEGV, "
            "a handler was called; probably a bug: a read of memory that is sealed against reading",
            ("sealed_read", "bug", "critical"),
        ),
        (
            ("n", "print(ctypes.c_ubyte.from_address(pages.start).value)"),
            "read of PROT_NONE memory at 0x{address:x} (---p, anonymous): {who} got SIGSEGV, "
            "a handler was called; "
            "not known: the handler may have mended it, or reported a crash",
            ("handled", "unknown", "warning"),
        ),
    ],
)
def test_a_handler_was_called(
    harness: Harness, access: tuple[str, str], words: str, row: tuple[str, str, str]
) -> None:
    made = harness.python(HANDLED.format(layout=access[0], access=access[1]))
    assert made.exits == [11]
    (record,) = made.of_kind(Kind.FAULT)
    who = f"{made.child.executable} (pid {made.child.pid})"
    event = classify(record, ORIGIN, sealed_mask=harness.config.sealed_mask)
    assert isinstance(event, events.Fault)
    assert event.summary == words.format(address=record.address, who=who)
    assert event.assessment is not None
    assert (event.assessment.name, event.assessment.likely, event.severity) == row
    assert event.disposition == "handler"


def test_guard_region_is_certain_where_the_kernel_marks_it(harness: Harness) -> None:
    if not harness.config.maybe_guard_mask:
        pytest.skip("this kernel does not mark mappings with guard regions")
    made = harness.provoke("guard_region_write")
    (record,) = made.of_kind(Kind.FAULT)
    assert record.mapping.flags & harness.config.maybe_guard_mask
    assert not record.flags & RecordFlag.INFERRED


@pytest.mark.parametrize("name", ["raise_sigsegv", "kill_sigsegv"])
def test_a_sent_signal_is_no_fault(harness: Harness, name: str) -> None:
    made = harness.provoke(name)
    assert made.exits == [-signal.SIGSEGV]
    assert made.records == []
    assert made.counted == {}


# rt_sigqueueinfo to itself: only for itself may a process make up every member of siginfo.
FORGED = """
pages = lay({layout!r})
information = (ctypes.c_uint64 * 16)()
ctypes.c_int32.from_buffer(information, 0).value = 11
ctypes.c_int32.from_buffer(information, 8).value = {code}
information[2] = pages.start
LIBC.syscall.argtypes = None
LIBC.syscall({queue}, os.getpid(), 11, ctypes.byref(information))
"""


@pytest.mark.parametrize("code", [MAPERR, ACCERR, PKUERR, FROM_KERNEL])
@pytest.mark.parametrize("layout", ["w", "n", "S"])
def test_a_made_up_siginfo_is_no_fault(harness: Harness, code: int, layout: str) -> None:
    made = harness.python(FORGED.format(code=code, layout=layout, queue=NUMBERS["rt_sigqueueinfo"]))
    assert made.exits == [-signal.SIGSEGV]
    assert made.of_kind(Kind.FAULT) == []
    assert faults_counted(made) == {}


def test_handled_fault_then_another(harness: Harness) -> None:
    """A handler that takes its fault, then a fault elsewhere with the default action."""
    made = harness.python(
        """
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
pages = lay("nn")
def on_fault(number):
    need("mprotect", pages.start, PAGE, 3)
    LIBC.signal(11, None)
keep = handler(on_fault)
LIBC.signal(11, keep)
ctypes.c_ubyte.from_address(pages.start + 5).value = 1
ctypes.c_ubyte.from_address(pages.start + PAGE + 6).value = 1
"""
    )
    first, second = made.of_kind(Kind.FAULT)
    assert second.address - first.address == PAGE + 1
    assert [Disposition(r.disposition).label for r in (first, second)] == ["handler", "default"]
    assert faults_counted(made) == {
        ("fault", "prot_none", "handler"): 1,
        ("fault", "prot_none", "default"): 1,
    }


@pytest.mark.parametrize(("threads", "count"), [(1, 1009), (8, 127)])
def test_handled_faults(
    harness: Harness, compiled: Callable[[str], Path], threads: int, count: int
) -> None:
    made = harness.run([compiled("faults"), str(threads), str(count), "--wait"])
    if made.exits == [77]:
        pytest.skip("this kernel has no guard regions")
    assert made.line["handled"] == threads * count
    assert faults_counted(made) == {("fault", "guard_region", "handler"): threads * count}
    records = made.of_kind(Kind.FAULT)
    assert len(records) == threads * count
    assert len({record.tid for record in records}) == threads
    assert len({record.address for record in records}) == threads


def test_nothing_is_attached_to_page_faults(harness: Harness) -> None:
    targets = {probe.target for probe in harness.loaded.probes if probe.attached}
    own = {"signal_generate", "sched_process_exit", "io_uring_complete", "sys_exit", *FUNCTIONS}
    assert all(target in own or target.startswith("syscalls:sys_exit_") for target in targets)
    assert not any(probe.lost for probe in harness.loaded.probes)
    by_tracepoint = {target for target in targets if target.startswith("syscalls:")}
    assert len(by_tracepoint) == (13 if harness.attach == "tracepoint" else 0)
    in_pairs = {"__ia32_sys_mremap", "__ia32_sys_mseal", "mfill_atomic_copy", "signal_generate"}
    in_pairs &= targets
    assert len(harness.loaded.links) == len(targets) + len(in_pairs)
