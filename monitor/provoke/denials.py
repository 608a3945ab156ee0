"""Calls that a seal refuses, one in each row: the layout of the memory, and the arguments."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from monitor.kernel.syscalls import PAGE, call
from monitor.provoke.provocation import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Facts,
    Provocation,
    lay,
    need,
)
from monitor.provoke.refusal import denial, expect_eperm, refused, watching

__all__ = ["DENIALS", "SEALS"]

MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_WIPEONFORK = 4, 8, 9, 10, 18
MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL = 24, 102

_NO_FILE = 2**64 - 1
_ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
_RW = PROT_READ | PROT_WRITE
_MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def _madvise(layout: str, advice: int) -> Callable[[], Facts]:
    length = len(layout) * PAGE
    return lambda: refused("madvise", layout, lambda start: (start, length, advice))


def _mremap_onto_seal() -> Facts:
    source, pages = lay("w"), lay("S")
    values = (source.start, PAGE, PAGE, _MOVE, pages.start)
    result = call("mremap", *values)
    expect_eperm("mremap", result)
    return denial(
        "mremap", values, result, pages, role="destination", address=pages.start, length=PAGE
    )


def _mremap_source(layout: str, arguments: Callable[[int], tuple[int, ...]]) -> Callable[[], Facts]:
    return lambda: refused("mremap", layout, arguments, role="source")


def _process_madvise(layout: str) -> Facts:
    """One range for each page. The call returns an error only if the first range is refused."""
    pages = lay(layout)
    ranges = [(pages.start + index * PAGE, PAGE) for index in range(len(layout))]
    vector = (ctypes.c_uint64 * (2 * len(ranges)))(*(word for pair in ranges for word in pair))
    pidfd = os.pidfd_open(os.getpid())
    values = (pidfd, ctypes.addressof(vector), len(ranges), MADV_DONTNEED, 0)
    result, partial = watching(pages, lambda: call("process_madvise", *values))
    os.close(pidfd)
    done = pages.sealed_start - pages.start
    if not done or result != done:
        expect_eperm("process_madvise", result)
    return denial(
        "process_madvise",
        values,
        result,
        pages,
        address=pages.sealed_start,
        length=PAGE,
        hidden=result > 0,
        **partial,
    )


def _seal() -> Facts:
    pages = lay("w")
    values = (pages.start, PAGE, 0)
    result = need("mseal", *values)
    return {
        "operation": "mseal",
        "arguments": [*values, 0, 0, 0],
        "address": pages.start,
        "length": PAGE,
        "result": result,
        "errno": 0,
    }


def _row(
    operation: str, layout: str, arguments: Callable[[int], tuple[int, ...]]
) -> Callable[[], Facts]:
    return lambda: refused(operation, layout, arguments)


_TABLE: tuple[tuple[str, str, Callable[[], Facts]], ...] = (
    (
        "mprotect",
        "make a sealed page writable",
        _row("mprotect", "S", lambda a: (a, PAGE, _RW)),
    ),
    (
        "mprotect_partial",
        "take access from two pages and a sealed one: the first two may still change",
        _row("mprotect", "wrS", lambda a: (a, 3 * PAGE, PROT_NONE)),
    ),
    (
        "pkey_mprotect",
        "make a sealed page writable through pkey_mprotect",
        _row("pkey_mprotect", "S", lambda a: (a, PAGE, _RW, _NO_FILE)),
    ),
    (
        "pkey_mprotect_partial",
        "pkey_mprotect over two pages and a sealed one",
        _row("pkey_mprotect", "wrS", lambda a: (a, 3 * PAGE, PROT_NONE, _NO_FILE)),
    ),
    ("munmap", "unmap a sealed page", _row("munmap", "S", lambda a: (a, PAGE))),
    (
        "munmap_partial_range",
        "unmap a range that ends in a sealed page: nothing is unmapped",
        _row("munmap", "wS", lambda a: (a, 2 * PAGE)),
    ),
    (
        "munmap_range_too_long",
        "unmap a range with a sealed page behind three hundred other mappings",
        lambda: refused(
            "munmap",
            "rw" * 150 + "S",
            lambda a: (a, 301 * PAGE),
            verdict="unverified",
            reason="range_too_long",
        ),
    ),
    (
        "mremap_source",
        "grow a sealed mapping",
        _mremap_source("S", lambda a: (a, PAGE, 2 * PAGE, MREMAP_MAYMOVE)),
    ),
    (
        "mremap_source_shrink",
        "shrink a sealed mapping",
        _mremap_source("SS", lambda a: (a, 2 * PAGE, PAGE, 0)),
    ),
    (
        "mremap_source_move",
        "move a sealed page elsewhere",
        _mremap_source("S", lambda a: (a, PAGE, PAGE, _MOVE, lay("n").start)),
    ),
    ("mremap_destination", "move a page onto a sealed one", _mremap_onto_seal),
    (
        "mremap_shrink_into",
        "shrink a mapping so that a sealed page behind it would go",
        _mremap_source("wS", lambda a: (a, 2 * PAGE, PAGE, 0)),
    ),
    (
        "mremap_move_partial",
        "move a page and a sealed one: the first may have moved all the same",
        _mremap_source("wS", lambda a: (a, 2 * PAGE, 2 * PAGE, _MOVE, lay("nn").start)),
    ),
    (
        "mmap_fixed",
        "map new memory over a sealed page",
        _row("mmap", "S", lambda a: (a, PAGE, _RW, _ANONYMOUS | MAP_FIXED, _NO_FILE, 0)),
    ),
    (
        "mmap_fixed_partial_range",
        "map new memory over a page and a sealed one: nothing is replaced",
        _row("mmap", "wS", lambda a: (a, 2 * PAGE, _RW, _ANONYMOUS | MAP_FIXED, _NO_FILE, 0)),
    ),
    ("madvise", "discard a sealed read-only page", _madvise("S", MADV_DONTNEED)),
    (
        "madvise_partial",
        "discard two pages and a sealed one: the first two may be lost all the same",
        _madvise("wrS", MADV_DONTNEED),
    ),
    (
        "madvise_second",
        "discard a sealed writable page, which is allowed, and a read-only one, which is refused",
        _madvise("WS", MADV_DONTNEED),
    ),
    (
        "madvise_dontneed_locked",
        "MADV_DONTNEED_LOCKED on a sealed read-only page",
        _madvise("S", MADV_DONTNEED_LOCKED),
    ),
    (
        "madvise_dontfork",
        "MADV_DONTFORK on a sealed read-only page",
        _madvise("S", MADV_DONTFORK),
    ),
    ("madvise_free", "MADV_FREE on a sealed read-only page", _madvise("S", MADV_FREE)),
    (
        "madvise_wipeonfork",
        "MADV_WIPEONFORK on a sealed read-only page",
        _madvise("S", MADV_WIPEONFORK),
    ),
    ("madvise_remove", "MADV_REMOVE on a sealed read-only page", _madvise("S", MADV_REMOVE)),
    (
        "madvise_guard_install",
        "turn a sealed read-only page into a guard region",
        _madvise("S", MADV_GUARD_INSTALL),
    ),
    (
        "process_madvise_self",
        "discard a sealed page through process_madvise",
        lambda: _process_madvise("S"),
    ),
    (
        "process_madvise_hidden",
        "discard a page and a sealed one: the short result hides the refusal",
        lambda: _process_madvise("wS"),
    ),
)

DENIALS = tuple(Provocation(name, "denial", text, make) for name, text, make in _TABLE)
SEALS = (Provocation("seal", "seal", "seal a page: no violation", _seal),)
