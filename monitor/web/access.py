"""Who may ask the web server, and how: the web config file, read again when it has changed.

At each connection the file, and those that it names, are compared with what was read before. A
change takes effect once no file has changed for a second: until then it may be half written. A file
with a mistake changes nothing, and neither does one that would take a protection away.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from monitor.web.basic_auth import BasicAuth
from monitor.web.errors import WebError
from monitor.web.server import REQUEST_SECONDS, Access
from monitor.web.web_config import RateLimit, WebConfig, digest_of, load_web_config

__all__ = ["TokenBucket", "WebAccess"]

RETRY_SECONDS = 1.0  # before a file with a mistake is read again
SETTLE_SECONDS = 1.0  # without a change, before a file counts as complete


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


# The protections of the server: what a change would do, and the strength as a number, which may
# grow while the server runs but not shrink. To remove a user or an allowed name is no such change:
# it takes a right away.
_PROTECTIONS: Mapping[str, Callable[[WebConfig], int]] = {
    "TLS can be turned off": lambda config: config.tls is not None,
    "tls_server_config.client_auth_type can be weakened": (
        lambda config: config.tls.context.verify_mode if config.tls else 0
    ),
    "tls_server_config.client_allowed_sans can be emptied": (
        lambda config: config.tls is not None and config.tls.admits is not None
    ),
    "tls_server_config.min_version can be lowered": (
        lambda config: config.tls.context.minimum_version if config.tls else 0
    ),
    "basic auth can be turned off": lambda config: bool(config.users),
}


def _check_change(old: WebConfig, new: WebConfig, path: Path) -> None:
    """A protection stays as long as the server runs: if the new file lacks one, that may be a
    mistake, or half a file. Raises WebError.
    """
    for change, strength in _PROTECTIONS.items():
        if strength(new) < strength(old):
            raise WebError(f"{path}: {change} only by a restart")
    if new.tls and not old.tls:
        raise WebError(f"{path}: TLS can be turned on only by a restart")


def _unsettled_seconds(files: Iterable[Path], seconds: float, now: float | None = None) -> float:
    """Seconds until none of the files will have changed for `seconds`; 0: that is so already.

    A time of change in the future, from the clock of another machine's file system, does not count:
    it might be hours away. `now` is in Unix time.
    """
    now = time.time() if now is None else now
    rest = 0.0
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # the error is reported where it is read
            age = now - os.stat(file).st_ctime
            if age >= 0:
                rest = max(rest, seconds - age)
    return rest


class WebAccess:
    """Call it for the access in force.

    `report` is called from any thread: with the reason when the file is not in force, and with None
    when it is in force again or has changed.
    """

    def __init__(
        self,
        path: Path,
        report: Callable[[WebError | None], None],
        request_seconds: float = REQUEST_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """Raises WebError when the file cannot be used."""
        self._path = path
        self._report = report
        self._request_seconds = request_seconds
        self._retry_seconds = retry_seconds
        self._settle_seconds = settle_seconds
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
                self._report(None)
            elif not is_same and time.monotonic() >= self._retry_at:
                self._read_again()
            return self._access

    def _read_again(self) -> None:
        config, problem = self._config, None
        try:
            config = load_web_config(self._path)
            _check_change(self._config, config, self._path)
        except WebError as error:
            problem = error
        # After reading, so that a change made meanwhile is noticed.
        rest = _unsettled_seconds({*self._config.files, *config.files}, self._settle_seconds)
        if rest > 0:
            self._retry_at = time.monotonic() + rest
        elif problem is not None:
            self._retry_at = time.monotonic() + self._retry_seconds
            if str(problem) != self._problem:
                self._problem = str(problem)
                self._report(problem)
        else:
            self._put_in_force(config)

    def _put_in_force(self, config: WebConfig) -> None:
        access = _access(config, self._request_seconds)
        if config.users == self._config.users:  # keeps the checked passwords: a check is slow
            access = access._replace(accepts=self._access.accepts)
        self._config, self._access, self._problem = config, access, ""
        self._report(None)
