"""Where to look for the files of processes that ended too soon: near where a command was started.

This only says where to look. Whether a file is the one that was mapped, its build id decides.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

__all__ = ["Nearby"]

FILES_MOST = 100_000
SECONDS_MOST = 2.0
_LEFT_OUT = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__"})


class Nearby:
    """Directories below `top` by the names of their files; searched once, at the first question.

    The search ends after `files_most` files or `seconds_most`; it follows no link to a directory.
    """

    def __init__(
        self, top: Path, files_most: int = FILES_MOST, seconds_most: float = SECONDS_MOST
    ) -> None:
        self._top = top
        self._files_most = files_most
        self._seconds_most = seconds_most
        self._found: dict[str, list[Path]] | None = None

    def directories(self, name: str) -> list[Path]:
        """The directories that have a file of this name, the nearest first."""
        if self._found is None:
            self._found = self._walk()
        return self._found.get(name, [])

    def _walk(self) -> dict[str, list[Path]]:
        found = defaultdict(list)
        deadline = time.monotonic() + self._seconds_most
        left = self._files_most
        for directory, below, files in os.walk(self._top):
            below[:] = sorted(set(below) - _LEFT_OUT)
            for name in files[:left]:
                found[name].append(Path(directory))
            left -= len(files)
            if left <= 0 or time.monotonic() > deadline:
                break
        for places in found.values():
            places.sort(key=lambda place: len(place.parts))
        return dict(found)
