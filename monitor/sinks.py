"""Where events go: a live view on the terminal, JSON lines on standard output, a JSON lines file.

structlog renders; a sink is a renderer and a writer. One thread may use a sink at a time.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from monitor.console import PrettyRenderer

__all__ = [
    "FileSink",
    "Sink",
    "SinkError",
    "StreamSink",
    "json_file",
    "json_lines",
    "pretty",
    "write_all",
]


class SinkError(OSError):
    """An event that could not be written; the message names the sink and why."""


class Sink(Protocol):
    @property
    def name(self) -> str:
        """The sink's label in metrics."""

    def emit(self, event: dict[str, object]) -> None:
        """Write one event, whole or not at all. Raises SinkError; the next emit tries anew."""

    def close(self) -> None:
        """Release what the sink opened."""


def write_all(
    sinks: Iterable[Sink],
    event: dict[str, object],
    on_error: Callable[[str, OSError], None],
) -> bool:
    """Give the event to every sink; whether at least one took it.

    `on_error` gets the name of each sink that did not, and its error.
    """
    taken = False
    for sink in sinks:
        try:
            sink.emit(event)
        except OSError as error:
            on_error(sink.name, error)
        else:
            taken = True
    return taken


# ---- Renderers: the last structlog processor of a sink, from event to text -----------------------

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def _contract(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """The event as it is. It travels as one value, so structlog adds and reorders no key."""
    document: EventDict = event_dict["document"]
    return document


def _compact(document: EventDict, **_: object) -> str:
    return _ENCODER.encode(document)


def _logger(writer: object, renderer: Processor) -> Any:
    return structlog.wrap_logger(
        writer,
        processors=[_contract, renderer],
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
    ).bind()


# ---- Writers: what structlog calls a logger; `msg` takes the rendered text ----------------------


def _line(text: str, torn: bool) -> bytes:
    """`text` as a line. A lone surrogate, in a JSON string, becomes the escape it is written as."""
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    return b"\n" + line if torn else line


def _write(fd: int, line: bytes) -> tuple[int, OSError | None]:
    """Bytes written, and what stopped the rest. One write(2), unless the kernel takes a part."""
    written = 0
    while written < len(line):
        try:
            written += os.write(fd, line[written:])
        except OSError as error:
            return written, error
    return written, None


class _StreamWriter:
    """Lines to a descriptor that cannot be truncated. A half line is ended before the next one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False

    def msg(self, text: str) -> None:
        written, error = _write(self._fd, _line(text, self._torn))
        if error is not None:
            self._torn = self._torn or written > 0
            raise SinkError(
                f"descriptor {self._fd}: {error.strerror}; event not written"
            ) from error
        self._torn = False


class _FileWriter:
    """Lines to a file that may be full for a while, or be moved away by a log rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._identity = (-1, -1)
        self._torn = False
        self._open()

    def _failure(self, what: str, error: OSError) -> SinkError:
        return SinkError(f"events file {self._path}: {what}: {error.strerror}")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o640)
        except OSError as error:
            raise self._failure("cannot open it", error) from error
        self.close()
        self._fd = fd
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        # An earlier life may have ended in the middle of a line.
        self._torn = (
            stat.S_ISREG(status.st_mode)
            and status.st_size > 0
            and os.pread(fd, 1, status.st_size - 1) != b"\n"
        )

    def _follow_rotation(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._open()
            return
        except OSError as error:
            raise self._failure("cannot look at it", error) from error
        if (status.st_dev, status.st_ino) != self._identity:
            self._open()

    def msg(self, text: str) -> None:
        self._follow_rotation()
        written, error = _write(self._fd, _line(text, self._torn))
        if error is not None:
            if written and not self._take_back(written):
                self._torn = True
            raise self._failure("event not written", error) from error
        self._torn = False

    def _take_back(self, written: int) -> bool:
        """Cut off the half line just written, if it is still the end of the file."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            if os.fstat(self._fd).st_size != end:
                return False
            os.ftruncate(self._fd, end - written)
        except OSError:
            return False  # the next line starts with a newline instead
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# ---- Sinks ---------------------------------------------------------------------------------------


class StreamSink:
    """Events to a descriptor that the caller owns."""

    def __init__(self, name: str, fd: int, renderer: Processor) -> None:
        self.name = name
        self._log = _logger(_StreamWriter(fd), renderer)

    def emit(self, event: dict[str, object]) -> None:
        """Raises SinkError, also when the reader has gone (EPIPE)."""
        self._log.msg(document=event)

    def close(self) -> None:
        """Nothing to release: the descriptor is the caller's."""


class FileSink:
    """Events to a file, created with mode 0640, one line and one write(2) each.

    A full disk leaves no half line and is got over at the next event; a file that was moved or
    removed is opened anew. Raises SinkError when the file cannot be opened.
    """

    name = "file"

    def __init__(self, path: Path, renderer: Processor) -> None:
        self._writer = _FileWriter(path)
        self._log = _logger(self._writer, renderer)

    def emit(self, event: dict[str, object]) -> None:
        """Raises SinkError when the line is not in the file."""
        self._log.msg(document=event)

    def close(self) -> None:
        self._writer.close()


def _json_renderer() -> Processor:
    return structlog.processors.JSONRenderer(serializer=_compact)


def pretty(fd: int = 1, *, colours: bool, width: int = 100) -> Sink:
    """A live view for a person; `colours` only where the descriptor is a terminal."""
    return StreamSink("pretty", fd, PrettyRenderer(colours=colours, width=width))


def json_lines(fd: int = 1) -> Sink:
    """The contract's object on one line each."""
    return StreamSink("json", fd, _json_renderer())


def json_file(path: Path) -> Sink:
    """The contract's object on one line each, in a file. Raises SinkError when it cannot open."""
    return FileSink(path, _json_renderer())
