"""How much time names may take: so much at once, and a small part of all time after that.

Whoever is named in an event chose the files in which its names are looked up, and may make each as
slow to read as the limits of its format allow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator

from monitor.untrusted.recent import Recent

__all__ = ["Budget"]

SECONDS, SHARE = 5.0, 0.05  # of CPU time, for one user
ALL_SECONDS, ALL_SHARE = 30.0, 0.25  # for all together: a user may have many uids


class Budget:
    """Of each owner, and of all together, in CPU seconds of the thread that asks."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._began = clock()
        self._all = 0.0
        self._spent: Recent[Hashable, float] = Recent()

    def has_left(self, owner: Hashable) -> bool:
        passed = self._clock() - self._began
        return (
            self._all < ALL_SECONDS + ALL_SHARE * passed
            and (self._spent.get(owner) or 0.0) < SECONDS + SHARE * passed
        )

    @contextlib.contextmanager
    def spending(self, owner: Hashable) -> Iterator[None]:
        before = self._cpu()
        try:
            yield
        finally:
            took = self._cpu() - before
            self._all += took
            self._spent.put(owner, (self._spent.get(owner) or 0.0) + took)
