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

__all__ = ["KEPT_SECONDS", "OTHER", "Programs", "program"]

OTHER = "other"
PROGRAMS = 4  # of a workload and kind, the last ones
KEPT_SECONDS = 3600.0
_NAME = re.compile(r"[\w.+-]{1,64}", re.ASCII)


def program(process: Process | None) -> str:
    """What an alert may call the program of a process."""
    if process is None or process.files != "host" or process.executable_owner != 0:
        return OTHER
    name = (process.executable or "").removesuffix(DELETED).rpartition("/")[2]
    return name if _NAME.fullmatch(name) else OTHER


class Programs:
    """Written by the thread that makes events, read by that of a scrape."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._times: dict[tuple[str, str, str], float] = {}  # the oldest first

    def add(self, workload: str, kind: str, process: Process | None) -> None:
        """A violation of that process, now. `workload`: a name from a bounded set."""
        key = workload, kind, program(process)
        self._times.pop(key, None)
        self._times[key] = self._clock()
        alike = [each for each in self._times if each[:2] == key[:2]]
        if len(alike) > PROGRAMS:
            del self._times[alike[0]]

    def times(self) -> Mapping[tuple[str, str, str], float]:
        """By workload, kind and program: when its last violation was, in Unix time. Those of the
        last hour.
        """
        since = self._clock() - KEPT_SECONDS
        return {key: at for key, at in self._times.copy().items() if at > since}
