"""The sink of a watched command: gives functions their names, keeps incidents, shows each once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from monitor.incidents.search import VIOLATIONS
from monitor.sinks.outputs import BatchSink, encode

__all__ = ["SHOWN_MOST", "CommandSink", "Event"]

SHOWN_MOST = 100  # incidents that are shown as they happen; the others are in the summary

Event = dict[str, Any]


class CommandSink:
    """Passes events on to the store. `named` and `show` are called in the writer's thread."""

    name = "incidents"

    def __init__(
        self, store: BatchSink, named: Callable[[Event], Event], show: Callable[[Event], None]
    ) -> None:
        """`named` gives an event the names of its functions; `show` prints the first event of each
        incident.
        """
        self._store = store
        self._named = named
        self._show = show
        self._shown: set[str] = set()

    def render(self, event: dict[str, object]) -> bytes:
        return encode(event)

    def write(self, data: bytes) -> None:
        self.write_all([data])

    def write_all(self, batch: Sequence[bytes]) -> None:
        """Raises SinkError when nothing of the events is stored."""
        events = [self._named(json.loads(data)) for data in batch]
        self._store.write_all([encode(event) for event in events])
        for event in events:
            self._show_once(event)

    def _show_once(self, event: Event) -> None:
        if event["kind"] not in VIOLATIONS or len(self._shown) >= SHOWN_MOST:
            return
        incident = str(event["fingerprint"])
        if incident not in self._shown:
            self._shown.add(incident)
            self._show(event)

    def reopen(self) -> None:
        self._store.reopen()

    def close(self) -> None:
        self._store.close()
