"""Executes a command below a seccomp filter that refuses some system calls.

python tests/filtered.py NAME[,NAME...] ERROR COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from monitor.kernel.arch import NUMBERS
from monitor.kernel.syscalls import LIBC

# linux/filter.h, linux/seccomp.h: load the number, compare it, return.
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def refuse(names: list[str], error: int) -> None:
    """Raises OSError."""
    program = instruction(LOAD, 0)
    for name in names:
        program += instruction(EQUAL, NUMBERS[name], 0, 1) + instruction(RETURN, ERRNO | error)
    program += instruction(RETURN, ALLOW)
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, described, 0, 0)):
        if LIBC.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse(sys.argv[1].split(","), getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
