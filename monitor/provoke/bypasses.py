"""Bypasses: changes of the content of sealed memory. The kernel allows them: a seal protects the
mapping.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable

from monitor.kernel.syscalls import PAGE, call
from monitor.provoke.indirect import io_uring_madvise
from monitor.provoke.provocation import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Facts,
    Provocation,
    Unsupported,
    lay,
    need,
    seal,
)

__all__ = ["BYPASSES"]

MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL = 4, 24, 102
PTRACE_TRACEME, PTRACE_POKEDATA = 0, 5
# include/uapi/linux/userfaultfd.h
UFFD_API, UFFDIO_REGISTER_MODE_MISSING = 0xAA, 1
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
UFFDIO_COPY, UFFDIO_MOVE = 0xC028AA03, 0xC028AA05
_RW = PROT_READ | PROT_WRITE
_WRITTEN, _IN_FILE = b"\xa5", b"\x5a"


def _bypass(method: str, address: int, length: int, sealed: tuple[int, int]) -> Facts:
    """The facts of a bypass, as a monitor should report them; `target` is this process."""
    return {
        "method": method,
        "address": address,
        "length": length,
        "sealed_start": sealed[0],
        "sealed_end": sealed[1],
        "target": os.getpid(),
    }


def _relro(pages: int) -> int:
    """Address of a sealed read-only mapping of a file that was written to before, like RELRO.

    The page before it is not mapped: it was mapped together with the others, then unmapped.
    """
    anonymous = MAP_PRIVATE | MAP_ANONYMOUS
    hole = need("mmap", 0, (1 + pages) * PAGE, PROT_NONE, anonymous, 2**64 - 1, 0)
    file = os.memfd_create("seal-monitor")
    try:
        os.write(file, _IN_FILE * pages * PAGE)
        flags = MAP_PRIVATE | MAP_FIXED
        start = need("mmap", hole + PAGE, pages * PAGE, _RW, flags, file, 0)
    finally:
        os.close(file)
    need("munmap", hole, PAGE)
    ctypes.memset(start, _WRITTEN[0], pages * PAGE)
    need("mprotect", start, pages * PAGE, PROT_READ)
    seal(start, pages * PAGE)
    return start


def _discard(advice: int) -> Facts:
    """Discard the middle one of three pages."""
    start = _relro(3)
    middle = start + PAGE
    need("madvise", middle, PAGE, advice)
    if advice != MADV_GUARD_INSTALL and ctypes.string_at(middle, 1) != _IN_FILE:
        raise RuntimeError("madvise succeeded and discarded nothing")
    return _bypass("madvise_discard", middle, PAGE, (start, start + 3 * PAGE))


def _discard_beyond_a_hole() -> Facts:
    """madvise skips unmapped pages, and returns ENOMEM after it has done the rest."""
    start = _relro(2)
    result = call("madvise", start - PAGE, 3 * PAGE, MADV_DONTNEED)
    if result != -errno.ENOMEM:
        raise Unsupported(f"madvise: returned {result}, not that a page is not mapped")
    if ctypes.string_at(start, 1) != _IN_FILE:
        raise RuntimeError("madvise passed over a hole and discarded nothing")
    return _bypass("madvise_discard", start, 2 * PAGE, (start, start + 2 * PAGE))


def _discard_by_process_madvise() -> Facts:
    """Discard two ranges; the second is sealed."""
    start, other = _relro(1), _anonymous(1)
    vector = (ctypes.c_uint64 * 4)(other, PAGE, start, PAGE)
    pidfd = os.pidfd_open(os.getpid())
    try:
        done = need("process_madvise", pidfd, ctypes.addressof(vector), 2, MADV_DONTNEED, 0)
    finally:
        os.close(pidfd)
    if done != 2 * PAGE or ctypes.string_at(start, 1) != _IN_FILE:
        raise RuntimeError(f"process_madvise did {done} bytes")
    return _bypass("madvise_discard", start, PAGE, (start, start + PAGE))


def _discard_by_io_uring() -> Facts:
    start = _relro(1)
    result = io_uring_madvise(start, PAGE, MADV_DONTNEED)
    if result or ctypes.string_at(start, 1) != _IN_FILE:
        raise Unsupported(f"io_uring: madvise returned {result}")
    return _bypass("madvise_discard", start, PAGE, (start, start + PAGE))


def _memory_file() -> Facts:
    """The kernel writes to a private mapping whatever its permissions say (FOLL_FORCE)."""
    pages = lay("S")
    try:
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(pages.start + 8)
            memory.write(b"around")
    except OSError as error:
        raise Unsupported(f"/proc/self/mem: {error.strerror}") from error
    return _bypass("proc_mem_write", pages.start + 8, 6, pages[2:])


def _ptrace() -> Facts:
    """Write to a stopped child that has inherited the seal, as a debugger does."""
    pages = lay("S")
    child = os.fork()
    if not child:
        call("ptrace", PTRACE_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(child, 0)
        need("ptrace", PTRACE_POKEDATA, child, pages.start + 16, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return _bypass("ptrace_poke", pages.start + 16, 8, pages[2:]) | {"target": child}


def _userfaultfd(start: int, length: int) -> int:
    """Descriptor of a userfaultfd that handles missing pages of the range."""
    descriptor = need("userfaultfd", os.O_CLOEXEC)
    _ioctl(descriptor, UFFDIO_API, UFFD_API, 0, 0)
    _ioctl(descriptor, UFFDIO_REGISTER, start, length, UFFDIO_REGISTER_MODE_MISSING, 0)
    return descriptor


def _ioctl(descriptor: int, command: int, *words: int) -> int:
    """Make the ioctl; returns the last word, which the kernel may have written."""
    given = (ctypes.c_uint64 * len(words))(*words)
    need("ioctl", descriptor, command, ctypes.addressof(given))
    return given[-1]


def _anonymous(pages: int) -> int:
    return need("mmap", 0, pages * PAGE, _RW, MAP_PRIVATE | MAP_ANONYMOUS, 2**64 - 1, 0)


def _fill() -> Facts:
    """Fill the second of two missing pages in sealed read-only memory."""
    start, source = _anonymous(2), _anonymous(1)
    ctypes.memset(source, _WRITTEN[0], PAGE)
    descriptor = _userfaultfd(start, 2 * PAGE)
    try:
        need("mprotect", start, 2 * PAGE, PROT_READ)
        seal(start, 2 * PAGE)
        _ioctl(descriptor, UFFDIO_COPY, start + PAGE, source, PAGE, 0, 0)
    finally:
        os.close(descriptor)
    return _bypass("userfaultfd_copy", start + PAGE, PAGE, (start, start + 2 * PAGE))


def _move() -> Facts:
    """Move a page out of sealed writable memory."""
    start, source = _anonymous(1), _anonymous(1)
    ctypes.memset(source, _WRITTEN[0], PAGE)
    seal(source, PAGE)
    descriptor = _userfaultfd(start, PAGE)
    try:
        if _ioctl(descriptor, UFFDIO_MOVE, start, source, PAGE, 0, 0) != PAGE:
            raise Unsupported("UFFDIO_MOVE moved nothing")
    finally:
        os.close(descriptor)
    return _bypass("userfaultfd_move", source, PAGE, (source, source + PAGE))


_TABLE: tuple[tuple[str, str, Callable[[], Facts]], ...] = (
    (
        "madvise_relro",
        "bring back the file's bytes in sealed memory that was written before (RELRO)",
        lambda: _discard(MADV_DONTNEED),
    ),
    (
        "madvise_relro_locked",
        "the same with MADV_DONTNEED_LOCKED",
        lambda: _discard(MADV_DONTNEED_LOCKED),
    ),
    (
        "madvise_relro_guard",
        "turn such memory into a guard region",
        lambda: _discard(MADV_GUARD_INSTALL),
    ),
    (
        "madvise_relro_hole",
        "the same in a range that begins with a hole: returns ENOMEM, but discards",
        _discard_beyond_a_hole,
    ),
    (
        "process_madvise_relro",
        "the same through process_madvise, as the second of two ranges",
        _discard_by_process_madvise,
    ),
    ("io_uring_relro", "the same through io_uring", _discard_by_io_uring),
    ("memory_file", "write to sealed memory through /proc/self/mem", _memory_file),
    ("userfaultfd_copy", "fill a missing page of sealed read-only memory", _fill),
    ("userfaultfd_move", "move a page out of sealed memory", _move),
    ("ptrace_poke", "write to the sealed memory of another process by ptrace", _ptrace),
)

BYPASSES = tuple(Provocation(name, "bypass", text, make) for name, text, make in _TABLE)
