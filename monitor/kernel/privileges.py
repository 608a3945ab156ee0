"""Capabilities(7): what each part of the monitor needs, and how it gives up the rest.

They belong to a thread, not to a process: a process must give one up before it starts threads.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Collection, Iterable
from enum import IntEnum
from pathlib import Path

from monitor.kernel import filters
from monitor.kernel.syscalls import call

__all__ = [
    "IDENTITY",
    "LOADING",
    "LOCKED_DOWN",
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


# Without these the monitor cannot run.
VITAL = frozenset({Capability.CAP_BPF, Capability.CAP_PERFMON})

# For the child that compiles and attaches: only root may read tracefs.
LOADING = VITAL | {Capability.CAP_DAC_READ_SEARCH}

# For the daemon once all is attached and open: descriptors that it holds need no capability.
IDENTITY = frozenset({Capability.CAP_SYS_PTRACE, Capability.CAP_DAC_READ_SEARCH})

# What is lost without each capability.
LOST = {
    Capability.CAP_BPF: "everything: no program can be loaded",
    Capability.CAP_PERFMON: "everything: no program can be attached",
    Capability.CAP_DAC_READ_SEARCH: (
        "tracepoints where only root may read tracefs, full paths of other users' mapped "
        "files, and unit, container and pod of processes that end in a cgroup just made"
    ),
    Capability.CAP_SYS_PTRACE: (
        "full paths of the executables and mapped files of other users' processes (the kernel's "
        "base names are reported), their command lines, what those processes have sealed, and "
        "their mappings and modules in snapshots"
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
    """The capabilities that are in effect for this thread."""
    effective, _ = _get()
    return frozenset(each for each in Capability if effective >> each & 1)


def for_loading(sysctl: Path = _PARANOID) -> frozenset[Capability]:
    """The capabilities that load and attach BPF programs here.

    CAP_SYS_ADMIN stands for those that were split from it. It is also kept where
    kernel.perf_event_paranoid is above 2: with that value, which Debian's kernels add
    ("security,perf: Allow further restriction of perf_event_open"), tracepoints need it.
    """
    is_restricted = sysctl.exists() and int(sysctl.read_text("ascii")) > 2
    if is_restricted or not held() >= VITAL:
        return LOADING | {Capability.CAP_SYS_ADMIN}
    return LOADING


def keep(wanted: Collection[Capability]) -> None:
    """Give up all capabilities but `wanted` for ever, for this thread and those that it starts.

    It adds none that the thread did not have. Raises OSError.
    """
    disinherit()
    _, permitted = _get()
    kept = permitted & _mask(wanted)
    _set(kept, kept)


def disinherit() -> None:
    """From now on a program that this process executes gets no capability.

    One exception: where root runs this from another user's directory that only that user may
    enter, children keep CAP_DAC_READ_SEARCH to read the program. Without CAP_SETPCAP children
    of root still get what it has. Raises OSError.
    """
    _must("prctl", _PR_SET_NO_NEW_PRIVS, 1)
    _must("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    effective, permitted = _get()
    _set(effective, permitted)
    if not effective >> Capability.CAP_SETPCAP & 1:
        return
    needed = set() if _can_be_read() else {Capability.CAP_DAC_READ_SEARCH}
    number = 0
    # EINVAL after the last capability that the kernel has.
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


# The verifier's words where bpf_base_func_proto() has no such helper (kernel/bpf/helpers.c).
_NO_READING = "cannot use helper bpf_probe_read_kernel"
LOCKED_DOWN = (
    "the kernel is locked down (confidentiality): boot with lockdown=integrity, or without lockdown"
)
_REMEDY = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"


def with_remedy(problem: str) -> str:
    """The problem, with the remedy added where a missing privilege, a seccomp filter or the
    kernel's lockdown is the reason.
    """
    if any(remedy in problem for remedy in (_REMEDY, filters.REMEDY, LOCKED_DOWN)):
        return problem
    if _NO_READING in problem:
        return f"{problem}; {LOCKED_DOWN}"
    is_denied = "not permitted" in problem or "ermission denied" in problem
    if not is_denied and "not implemented" not in problem:
        return problem
    refused = filters.refused_by_filter()
    if refused:
        return f"{problem}; a seccomp filter forbids {refused}: {filters.REMEDY}"
    return problem + _REMEDY if is_denied else problem
