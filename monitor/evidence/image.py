"""The program that a process runs, from one exec to the next: as the kernel recorded it, and now.

A pid and a start time outlive an exec, and any user can execute another file of the same name.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from monitor.kernel import abi
from monitor.untrusted.process_stat import ProcessStat

__all__ = ["Image", "ProgramFile", "is_run", "program_file", "recorded"]

# include/uapi/linux/stat.h: struct statx up to stx_mnt_id, and what is asked for.
_STATX = struct.Struct("<I28xQ96xIIQ")
_STATX_SIZE = 256
_STATX_INO, _STATX_MNT_ID_UNIQUE = 0x100, 0x4000
# Without syncing: a file system in user space would have to answer.
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000


_LIBC = ctypes.CDLL(None, use_errno=True)


class Image(NamedTuple):
    """`inode` and `mount` of its file, and two addresses that exec chose; `mount` 0: not known."""

    inode: int
    mount: int
    start_code: int
    start_stack: int


def recorded(image: abi.Image) -> Image | None:
    """What a record has of it; None where it has nothing, as of a process without memory."""
    if not image.start_stack:
        return None
    return Image(image.inode, image.mount, image.start_code, image.start_stack)


def is_run(directory: int, stat: ProcessStat, image: Image) -> bool:
    """Whether the process of this /proc/PID runs that program now; `stat` is its stat, read now.

    Waits for no lock. Raises OSError, PermissionError where the process may not be looked at.
    """
    if not stat.start_stack:
        raise PermissionError("its addresses are hidden")
    if (stat.start_code, stat.start_stack) != (image.start_code, image.start_stack):
        return False
    file = program_file(directory)
    return file.inode == image.inode and (
        file.mount == image.mount or 0 in (file.mount, image.mount)
    )


class ProgramFile(NamedTuple):
    """`device` and `inode` as stat(2) has them; `mount`: its unique id, 0 where it is not known."""

    device: int
    inode: int
    mount: int


def program_file(directory: int) -> ProgramFile:
    """The file that the process of this /proc/PID runs. Waits for nobody. Raises OSError."""
    file = os.open("exe", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    try:
        words = ctypes.create_string_buffer(_STATX_SIZE)
        flags, wanted = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_INO | _STATX_MNT_ID_UNIQUE
        if _LIBC.statx(file, b"", flags, wanted, words):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(file)
    mask, inode, major, minor, mount = _STATX.unpack_from(words)
    has_mount = mask & _STATX_MNT_ID_UNIQUE
    return ProgramFile(os.makedev(major, minor), inode, mount if has_mount else 0)
