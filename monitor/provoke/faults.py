"""Faults on guard regions, protections, seals and the stack, each reported before it is made."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable

from monitor.kernel.arch import THIS
from monitor.kernel.syscalls import LIBC, PAGE
from monitor.provoke.provocation import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Facts,
    Fault,
    Provocation,
    Unsupported,
    lay,
    machine_code,
    mappings,
    need,
)

__all__ = ["FAULTS"]

MADV_GUARD_INSTALL = 102
PKEY_DISABLE_ACCESS = 1
SA_ONSTACK = 0x08000000
SIGSEGV = 11

_OFFSET = 100  # in the page that is accessed: the fault address is the exact byte
_STACK_LIMIT = 1 << 20
_ALTERNATE_STACK = 1 << 16
_NON_CANONICAL = 1 << 63


class _SignalAction(ctypes.Structure):
    """glibc's struct sigaction."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def _read(address: int) -> None:
    _ = ctypes.c_ubyte.from_address(address).value


def _write(address: int) -> None:
    ctypes.c_ubyte.from_address(address).value = 1


def _execute(address: int) -> None:
    ctypes.CFUNCTYPE(None)(address)()


_ACCESSES: dict[str, Callable[[int], None]] = {
    "read": _read,
    "write": _write,
    "execute": _execute,
}


def _prepare_to_die(handled: bool = False, flags: int = 0) -> None:
    """Set the default action for SIGSEGV, or libc's _exit as its handler, and allow no core dump.

    _exit gets the signal's number, so the exit code is 11, and no Python runs in the handler. The
    core limit is 1, not 0: with 0 a core handler still starts where core_pattern is a pipe.
    """
    handler = ctypes.cast(LIBC._exit, ctypes.c_void_p).value if handled else None
    action = _SignalAction(handler=handler, flags=flags)
    LIBC.sigaction(SIGSEGV, ctypes.byref(action), None)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 1 if hard else 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def _fault(
    cause: str | None,
    access: str | None,
    address: int,
    mapping: tuple[int, int] = (0, 0),
    *,
    disposition: str = "default",
    strike: Callable[[], object] | None = None,
) -> Fault:
    """`mapping` is empty where none covers the address; the fact `exit` is as in subprocess."""
    facts: Facts = {
        "cause": cause,
        "access": access,
        "address": address,
        "disposition": disposition,
        "mapping_start": mapping[0],
        "mapping_end": mapping[1],
        "exit": SIGSEGV if disposition == "handler" else -SIGSEGV,
    }
    return Fault(facts, strike or (lambda: _ACCESSES[access or "read"](address)))


def _guard_region(access: str, disposition: str = "default") -> Fault:
    pages = lay("www")
    guard = pages.start + PAGE
    need("madvise", guard, PAGE, MADV_GUARD_INSTALL)
    _prepare_to_die(handled=disposition == "handler")
    mapping = (pages.start, pages.end)
    return _fault("guard_region", access, guard + _OFFSET, mapping, disposition=disposition)


def _page(layout: str, cause: str, access: str, disposition: str = "default") -> Fault:
    """Access the second of three pages, each of which is a separate mapping."""
    start = lay(layout).start + PAGE
    _prepare_to_die(handled=disposition == "handler")
    mapping = (start, start + PAGE)
    return _fault(cause, access, start + _OFFSET, mapping, disposition=disposition)


def _unmapped() -> Fault:
    start = lay("www").start + PAGE
    need("munmap", start, PAGE)
    _prepare_to_die()
    return _fault("other", "write", start + _OFFSET)


def _wild(touched: int, reported: int, access: str) -> Fault:
    """`reported`: the address that the kernel gives for an access at `touched`."""
    _prepare_to_die()
    return _fault("other", access, reported, strike=lambda: _ACCESSES[access](touched))


def _pkey() -> Fault:
    key = need("pkey_alloc", 0, PKEY_DISABLE_ACCESS)
    start = lay("rwr").start + PAGE
    need("pkey_mprotect", start, PAGE, PROT_READ | PROT_WRITE, key)
    _prepare_to_die()
    return _fault("pkey", "read", start + _OFFSET, (start, start + PAGE))


def _stack_end() -> int:
    for mapping in mappings():
        if mapping.name == "[stack]":
            return mapping.end
    raise Unsupported("/proc/self/maps shows no [stack]")


def _stack_overflow(disposition: str) -> Fault:
    """Push words on the main stack until it may not grow; the first past RLIMIT_STACK faults."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    limit = _STACK_LIMIT if soft == resource.RLIM_INFINITY else min(soft, _STACK_LIMIT)
    limit -= limit % PAGE
    resource.setrlimit(resource.RLIMIT_STACK, (limit, hard))
    if disposition == "handler":
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        stack = need("mmap", 0, _ALTERNATE_STACK, PROT_READ | PROT_WRITE, flags, 2**64 - 1, 0)
        alternate = (ctypes.c_uint64 * 3)(stack, 0, _ALTERNATE_STACK)
        need("sigaltstack", ctypes.addressof(alternate), 0)
    _prepare_to_die(
        handled=disposition != "default", flags=SA_ONSTACK if disposition == "handler" else 0
    )
    overflow = ctypes.CFUNCTYPE(None)(machine_code(THIS.push_for_ever))
    address = _stack_end() - limit - THIS.push_size
    return _fault("stack_guard", "write", address, disposition=disposition, strike=overflow)


def _signal_by(strike: Callable[[], object]) -> Callable[[], Fault]:
    def make() -> Fault:
        _prepare_to_die()
        return _fault(None, None, 0, strike=strike)

    return make


_TABLE: tuple[tuple[str, str, Callable[[], Fault]], ...] = (
    (
        "guard_region_write",
        "write into a guard region",
        lambda: _guard_region("write"),
    ),
    ("guard_region_read", "read from a guard region", lambda: _guard_region("read")),
    (
        "guard_region_handled",
        "write into a guard region; a signal handler takes it",
        lambda: _guard_region("write", "handler"),
    ),
    ("prot_none", "write into an inaccessible page", lambda: _page("wnw", "prot_none", "write")),
    (
        "prot_none_handled",
        "write into an inaccessible page; a signal handler takes it",
        lambda: _page("wnw", "prot_none", "write", "handler"),
    ),
    (
        "stack_overflow",
        "grow the stack past its limit",
        lambda: _stack_overflow("default"),
    ),
    (
        "stack_overflow_handler_failed",
        "the same with a handler, and no stack left for it",
        lambda: _stack_overflow("handler_failed"),
    ),
    (
        "stack_overflow_altstack_handled",
        "the same with a handler on a separate stack",
        lambda: _stack_overflow("handler"),
    ),
    ("sealed_write", "write to a sealed read-only page", lambda: _page("wSw", "sealed", "write")),
    ("sealed_exec", "execute a sealed read-only page", lambda: _page("wSw", "sealed", "execute")),
    (
        "sealed_prot_none",
        "read a sealed inaccessible page",
        lambda: _page("wNw", "sealed", "read"),
    ),
    ("pkey", "read a page whose protection key forbids it", _pkey),
    ("unmapped", "write where nothing is mapped", _unmapped),
    ("null", "read through a null pointer", lambda: _wild(8, 8, "read")),
    (
        "non_canonical",
        "read where only the highest bit is set: the kernel reports address 0",
        lambda: _wild(_NON_CANONICAL, 0, "read"),
    ),
    ("execute_nx", "execute a writable page", lambda: _page("rwr", "other", "execute")),
    ("read_only_write", "write to a read-only page", lambda: _page("wrw", "other", "write")),
)

_SIGNALS: tuple[tuple[str, str, Callable[[], object]], ...] = (
    ("raise_sigsegv", "raise SIGSEGV: no fault", lambda: getattr(LIBC, "raise")(SIGSEGV)),
    ("kill_sigsegv", "send SIGSEGV to itself: no fault", lambda: os.kill(os.getpid(), SIGSEGV)),
)

FAULTS = (
    *(Provocation(name, "fault", text, make, lasting=True) for name, text, make in _TABLE),
    *(
        Provocation(name, "other", text, _signal_by(strike), lasting=True)
        for name, text, strike in _SIGNALS
    ),
)
