"""The one way in which a test bounds a time: a search for its name finds all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["at_most"]


@contextmanager
def at_most(
    seconds: float, why: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Fails when the block takes longer than `seconds`.

    `why`: the mistake that would take so long. Where that is a wait without end, the bound is far
    above what a busy machine needs. Where it is work, pass time.process_time as `clock`: it stands
    still while others have the CPU.
    """
    began = clock()
    yield
    took = clock() - began
    assert took <= seconds, f"took {took:.2f} s, and not at most {seconds} s: {why}"
