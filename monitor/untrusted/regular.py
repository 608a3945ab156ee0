"""Opens files that somebody else chose, without side effects."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular"]


def open_regular(path: Path, limit: int, owner: int | None = None) -> BinaryIO:
    """The regular file there, of at most `limit` bytes. With an `owner`, it must belong to that
    user and not be a symbolic link.

    Nothing else is opened: opening a device or a FIFO may act, or wait. Raises OSError.
    """
    follow = 0 if owner is None else os.O_NOFOLLOW
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC | follow)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: not a regular file")
        if status.st_size > limit:
            raise OSError(f"{path}: {status.st_size} bytes, more than {limit}")
        if owner is not None and status.st_uid != owner:
            raise OSError(f"{path}: belongs to user {status.st_uid}, not {owner}")
        return open(f"/proc/self/fd/{handle}", "rb")
    finally:
        os.close(handle)
