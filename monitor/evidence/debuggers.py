"""Which programs are the host's own debuggers: they set breakpoints in the code of others.

A program is one of them by its file, which is the host's and root's, and never by its name alone:
anybody may call a file of his own `gdb`. Whoever runs the host's own debugger can change with it
what it can change; its severity is that of a debugger, whatever it is used for.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from monitor.evidence.events import Process

__all__ = ["is_debugger"]

# By the base name of the executable. `perf` and `bpftrace` are missing: they use uprobes, which
# the kernel writes itself, and no hook sees those. strace writes nothing to a process.
_NAMES = (
    *("gdb", "gdb-*", "gdbserver"),
    *("lldb", "lldb-[0-9]*", "lldb-server*"),
    *("dlv", "ltrace", "rr"),
    "criu",  # puts a few instructions of its own there for as long as it dumps or restores
)


def is_debugger(process: Process | None) -> bool:
    """Whether the process is known to run one. False where too little is known of its file."""
    if process is None or not process.is_system_program:
        return False
    name = (process.executable or "").rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in _NAMES)
