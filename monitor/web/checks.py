"""Whose password is checked next: one at a time, fairly by source.

A check takes most of a tenth of a second. So a source whose password was wrong waits before its
next one, longer each time, and other sources go first. Among its credentials, those go first that
came first: one that is turned away comes again, while each guess is another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from monitor.untrusted.recent import Recent

__all__ = ["Checks"]

WAITING = 8  # at most; each has a place that clients who are known need
KNOWN = 2048  # credentials and sources that are remembered
FIRST_SECONDS = 0.1  # to wait after a failure, doubled with each further one
LAST_SECONDS = 0.25  # all that wait are checked while their clients are patient
FORGET_SECONDS = 60.0


@dataclass(frozen=True)
class _Failures:
    count: int
    last: float  # of the monotonic clock


@dataclass(eq=False)
class _Attempt:
    source: str
    came: float  # its credential, for the first time
    turned_away: bool = False


class Checks:
    """Turns for checks: `with checks.turn(source, credential):`."""

    def __init__(self, wait_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._failures: Recent[str, _Failures] = Recent(KNOWN)
        self._came: Recent[bytes, float] = Recent(KNOWN)
        self._waiting: list[_Attempt] = []
        self._running = False
        self._changed = threading.Condition()

    def failed(self, source: str) -> None:
        """A password of this source was wrong."""
        self._failures.put(source, _Failures(self._count(source) + 1, self._clock()))

    def held_back(self, source: str) -> float:
        """Seconds until the next check of this source may begin."""
        failures = self._failures.get(source)
        if failures is None:
            return 0.0
        pause = min(LAST_SECONDS, FIRST_SECONDS * 2.0 ** min(failures.count - 1, 10))
        return max(0.0, failures.last + pause - self._clock())

    @contextmanager
    def turn(self, source: str, credential: bytes) -> Iterator[None]:
        """Waits until this one may be checked. Raises TimeoutError when that takes too long, or
        when too many wait that go before it.
        """
        with self._changed:
            attempt = _Attempt(source, self._first_came(credential))
            self._waiting.append(attempt)
            if len(self._waiting) > WAITING:
                last = max(self._waiting, key=self._rank)
                last.turned_away = True
                self._waiting.remove(last)
                self._changed.notify_all()
            try:
                self._wait_for_turn(attempt)
            finally:
                if attempt in self._waiting:
                    self._waiting.remove(attempt)
            self._running = True
        try:
            yield
        finally:
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _wait_for_turn(self, attempt: _Attempt) -> None:
        deadline = self._clock() + self._wait_seconds
        while not attempt.turned_away:
            now = self._clock()
            ready = [each for each in self._waiting if not self.held_back(each.source)]
            if not self._running and ready and min(ready, key=self._rank) is attempt:
                return
            if now >= deadline:
                break
            pauses = (self.held_back(each.source) for each in self._waiting)
            until = min((pause for pause in pauses if pause > 0), default=deadline - now)
            self._changed.wait(min(until, deadline - now))
        raise TimeoutError

    def _rank(self, attempt: _Attempt) -> tuple[bool, float]:
        return self._count(attempt.source) > 0, attempt.came

    def _count(self, source: str) -> int:
        failures = self._failures.get(source)
        if failures is None or self._clock() - failures.last > FORGET_SECONDS:
            return 0
        return failures.count

    def _first_came(self, credential: bytes) -> float:
        came = self._came.get(credential)
        if came is None:
            came = self._clock()
            self._came.put(credential, came)
        return came
