"""Parses /proc/PID/stat, in which the name of the process may contain anything."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ProcessStat", "parse_stat"]


class ProcessStat(NamedTuple):
    """Some fields of proc_pid_stat(5). `start_ticks`: since boot, field 22. The last two are
    addresses, fields 26 and 28. To a reader who may not trace the process they are 1 and 0
    (fs/proc/array.c, do_task_stat()); of one without memory 0 and 0.
    """

    name: bytes
    state: bytes
    parent: int
    flags: int
    start_ticks: int
    start_code: int
    start_stack: int

    @property
    def has_memory(self) -> bool:
        """Not so of a kernel thread, nor of a thread that has ended or is about to."""
        return self.state not in (b"Z", b"X") and self.start_code != 0


def parse_stat(text: bytes) -> ProcessStat:
    """Raises ValueError when it is not the text of a /proc/PID/stat."""
    before, _, after = text.rpartition(b")")
    fields = after.split()  # from the third on
    try:
        numbers = [int(fields[place]) for place in (1, 6, 19, 23, 25)]
    except IndexError:
        raise ValueError("not the text of /proc/PID/stat") from None
    return ProcessStat(before.partition(b"(")[2], fields[0], *numbers)
