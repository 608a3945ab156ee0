"""Bypasses: what the record and the counters say of each."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from harness import SECOND_NS, Harness, Made

from monitor.kernel.abi import Kind, Method, Outcome, Record
from monitor.provoke import table as provoke

BYPASSES = [p.name for p in provoke.PROVOCATIONS if p.kind == "bypass"]


def facts_of(record: Record) -> dict[str, object]:
    """The record in the terms of a provocation's facts."""
    return {
        "method": Method(record.bypass.method).label,
        "address": record.address,
        "length": record.length,
        "sealed_start": record.mapping.start,
        "sealed_end": record.mapping.end,
        "target": record.bypass.pid,
    }


def is_seen(harness: Harness, facts: dict[str, Any]) -> bool:
    probe = next((p for p in harness.loaded.probes if p.probe == facts["method"]), None)
    return probe is not None and probe.attached


def counted(made: Made) -> dict[tuple[str, ...], int]:
    return {
        cell: number
        for cell, number in made.counted.items()
        if cell[0] in ("bypass", "denial") or cell[:2] == ("event", "bypass")
    }


@pytest.mark.parametrize("name", BYPASSES)
def test_bypass(harness: Harness, name: str) -> None:
    made = harness.provoke(name)
    facts = made.line
    if not is_seen(harness, facts):
        assert counted(made) == {}
        return
    (record,) = made.of_kind(Kind.BYPASS)
    assert facts_of(record) == {key: facts[key] for key in facts_of(record)}
    assert record.mapping.flags & harness.config.sealed_mask
    assert counted(made) == {
        ("bypass", facts["method"]): 1,
        ("event", "bypass", "submitted"): 1,
    }
    assert record.tid == record.pid or name == "io_uring_relro"  # a worker of the kernel's
    assert (record.bypass.start_boot_ns == record.start_boot_ns) == (record.pid == facts["target"])


def test_discards_that_change_nothing(harness: Harness) -> None:
    """Code that nobody has written to, sealed writable memory, and what is not sealed."""
    made = harness.python(
        """
file = os.memfd_create("seal-monitor")
os.write(file, b"x" * 4096)
RW = PROT_READ | PROT_WRITE
clean = need("mmap", 0, 4096, PROT_READ, MAP_PRIVATE, file, 0)
ctypes.string_at(clean, 1)
writable = need("mmap", 0, 4096, RW, MAP_PRIVATE, file, 0)
shared = need("mmap", 0, 4096, PROT_READ, MAP_SHARED, file, 0)
unsealed = need("mmap", 0, 4096, RW, MAP_PRIVATE, file, 0)
ctypes.memset(writable, 1, 4096)
ctypes.memset(unsealed, 1, 4096)
need("mprotect", unsealed, 4096, PROT_READ)
for address in (clean, writable, shared):
    seal(address, 4096)
for address in (clean, writable, shared, unsealed, lay("W").start):
    need("madvise", address, 4096, 4)
print(json.dumps({}))
"""
    )
    assert made.of_kind(Kind.BYPASS) == []
    assert counted(made) == {}


def test_guards_that_are_none_are_not_taken_away(harness: Harness) -> None:
    """Sealed memory that never held a guard region, and a guard region that nobody has sealed."""
    made = harness.python(
        """
plain, sealed, guarded = lay("W"), lay("S"), lay("w")
refused = call("madvise", guarded.start, 4096, 102)
for pages in (plain, sealed, guarded) if not refused else ():
    need("madvise", pages.start, 4096, 103)
print(json.dumps({"refused": refused}))
"""
    )
    if made.line["refused"]:
        pytest.skip("this kernel has no guard regions")
    # Without the kernel's mark, touched memory may have held some.
    is_marked = harness.config.maybe_guard_mask
    assert counted(made).get(("bypass", "guard_remove"), 0) == (0 if is_marked else 2)


STORM = 3001


def test_counts_are_exact_and_every_event_is_accounted_for(harness: Harness) -> None:
    hour = 3600 * SECOND_NS
    missed = harness.missed()
    with harness.configured(event_interval_ns=hour, event_burst_ns=9 * hour, emit_seals=0):
        made = harness.python(
            f"""
from monitor.provoke.bypasses import _relro
start = _relro(1)
for _ in range({STORM}):
    need("madvise", start, 4096, 4)
print(json.dumps({{}}))
"""
        )
        (bucket,) = (
            bucket
            for key, bucket in harness.state.buckets.items()
            if (key.pid, key.kind, key.what)
            == (made.child.pid, Kind.BYPASS, Method.MADVISE_DISCARD)
        )
    events = {o: made.counted["event", "bypass", o.label] for o in Outcome}
    assert sum(events.values()) == made.counted["bypass", "madvise_discard"]
    assert len(made.of_kind(Kind.BYPASS)) == events[Outcome.SUBMITTED] == 10
    assert events[Outcome.SUPPRESSED] == bucket.suppressed
    if harness.missed() == missed:
        assert sum(events.values()) == STORM


def test_memory_of_another_process(harness: Harness) -> None:
    """Who did it, and to which process's memory; the stack is that of the first."""
    made = harness.provoke("ptrace_poke")
    if not is_seen(harness, made.line):
        return
    (record,) = made.of_kind(Kind.BYPASS)
    assert (record.pid, record.bypass.pid) == (made.child.pid, made.line["target"])
    assert record.bypass.executable.decode() == made.child.executable
    assert record.bypass.task_name.decode() == made.child.task_name
    assert record.bypass.start_boot_ns > record.start_boot_ns
    assert made.child.area(record.instruction_pointer) is not None


def test_in_a_pid_namespace(harness: Harness) -> None:
    """The pid that ptrace gets is one of its caller's namespace."""
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("unshare is not installed")
    command = [unshare, "--pid", "--fork", "--kill-child", *provoke.command(["ptrace_poke"])]
    wait = ["bash", "-c", 'read -n 1; exec "$@"', "bash"]
    made = harness.run([*wait, *command], env=provoke.environment())
    (record,) = made.of_kind(Kind.BYPASS)
    assert (made.line["pid"], record.vpid) == (1, 1)
    assert record.bypass.pid > record.pid > made.child.pid
    assert record.mapping.start == made.line["sealed_start"]


def test_what_is_no_bypass(harness: Harness) -> None:
    """Writes to writable memory and to unsealed memory; reads of sealed memory."""
    made = harness.python(
        """
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    for layout in ("W", "w", "r"):
        memory.seek(lay(layout).start)
        try:
            memory.write(b"x")
        except OSError:
            assert layout == "r"
    memory.seek(lay("S").start)
    memory.read(4096)
pages = lay("SW")
child = os.fork()
if not child:
    call("ptrace", 0)
    os.kill(os.getpid(), 19)
    os._exit(0)
os.waitpid(child, 0)
word = ctypes.c_uint64()
need("ptrace", 2, child, pages.start, ctypes.addressof(word))
need("ptrace", 5, child, pages.start + PAGE, word.value)
os.kill(child, 9)
os.waitpid(child, 0)
print(json.dumps({}))
"""
    )
    assert made.of_kind(Kind.BYPASS) == []
    assert counted(made) == {}
