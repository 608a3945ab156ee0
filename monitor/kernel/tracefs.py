"""Makes sure that tracefs is mounted: it lists the numbers by which tracepoints are attached."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from monitor.kernel.privileges import with_remedy

__all__ = ["Tracefs", "ensure"]

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
    try:
        (_TRACING / "events").stat()
    except FileNotFoundError:
        return _mount()
    except PermissionError as error:
        return Tracefs(problem=with_remedy(f"cannot read tracefs ({error.strerror})"))
    return Tracefs()


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
    return Tracefs(note="tracefs was not mounted: used a private mount while loading")
