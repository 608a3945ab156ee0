"""The directory of a process in /proc, while any of its threads lives.

A process whose first thread has ended goes on. /proc/PID then shows that thread: state Z, and
neither memory nor root. /proc/TID of a thread that lives has them, though no listing shows it.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from monitor.untrusted.process_stat import ProcessStat, parse_stat

__all__ = ["KERNEL_THREAD", "Found", "find", "number_of", "read_at", "stat_of"]

KERNEL_THREAD = 0x00200000  # PF_KTHREAD in include/linux/sched.h
# Whoever traces threads can keep ended ones there, before those that live.
_THREADS = 64


class Found(NamedTuple):
    """`descriptor` is that of /proc/`number`. It stays that process's, even when another one gets
    the number.
    """

    descriptor: int
    number: int


def read_at(name: str, directory: int, limit: int) -> bytes:
    """At most `limit` bytes of a file in this directory, in one read. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def find(proc: Path, pid: int) -> Found:
    """The directory of a thread with the process's memory: the first, where that has it; the first,
    too, where none has any. Waits for no lock. Raises OSError.
    """
    first = _open(proc, pid)
    try:
        if _has_ended(first):
            other = _other(proc, pid, first)
            if other is not None:
                os.close(first)
                return other
    except BaseException:
        os.close(first)
        raise
    return Found(first, pid)


def number_of(proc: Path, pid: int) -> int:
    """The number of the directory that find() finds. Raises OSError."""
    found = find(proc, pid)
    os.close(found.descriptor)
    return found.number


def stat_of(directory: int, pid: int) -> ProcessStat:
    """The stat of a process in a directory that find() found: of the first thread its name and
    start, the rest of that directory's thread. Raises OSError, ValueError.
    """
    text = read_at("stat", directory, 4096)
    stat = parse_stat(text)
    if text.partition(b" ")[0] == b"%d" % pid:
        return stat
    first = parse_stat(read_at(f"task/{pid}/stat", directory, 4096))
    return stat._replace(name=first.name, start_ticks=first.start_ticks)


def _open(proc: Path, number: int) -> int:
    return os.open(proc / str(number), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _has_ended(directory: int) -> bool:
    try:
        stat = parse_stat(read_at("stat", directory, 4096))
    except (ValueError, OSError):  # whoever reads it next sees that
        return False
    return not (stat.has_memory or stat.flags & KERNEL_THREAD)


def _other(proc: Path, pid: int, first: int) -> Found | None:
    """Another thread of the process that has memory."""
    try:
        tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=first)
    except OSError:
        return None
    try:
        with os.scandir(tasks) as entries:
            for entry in islice(entries, _THREADS):
                if entry.name != str(pid) and (found := _living(proc, pid, int(entry.name))):
                    return found
    except OSError:  # the last one has ended meanwhile
        pass
    finally:
        os.close(tasks)
    return None


def _living(proc: Path, pid: int, thread: int) -> Found | None:
    """The thread's directory, where it lives and is this process's."""
    try:
        directory = _open(proc, thread)
    except OSError:
        return None
    try:
        # The kernel shows there the threads of the same process alone (proc_task_lookup()).
        os.stat(f"task/{pid}", dir_fd=directory)
        if parse_stat(read_at("stat", directory, 4096)).has_memory:
            return Found(os.dup(directory), thread)
    except (OSError, ValueError):
        pass
    finally:
        os.close(directory)
    return None
