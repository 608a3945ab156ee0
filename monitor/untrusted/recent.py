"""A bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Recent"]

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
