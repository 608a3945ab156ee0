"""A cgroup for one command: it holds the processes that the command starts, and no others."""

from __future__ import annotations

import ctypes
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from monitor.evidence.cgroups import cgroup_mount, unified_path
from monitor.execute.remains import new_prefix, remove_cgroups
from monitor.kernel.syscalls import call
from monitor.untrusted.printable import printable

__all__ = ["CgroupError", "CommandCgroup", "Member"]

REMOVE_SECONDS = 5.0  # a process that has just ended still holds it
_FSCONFIG_CMD_CREATE = 6  # include/uapi/linux/mount.h
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC


class CgroupError(OSError):
    """Why there is no cgroup for the command, and the way out."""


class Member(NamedTuple):
    pid: int
    name: str


def _mount() -> int:
    """The descriptor of a cgroup2 mount that nobody else sees. Raises OSError.

    Called only if nothing else mounts cgroup2: in the initial cgroup namespace a second mount would
    change the options for everyone (kernel/cgroup/cgroup.c, apply_cgroup_root_flags()).
    """
    kind = ctypes.create_string_buffer(b"cgroup2")
    context = _must("fsopen", ctypes.addressof(kind), _CLOEXEC)
    try:
        _must("fsconfig", context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        return _must("fsmount", context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _must(name: str, *arguments: int) -> int:
    result = call(name, *arguments)
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result


def _own_path(proc: Path) -> str:
    """The path of the caller's cgroup below the root of the hierarchy; "" for the root itself."""
    path = unified_path((proc / "self/cgroup").read_bytes())
    if path is None:
        raise CgroupError(
            "this kernel has no cgroup2 hierarchy; boot one built with CONFIG_CGROUPS=y"
        )
    return os.fsdecode(path.removeprefix(b"/"))


class CommandCgroup:
    """A child of the caller's cgroup, so the same limits apply. Close it. Raises CgroupError."""

    def __init__(self, proc: Path = Path("/proc"), root: Path | None = None) -> None:
        """`root` is the cgroup2 mount; found in /proc/self/mountinfo when it is None."""
        self._proc = proc
        self._mount = -1
        root = root or cgroup_mount(proc)
        with ExitStack() as undo:
            undo.callback(self._close_mount)
            try:
                if root is None:
                    self._mount = _mount()
                    root = Path(f"/proc/self/fd/{self._mount}")
                self._parent = root / _own_path(proc)
                remove_cgroups(self._parent)
                self._path = self._parent / f"{new_prefix()}{secrets.token_hex(4)}"
                self._path.mkdir()
                undo.callback(self._path.rmdir)
                self.descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, self.descriptor)
                # A process that writes "0" to it moves into the cgroup.
                self.entry = os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            except CgroupError:
                raise
            except OSError as error:
                raise CgroupError(
                    f"cannot make a cgroup for the command: {error}; it needs root and a cgroup2 "
                    "hierarchy that it may write to"
                ) from error
            undo.pop_all()

    def members(self) -> list[Member]:
        """The living processes in the cgroup and below it."""
        found = []
        for pid in self._pids():
            with suppress(OSError):  # it has just ended
                name = (self._proc / str(pid) / "comm").read_bytes().removesuffix(b"\n")
                found.append(Member(pid, printable(name)))
        return found

    def _pids(self) -> Iterator[int]:
        for directory in self._directories():
            with suppress(OSError):  # removed meanwhile, or threaded: the domain above lists them
                yield from map(int, (directory / "cgroup.procs").read_text("ascii").split())

    def _directories(self) -> list[Path]:
        """The cgroup's directory and those that the command made below it, the deepest first."""
        walk = os.walk(self._path, topdown=False)
        return [Path(directory) for directory, _, _ in walk]

    def close(self) -> None:
        """Hand the processes that are left back to the caller's cgroup and remove this one.

        Raises CgroupError when that is not possible.
        """
        os.close(self.descriptor)
        os.close(self.entry)
        deadline = time.monotonic() + REMOVE_SECONDS
        try:
            while not self._is_removed():
                if time.monotonic() > deadline:
                    raise CgroupError(f"cannot remove the cgroup {self._path}: it is still in use")
                time.sleep(0.01)
        finally:
            self._close_mount()

    def _is_removed(self) -> bool:
        for pid in self._pids():
            with suppress(OSError):  # it has just ended
                (self._parent / "cgroup.procs").write_text(str(pid))
        for directory in self._directories():
            with suppress(OSError):  # busy: the next turn
                directory.rmdir()
        return not self._path.exists()

    def _close_mount(self) -> None:
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
