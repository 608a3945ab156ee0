"""Names for the functions in the events of a command: from its processes while they live, or from
files near where it was started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monitor.execute.files import Nearby
from monitor.symbols.resolver import Resolver
from monitor.untrusted.recent import Recent

__all__ = ["Names"]

PLACES_MOST = 8  # directories with a file of one name
_REMEMBERED = 65_536

Event = dict[str, Any]
_Place = tuple[object, object, object]


class Names:
    """Used by one thread."""

    def __init__(self, resolver: Resolver, search: list[Path], nearby: Nearby) -> None:
        """`search` is the resolver's list of directories: those found nearby are added to it."""
        self._resolver = resolver
        self._search = search
        self._nearby = nearby
        self._looked_for: Recent[str, bool] = Recent(_REMEMBERED)
        self._known: Recent[_Place, str] = Recent(_REMEMBERED)

    def named(self, event: Event) -> Event:
        """The event with the names of its functions.

        The resolver is asked once for each place that has a name. For a place without a name it is
        asked every time: another process may still live, and have the file.
        """
        stack = event.get("stack") or []
        symbols = [self._known.get(_place(frame)) for frame in stack]
        if None not in symbols:
            for frame, symbol in zip(stack, symbols, strict=True):
                frame["symbol"] = symbol
            return event
        for frame in stack:
            if frame["module"] and not self._looked_for.get(frame["module"]):
                self._look_for(frame["module"])
        event = self._resolver.resolve(event)
        for frame in event["stack"]:
            if frame["build_id"] and frame["symbol"]:
                self._known.put(_place(frame), frame["symbol"])
        return event

    def _look_for(self, module: str) -> None:
        self._looked_for.put(module, True)
        for directory in self._nearby.directories(module)[:PLACES_MOST]:
            if directory not in self._search:
                self._search.append(directory)


def _place(frame: Event) -> _Place:
    return frame["module"], frame["build_id"], frame["offset"]
