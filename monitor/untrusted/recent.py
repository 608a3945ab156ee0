"""Bounded caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Recent", "SharedRecent"]

CACHED = 1024  # half a KiB each, of processes

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The answers that were used last, at most `limit`; safe to use from several threads."""

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)


class SharedRecent(Generic[K, V]):
    """The same, shared by owner: whoever has the most loses what he used the longest time ago."""

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._owners: dict[K, Hashable] = {}
        self._entries: dict[Hashable, OrderedDict[K, V]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._owners)

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._owners:
                return None
            entries = self._entries[self._owners[key]]
            entries.move_to_end(key)
            return entries[key]

    def put(self, key: K, value: V, owner: Hashable) -> None:
        with self._lock:
            if key in self._owners and self._owners[key] != owner:
                self._remove(key)
            self._owners[key] = owner
            entries = self._entries.setdefault(owner, OrderedDict())
            entries[key] = value
            entries.move_to_end(key)
            if len(self._owners) > self._limit:
                most = max(self._entries.values(), key=len)
                self._remove(next(iter(most)))

    def _remove(self, key: K) -> None:
        owner = self._owners.pop(key)
        del self._entries[owner][key]
        if not self._entries[owner]:
            del self._entries[owner]
