"""Capabilities(7): what each part of the monitor needs, and how it gives up the rest.

They belong to a thread, not to a process: who gives one up does so before it starts threads.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Collection, Iterable
from enum import IntEnum
from pathlib import Path

from monitor.kernel.syscalls import call

__all__ = [
    "IDENTITY",
    "LOADING",
    "LOST",
    "VITAL",
    "Capability",
    "disinherit",
    "for_loading",
    "held",
    "keep",
    "with_remedy",
]


class Capability(IntEnum):
    """Numbers of include/uapi/linux/capability.h."""

    CAP_DAC_READ_SEARCH = 2
    CAP_SETPCAP = 8
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_PERFMON = 38
    CAP_BPF = 39


# Without these there is no monitor.
VITAL = frozenset({Capability.CAP_BPF, Capability.CAP_PERFMON})

# The child that compiles and attaches. tracefs is root's alone to read.
LOADING = VITAL | {Capability.CAP_DAC_READ_SEARCH}

# The daemon once everything is attached and open. Descriptors that it holds need no capability.
IDENTITY = frozenset({Capability.CAP_SYS_PTRACE, Capability.CAP_DAC_READ_SEARCH})

# What is lost without each.
LOST = {
    Capability.CAP_BPF: "everything: no program can be loaded",
    Capability.CAP_PERFMON: "everything: no program can be attached",
    Capability.CAP_DAC_READ_SEARCH: (
        "tracepoints where tracefs is root's alone to read, full paths of other users' mapped "
        "files, and unit, container and pod of processes that end in a cgroup just made"
    ),
    Capability.CAP_SYS_PTRACE: (
        "full paths of the executables and mapped files of other users' processes, of which the "
        "kernel's base names are reported, what those processes have sealed, and their mappings "
        "and modules in snapshots"
    ),
}

_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

# include/uapi/linux/prctl.h and capability.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522
_SETS = struct.Struct("=6I")  # effective, permitted, inheritable: low words, then high ones


def _must(name: str, *arguments: int) -> int:
    result = call(name, *arguments)
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result


def _sets(name: str, words: bytes = b"") -> bytes:
    """Call capget or capset for this thread. Raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(words, _SETS.size)
    _must(name, ctypes.addressof(header), ctypes.addressof(data))
    return data.raw


def _get() -> tuple[int, int]:
    """This thread's effective and permitted set, as masks."""
    low_effective, low_permitted, _, effective, permitted, _ = _SETS.unpack(_sets("capget"))
    return effective << 32 | low_effective, permitted << 32 | low_permitted


def _set(effective: int, permitted: int) -> None:
    """Set both; the inheritable set becomes empty. Raises OSError."""
    words = (effective, permitted, 0)
    _sets("capset", _SETS.pack(*(w & 0xFFFFFFFF for w in words), *(w >> 32 for w in words)))


def _mask(capabilities: Iterable[Capability]) -> int:
    return sum(1 << capability for capability in capabilities)


def held() -> frozenset[Capability]:
    """Those that are in effect for this thread."""
    effective, _ = _get()
    return frozenset(each for each in Capability if effective >> each & 1)


def for_loading(sysctl: Path = _PARANOID) -> frozenset[Capability]:
    """What loads and attaches BPF programs here.

    CAP_SYS_ADMIN stands for those it once held, and is kept where kernel.perf_event_paranoid is
    above 2: a value that Debian's kernels add ("security,perf: Allow further restriction of
    perf_event_open"), with which tracepoints need it.
    """
    is_restricted = sysctl.exists() and int(sysctl.read_text("ascii")) > 2
    if is_restricted or not held() >= VITAL:
        return LOADING | {Capability.CAP_SYS_ADMIN}
    return LOADING


def keep(wanted: Collection[Capability]) -> None:
    """Give up all but `wanted`, for this thread and those it starts, and for ever.

    What of it was not there does not come. Raises OSError.
    """
    disinherit()
    _, permitted = _get()
    kept = permitted & _mask(wanted)
    _set(kept, kept)


def disinherit() -> None:
    """From now on no program that is executed gets a capability.

    One exception: where root runs this from a directory of another user's that only its owner may
    enter, children keep CAP_DAC_READ_SEARCH to read the program. A root that lacks CAP_SETPCAP
    gives its children what it has. Raises OSError.
    """
    _must("prctl", _PR_SET_NO_NEW_PRIVS, 1)
    _must("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    effective, permitted = _get()
    _set(effective, permitted)
    if not effective >> Capability.CAP_SETPCAP & 1:
        return
    needed = set() if _can_be_read() else {Capability.CAP_DAC_READ_SEARCH}
    number = 0
    # EINVAL behind the last that the kernel has.
    while (bounded := call("prctl", _PR_CAPBSET_READ, number)) >= 0:
        if bounded and number not in needed:
            _must("prctl", _PR_CAPBSET_DROP, number)
        number += 1


def _can_be_read() -> bool:
    """Whether this program can be read and executed without any capability."""
    effective, permitted = _get()
    _set(0, permitted)
    try:
        return all(
            os.access(path, os.R_OK | os.X_OK, effective_ids=True)
            for path in (Path(__file__).parents[1], sys.executable)
        )
    finally:
        _set(effective, permitted)


_REMEDY = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"


def with_remedy(problem: str) -> str:
    """The problem, with the way out where a missing privilege is the reason."""
    is_denied = "not permitted" in problem or "ermission denied" in problem
    return problem + _REMEDY if is_denied and not problem.endswith(_REMEDY) else problem
