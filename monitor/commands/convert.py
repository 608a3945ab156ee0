"""The command that writes events in the form of others: lines in, lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from monitor.evidence.events import encode
from monitor.formats import ecs, ocsf, opentelemetry
from monitor.formats.fields import Event, FormatError
from monitor.streams import say
from monitor.untrusted.printable import printable

__all__ = ["FORMATS", "LINE_LIMIT", "run"]

LINE_LIMIT = 1 << 20
_REPORTED = 20  # lines; of further ones only the number
_SHOWN = 200  # characters of an error: some of it may be the line's

# What a line of the output is.
FORMATS: Mapping[str, tuple[str, Callable[[Event], dict[str, Any]]]] = {
    "opentelemetry": (
        "an OpenTelemetry request with a log record (OTLP, JSON)",
        lambda event: opentelemetry.request([event]),
    ),
    "ecs": (f"a document of the Elastic Common Schema {ecs.VERSION}", ecs.convert),
    "ocsf": (f"an event of OCSF {ocsf.VERSION}", ocsf.convert),
}


def run(name: str) -> int:
    """Convert the events on standard input, a line each; 1 if a line is not one.

    Such a line is left out and reported by its number.
    """
    _, convert = FORMATS[name]
    wrong = 0
    for number, line in enumerate(_lines(sys.stdin.buffer), 1):
        try:
            document = encode(convert(_event(line)))
        except (ValueError, RecursionError) as error:
            wrong += 1
            if wrong <= _REPORTED:
                why = "it is nested too deeply" if isinstance(error, RecursionError) else error
                say(f"seal-monitor: line {number} is left out: {printable(str(why), _SHOWN)}")
            continue
        sys.stdout.buffer.write(document + b"\n")
        # The input may be a live journal: each event is wanted at once.
        sys.stdout.buffer.flush()
    if wrong > _REPORTED:
        say(f"seal-monitor: {wrong - _REPORTED} more lines are left out")
    return 1 if wrong else 0


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of the file; of one that is too long, a part that is too long as well."""
    while line := file.readline(LINE_LIMIT + 1):
        rest = line
        while len(rest) > LINE_LIMIT and not rest.endswith(b"\n"):
            rest = file.readline(LINE_LIMIT + 1)
        yield line


def _event(line: bytes) -> Event:
    """Raises ValueError, RecursionError."""
    if len(line) > LINE_LIMIT:
        raise FormatError(f"it is longer than {LINE_LIMIT} bytes")
    try:
        event = json.loads(line, parse_constant=_refuse)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError("it is not JSON") from error
    if not isinstance(event, dict):
        raise FormatError("it is not a JSON object")
    return event


def _refuse(constant: str) -> NoReturn:
    raise FormatError(f"{constant} is not JSON")
