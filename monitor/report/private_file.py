"""Files with data about processes: complete or not there, and readable only by their owner."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["PrivateFile", "write_private"]


class PrivateFile:
    """A file to be made later, in the directory that its path names now. Close it.

    Meanwhile a user who may write to that directory can put a link under the name, or another
    directory in its place: neither is followed.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be made, or if it exists and is not a regular file."""
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
        """Make the file, with mode 0600, in place of a regular one. Raises OSError.

        `owner`: its user and group; None for those of the caller.
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
        """The status of the directory that the file is made in."""
        return os.fstat(self._directory)

    def close(self) -> None:
        os.close(self._directory)


def write_private(path: Path, data: bytes) -> None:
    """Make the file of this name, with mode 0600, in place of a regular one.

    Anything else of that name, such as a link or a device, is left alone. Raises OSError.
    """
    with PrivateFile(path) as file:
        file.write(data)
