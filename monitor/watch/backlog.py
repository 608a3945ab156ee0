"""How much of the ring ordinary events may fill: the less, the later they are read.

Whatever waits in the ring delays what comes behind it, and a flood fills all that it may. How long
that takes to read depends on how much of a processor the daemon gets: the room follows the delay.
Early events (bpf/share.h) may always use the whole ring.
"""

from __future__ import annotations

from monitor.kernel.abi import Config

__all__ = ["Backlog"]

LATE_NS = 500_000_000
RECOVERY_NS = 5_000_000_000  # without a late record, before there is twice the room
MOST, LEAST = 2, 8  # parts of the ring: the burst of a kind at the default limits, and 200 events


class Backlog:
    """Used by the thread that reads the ring; writes the room into the programs' configuration."""

    def __init__(self, config: Config, ring_size: int) -> None:
        self._config = config
        self._most, self._least = ring_size // MOST, ring_size // LEAST
        self._changed_ns = 0
        config.ordinary_ring = self._most

    def look(self, oldest_ns: int, now_ns: int) -> None:
        """`oldest_ns`: when the oldest of the records just read was made. By the boot clock."""
        room = self._config.ordinary_ring
        if now_ns - oldest_ns > LATE_NS:
            self._config.ordinary_ring = max(room // 2, self._least)
            self._changed_ns = now_ns
        elif now_ns - self._changed_ns > RECOVERY_NS:
            self._config.ordinary_ring = min(room * 2, self._most)
            self._changed_ns = now_ns
