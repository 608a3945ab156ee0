"""Whether the clock is to be believed, by which incidents are too old."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["DAY_NS", "HOUR_NS", "Clock"]

HOUR_NS = 3600 * 1_000_000_000
DAY_NS = 24 * HOUR_NS


class Clock:
    """The real-time clock, which somebody may set: a year ahead, and everything kept is too old.

    It is settled when this process has not seen it set for a day.
    """

    def __init__(self, real_ns: Callable[[], int], boot_ns: Callable[[], int]) -> None:
        self._real_ns = real_ns
        self._boot_ns = boot_ns
        self._offset = real_ns() - boot_ns()
        self._since = boot_ns()

    def now(self) -> tuple[int, bool]:
        """Unix time in ns, and whether it is settled."""
        real, boot = self._real_ns(), self._boot_ns()
        if abs(real - boot - self._offset) > HOUR_NS:
            self._offset, self._since = real - boot, boot
        return real, boot - self._since >= DAY_NS

    def hour(self) -> int:
        """The hour since boot, by the clock that nobody sets."""
        return self._boot_ns() // HOUR_NS
