"""Files that tell of processes: whole or not there, and for their owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["PrivateFile", "write_private"]


class PrivateFile:
    """A file to be made later, in the directory that its path names now. Close it.

    Whoever may write to that directory can meanwhile put a link under the name, or another
    directory in its place: neither is followed.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when no such file can be made, or one is there that is not regular."""
        self._path = path
        self._name = path.name or "."
        try:
            self._directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._require_regular()
            name, handle = self._new()
            os.close(handle)
            os.unlink(name, dir_fd=self._directory)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PrivateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failure(self, error: OSError) -> OSError:
        return OSError(f"cannot write {self._path}: {error.strerror}")

    def _require_regular(self) -> None:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failure(error) from error
        if not stat.S_ISREG(found.st_mode):
            raise OSError(
                f"{self._path}: not a regular file; name another, or - for standard output"
            )

    def _new(self) -> tuple[str, int]:
        """The name and the descriptor of an empty file beside it. Raises OSError."""
        name = f".{self._name[:200]}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return name, os.open(name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, data: bytes, owner: tuple[int, int] | None = None) -> None:
        """The file with mode 0600, instead of a regular one that is there. Raises OSError.

        `owner`: user and group that it is to belong to, else the caller's.
        """
        self._require_regular()
        name, handle = self._new()
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
                if owner is not None:
                    os.fchown(handle, *owner)
            os.rename(name, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def directory(self) -> os.stat_result:
        """Of the directory that it is made in."""
        return os.fstat(self._directory)

    def close(self) -> None:
        os.close(self._directory)


def write_private(path: Path, data: bytes) -> None:
    """The file of this name, with mode 0600, instead of a regular one that is there.

    What is there and is no regular file, as a link or a device, is left alone. Raises OSError.
    """
    with PrivateFile(path) as file:
        file.write(data)
