"""Refusals by other ways: shared segments, the heap, io_uring and 32-bit calls."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from monitor.kernel.arch import COMPAT_NUMBERS, NUMBERS, THIS
from monitor.kernel.syscalls import LIBC, PAGE, call
from monitor.provoke.provocation import (
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Facts,
    Pages,
    Provocation,
    Unsupported,
    lay,
    machine_code,
    mappings,
    need,
    seal,
)
from monitor.provoke.refusal import denial, expect_eperm

__all__ = ["INDIRECT_DENIALS", "io_uring_madvise"]

MAP_32BIT = 0x40
MADV_DONTNEED = 4
IPC_PRIVATE, IPC_CREAT, IPC_RMID, SHM_REMAP = 0, 0o1000, 0, 0o40000

_RW = PROT_READ | PROT_WRITE


def _shared_segment() -> tuple[int, int]:
    """Id and address of an attached System V segment of one page.

    It is marked for removal at once: the memory stays attached, and nothing is left even when this
    process is killed.
    """
    segment = need("shmget", IPC_PRIVATE, PAGE, IPC_CREAT | 0o600)
    try:
        address = need("shmat", segment, 0, 0)
    finally:
        call("shmctl", segment, IPC_RMID, 0)
    return segment, address


def _shmat_remap() -> Facts:
    pages = lay("S")
    segment, attached = _shared_segment()
    values = (segment, pages.start, SHM_REMAP)
    result = call("shmat", *values)
    call("shmdt", attached)
    expect_eperm("shmat", result)
    return denial("shmat", values, result, pages, address=pages.start, length=PAGE)


def _shmdt() -> Facts:
    _, address = _shared_segment()
    seal(address, PAGE)
    result = need("shmdt", address)
    if not any(mapping.start <= address < mapping.end for mapping in mappings()):
        raise Unsupported("shmdt: not refused, the segment is detached")
    pages = Pages(address, address + PAGE, address, address + PAGE)
    return denial("shmdt", (address,), result, pages, length=PAGE, hidden=True)


def _brk() -> Facts:
    """Grow the heap by sbrk, which libc notices; shrink it by brk(2), which libc does not."""
    old = call("brk", 0)
    grow = LIBC.sbrk
    grow.argtypes, grow.restype = [ctypes.c_long], ctypes.c_long
    if grow(-old % PAGE + 2 * PAGE) == -1:
        raise Unsupported(f"sbrk: {os.strerror(ctypes.get_errno())}")
    top = call("brk", 0)
    seal(top - PAGE, PAGE)
    asked = top - PAGE
    result = call("brk", asked)
    if result != top:
        raise Unsupported(f"brk: not refused, returned {result:#x}")
    pages = Pages(asked, top, asked, top)
    return denial("brk", (asked,), result, pages, length=PAGE, hidden=True)


def _remap_file_pages() -> Facts:
    file = os.memfd_create("seal-monitor")
    os.ftruncate(file, 2 * PAGE)
    start = need("mmap", 0, PAGE, _RW, MAP_SHARED, file, 0)
    os.close(file)
    seal(start, PAGE)
    values = (start, PAGE, 0, 1, 0)
    result = call("remap_file_pages", *values)
    expect_eperm("remap_file_pages", result)
    pages = Pages(start, start + PAGE, start, start + PAGE)
    return denial("remap_file_pages", values, result, pages)


def io_uring_madvise(start: int, length: int, advice: int) -> int:
    """Result of one IORING_OP_MADVISE through a ring of one entry; offsets as in linux/io_uring.h.

    Raises Unsupported where io_uring cannot be used.
    """
    parameters = (ctypes.c_uint32 * 30)()
    ring = need("io_uring_setup", 1, ctypes.addressof(parameters))
    try:
        submission, completion, entries = (
            need("mmap", 0, PAGE, _RW, MAP_SHARED, ring, offset)
            for offset in (0, 0x8000000, 0x10000000)
        )
        _, tail, *_, array = parameters[10:17]
        queued_entries = parameters[25]
        entry = struct.pack("<BBHiQQIIQ", 25, 0, 0, -1, 0, start, length, advice, 1).ljust(
            64, b"\0"
        )
        ctypes.memmove(entries, entry, len(entry))
        ctypes.c_uint32.from_address(submission + array).value = 0
        ctypes.c_uint32.from_address(submission + tail).value = 1
        wait_for_completion = 1
        need("io_uring_enter", ring, 1, 1, wait_for_completion, 0, 0)
        return ctypes.c_int32.from_address(completion + queued_entries + 8).value
    finally:
        os.close(ring)


def _io_uring_madvise() -> Facts:
    pages = lay("S")
    result = io_uring_madvise(pages.start, PAGE, MADV_DONTNEED)
    expect_eperm("io_uring_madvise", result)
    values = (pages.start, PAGE, MADV_DONTNEED)
    return denial("io_uring_madvise", values, result, pages)


def _aio_ring() -> Facts:
    """The kernel maps the ring of completions into the process, at the address that names it."""
    context = ctypes.c_uint64()
    need("io_setup", 1, ctypes.addressof(context))
    start = context.value
    length = next(m.end - m.start for m in mappings() if m.start == start)
    seal(start, length)
    result = call("io_destroy", start)
    if not any(mapping.start == start for mapping in mappings()):
        raise Unsupported("io_destroy: not refused, the ring is gone")
    pages = Pages(start, start + length, start, start + length)
    values = (NUMBERS["io_destroy"],)
    return denial("other", values, result, pages, address=start, length=length, hidden=True)


def _int80(call: str, *arguments: int) -> int:
    """Make a 32-bit system call; its result."""
    assert THIS.compat_call is not None  # _require_int80()
    code = THIS.compat_call(COMPAT_NUMBERS[call], *arguments)
    function = ctypes.CFUNCTYPE(ctypes.c_long)(machine_code(code))
    result: int = function()
    return result


def _require_int80() -> None:
    """Raises Unsupported where the processor or the kernel takes no such calls."""
    if THIS.compat_call is None:
        raise Unsupported(f"int 0x80: {THIS.name} has no 32-bit calls from 64-bit code")
    child = os.fork()
    if not child:
        # A kernel without 32-bit calls sends SIGSEGV, so a child tries.
        LIBC.signal(11, ctypes.cast(LIBC._exit, ctypes.c_void_p))
        _int80("getpid")
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise Unsupported("int 0x80: this kernel takes no 32-bit system calls")


def _int80_mprotect() -> Facts:
    _require_int80()
    pages = lay("S", MAP_32BIT)
    values = (pages.start, PAGE, _RW)
    result = _int80("mprotect", *values)
    expect_eperm("int 0x80 mprotect", result)
    return denial("mprotect", values, result, pages, compat=True)


_TABLE: tuple[tuple[str, str, Callable[[], Facts]], ...] = (
    ("shmat_remap", "attach a shared segment over a sealed page", _shmat_remap),
    ("shmdt", "detach a sealed shared segment: returns 0, yet it stays mapped", _shmdt),
    ("brk", "shrink the heap below a sealed page: returns the old break", _brk),
    ("remap_file_pages", "remap a sealed shared file mapping", _remap_file_pages),
    ("io_uring_madvise", "discard a sealed page through io_uring", _io_uring_madvise),
    (
        "aio_ring",
        "end an AIO context whose ring is sealed: returns 0, yet it stays mapped",
        _aio_ring,
    ),
    ("int80_mprotect", "make a sealed page writable by a 32-bit call", _int80_mprotect),
)

INDIRECT_DENIALS = tuple(Provocation(name, "denial", text, make) for name, text, make in _TABLE)
