"""Which programs made the last violations of a workload: what an alert names.

A name becomes a label, so it must not be a monitored process's to choose. It is the base name of
the host's own file, which root owns; every other program is `other`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from monitor.evidence.events import Process
from monitor.evidence.memory_map import DELETED
from monitor.evidence.workloads import OTHER

__all__ = ["KEPT_SECONDS", "Programs", "base_name", "program"]

PROGRAMS = 4  # of a workload and kind, the last ones
KEPT_SECONDS = 3600.0
_NAME = re.compile(r"[\w.+-]{1,64}", re.ASCII)


def base_name(process: Process) -> str:
    """Of its executable, deleted or not; empty where that is not known."""
    return (process.executable or "").removesuffix(DELETED).rpartition("/")[2]


def program(process: Process | None) -> str:
    """What an alert may call the program of a process."""
    if process is None or not process.is_system_program:
        return OTHER
    name = base_name(process)
    return name if _NAME.fullmatch(name) else OTHER


class Programs:
    """Written by the thread that makes events, read by that of a scrape."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # By workload and kind, then by program: the oldest first.
        self._times: dict[tuple[str, str], dict[str, float]] = {}

    def add(self, workload: str, kind: str, process: Process | None) -> None:
        """A violation of that process, now. `workload`: a name from a bounded set."""
        times, name = self._times.setdefault((workload, kind), {}), program(process)
        times.pop(name, None)
        times[name] = self._clock()
        if len(times) > PROGRAMS:
            del times[next(iter(times))]

    def forget(self, workload: str) -> None:
        """Its name is given back to the set."""
        for key in [key for key in self._times if key[0] == workload]:
            del self._times[key]

    def times(self) -> Mapping[tuple[str, str, str], float]:
        """By workload, kind and program: when its last violation was, in Unix time. Those of the
        last hour.
        """
        since = self._clock() - KEPT_SECONDS
        return {
            (*key, name): at
            for key, times in self._times.copy().items()
            for name, at in times.copy().items()
            if at > since
        }
