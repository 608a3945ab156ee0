"""What a database of the centre answers: how long, how much, and what is no answer."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from monitor.incidents.search import IncidentError

__all__ = ["ANSWER_LIMIT", "SECONDS", "CentreError", "Database", "Row", "within"]

SECONDS = 60.0  # for a question
ANSWER_LIMIT = 64 << 20  # bytes of an answer

Row = Sequence[Any]


class CentreError(IncidentError):
    """Why the centre does not answer, and the way out."""


class Database(Protocol):
    """`name`: where it is, without a password."""

    name: str

    def ask(self, text: str, values: Mapping[str, object]) -> list[Row]:
        """The rows of a question. Raises CentreError."""

    def text(self, question: str) -> str:
        """The SQL of a question, as `ask` takes it."""

    def close(self) -> None: ...


@contextlib.contextmanager
def within(seconds: float, descriptor: Callable[[], int]) -> Iterator[None]:
    """Shuts the socket down that `descriptor` names, once the time is up.

    A time-out of a socket is for each part of an answer: one that comes byte by byte has no end.
    """

    def end() -> None:
        with (
            contextlib.suppress(OSError, ValueError, AttributeError),  # it is not open, or no more
            socket.socket(fileno=os.dup(descriptor())) as same,
        ):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
