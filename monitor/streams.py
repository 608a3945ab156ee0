"""Standard output and standard error: any encoding, and readers that go before the end."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

__all__ = ["abandon", "flush", "has_reader", "prepare", "say", "show", "terminal_encoding"]


def prepare() -> None:
    """On standard output, a character that the terminal's encoding lacks is shown as "?", and is no
    error. On standard error it is shown as an escape, by Python's default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def terminal_encoding() -> str:
    """Of standard output."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def say(text: str) -> None:
    """Print a line on standard error, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print lines on standard output, as far as somebody reads them: for a command whose exit code
    says as much.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        abandon()


def flush() -> None:
    """Raises BrokenPipeError, OSError."""
    if sys.stdout is not None:  # it may have been closed before we were started
        sys.stdout.flush()


def has_reader(descriptor: int) -> bool:
    """Whether somebody can still read what is written there."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(found & select.POLLERR for _, found in poll.poll(0))


def abandon() -> None:
    """Write to nobody where the reader has gone: the interpreter flushes at its end, too."""
    for descriptor in (1, 2):
        if not has_reader(descriptor):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, descriptor)
            os.close(null)
