"""The names of what may happen on a host without being seen: of doctor's rows, of
`blind_spot{name}` and in docs/limits.md.
"""

from __future__ import annotations

__all__ = ["ALWAYS", "BLIND_SPOTS"]

# Open or closed by how the programs are attached, by the configuration and by the host.
BLIND_SPOTS = (
    "hidden refusals",
    "32-bit callers",
    "io_uring",
    "x32 callers",
    "/proc/PID/mem",
    "ptrace",
    "MADV_DONTNEED",
    "MADV_GUARD_REMOVE",
    "userfaultfd",
)
# Whatever is attached: no metric has these, because they would say 1 on every host, for ever.
ALWAYS = (
    "kernel's accesses",
    "SIGBUS",
    "tracers",
    "pinned pages",
    "mapped files",
    "mapped sockets",
    "uprobes",
)
