"""Every call that a seal refuses: what the record and the counters say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cell, Harness, Made, tally

from monitor.kernel.abi import Kind, Reason, Record, RecordFlag, Role, Verdict
from monitor.kernel.counters import mark_canary
from monitor.kernel.operations import OPERATIONS, decode_arguments
from monitor.kernel.syscalls import PAGE
from monitor.provoke import table as provoke

DENIALS = [p.name for p in provoke.PROVOCATIONS if p.kind == "denial"]
NOBODY = 65534


def facts_of(record: Record) -> dict[str, object]:
    """The record in the terms of a provocation's facts."""
    return {
        "operation": OPERATIONS[record.operation].name,
        "verdict": Verdict(record.verdict).label,
        "reason": Reason(record.reason).label,
        "role": Role(record.role).label,
        "sealed_start": record.mapping.start,
        "sealed_end": record.mapping.end,
        "partial_start": record.partial_start,
        "partial_end": record.partial_end,
        "hidden": bool(record.flags & RecordFlag.HIDDEN),
        "compat": bool(record.flags & RecordFlag.COMPAT),
        "result": record.result,
    }


def expected(facts: dict[str, object]) -> dict[str, object]:
    wanted = {
        key: facts[key]
        for key in (
            "operation",
            "verdict",
            "reason",
            "role",
            "sealed_start",
            "sealed_end",
            "partial_start",
            "partial_end",
            "hidden",
            "compat",
            "result",
        )
    }
    if facts["verdict"] != "sealed":  # only a proof has ranges that it rests on
        wanted |= {"partial_start": 0, "partial_end": 0}
    if facts["reason"] == "range_too_long":
        wanted |= {"sealed_start": 0, "sealed_end": 0}
    return wanted


def denials_counted(made: Made) -> dict[Cell, int]:
    """What was counted, without the seals that the provocation needed."""
    return {
        cell: number
        for cell, number in made.counted.items()
        if cell[0] in ("denial", "partial_update", "fault") or cell[:2] == ("event", "denial")
    }


@pytest.mark.parametrize("name", DENIALS)
def test_denial(harness: Harness, name: str) -> None:
    before = harness.workload()
    made = harness.provoke(name)
    facts = harness.as_seen(made.line)
    if facts is None:
        assert made.denials() == []
        assert harness.workload() == before
        return
    (record,) = made.of_kind(Kind.DENIAL)

    assert facts_of(record) == expected(facts)
    operation = OPERATIONS[record.operation]
    made_with = decode_arguments(operation, facts["arguments"])
    assert decode_arguments(operation, record.arguments) == made_with
    assert (record.address, record.length) == (facts["address"], facts["length"])
    assert denials_counted(made) == dict(tally([record]))
    assert made.counted["event", "denial", "submitted"] == 1
    before[facts["verdict"]] += 1
    assert harness.workload() == before


@pytest.mark.parametrize("name", DENIALS)
def test_caller_is_who_called_the_wrapper(harness: Harness, name: str) -> None:
    """Provocations call libc's syscall() through ctypes, which calls through libffi."""
    made = harness.provoke(name)
    if harness.as_seen(made.line) is None:
        return
    (record,) = made.of_kind(Kind.DENIAL)
    if name == "io_uring_madvise":  # made by a worker of the kernel, which has no user code
        assert (record.instruction_pointer, record.caller) == (0, 0)
        assert record.tid != record.pid == made.child.pid
        return
    if record.flags & RecordFlag.COMPAT:
        assert record.caller == record.instruction_pointer
        assert made.child.area(record.caller) is None  # machine code that it made itself
        return
    wrapper = made.child.area(record.instruction_pointer)
    caller = made.child.area(record.caller)
    assert wrapper is not None
    assert caller is not None
    assert re.search(r"/libc[.-]", wrapper.path)
    assert caller.permissions == "r-xp"
    assert re.search("/libffi|/_ctypes|/python", caller.path)
    assert record.stack_pointer < next(
        area.end for area in made.child.areas if area.path == "[stack]"
    )


@pytest.mark.parametrize("operation", ["mprotect", "munmap", "madvise"])
def test_caller_in_a_compiled_program(
    harness: Harness, compiled: Callable[[str], Path], operation: str
) -> None:
    made = harness.run([compiled("storm"), "1", "1", "0", operation, "--wait"])
    (record,) = made.of_kind(Kind.DENIAL)
    caller, wrapper = (made.child.area(a) for a in (record.caller, record.instruction_pointer))
    assert caller is not None
    assert wrapper is not None
    assert Path(caller.path).name == "storm"
    assert re.search(r"/libc[.-]", wrapper.path)


def test_process(harness: Harness) -> None:
    made = harness.provoke("munmap")
    (record,) = made.of_kind(Kind.DENIAL)
    child = made.child
    assert (record.pid, record.tid, record.vpid) == (child.pid, child.pid, child.pid)
    assert record.parent_pid == os.getpid()
    assert (record.uid, record.gid) == (os.getuid(), os.getgid())
    assert record.task_name.decode() == child.task_name
    assert record.executable.decode() == child.executable
    assert record.cgroup_id == harness.cgroup.stat().st_ino
    assert record.start_boot_ns * os.sysconf("SC_CLK_TCK") // 10**9 == child.start_ticks
    assert record.start_boot_ns < record.time_boot_ns


def test_user_and_thread(harness: Harness, compiled: Callable[[str], Path]) -> None:
    command = [compiled("storm"), "1", "1", "0", "munmap", "--wait"]
    made = harness.run(command, user=NOBODY, group=NOBODY - 1, extra_groups=[])
    (record,) = made.of_kind(Kind.DENIAL)
    assert (record.uid, record.gid) == (NOBODY, NOBODY - 1)
    assert record.pid == made.child.pid
    assert [record.tid] == made.line["tids"]
    assert record.tid != record.pid
    assert record.vpid == record.pid
    assert record.executable == b"storm"


@pytest.mark.parametrize(
    "name",
    [b"a b\n\t\"')", b"\xff\xfe\x1b[31m", b"123456789012345"],
    ids=["quotes", "not-utf-8", "longest"],
)
def test_process_name_is_passed_on_as_it_is(
    harness: Harness, compiled: Callable[[str], Path], name: bytes
) -> None:
    made = harness.run([compiled("names"), name.hex(), "--wait"])
    (record,) = made.of_kind(Kind.DENIAL)
    assert record.task_name == name


def test_pid_in_a_namespace(harness: Harness) -> None:
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("unshare is not installed")
    command = [unshare, "--pid", "--fork", "--kill-child", *provoke.command(["munmap"])]
    wait = ["bash", "-c", 'read -n 1; exec "$@"', "bash"]
    made = harness.run([*wait, *command], env=provoke.environment())
    (record,) = made.of_kind(Kind.DENIAL)
    assert made.line["pid"] == 1
    assert record.vpid == 1
    assert record.parent_pid == made.child.pid
    assert record.pid not in (1, made.child.pid)


def test_mapped_file(harness: Harness, tmp_path: Path) -> None:
    file = tmp_path / ("long-name-" * 8)
    file.write_bytes(bytes(4 * PAGE))
    made = harness.python(
        """
file = os.open(sys.argv[1], os.O_RDONLY)
start = need("mmap", 0, 2 * PAGE, 1, 2, file, 2 * PAGE)
seal(start, 2 * PAGE)
result = call("munmap", start + PAGE, PAGE)
print(json.dumps({"start": start, "result": result}))
""",
        str(file),
    )
    (record,) = made.of_kind(Kind.DENIAL)
    status = file.stat()
    mapping = record.mapping
    assert (mapping.start, mapping.end) == (made.line["start"], made.line["start"] + 2 * PAGE)
    assert (mapping.inode, mapping.page_offset) == (status.st_ino, 2)
    assert (mapping.device >> 20, mapping.device & 0xFFFFF) == (
        os.major(status.st_dev),
        os.minor(status.st_dev),
    )
    assert mapping.file.decode() == file.name[:63]
    assert mapping.flags & harness.config.sealed_mask


def test_named_memory(harness: Harness) -> None:
    made = harness.python(
        """
pages = lay("r")
name = ctypes.create_string_buffer(b"my arena")
result = call("prctl", 0x53564d41, 0, pages.start, 4096, ctypes.addressof(name))
seal(pages.start, 4096)
call("munmap", pages.start, 4096)
print(json.dumps({"named": result}))
"""
    )
    if made.line["named"]:
        pytest.skip(f"PR_SET_VMA_ANON_NAME: {os.strerror(-made.line['named'])}")
    (record,) = made.of_kind(Kind.DENIAL)
    assert record.mapping.name == b"my arena"
    assert record.mapping.file == b""


def test_no_process_may_pass_for_the_canary(harness: Harness) -> None:
    """The canary is known by its pid and start time, which only the daemon writes."""
    before = harness.canary_counts()
    harness.config.canary_start_ticks = 1
    harness.config.canary_pid = os.getpid()
    try:
        made = harness.provoke("munmap")
    finally:
        harness.config.canary_pid = 0
    assert made.counted["denial", "munmap", "sealed"] == 1
    assert harness.canary_counts() == before


def test_canary_is_counted_apart(harness: Harness) -> None:
    before = harness.canary_counts()
    harness.settle()
    child = provoke.run("munmap", wait=True)
    try:
        mark_canary(harness.config, child.pid)
        output, _ = child.communicate("x")
    finally:
        mark_canary(harness.config, 0)
        child.kill()
        child.wait()
    assert json.loads(output)["verdict"] == "sealed"
    gained = harness.canary_counts() - before
    assert gained["denial", "munmap", "sealed"] == 1
    records, _ = harness.settle()
    assert [record for record in records if record.pid == child.pid] == []


def test_success_and_other_errors_leave_no_trace(harness: Harness) -> None:
    made = harness.python(
        """
pages = lay("rw")
call("munmap", 1, 4096)
call("mprotect", pages.start, 4096, 3)
call("madvise", pages.start, 4096, 4)
call("madvise", pages.start, 4096, 12345)
call("brk", 0)
call("shmdt", pages.start)
call("mprotect", 1 << 46, 4096, 3)
"""
    )
    assert made.records == []
    assert made.counted == {}
