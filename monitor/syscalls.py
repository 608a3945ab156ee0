"""Raw system calls of x86-64 Linux through libc, past every wrapper.

Results follow the kernel's own convention: a negative result is -errno. The module is light
(ctypes alone), because short-lived children import it.
"""

from __future__ import annotations

import ctypes

__all__ = ["LIBC", "NUMBERS", "PAGE", "call"]

PAGE = 4096

LIBC = ctypes.CDLL(None, use_errno=True)

# arch/x86/entry/syscalls/syscall_64.tbl
NUMBERS = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "ioctl": 16,
    "mremap": 25,
    "madvise": 28,
    "shmget": 29,
    "shmat": 30,
    "shmctl": 31,
    "shmdt": 67,
    "fcntl": 72,
    "ptrace": 101,
    "getppid": 110,
    "capget": 125,
    "capset": 126,
    "sigaltstack": 131,
    "prctl": 157,
    "io_setup": 206,
    "io_destroy": 207,
    "remap_file_pages": 216,
    "signalfd4": 289,
    "seccomp": 317,
    "userfaultfd": 323,
    "membarrier": 324,
    "pkey_mprotect": 329,
    "pkey_alloc": 330,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "process_madvise": 440,
    "mseal": 462,
}

_syscall = LIBC.syscall
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_ulong] * 6
_syscall.restype = ctypes.c_long


def call(name: str, *arguments: int) -> int:
    """Make the system call `name`; its result, or -errno when it failed.

    Up to six arguments, each a number or an address; missing ones are 0.
    """
    padded = arguments + (0,) * (6 - len(arguments))
    result: int = _syscall(NUMBERS[name], *padded)
    return -ctypes.get_errno() if result == -1 else result
