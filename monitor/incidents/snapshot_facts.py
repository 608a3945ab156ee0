"""What a snapshot has of a process besides its mappings: limits, seccomp, parents.

Nothing here waits for a lock that the process can hold.
"""

from __future__ import annotations

import os
from pathlib import Path

from monitor.evidence.events import timestamp
from monitor.evidence.identity import TICK_NS
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import read_at
from monitor.untrusted.process_stat import parse_stat

__all__ = ["PATH_LIMIT", "limits", "parents", "seccomp", "status"]

PATH_LIMIT = 512
NAME_LIMIT = 64
STATUS_READ = 8192

# The names in /proc/PID/limits (lnames in fs/proc/base.c), and those of getrlimit(2).
_LIMIT_NAMES = {
    b"Max cpu time": "cpu",
    b"Max file size": "fsize",
    b"Max data size": "data",
    b"Max stack size": "stack",
    b"Max core file size": "core",
    b"Max resident set": "rss",
    b"Max processes": "nproc",
    b"Max open files": "nofile",
    b"Max locked memory": "memlock",
    b"Max address space": "as",
    b"Max file locks": "locks",
    b"Max pending signals": "sigpending",
    b"Max msgqueue size": "msgqueue",
    b"Max nice priority": "nice",
    b"Max realtime priority": "rtprio",
    b"Max realtime timeout": "rttime",
}
_LIMIT_NAME_WIDTH = 25
_SECCOMP_MODES = {b"0": "disabled", b"1": "strict", b"2": "filter"}


def limits(directory: int) -> dict[str, dict[str, int | None]]:
    found = {}
    for line in read_at("limits", directory, STATUS_READ).splitlines():
        name = _LIMIT_NAMES.get(line[:_LIMIT_NAME_WIDTH].rstrip())
        values = line[_LIMIT_NAME_WIDTH:].split()[:2]
        if name and len(values) == 2:
            soft, hard = (int(value) if value.isdigit() else None for value in values)
            found[name] = {"soft": soft, "hard": hard}
    return found


def status(directory: int, name: str) -> dict[bytes, bytes]:
    """The values in the first STATUS_READ bytes of a status file."""
    lines = read_at(name, directory, STATUS_READ).splitlines()
    pairs = (line.partition(b":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}


def seccomp(status: dict[bytes, bytes]) -> dict[str, object]:
    """The seccomp state of one thread: threads may have different filters."""
    mode = _SECCOMP_MODES.get(status.get(b"Seccomp", b""))
    if mode is None:
        raise OSError("the kernel does not show it")
    return {
        "mode": mode,
        "filters": int(status.get(b"Seccomp_filters", b"0")),
        "no_new_privileges": status.get(b"NoNewPrivs") == b"1",
    }


def parents(
    proc: Path, directory: int, start_offset_ns: int, limit: int
) -> list[dict[str, object]]:
    """The parents, the nearest first, up to one that has ended or the namespace's first process."""
    found: list[dict[str, object]] = []
    child = parse_stat(read_at("stat", directory, 4096))
    while child.parent and len(found) < limit:
        try:
            parent = os.open(proc / str(child.parent), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            break
        try:
            stat = parse_stat(read_at("stat", parent, 4096))
            executable = _link(parent)
        except (FileNotFoundError, ProcessLookupError):
            break
        finally:
            os.close(parent)
        if stat.start_ticks > child.start_ticks:
            break  # another process has got the parent's pid
        found.append(
            {
                "pid": child.parent,
                "name": printable(stat.name, NAME_LIMIT),
                "executable": executable,
                "start": timestamp(stat.start_ticks * TICK_NS, start_offset_ns),
            }
        )
        child = stat
    return found


def _link(directory: int) -> str | None:
    """The path of the executable; None if it cannot be read."""
    try:
        return printable(os.readlink(b"exe", dir_fd=directory), PATH_LIMIT)
    except OSError:
        return None
