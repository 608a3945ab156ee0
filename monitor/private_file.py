"""Files that tell of processes: whole or not there, and for their owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

__all__ = ["write_private"]


def write_private(path: Path, data: bytes) -> None:
    """The file of this name, with mode 0600, instead of a regular one that is there.

    What is there and is no regular file, as a link or a device, is left alone. Raises OSError.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(f"{path}: not a regular file; name another, or - for standard output")
    except FileNotFoundError:
        pass
    new = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(new, flags, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
