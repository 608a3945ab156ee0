"""Raw system calls through libc, past every wrapper.

Results follow the kernel's own convention: a negative result is -errno. The module is light
(ctypes alone), because short-lived children import it.
"""

from __future__ import annotations

import ctypes

from monitor.kernel.arch import NUMBERS
from monitor.kernel.arch import PAGE_SIZE as PAGE

__all__ = ["LIBC", "PAGE", "call"]

LIBC = ctypes.CDLL(None, use_errno=True)

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
