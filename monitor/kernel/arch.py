"""All that is specific to a processor in Python, a table for each; bpf/arch/ is the C side.

A port is a new Processor here and a file there. What depends on the running machine asks `THIS`;
what is compiled for another one is given that one. The module is light, because short-lived
children import it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = [
    "ARM64",
    "COMPAT_NUMBERS",
    "NUMBERS",
    "PAGE_SIZE",
    "PROCESSORS",
    "THIS",
    "X86_64",
    "Processor",
]

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Processor(NamedTuple):
    """A processor, and what Debian and its kernels call it."""

    name: str
    machine: str  # as uname(2) has it
    architecture: str  # Debian's name
    page_sizes: tuple[int, ...]  # that kernels are built for, in bytes
    c_flags: tuple[str, ...]  # what bpf/arch.h asks for, to include c_header
    c_header: str
    library_directories: tuple[str, str]  # Debian's, below lib/: of 64-bit and of 32-bit programs
    musl_directory: str
    numbers: Mapping[str, int]  # of system calls
    compat_numbers: Mapping[str, int]  # of 32-bit callers, as far as watched or made here
    compat_option: str  # a kernel without it has no 32-bit callers
    x32_bit: int  # in the number of a call by an x32 program; 0: there are none
    native: str  # the kernel's functions of calls begin with it, for 64-bit callers
    compat: str  # the same for 32-bit callers
    compat_functions: Mapping[str, str]  # of calls, where that is not so
    task_members: tuple[str, ...]  # what the C side reads of task_struct, on this processor only
    optional_task_members: tuple[str, ...]  # the same; not on every kernel
    optional_mm_members: tuple[str, ...]
    push_for_ever: bytes  # machine code that pushes words on its stack, each time so many bytes:
    push_size: int
    # Machine code of a function that makes a 32-bit call of up to three arguments from 64-bit code,
    # and returns its result; None where no 64-bit program can.
    compat_call: Callable[..., bytes] | None

    def native_function(self, call: str) -> str:
        """The kernel's function of a system call, for 64-bit callers."""
        return f"{self.native}{call}"

    def compat_function(self, call: str) -> str:
        """The same for 32-bit callers; the same name where both kinds share it."""
        return self.compat_functions.get(call, f"{self.compat}{call}")


def _int80(number: int, *arguments: int) -> bytes:
    """A function that makes a 32-bit call of x86-64 (int 0x80)."""
    first, second, third = arguments + (0,) * (3 - len(arguments))
    return b"\x53" + struct.pack(  # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; cdqe; ret
        "<BIBIBIBI6s",
        *(0xB8, number),
        *(0xBB, first),
        *(0xB9, second),
        *(0xBA, third),
        b"\xcd\x80\x5b\x48\x98\xc3",
    )


# Calls that are newer than the decision to give a call one number everywhere.
_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "process_madvise": 440,
    "mseal": 462,
}
_COMMON_WATCHED = {"process_madvise": 440, "mseal": 462}

X86_64 = Processor(
    name="x86-64",
    machine="x86_64",
    architecture="amd64",
    page_sizes=(4096,),
    c_flags=("-D__x86_64__",),
    c_header="arch/x86_64.h",
    library_directories=("x86_64-linux-gnu", "i386-linux-gnu"),
    musl_directory="x86_64-linux-musl",
    # arch/x86/entry/syscalls/syscall_64.tbl
    numbers={
        "read": 0,
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
        "clone": 56,
        "shmdt": 67,
        "fcntl": 72,
        "ptrace": 101,
        "getppid": 110,
        "capget": 125,
        "capset": 126,
        "rt_sigqueueinfo": 129,
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
        **_COMMON,
    },
    # arch/x86/entry/syscalls/syscall_32.tbl
    compat_numbers={
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
        **_COMMON_WATCHED,
    },
    compat_option="CONFIG_IA32_EMULATION",
    x32_bit=0x40000000,
    native="__x64_sys_",
    compat="__ia32_sys_",
    compat_functions={},
    task_members=(
        *("thread_info.status", "thread_info.syscall_work"),
        *("thread.cr2", "thread.error_code", "thread.trap_nr", "thread.fsbase"),
    ),
    optional_task_members=(),
    # CONFIG_ADDRESS_MASKING, 6.4 on: mm_untag_mask() in arch/x86/include/asm/mmu_context.h.
    optional_mm_members=("context.untag_mask",),
    push_for_ever=b"\x50\xeb\xfd",  # push rax; jmp to it
    push_size=8,
    compat_call=_int80,
)

ARM64 = Processor(
    name="arm64",
    machine="aarch64",
    architecture="arm64",
    page_sizes=(4096, 16384, 65536),
    c_flags=("-D__aarch64__",),
    c_header="arch/arm64.h",
    library_directories=("aarch64-linux-gnu", "arm-linux-gnueabihf"),
    musl_directory="aarch64-linux-musl",
    # include/uapi/asm-generic/unistd.h
    numbers={
        "io_setup": 0,
        "io_destroy": 1,
        "fcntl": 25,
        "ioctl": 29,
        "read": 63,
        "signalfd4": 74,
        "capget": 90,
        "capset": 91,
        "ptrace": 117,
        "sigaltstack": 132,
        "rt_sigqueueinfo": 138,
        "prctl": 167,
        "getpid": 172,
        "getppid": 173,
        "shmget": 194,
        "shmctl": 195,
        "shmat": 196,
        "shmdt": 197,
        "brk": 214,
        "munmap": 215,
        "mremap": 216,
        "clone": 220,
        "mmap": 222,
        "mprotect": 226,
        "madvise": 233,
        "remap_file_pages": 234,
        "perf_event_open": 241,
        "seccomp": 277,
        "bpf": 280,
        "userfaultfd": 282,
        "membarrier": 283,
        "pkey_mprotect": 288,
        "pkey_alloc": 289,
        **_COMMON,
    },
    # arch/arm64/tools/syscall_32.tbl: AArch32 programs
    compat_numbers={
        "getpid": 20,
        "ptrace": 26,
        "brk": 45,
        "munmap": 91,
        "mprotect": 125,
        "mremap": 163,
        "mmap": 192,  # mmap2
        "madvise": 220,
        "remap_file_pages": 253,
        "shmat": 305,
        "shmdt": 308,
        "pkey_mprotect": 394,
        **_COMMON_WATCHED,
    },
    compat_option="CONFIG_COMPAT",
    x32_bit=0,
    native="__arm64_sys_",
    compat="__arm64_sys_",  # most calls have one function for both kinds
    compat_functions={
        "mmap": "__arm64_compat_sys_aarch32_mmap2",
        "ptrace": "__arm64_compat_sys_ptrace",
        "shmat": "__arm64_compat_sys_shmat",
    },
    task_members=(
        *("thread_info.flags", "thread.fault_address", "thread.fault_code"),
        "thread.uw.tp_value",
    ),
    # CONFIG_GENERIC_ENTRY: before, what it says is in thread_info.flags.
    optional_task_members=("thread_info.syscall_work",),
    optional_mm_members=("task_size",),
    push_for_ever=struct.pack("<II", 0xF81F0FE0, 0x17FFFFFF),  # str x0, [sp, #-16]!; b to it
    push_size=16,
    compat_call=None,
)

PROCESSORS = {processor.machine: processor for processor in (X86_64, ARM64)}
# On a machine that is none of them nothing is loaded: host.facts.require_architecture().
THIS = PROCESSORS.get(os.uname().machine, X86_64)
NUMBERS, COMPAT_NUMBERS = THIS.numbers, THIS.compat_numbers
