"""Keeps a file of events within a size: its oldest part and its newest, and not what is between.

Whoever comes afterwards needs both: how it began, which a flood would push out of a file that keeps
the newest alone, and what goes on now, which would not get into one that is merely full.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Parts"]

_PARTS = 3  # the oldest, the one before the file, and the file itself


class Parts:
    """Of `events.jsonl`: `events.oldest.jsonl`, then `events.previous.jsonl`.

    Log rotation that takes every *.jsonl takes these, too; after that the next part is the oldest.
    """

    def __init__(self, path: Path, most: int) -> None:
        """`most`: bytes of all parts together."""
        self._path = path
        self._size = most // _PARTS
        self.oldest = path.with_name(f"{path.stem}.oldest{path.suffix}")
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self.removed_bytes = 0

    def is_full(self, size: int, more: int) -> bool:
        """Whether a file of `size` bytes has no room for so many more."""
        return size > 0 and size + more > self._size

    def turn_over(self) -> None:
        """Move the file away, in favour of a new one. Raises OSError; the file then stays."""
        if not os.path.lexists(self.oldest):
            os.rename(self._path, self.oldest)
            return
        try:
            removed = os.lstat(self.previous).st_size
        except FileNotFoundError:
            removed = 0
        os.rename(self._path, self.previous)
        self.removed_bytes += removed
