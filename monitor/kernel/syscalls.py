"""Raw system calls through libc, past every wrapper.

Results follow the kernel's own convention: a negative result is -errno. The module is light
(ctypes alone), because short-lived children import it.
"""

from __future__ import annotations

import ctypes
import os
import signal

from monitor.kernel.arch import NUMBERS
from monitor.kernel.arch import PAGE_SIZE as PAGE

__all__ = ["LIBC", "PAGE", "call", "end_with", "grace_period"]

LIBC = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_MEMBARRIER_CMD_GLOBAL = 1  # returns after synchronize_rcu()

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


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, or exit now.

    `parent` is the pid of the process that started it: it may have ended before the kernel was
    asked, and then another one is the parent (PR_SET_PDEATHSIG(2const)). An exec keeps this, a
    change of user does not.
    """
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def grace_period() -> bool:
    """Wait until all that ran in a section of RCU has left it; whether the kernel did.

    It refuses where a CPU has no tick (nohz_full). Where there is one CPU it returns at once, which
    is right for memory, but not for a task that was preempted in such a section (membarrier(2)).
    """
    return os.sysconf("SC_NPROCESSORS_ONLN") > 1 and not call("membarrier", _MEMBARRIER_CMD_GLOBAL)
