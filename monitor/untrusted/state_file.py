"""Small files in the state directory: written whole or not at all, and read only if no other user
could have written them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

__all__ = ["is_owned", "read", "write"]


def is_owned(status: os.stat_result) -> bool:
    """Whether only root and this user could have written it."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read(directory: int, name: str, limit: int) -> bytes | None:
    """The contents; None when there is no such file. Raises OSError, ValueError."""
    # Non-blocking: it may be a pipe.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        if not is_owned(status):
            raise ValueError("others may write to it")
        data = os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data


def write(directory: int, name: str, data: bytes) -> None:
    """Write the whole file or nothing, even if the host loses power. Raises OSError."""
    new = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o640, dir_fd=directory)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
