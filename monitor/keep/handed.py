"""Descriptors that the service manager has kept for this service: sd_listen_fds_with_names(3)."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import NamedTuple

__all__ = ["Handed", "take"]

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1024
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Handed(NamedTuple):
    """Descriptors by name, and the names as they were given; `problem`: why there are none."""

    descriptors: dict[str, list[int]]
    problem: str = ""

    def close(self) -> None:
        for numbers in self.descriptors.values():
            for number in numbers:
                os.close(number)
        self.descriptors.clear()


def take(environment: MutableMapping[str, str] = os.environ, first: int = _FIRST) -> Handed:
    """What this process was handed, which no child of it inherits. Call it before anything is
    opened, once: the variables are gone then.
    """
    given = {name: environment.pop(name) for name in _VARIABLES if name in environment}
    if not given or given.get("LISTEN_PID") != str(os.getpid()):
        return Handed({})
    count = given.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and 0 <= int(count) <= _MOST):
        return Handed({}, "LISTEN_FDS is no number of descriptors")
    numbers = range(first, first + int(count))
    names = given.get("LISTEN_FDNAMES", "").split(":") if numbers else []
    try:
        for number in numbers:
            os.set_inheritable(number, False)
    except OSError:
        return Handed({}, f"descriptor {number} of {count} is not open")
    if len(names) != len(numbers):
        names = ["unknown"] * len(numbers)
    found: dict[str, list[int]] = {}
    for name, number in zip(names, numbers, strict=True):
        found.setdefault(name, []).append(number)
    return Handed(found)
