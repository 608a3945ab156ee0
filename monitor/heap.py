"""glibc's heap, which is kept small in a process that lives for long."""

from __future__ import annotations

import ctypes

__all__ = ["give_back", "keep_small"]

# By their numbers in glibc, for mallopt(3).
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
SETTINGS = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 128 << 10}


def keep_small() -> None:
    """Have glibc give memory back that was needed for a moment.

    By default it gives each thread an arena of its own, up to eight a processor, and a block that
    is kept holds up a run of pages in each: five MiB after minutes of an attack. All but the
    hashing of passwords runs under the interpreter's lock anyway. And once a large block was freed,
    it takes blocks of that size from the heap: small ones that are kept lie between them, and the
    heap grows as TLS connections come and go, by 8 MiB in a minute.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and one heap for all
    if option:
        for parameter, value in SETTINGS.items():
            option(ctypes.c_int(parameter), ctypes.c_int(value))


def give_back() -> None:
    """Give the kernel the memory that glibc keeps: after a start, a third of a MiB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim:
        trim(ctypes.c_size_t(0))
