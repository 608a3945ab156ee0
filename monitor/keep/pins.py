"""A directory in bpffs that keeps maps, programs and links where no service manager does.

Its entries are the kernel's objects: they outlive the process, not the host. What is pinned stays
attached until it is removed, whoever still runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from monitor.keep import memory
from monitor.keep.handed import Handed
from monitor.keep.ledger import Ledger, LedgerError
from monitor.kernel import bpf
from monitor.kernel.syscalls import grace_period

__all__ = ["USUAL", "Kept", "PinError", "Pins", "look"]

USUAL = Path("/sys/fs/bpf/seal-monitor")  # as the documentation names it
MOST = 1024  # entries; a set has about a hundred
LOCK_SECONDS = 2.0  # for a monitor that was killed to be gone
_POLL_SECONDS = 0.02
_GRACE_SECONDS = 0.1  # where the kernel does not wait
_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h: BPF_FS_MAGIC
_STATFS_BYTES = 256  # more than struct statfs has; its first word is the magic
# Of a name and a number. A name has no colon, and bpffs takes no dot (bpf_lookup() in
# kernel/bpf/inode.c).
_ENTRY = re.compile(r"((?:map|program|link|ledger|record)(?::[a-z0-9]{1,20})?)-([0-9]{1,18})")
_MOUNT = "run: mount -t bpf bpf /sys/fs/bpf"


class PinError(Exception):
    """Why the directory keeps nothing, and the way out."""


def _type(descriptor: int) -> int:
    """The magic number of the file system."""
    status = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).fstatfs(descriptor, status):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_ulong.from_buffer(status).value & 0xFFFFFFFF


def _opened(directory: Path, owners: Collection[int]) -> int:
    """A descriptor of the directory, which nobody but its owner can enter. Raises PinError."""
    try:
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PinError(f"{directory} cannot be opened ({error.strerror})") from error
    try:
        _check(directory, descriptor, owners)
    except OSError as error:
        os.close(descriptor)
        raise PinError(f"{directory} cannot be looked at ({error.strerror})") from error
    except PinError:
        os.close(descriptor)
        raise
    return descriptor


def _check(directory: Path, descriptor: int, owners: Collection[int]) -> None:
    status = os.fstat(descriptor)
    if _type(descriptor) != _MAGIC:
        raise PinError(f"{directory} is in no bpffs; {_MOUNT}, and name a directory there")
    if owners and status.st_uid not in owners:
        raise PinError(f"{directory} belongs to user {status.st_uid}; give it to the monitor's")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PinError(f"others may enter {directory}; run: chmod 700 {directory}")
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise PinError(f"{directory} is mounted read-only; mount it so that it can be written to")


def _above(directory: Path) -> int:
    """A descriptor of the bpffs in which it can be made. Raises PinError."""
    try:
        above = os.open(directory.parent, os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PinError(
            f"{directory.parent} cannot be opened ({error.strerror}); {_MOUNT}"
        ) from error
    if _type(above) != _MAGIC:
        os.close(above)
        raise PinError(f"{directory.parent} is no bpffs; {_MOUNT}")
    return above


def _make(directory: Path) -> None:
    """Where it is missing. Raises PinError."""
    if os.path.lexists(directory):
        return
    above = _above(directory)
    try:
        os.mkdir(directory.name, 0o700, dir_fd=above)
    except FileExistsError:
        pass
    except OSError as error:
        raise PinError(f"{directory} cannot be made ({error.strerror})") from error
    finally:
        os.close(above)


def _names(descriptor: int, directory: Path) -> list[tuple[str, str]]:
    """Of each entry the file's name and that of what it is, in the order in which they were pinned.
    Raises PinError when one is not the monitor's.
    """
    found: list[tuple[int, str, str]] = []
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if len(found) == MOST:
                    raise PinError(f"{directory} has more than {MOST} files")
                match = _ENTRY.fullmatch(entry.name)
                if not match or not entry.is_file(follow_symlinks=False):
                    problem = f"{directory} has {entry.name[:40]!r}, which is not the monitor's"
                    raise PinError(f"{problem}; give it a directory of its own")
                found.append((int(match[2]), entry.name, match[1].replace(":", ".")))
    except OSError as error:
        raise PinError(f"{directory} cannot be listed ({error.strerror})") from error
    return [(file, name) for _, file, name in sorted(found)]


class Kept(NamedTuple):
    """What a directory keeps. `objects`: maps, programs and links. `is_used`: whether a monitor
    that uses it runs. `unread_seconds`: since one last read what was counted; None: not known.
    """

    objects: int
    is_used: bool
    unread_seconds: float | None


def look(directory: Path) -> Kept:
    """What it keeps, whoever uses it; nothing where it can be made. For doctor.

    Raises PinError.
    """
    if not os.path.lexists(directory):
        os.close(_above(directory))
        return Kept(0, False, None)
    descriptor = _opened(directory, owners=())
    try:
        names = _names(descriptor, directory)
        ledgers = [file for file, name in names if name.startswith("ledger")]
        unread = _unread_seconds(_path(descriptor, ledgers[0])) if len(ledgers) == 1 else None
        # Held for a moment, which a monitor that begins just now waits for.
        return Kept(len(names), not _lock(descriptor, directory, fcntl.LOCK_SH), unread)
    finally:
        os.close(descriptor)


def _path(directory: int, file: str) -> str:
    return f"/proc/self/fd/{directory}/{file}"


def _unread_seconds(path: str) -> float | None:
    """By the ledger that is pinned there; None where it cannot be read."""
    try:
        descriptor = bpf.pinned(path)
    except OSError:
        return None
    try:
        read_ns = Ledger.found(descriptor).number("read_boot_ns")
    except (OSError, LedgerError):
        return None
    finally:
        os.close(descriptor)
    return max(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - read_ns, 0) / 1e9


def _lock(descriptor: int, directory: Path | str, kind: int) -> bool:
    """Whether nobody else holds it, and so this does now. Raises PinError."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PinError(f"{directory} cannot be locked ({error.strerror})") from error
    return True


class Pins:
    """The directory, as long as this process lives nobody else's: a lock ends with its holder.

    It offers what Store does. Nobody but root and this user can have put anything there; record.py
    checks it all the same.
    """

    is_there = True
    until = "the next start, or seal-monitor detach"

    def __init__(
        self, directory: Path, seconds: float = LOCK_SECONDS, *, outlives_stop: bool = False
    ) -> None:
        """`seconds`: how long to wait for another monitor to be gone. Raises PinError."""
        self.name = str(directory)
        self.outlives_stop = outlives_stop
        _make(directory)
        self._descriptor = _opened(directory, owners=(0, os.geteuid()))
        try:
            self._wait_for_lock(seconds)
            self._files = dict(_names(self._descriptor, directory))
        except PinError:
            os.close(self._descriptor)
            raise

    def _wait_for_lock(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not _lock(self._descriptor, self.name, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                problem = f"another monitor uses {self.name}"
                raise PinError(f"{problem}; give each a directory of its own")
            time.sleep(_POLL_SECONDS)

    def given(self) -> Handed:
        """What an earlier life has left, as systemd hands it over."""
        found = Handed({})
        for file, name in self._files.items():
            try:
                found.descriptors.setdefault(name, []).append(
                    bpf.pinned(_path(self._descriptor, file))
                )
            except OSError as error:
                return found._replace(problem=f"{file} cannot be opened ({error.strerror})")
        return found

    def memory(self, size: int) -> int:
        """A descriptor of memory that can be kept. Raises OSError."""
        return memory.pinnable(size)

    def keep(self, groups: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Pin descriptors, by name, in this order. Raises OSError."""
        number = max((int(file.rpartition("-")[2]) for file in self._files), default=-1) + 1
        for name, descriptors in groups:
            for each in descriptors:
                file = f"{name.replace('.', ':')}-{number}"
                self._files[file] = name  # before: a signal may end it between the two
                bpf.pin(each, _path(self._descriptor, file))
                number += 1

    def forget(self, names: Iterable[str]) -> None:
        """Remove what is pinned with these names: the last first, so that no set seems whole.

        What has no other descriptor is detached then. Raises OSError.
        """
        wanted = set(names)
        for file in [file for file, name in reversed(self._files.items()) if name in wanted]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file, dir_fd=self._descriptor)
            del self._files[file]

    def stop(self) -> None:
        """Remove all, unless that is for the next start. Raises OSError."""
        if not self.outlives_stop:
            self.remove()

    def remove(self) -> int:
        """How many maps, programs and links these were; a link's last descriptor detaches its
        program. Raises OSError.
        """
        count = len(self._files)
        self.forget(set(self._files.values()))
        # bpffs lets go of an inode's object after a grace period (bpf_free_inode()).
        if not grace_period():
            time.sleep(_GRACE_SECONDS)
        return count
