"""Messages to the service manager: sd_notify(3), and its watchdog."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping

__all__ = ["Service", "notify"]

STATUS_SECONDS = 5.0
STATUS_LIMIT = 200
FED_PER_LIMIT = 4  # messages in the watchdog's time, so that two of them may be late


def notify(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send a message to systemd, if it started us, as sd_notify(3) does; never waits.

    An error is printed on standard error.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.setblocking(False)  # the reader may have stopped
            connection.connect("\0" + address[1:] if address.startswith("@") else address)
            connection.send(message.encode())
    except OSError as error:
        if isinstance(error, BlockingIOError) and message.startswith("STATUS="):
            return  # the next status comes soon
        words = (
            f"seal-monitor: cannot notify the service manager of {message}: {address}: {error}\n"
        )
        with contextlib.suppress(OSError):  # there is nowhere else to report it
            os.write(2, words.encode(errors="backslashreplace"))


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Seconds that the manager waits for a sign of life, by sd_watchdog_enabled(3); 0: no limit."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(int(environment.get("WATCHDOG_USEC", "0")), 0) / 1_000_000
    except ValueError:
        return 0.0


class Service:
    """The service that systemd started; without systemd every message is dropped.

    `feeding_seconds`: how often the watchdog is fed; 0: there is no watchdog.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._clock = clock
        self.feeding_seconds = _watchdog_seconds(environment) / FED_PER_LIMIT
        self._feed_at = self._status_at = float("-inf")
        self._is_ready = False

    @property
    def is_listening(self) -> bool:
        return bool(self._environment.get("NOTIFY_SOCKET"))

    def _notify(self, *lines: str) -> None:
        notify("\n".join(lines), self._environment)

    def ready(self) -> None:
        self._is_ready = True
        self._status_at = float("-inf")  # the last status is no longer true
        self._notify("READY=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload: the manager is notified, unless the service is not ready yet."""
        if not self._is_ready:
            yield
            return
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._notify("READY=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def turned(self, is_alive: bool, status: Callable[[], str]) -> None:
        """A turn of the loop has ended. The watchdog is fed if `is_alive` and it is time.

        `status` is called every few seconds: one line for `systemctl status`.
        """
        now = self._clock()
        if is_alive and self.feeding_seconds and now >= self._feed_at:
            self._feed_at = now + self.feeding_seconds
            self._notify("WATCHDOG=1")
        if self.is_listening and now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            self._notify("STATUS=" + " ".join(status().split())[:STATUS_LIMIT])
