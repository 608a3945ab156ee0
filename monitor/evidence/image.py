"""The program that a process runs, from one exec to the next: as the kernel recorded it, and now.

A pid and a start time outlive an exec, and any user can execute another file of the same name.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from pathlib import Path
from typing import Literal, NamedTuple

from monitor.evidence.memory_map import DELETED
from monitor.kernel import abi
from monitor.untrusted.process_stat import ProcessStat
from monitor.untrusted.segments import read_segments

__all__ = [
    "UNKNOWN",
    "Files",
    "Image",
    "Place",
    "ProgramFile",
    "build_id",
    "is_run",
    "place_of",
    "program_file",
    "recorded",
]

Files = Literal["host", "namespace"]

# include/uapi/linux/stat.h: struct statx up to stx_mnt_id, and what is asked for.
_STATX = struct.Struct("<I28xQ96xIIQ")
_STATX_SIZE = 256
_STATX_INO, _STATX_MNT_ID_UNIQUE = 0x100, 0x4000
# Without syncing: a file system in user space would have to answer.
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000

_DELETED = DELETED.encode()
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

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
        return _identity_of(file)
    finally:
        os.close(file)


def _identity_of(file: int) -> ProgramFile:
    words = ctypes.create_string_buffer(_STATX_SIZE)
    flags, wanted = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_INO | _STATX_MNT_ID_UNIQUE
    if _LIBC.statx(file, b"", flags, wanted, words):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mask, inode, major, minor, mount = _STATX.unpack_from(words)
    has_mount = mask & _STATX_MNT_ID_UNIQUE
    return ProgramFile(os.makedev(major, minor), inode, mount if has_mount else 0)


class Place(NamedTuple):
    """Whose the path of a program is, and who owns the file there: a uid; None: not known.

    `is_deleted`: the path led there, until the file was deleted; the kernel has put DELETED after
    it. The owner is known of the host's own file alone, and where he is its owner by the kernel's
    rules: a file system mounted `nosuid`, such as one in user space, may be some user's who says
    there what he likes; and what anybody may write is nobody's.
    """

    files: Files | None
    owner: int | None
    is_deleted: bool = False


UNKNOWN = Place(None, None)


def place_of(proc: Path, process: Path, path: bytes, program: ProgramFile) -> Place:
    """Whether the path leads to this file on the host, or led there until it was deleted.

    `process` is the directory in /proc of a process that runs it. It may wait for a file system.
    """
    try:
        root = _hosts_root(proc)
    except OSError:
        return UNKNOWN
    try:
        try:
            found = _place_below(root, path, program)
        except (FileNotFoundError, NotADirectoryError):
            found = Place("namespace", None)
        if found.files == "host" or not path.endswith(_DELETED):
            return found
        return _place_of_deleted(root, process, path, program)
    except OSError:
        return UNKNOWN
    finally:
        os.close(root)


def _place_of_deleted(root: int, process: Path, path: bytes, program: ProgramFile) -> Place:
    """The host's, if its directory is: the one that the path names, of the mount by which the
    program was executed, is the same directory as on the host. Both paths are as d_path() has them,
    so that within a mount no other directory has the same one. A user who mounts a directory of his
    own over the host's has another one, and one that is mounted over his has another mount.
    """
    folder = os.path.dirname(path)
    own = os.open(os.fsencode(process / "root") + folder, _DIRECTORY)
    try:
        found = _identity_of(own)
        is_its = (
            program.mount == found.mount != 0 and os.readlink(b"/proc/self/fd/%d" % own) == folder
        )
    finally:
        os.close(own)
    if not is_its:
        return UNKNOWN
    hosts = os.open(folder.lstrip(b"/") or b".", _DIRECTORY, dir_fd=root)
    try:
        there, mount = _identity_of(hosts), os.fstatvfs(hosts)
    finally:
        os.close(hosts)
    if (there.device, there.inode) != (found.device, found.inode):
        return UNKNOWN
    file = os.open(process / "exe", os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
    finally:
        os.close(file)
    if (status.st_dev, status.st_ino) != (program.device, program.inode):
        return UNKNOWN
    return Place("host", _owner(status, mount), is_deleted=True)


def _hosts_root(proc: Path) -> int:
    try:
        return os.open(proc / "1/root", os.O_PATH | os.O_CLOEXEC)
    except PermissionError:  # the first process may not be traced; ours is the best there is
        return os.open("/", os.O_PATH | os.O_CLOEXEC)


def _place_below(root: int, path: bytes, program: ProgramFile) -> Place:
    file = os.open(path.lstrip(b"/"), os.O_PATH | os.O_CLOEXEC, dir_fd=root)
    try:
        status, mount = os.fstat(file), os.fstatvfs(file)
    finally:
        os.close(file)
    if (status.st_dev, status.st_ino) != (program.device, program.inode):
        return Place("namespace", None)
    return Place("host", _owner(status, mount))


def _owner(status: os.stat_result, mount: os.statvfs_result) -> int | None:
    is_owned = not (mount.f_flag & os.ST_NOSUID or status.st_mode & stat.S_IWOTH)
    return status.st_uid if is_owned else None


def build_id(path: Path, program: ProgramFile) -> str | None:
    """The build id that this program's file has, in hexadecimal; `path` is its /proc/PID/exe.

    None where there is none, or the file is another one. It may wait for a file system.
    """
    try:
        # Without waiting until somebody gives up a lease of the file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            status = os.fstat(descriptor)
            is_its = (status.st_dev, status.st_ino) == (program.device, program.inode)
            return read_segments(file).build_id if is_its else None
        except OSError:
            return None
