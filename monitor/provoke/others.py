"""Calls that fail with EPERM for another reason than a seal, or for two reasons at once: a monitor
must not report the others as seal denials.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable

from monitor.kernel.arch import NUMBERS
from monitor.kernel.syscalls import PAGE, call
from monitor.provoke.provocation import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    Facts,
    Provocation,
    Unsupported,
    lay,
    need,
)
from monitor.provoke.refusal import denial, expect_eperm, refused

__all__ = ["OTHERS"]

MAP_LOCKED, MADV_REMOVE = 0x2000, 9
F_ADD_SEALS, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1033, 8, 0x10
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER = 38, 1
_NO_FILE = 2**64 - 1
_RW = PROT_READ | PROT_WRITE
_OTHER_CAUSE = {"verdict": "unverified", "reason": "other_cause"}


def _refuse_by_filter(name: str) -> None:
    """Set a seccomp filter that refuses the system call `name` with EPERM, for ever."""
    instructions = (
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, NUMBERS[name]),  # equal: go on, else skip one
        (0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO | EPERM
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    words = [code | yes << 16 | no << 24 | k << 32 for code, yes, no, k in instructions]
    program = (ctypes.c_uint64 * len(words))(*words)
    header = (ctypes.c_uint64 * 2)(len(words), ctypes.addressof(program))
    need("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    need("seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(header))


def _without_capabilities(make: Callable[[], int]) -> int:
    """Result of `make` while no capability is in effect; afterwards they are again."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    own = (ctypes.c_uint32 * 6)()
    need("capget", ctypes.addressof(header), ctypes.addressof(own))
    none = (ctypes.c_uint32 * 6)(0, own[1], own[2], 0, own[4], own[5])
    need("capset", ctypes.addressof(header), ctypes.addressof(none))
    try:
        return make()
    finally:
        need("capset", ctypes.addressof(header), ctypes.addressof(own))


def _seccomp(layout: str, name: str, operation: str, **differing: object) -> Facts:
    pages = lay(layout)
    values = (pages.start, PAGE, _RW) if operation == "mprotect" else (pages.start, PAGE)
    _refuse_by_filter(name)
    result = call(operation, *values)
    expect_eperm(operation, result)
    return denial(operation, values, result, pages, **differing)


def _map_file(layout: str, file: int, protection: int, flags: int) -> Facts:
    """Map `file` over the page of `layout`, and close it."""
    differing = _OTHER_CAUSE if layout.isupper() else {}
    flags |= MAP_FIXED
    try:
        return refused(
            "mmap", layout, lambda start: (start, PAGE, protection, flags, file, 0), **differing
        )
    finally:
        os.close(file)


def _write_sealed_file(file_seal: int) -> int:
    file = os.memfd_create("seal-monitor", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, PAGE)
    need("fcntl", file, F_ADD_SEALS, file_seal)
    return file


def _memfd_seal(layout: str) -> Facts:
    return _map_file(layout, _write_sealed_file(F_SEAL_WRITE), _RW, MAP_SHARED)


def _noexec(layout: str) -> Facts:
    """procfs forbids executable mappings of its files wherever it is mounted."""
    file = os.open("/proc/self/status", os.O_RDONLY)
    return _map_file(layout, file, PROT_READ | PROT_EXEC, MAP_PRIVATE)


def _mlock_limit(layout: str) -> Facts:
    pages = lay(layout)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED
    values = (pages.start, PAGE, _RW, flags, _NO_FILE, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        result = _without_capabilities(lambda: call("mmap", *values))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    expect_eperm("mmap", result)
    return denial("mmap", values, result, pages, **(_OTHER_CAUSE if layout.isupper() else {}))


def _remove_write_sealed() -> Facts:
    """F_SEAL_FUTURE_WRITE: unlike F_SEAL_WRITE it leaves the writable mapping alone."""
    file = os.memfd_create("seal-monitor", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, PAGE)
    start = need("mmap", 0, PAGE, _RW, MAP_SHARED, file, 0)
    need("fcntl", file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    os.close(file)
    values = (start, PAGE, MADV_REMOVE)
    result = call("madvise", *values)
    expect_eperm("madvise", result)
    return denial("madvise", values, result, None)


def _below_min_addr() -> Facts:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    values = (0, PAGE, _RW, flags, _NO_FILE, 0)
    result = _without_capabilities(lambda: call("mmap", *values))
    if result == 0:
        call("munmap", 0, PAGE)  # else a null pointer would lead to memory from now on
        raise Unsupported("vm.mmap_min_addr is 0: nothing is refused")
    expect_eperm("mmap", result)
    return denial("mmap", values, result, None)


OTHERS = (
    Provocation(
        "seccomp",
        "other",
        "a seccomp filter refuses mprotect on unsealed memory",
        lambda: _seccomp("w", "mprotect", "mprotect"),
        lasting=True,
    ),
    Provocation(
        "seccomp_sealed",
        "other",
        "a seccomp filter refuses mprotect on sealed memory",
        lambda: _seccomp("S", "mprotect", "mprotect", verdict="unverified", reason="seccomp"),
        lasting=True,
    ),
    Provocation(
        "seccomp_elsewhere",
        "denial",
        "unmap a sealed page under a seccomp filter that allows munmap",
        lambda: _seccomp("S", "getppid", "munmap"),
        lasting=True,
    ),
    Provocation(
        "memfd_seal",
        "other",
        "map a write-sealed memfd shared and writable",
        lambda: _memfd_seal("w"),
    ),
    Provocation(
        "memfd_seal_fixed",
        "other",
        "the same over a sealed page",
        lambda: _memfd_seal("S"),
    ),
    Provocation(
        "noexec",
        "other",
        "map a file executable that lies on a noexec mount",
        lambda: _noexec("w"),
    ),
    Provocation("noexec_fixed", "other", "the same over a sealed page", lambda: _noexec("S")),
    Provocation(
        "mlock_limit",
        "other",
        "map locked memory with a limit of zero",
        lambda: _mlock_limit("w"),
    ),
    Provocation(
        "mlock_limit_fixed", "other", "the same over a sealed page", lambda: _mlock_limit("S")
    ),
    Provocation(
        "remove_write_sealed",
        "other",
        "MADV_REMOVE on a mapping of a write-sealed memfd",
        _remove_write_sealed,
    ),
    Provocation(
        "below_min_addr",
        "other",
        "map memory below vm.mmap_min_addr without privilege",
        _below_min_addr,
    ),
)
