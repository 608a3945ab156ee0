"""Where the events of a watched command go: named, kept as incidents, each kind of them shown once.

The functions are named while the process lives, when its files can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from monitor.fingerprint import fingerprint
from monitor.recent import Recent
from monitor.sinks import BatchSink, encode
from monitor.symbols import Resolver

__all__ = ["SHOWN_MOST", "CommandSink"]

SHOWN_MOST = 100  # incidents that are shown as they happen; the others are in the summary
_FRAMES = 65_536  # whose names are remembered

Event = dict[str, Any]
_Place = tuple[object, object, object]


class CommandSink:
    """Passes on to the store; `show` is called once for each incident, in the writer's thread."""

    name = "incidents"

    def __init__(self, store: BatchSink, resolver: Resolver, show: Callable[[Event], None]) -> None:
        self._store = store
        self._resolver = resolver
        self._show = show
        self._names: Recent[_Place, str] = Recent(_FRAMES)
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

    def _named(self, event: Event) -> Event:
        """As the resolver names it, which is asked once for each place in a file."""
        stack = event.get("stack") or []
        known = [self._names.get(_place(frame)) for frame in stack]
        if None in known:
            event = self._resolver.resolve(event)
            for frame in event.get("stack") or []:
                if frame["module"]:
                    self._names.put(_place(frame), frame["symbol"] or "")
            return event
        for frame, symbol in zip(stack, known, strict=True):
            frame["symbol"] = symbol or None
        return event

    def _show_once(self, event: Event) -> None:
        if event["kind"] not in ("denial", "fault") or len(self._shown) >= SHOWN_MOST:
            return
        incident = fingerprint(event).id
        if incident not in self._shown:
            self._shown.add(incident)
            self._show(event)

    def reopen(self) -> None:
        self._store.reopen()

    def close(self) -> None:
        self._store.close()


def _place(frame: Event) -> _Place:
    return frame["module"], frame["build_id"], frame["offset"]
