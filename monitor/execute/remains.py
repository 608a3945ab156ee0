"""What an exec left behind when SIGKILL ended it: the next exec finds it by name and removes it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from monitor.provoke.announce import COMMAND_CGROUP

__all__ = ["new_prefix", "remove_cgroups", "remove_directories"]


def _prefix(proc: Path) -> str:
    """The beginning of a name: it holds for one boot and pid namespace, as pids do."""
    boot = (proc / "sys/kernel/random/boot_id").read_text("ascii")[:8]
    return f"{COMMAND_CGROUP}-{boot}-{(proc / 'self/ns/pid').stat().st_ino}-"


def new_prefix(proc: Path = Path("/proc")) -> str:
    """The beginning of the names of what this process removes at its end. Raises OSError."""
    return f"{_prefix(proc)}{os.getpid()}-"


def _left(folder: Path, proc: Path) -> Iterator[Path]:
    """The entries of `folder` that were made by processes which have ended."""
    pattern = re.compile(re.escape(_prefix(proc)) + r"([1-9]\d{0,8})-\w+", re.ASCII)
    for path in folder.iterdir():
        if (found := pattern.fullmatch(path.name)) and not _is_alive(int(found[1])):
            yield path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_cgroups(parent: Path, proc: Path = Path("/proc")) -> None:
    """Remove the cgroups left below `parent` that have no process; what cannot be removed stays."""
    with suppress(OSError):
        for path in _left(parent, proc):
            with suppress(OSError):
                if "populated 0" in (path / "cgroup.events").read_text("ascii"):
                    for directory, _, _ in os.walk(path, topdown=False):
                        os.rmdir(directory)


def remove_directories(folder: Path, proc: Path = Path("/proc")) -> None:
    """Remove the caller's temporary directories left in `folder`; what cannot be removed stays."""
    with suppress(OSError):
        for path in _left(folder, proc):
            with suppress(OSError):
                found = path.lstat()
                # With the mode and owner that tempfile gives: nobody else can have made it, even
                # where everybody may write.
                if (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid) == (
                    *(stat.S_IFDIR, 0o700),
                    os.geteuid(),
                ):
                    shutil.rmtree(path)
