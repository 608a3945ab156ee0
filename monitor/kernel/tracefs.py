"""Makes sure that tracefs is mounted: it lists the numbers by which tracepoints are attached."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import NamedTuple

from monitor.kernel.privileges import LOCKED_DOWN, with_remedy

__all__ = ["Tracefs", "ensure", "why_unreadable"]

_TRACING = Path("/sys/kernel/tracing")
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18


class Tracefs(NamedTuple):
    """`problem`: why tracepoints cannot be attached, and the way out; empty when they can."""

    note: str = ""
    problem: str = ""


def ensure() -> Tracefs:
    """Mount it where no other process sees it, if it is not mounted.

    Mounting needs CAP_SYS_ADMIN.
    """
    problem = why_unreadable()
    if problem is None:
        return _mount()
    return Tracefs(problem=problem)


def why_unreadable(
    tracing: Path = _TRACING, mountinfo: Path = Path("/proc/self/mountinfo")
) -> str | None:
    """Why tracefs cannot be read, empty where it can; None where it is not mounted.

    In lockdown mode confidentiality it has no files (tracer_init_tracefs() in
    kernel/trace/trace.c), or, where that came later, none that can be opened
    (tracing_check_open_get_tr()): not even root gets past EPERM, where a missing privilege is
    EACCES.
    """
    try:
        os.close(os.open(tracing / "events/enable", os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"tracefs is empty; {LOCKED_DOWN}" if _is_mounted(tracing, mountinfo) else None
    except PermissionError as error:
        if error.errno == errno.EPERM:
            return f"tracefs cannot be read; {LOCKED_DOWN}"
        return with_remedy(f"cannot read tracefs ({error.strerror})")
    return ""


def _is_mounted(tracing: Path, mountinfo: Path) -> bool:
    lines = mountinfo.read_bytes().splitlines()
    return any(line.split()[4] == bytes(tracing) and b" - tracefs " in line for line in lines)


def _mount() -> Tracefs:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        (libc.unshare, (_CLONE_NEWNS,)),
        (libc.mount, (b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)),
        (libc.mount, (b"tracefs", bytes(_TRACING), b"tracefs", 0, None)),
    )
    for call, arguments in steps:
        if call(*arguments):
            reason = os.strerror(ctypes.get_errno())
            return Tracefs(
                problem=f"tracefs is not mounted and mounting it failed ({reason}); "
                f"run: mount -t tracefs tracefs {_TRACING}"
            )
    if problem := why_unreadable():
        return Tracefs(problem=problem)
    return Tracefs(note="tracefs was not mounted: used a private mount while loading")
