"""All that is specific to x86-64 in Python; bpf/arch/x86_64.h is the C side. A port replaces both.

The module is light, because short-lived children import it.
"""

from __future__ import annotations

import struct

__all__ = [
    "COMPAT_NUMBERS",
    "C_FLAGS",
    "LIBRARY_DIRECTORIES",
    "MACHINE",
    "MM_MEMBERS",
    "MUSL_DIRECTORY",
    "NAME",
    "NUMBERS",
    "PAGE_SIZE",
    "PUSH_FOR_EVER",
    "TASK_MEMBERS",
    "X32_BIT",
    "compat_call",
    "compat_function",
    "native_function",
]

NAME = "x86-64"
MACHINE = "x86_64"  # as uname(2) has it
PAGE_SIZE = 4096
C_FLAGS = ("-D__x86_64__",)  # what bpf/arch.h asks for
LIBRARY_DIRECTORIES = ("x86_64-linux-gnu", "i386-linux-gnu")  # Debian's, below lib/
MUSL_DIRECTORY = "x86_64-linux-musl"

# System calls: arch/x86/entry/syscalls/syscall_64.tbl
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
    "getpid": 39,
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
    "perf_event_open": 298,
    "seccomp": 317,
    "bpf": 321,
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
# Those of 32-bit callers that are watched or made here: arch/x86/entry/syscalls/syscall_32.tbl
COMPAT_NUMBERS = {
    "getpid": 20,
    "ptrace": 26,
    "brk": 45,
    "munmap": 91,
    "mprotect": 125,
    "mremap": 163,
    "mmap": 192,  # mmap2, which counts the offset in pages
    "madvise": 219,
    "remap_file_pages": 257,
    "pkey_mprotect": 380,
    "shmat": 397,
    "shmdt": 398,
    "process_madvise": 440,
    "mseal": 462,
}
X32_BIT = 0x40000000  # set in the number of a call by an x32 program

# Members that the C side reads of kernel structures that differ between processors.
TASK_MEMBERS = (
    *("thread_info.status", "thread_info.syscall_work"),
    *("thread.cr2", "thread.error_code", "thread.trap_nr", "thread.fsbase"),
)
MM_MEMBERS = ("context.untag_mask",)  # not on every kernel

PUSH_FOR_EVER = b"\x50\xeb\xfd"  # machine code: push rax; jmp to it


def native_function(call: str) -> str:
    """The kernel's function of a system call, for 64-bit callers."""
    return f"__x64_sys_{call}"


def compat_function(call: str) -> str:
    """The same for 32-bit callers."""
    return f"__ia32_sys_{call}"


def compat_call(number: int, *arguments: int) -> bytes:
    """Machine code: a function that makes a 32-bit system call (int 0x80) from 64-bit code.

    Up to three arguments; it returns the call's result.
    """
    first, second, third = arguments + (0,) * (3 - len(arguments))
    return b"\x53" + struct.pack(  # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; cdqe; ret
        "<BIBIBIBI6s",
        *(0xB8, number),
        *(0xBB, first),
        *(0xB9, second),
        *(0xBA, third),
        b"\xcd\x80\x5b\x48\x98\xc3",
    )
