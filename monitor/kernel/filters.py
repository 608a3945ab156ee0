"""Which system calls a seccomp filter refuses to this process, as a container's profile does."""

from __future__ import annotations

import errno
from pathlib import Path

from monitor.kernel.syscalls import call

__all__ = ["REMEDY", "has_filter", "refusal", "refused_by_filter"]

# Calls that the kernel itself answers with EINVAL: an unknown command (kernel/bpf/syscall.c), and
# flags that there are not (kernel/events/core.c). It looks at no privilege before.
_TRIALS: dict[str, tuple[int, ...]] = {
    "bpf": (0x7FFFFFFF, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 2**64 - 1),
}
REMEDY = (
    "allow it in the filter (containers: --security-opt seccomp=unconfined or a profile with bpf "
    "and perf_event_open; pods: seccompProfile: {type: Unconfined})"
)


def has_filter(proc: Path = Path("/proc")) -> bool:
    """Whether this process has one."""
    try:
        lines = (proc / "self/status").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    modes = [line.split()[1] for line in lines if line.startswith("Seccomp:")]
    return modes not in ([], ["0"])


def refusal(name: str) -> str:
    """By what error a call that could not succeed was refused before the kernel looked at it; empty
    where it was not.
    """
    number = -call(name, *_TRIALS[name])
    return "" if number == errno.EINVAL else errno.errorcode.get(number, str(number))


def refused_by_filter(proc: Path = Path("/proc")) -> str:
    """The calls that loading needs and a filter refuses, in words; empty where there are none."""
    if not has_filter(proc):
        return ""
    refused = [(name, error) for name in _TRIALS if (error := refusal(name))]
    return " and ".join(f"{name}(2) ({error})" for name, error in refused)
