"""A program is replaced while its hook stays attached.

Not in emulated machines with more than one CPU: QEMU before 8.1 without KVM may run what is being
patched ("accel/tcg: Always lock pages before translation"), and guests ended so, in a breakpoint
that nobody claimed at the jump that the kernel patches. A CPU ran thousands of replacements well.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from harness import why_no_fexit

from monitor.kernel import bpf, compiler, object, slots, tracefs
from monitor.kernel.arch import THIS
from monitor.kernel.attacher import look_at_kernel
from monitor.kernel.btf import KIND_FUNC, Btf
from monitor.kernel.counters import missed_runs
from monitor.kernel.loaded import LoadRequest
from monitor.kernel.probes import PROBES, Hook
from monitor.kernel.programs import Programs, missing, parts

CALL = "timer_getoverrun"  # which nobody else makes
NUMBER = {"x86_64": 225, "aarch64": 109}[os.uname().machine]
ARRAY, MMAPABLE = 2, 1 << 10
THREADS = 4
HOOKS = (
    Hook("fexit", THIS.native_function(CALL), "replaced"),
    Hook("tracepoint", f"syscalls:sys_exit_{CALL}", "replaced"),
)
# Rarely hit, with 1 to 6 arguments.
TRACEPOINTS = (
    "sched_wait_task",
    "sched_process_wait",
    "sched_process_fork",
    "sched_process_exec",
    "signal_generate",
    "mm_migrate_pages",
)


def counting(counts: int, index: int) -> bytes:
    """A program that adds 1 to a word of a map."""
    rows = (
        (0x18, 0x21, 0, counts),  # r1 = the map's first value,
        (0, 0, 0, 8 * index),  # and on from there
        (0xB7, 0x02, 0, 1),
        (0xDB, 0x21, 0, 0),  # atomic addition
        (0xB7, 0x00, 0, 0),
        (0x95, 0, 0, 0),
    )
    return b"".join(struct.pack("<BBhi", *row) for row in rows)


@pytest.fixture
def counts(require_bpf: None) -> Iterator[tuple[int, memoryview]]:
    descriptor = bpf.create_map(ARRAY, "counts", key=4, value=16, entries=1, flags=MMAPABLE)
    with (
        mmap.mmap(descriptor, mmap.PAGESIZE) as mapped,
        memoryview(mapped) as data,
        data.cast("Q") as words,
    ):
        yield descriptor, words
    os.close(descriptor)


def function_at(hook: Hook) -> int:
    if hook.mode != "fexit":
        return 0
    if reason := why_no_fexit():
        pytest.skip(reason)
    with Btf() as btf:
        return btf.find(hook.target, KIND_FUNC) or 0


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.mode)
def test_each_run_is_one_of_either(counts: tuple[int, memoryview], hook: Hook) -> None:
    descriptor, words = counts
    function = function_at(hook)
    programs = [
        bpf.load_program(slots.TYPES[hook.mode], "replaced", counting(descriptor, index), function)
        for index in range(2)
    ]
    mounted = tracefs.ensure()
    slot = slots.attach(hook, programs[0], function)
    if mounted.note:
        subprocess.run(["umount", "/sys/kernel/tracing"], check=True)
    made, ending = [0] * THREADS, threading.Event()
    call = ctypes.CDLL(None).syscall

    def storm(thread: int) -> None:
        while not ending.is_set():
            call(NUMBER, -1)
            made[thread] += 1

    threads = [threading.Thread(target=storm, args=(each,)) for each in range(THREADS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1
    flips = 0
    while time.monotonic() < deadline:
        flips += 1
        bpf.set_element(slot.array, 0, programs[flips % 2])
    ending.set()
    for thread in threads:
        thread.join()
    missed = missed_runs(slot.stub)  # a kernel with preemption may skip some, and counts them
    for each in (*programs, *slot[1:]):
        os.close(each)
    counted = words[:2].tolist()
    print(flips, counted, missed)
    assert min(counted) > 0
    assert sum(counted) + missed == sum(made)


def attaches(name: str, program: int) -> bool:
    """Whether the kernel attaches it there."""
    with contextlib.suppress(OSError):
        os.close(bpf.attach_raw_tracepoint(name, program))
        return True
    return False


def test_a_stub_is_attached_only_where_its_program_would_be(require_bpf: None) -> None:
    """The kernel's own check is of what the attached program reads."""
    compiled = object.read(compiler.OBJECT, compiler.digests())
    kernel = look_at_kernel()
    source = Programs(LoadRequest(), compiled, kernel)
    array = bpf.create_map(bpf.PROG_ARRAY, "slot", key=4, value=4, entries=1, flags=0)
    hooks = {
        part
        for probe in PROBES
        for hook in probe.hooks
        for part in parts(hook)
        if part.mode == "raw_tracepoint" and not missing(part, compiled, kernel)
    }
    seen: set[bool] = set()
    for hook in hooks:
        code = slots.stub(array, hook.arguments)
        stub = bpf.load_program(bpf.RAW_TRACEPOINT, "stub", code)
        program = source.load(hook)
        where = [(attaches(name, stub), attaches(name, program)) for name in TRACEPOINTS]
        assert [ours for ours, _ in where] == [its for _, its in where], hook
        seen.update(ours for ours, _ in where)
        os.close(stub)
    os.close(array)
    assert seen == {False, True}
    loaded = [each for each in source._loaded.values() if isinstance(each, int)]
    for each in (*source.maps.values(), *loaded):
        os.close(each)
