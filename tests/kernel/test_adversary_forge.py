"""What an ordinary user forges: faults that were none, verdicts that say less than is known."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cell, Harness, Made

from monitor.evidence.assessment import caller_of
from monitor.evidence.libraries import Libraries
from monitor.kernel.abi import Cause, Kind

NOBODY = 65534
NUMBER = 300


@pytest.fixture
def forge(harness: Harness, compiled: Callable[[str], Path]) -> Callable[..., Made]:
    """Runs tests/assets/forge.c as an ordinary user."""

    def run(way: str, count: int = NUMBER) -> Made:
        command = [compiled("forge"), way, count, "--wait"]
        made = harness.run(command, user=NOBODY, group=NOBODY, extra_groups=())
        assert made.exits == [0]
        return made

    return run


def counted(made: Made, kind: str) -> dict[Cell, int]:
    return {cell: number for cell, number in made.counted.items() if cell[0] == kind}


Forge = Callable[..., Made]


def test_a_queued_copy_of_a_fault_is_no_fault(forge: Forge) -> None:
    """By each call that takes a siginfo, of 32 bits, too; the first one is real."""
    made = forge("queued")
    assert made.line["seen"] == NUMBER + 1
    assert counted(made, "fault") == {("fault", "sealed", "handler"): 1}


@pytest.mark.parametrize("way", ["queued_in_child", "queued_to_thread"])
def test_a_copy_from_elsewhere_is_no_fault(forge: Forge, way: str) -> None:
    assert counted(forge(way), "fault") == {("fault", "sealed", "handler"): 1}


def test_a_handler_without_a_stack_is_still_counted(forge: Forge) -> None:
    """The kernel's own SIGSEGV at the end of a call: no access, so cause other."""
    made = forge("lost_stack", 9)
    assert counted(made, "fault") == {("fault", "other", "default"): 9}


def test_what_a_tracer_keeps_back_is_counted(forge: Forge) -> None:
    made = forge("swallowed")
    assert made.line["seen"] == NUMBER
    assert counted(made, "fault") == {("fault", "sealed", "default"): NUMBER}


def test_a_hole_that_is_mapped_again_is_no_guard_region(harness: Harness, forge: Forge) -> None:
    if not harness.config.maybe_guard_mask:
        pytest.skip("this kernel does not mark mappings with guard regions")
    made = forge("churn", 5000)
    found = Counter(Cause(record.cause).label for record in made.of_kind(Kind.FAULT))
    assert found["guard_region"] == 0
    assert sum(found.values()) == made.line["seen"]


# Where the function that refuses is seen, its refusal is the proof.
def verdicts(harness: Harness, operation: str, reason: str, count: int) -> dict[Cell, int]:
    if harness.at_seal(operation):
        return {("denial", operation, "sealed"): count}
    return {("denial", operation, "unverified"): count, ("unverified", reason): count}


def judged(made: Made) -> dict[Cell, int]:
    return counted(made, "denial") | counted(made, "unverified")


@pytest.mark.parametrize(("way", "reason"), [("late", "late_seccomp"), ("early", "seccomp")])
def test_a_filter_says_when_it_came(harness: Harness, forge: Forge, way: str, reason: str) -> None:
    made = forge(f"{way}_filter")
    assert made.line["seen"] == NUMBER
    assert judged(made) == verdicts(harness, "mprotect", reason, NUMBER)


def test_a_call_that_a_tracer_answers_is_not_proved(harness: Harness, forge: Forge) -> None:
    """The kernel never ran it, so that its own functions have not refused it.

    On arm64 the result that the tracer wrote stands where the address was, and has no seal.
    """
    made = forge("emulated")
    assert made.line["seen"] == NUMBER
    if harness.at_seal("munmap"):
        assert judged(made) == {}
    elif os.uname().machine == "aarch64":
        assert judged(made) == {("denial", "munmap", "not_sealed"): NUMBER}
        addresses = {record.address for record in made.of_kind(Kind.DENIAL)}
        assert addresses == {2**64 - errno.EPERM}
    else:
        assert judged(made) == verdicts(harness, "munmap", "traced", NUMBER)


def test_a_call_that_a_tracer_turned_on_a_seal_is_proved(forge: Forge) -> None:
    """Its arguments are those with which the kernel ran it."""
    made = forge("diverted")
    assert made.line["seen"] == NUMBER
    assert judged(made) == {("denial", "munmap", "sealed"): NUMBER}


@pytest.mark.parametrize("before", [300, 60000])
def test_mappings_before_the_seal_do_not_hide_it(forge: Forge, before: int) -> None:
    made = forge("behind", before)
    assert made.line["seen"] == 1
    assert judged(made) == {("denial", "munmap", "sealed"): 1}
    (record,) = made.of_kind(Kind.DENIAL)
    assert record.mapping.flags & 7 == 0


# Who called, by the files of the host, and what stood on the stack.
@pytest.mark.parametrize(("way", "caller"), [("freed", "allocator"), ("as_libc", "program")])
def test_who_called(forge: Forge, way: str, caller: str) -> None:
    records = forge(way, 3).of_kind(Kind.DENIAL)
    assert len(records) == 3
    role_of = Libraries().role
    for record in records:
        innermost, above = (record.stack.modules[place] for place in (0, 1))
        assert record.stack.addresses[1] == record.caller
        assert record.stack.module[above].file.startswith(b"libc")
        assert (innermost == above) == (caller == "allocator")
        assert caller_of(record.stack, record.caller, role_of) == caller


def test_a_copy_of_the_library_is_the_programs_own(
    harness: Harness, compiled: Callable[[str], Path], build_directory: Path
) -> None:
    """The same name, the same bytes, another file: whose, the kernel says."""
    copies = build_directory / "copies"
    copies.mkdir(mode=0o755, exist_ok=True)
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith("libc.so"):
            shutil.copy(path, copies / path.name)
            os.chown(copies / path.name, NOBODY, NOBODY)
            break
    command = ["env", f"LD_LIBRARY_PATH={copies}", compiled("forge"), "freed", 3, "--wait"]
    made = harness.run(command, user=NOBODY, group=NOBODY, extra_groups=())
    records = made.of_kind(Kind.DENIAL)
    assert len(records) == 3
    for record in records:
        module = record.stack.module[record.stack.modules[0]]
        assert (module.file, module.is_roots) == (b"libc.so.6", 0)
        assert caller_of(record.stack, record.caller, Libraries().role) == "program"
