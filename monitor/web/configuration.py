"""The web configuration of a daemon: read at the start, and again when it changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from monitor.web.server import Access, WebError

__all__ = ["WebConfiguration"]

LOOK_SECONDS = 1.5  # after a reload: by then a file written just before it counts as complete


class WebConfiguration:
    """`access` is called at each connection, by any thread; one thread uses the rest."""

    def __init__(self, file: Path | None) -> None:
        """Without a file there are no conditions. Raises WebError when it cannot be used."""
        self._outcomes: deque[WebError | None] = deque()  # other threads add, this one takes
        self._look_at = math.inf
        self.access: Callable[[], Access] = Access
        if file is not None:
            from monitor.web.access import WebAccess  # noqa: PLC0415 - YAML and bcrypt: 3 MB

            self.access = WebAccess(file, self._outcomes.append)
        self.has_tls = self.access().tls is not None

    def reload(self, now: float) -> None:
        """Look at the file now and once it has settled, without waiting for a connection.

        `now` is of the monotonic clock.
        """
        self.access()
        self._look_at = now + LOOK_SECONDS

    def turn(self, now: float) -> None:
        """Look again, if a reload has asked for it and it is time."""
        if now >= self._look_at:
            self._look_at = math.inf
            self.access()

    def outcomes(self) -> Iterator[WebError | None]:
        """For each reading since the last call: None if it is in force, else why it is not."""
        while self._outcomes:
            yield self._outcomes.popleft()
