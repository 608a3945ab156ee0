"""Who may ask the web server, and over what: the web config file, read anew when it has changed.

At each connection the file and those that it names are compared with what was read of them, so that
a new certificate or user holds from the next one on. A file with a mistake changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from monitor.basic_auth import BasicAuth
from monitor.web import REQUEST_SECONDS, Access, WebError
from monitor.web_config import RateLimit, WebConfig, digest_of, load_web_config

__all__ = ["TokenBucket", "WebAccess"]

RETRY_SECONDS = 1.0  # before a file with a mistake is read again


class TokenBucket:
    """Lets `burst` requests pass at once, and one more each `interval` seconds."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._full_at = clock()  # when it would be full again
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        """Whether another request may pass."""
        interval, burst = self._limit.interval, self._limit.burst
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at, now) + interval
            if full_at - now > burst * interval:
                return False
            self._full_at = full_at
            return True


def _access(config: WebConfig, request_seconds: float) -> Access:
    return Access(
        tls=config.tls,
        accepts=BasicAuth(config.users, request_seconds).accepts if config.users else None,
        headers=tuple(f"{name}: {value}" for name, value in config.headers.items()),
        passes=TokenBucket(config.rate_limit) if config.rate_limit else None,
    )


def _check_change(old: WebConfig, new: WebConfig, path: Path) -> None:
    """What protects the server stays for as long as it runs: half a file may be there while it is
    written. Raises WebError.
    """
    if (old.tls is None) != (new.tls is None):
        change = "turned on" if new.tls else "turned off"
        raise WebError(f"{path}: TLS can be {change} by a restart alone")
    if old.users and not new.users:
        raise WebError(f"{path}: basic auth can be turned off by a restart alone")


class WebAccess:
    """Call it for the access in force.

    `tell` is called from any thread, with the reason when what the file asks for is no longer in
    force, and with None when it is again or has changed.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[WebError | None], None],
        request_seconds: float = REQUEST_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Raises WebError when the file cannot be used."""
        self._path = path
        self._tell = tell
        self._request_seconds = request_seconds
        self._retry_seconds = retry_seconds
        self._retry_at = 0.0
        self._problem = ""
        self._lock = threading.Lock()
        self._config = load_web_config(path)
        self._access = _access(self._config, request_seconds)

    def __call__(self) -> Access:
        with self._lock:
            is_same = all(digest_of(file) == was for file, was in self._config.files.items())
            if is_same and self._problem:
                self._problem = ""
                self._tell(None)
            elif not is_same and time.monotonic() >= self._retry_at:
                self._read_anew()
            return self._access

    def _read_anew(self) -> None:
        try:
            config = load_web_config(self._path)
            _check_change(self._config, config, self._path)
        except WebError as error:
            self._retry_at = time.monotonic() + self._retry_seconds
            if str(error) != self._problem:
                self._problem = str(error)
                self._tell(error)
            return
        access = _access(config, self._request_seconds)
        if config.users == self._config.users:  # it knows who was right, which is slow to learn
            access = access._replace(accepts=self._access.accepts)
        self._config, self._access, self._problem = config, access, ""
        self._tell(None)
