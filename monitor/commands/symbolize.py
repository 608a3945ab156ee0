"""The command that gives names to the stacks of events: lines in, lines out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from monitor.streams import say
from monitor.symbols.resolver import Resolver

__all__ = ["run"]

LINE_LIMIT = 1 << 20


def run(file: Path | None, search: Sequence[Path], verbose: bool) -> int:
    """Print each event of the file, or of standard input, with its symbols; 1 if a line is not one.

    A line that is not an event is printed unchanged. Raises OSError.
    """
    if file is None:
        return _copy(sys.stdin.buffer, search, verbose)
    try:
        lines = open(file, "rb")  # noqa: SIM115 - only an error of open() has this message
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from error
    with lines:
        return _copy(lines, search, verbose)


def _copy(lines: BinaryIO, search: Sequence[Path], verbose: bool) -> int:
    def report(text: str) -> None:
        if verbose:
            say(f"seal-monitor: {text}")

    code = 0
    with Resolver(os.environ, report, search) as resolver:
        number = 0
        while line := lines.readline(LINE_LIMIT):
            number += 1
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict):
                line = _encode(resolver.resolve(event))
            else:
                say(f"seal-monitor: line {number} is not a JSON object")
                code = 1
            sys.stdout.buffer.write(line)
            # The input may be a live journal: each event is wanted at once.
            sys.stdout.buffer.flush()
    return code


def _encode(event: dict[str, object]) -> bytes:
    """The event as the sinks write it."""
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
