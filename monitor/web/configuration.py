"""The web configuration in the daemon's hands: read at the start, and again when it changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from monitor.web.server import Access, WebError

__all__ = ["WebConfiguration"]

LOOK_SECONDS = 1.5  # after a reload: what was written just before it is taken for whole then


class WebConfiguration:
    """`access` is called at each connection, by any thread; the rest is used by one thread."""

    def __init__(self, file: Path | None) -> None:
        """Without a file there are no conditions. Raises WebError when it cannot be used."""
        self._outcomes: deque[WebError | None] = deque()  # what other threads add, we take
        self._look_at = math.inf
        self.access: Callable[[], Access] = Access
        if file is not None:
            from monitor.web.access import WebAccess  # noqa: PLC0415 - YAML and bcrypt: 3 MB

            self.access = WebAccess(file, self._outcomes.append)
        self.has_tls = self.access().tls is not None

    def reload(self, now: float) -> None:
        """Look at the file without waiting for a connection, now and once it has settled.

        `now` is of the monotonic clock.
        """
        self.access()
        self._look_at = now + LOOK_SECONDS

    def turn(self, now: float) -> None:
        """Look again, where a reload has left that to do."""
        if now >= self._look_at:
            self._look_at = math.inf
            self.access()

    def outcomes(self) -> Iterator[WebError | None]:
        """Of what was read since the last call: None where it is in force, else why it is not."""
        while self._outcomes:
            yield self._outcomes.popleft()
