"""Where events go: a live view on the terminal, JSON lines on standard output, a JSON lines file.

structlog's processors render. One thread may render while another one writes. Only the functions
that print with structlog import it, and only the parts they need: the journal needs none of it.
"""

from __future__ import annotations

import functools
import os
import select
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from monitor.evidence.events import encode
from monitor.parts import parts_of
from monitor.sinks.bounded import Parts
from monitor.streams import terminal_encoding

if TYPE_CHECKING:
    from structlog.typing import Processor

__all__ = [
    "BatchSink",
    "FileSink",
    "Sink",
    "SinkError",
    "StreamSink",
    "encode",
    "json_file",
    "json_lines",
    "pretty",
]


class SinkError(OSError):
    """An event that could not be written; the message names the sink and why."""


class Sink(Protocol):
    @property
    def name(self) -> str:
        """The sink's label in metrics."""

    def render(self, event: dict[str, object]) -> bytes:
        """What is to be written of the event."""

    def write(self, data: bytes) -> None:
        """Write one rendered event, whole or not at all; may take long.

        Raises SinkError; the next write tries again.
        """

    def reopen(self) -> None:
        """Open the file again: a log rotation may have moved it away. Raises SinkError."""

    def close(self) -> None:
        """Release what the sink opened."""


@runtime_checkable
class BatchSink(Sink, Protocol):
    """A sink that takes many events for little more than the cost of one."""

    def write_all(self, batch: Sequence[bytes]) -> None:
        """Write all of them or none. Raises SinkError; then each is written by itself."""


# ---- Renderers: structlog processors, from event to text -----------------------------------------


def _compact(document: Any, **_: object) -> str:
    return encode(document).decode()


@functools.cache
def _json() -> Processor:
    with parts_of("structlog"):
        from structlog.processors import JSONRenderer  # noqa: PLC0415
    return JSONRenderer(serializer=_compact)


def _render(renderer: Processor, event: dict[str, object]) -> bytes:
    return str(renderer(None, "", event)).encode("utf-8", "backslashreplace")


# ---- Writers -------------------------------------------------------------------------------------


def _write(fd: int, line: bytes) -> tuple[int, OSError | None]:
    """Bytes written, and the error that stopped the rest. One write(2), unless the kernel takes
    only a part.

    Waits while the descriptor is full, even if it does not block: every program that shares the
    open file may have set O_NONBLOCK.
    """
    written = 0
    while written < len(line):
        try:
            written += os.write(fd, line[written:])
        except BlockingIOError:
            _wait_for_room(fd)
        except OSError as error:
            return written, error
    return written, None


def _wait_for_room(fd: int) -> None:
    """Wait until a write can go on, or would fail."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


class _StreamWriter:
    """Lines to a descriptor that cannot be truncated. A half line is ended before the next one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False

    def write(self, line: bytes) -> None:
        written, error = _write(self._fd, b"\n" + line if self._torn else line)
        if error is not None:
            self._torn = self._torn or written > 0
            raise SinkError(
                f"descriptor {self._fd}: {error.strerror}; event not written"
            ) from error
        self._torn = False


class _FileWriter:
    """Lines to a file that may be full for a while, or be moved away by a log rotation."""

    def __init__(self, path: Path, most: int | None) -> None:
        self._path = path
        self.parts = Parts(path, most) if most else None
        self._fd = -1
        self._identity = (-1, -1)
        self._torn = False
        self.open()

    def _failure(self, what: str, error: OSError) -> SinkError:
        return SinkError(f"events file {self._path}: {what}: {error.strerror}")

    def open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o640)
        except OSError as error:
            raise self._failure("cannot open it", error) from error
        self.close()
        self._fd = fd
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        self._is_regular = stat.S_ISREG(status.st_mode)
        # An earlier run may have ended in the middle of a line.
        self._torn = (
            self._is_regular and status.st_size > 0 and os.pread(fd, 1, status.st_size - 1) != b"\n"
        )

    def _follow_rotation(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self.open()
            return
        except OSError as error:
            raise self._failure("cannot look at it", error) from error
        if (status.st_dev, status.st_ino) != self._identity:
            self.open()

    def write(self, line: bytes) -> None:
        try:
            self._follow_rotation()
        except SinkError as refused:
            if not isinstance(refused.__cause__, PermissionError) or self._fd < 0:
                raise
            # The file that was moved away is better than none; reopen() reports the error.
        self._keep_within_bounds(len(line))
        written, error = _write(self._fd, b"\n" + line if self._torn else line)
        if error is not None:
            if written and not self._take_back(written):
                self._torn = True
            raise self._failure("event not written", error) from error
        self._torn = False

    def _keep_within_bounds(self, more: int) -> None:
        if self.parts is None or not self._is_regular:
            return
        if not self.parts.is_full(os.fstat(self._fd).st_size, more):
            return
        try:
            self.parts.turn_over()
        except OSError as error:
            raise self._failure("it is full, and cannot be moved away", error) from error
        self.open()

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

    def __init__(
        self, name: str, fd: int, renderer: Processor, encoding: str | None = None
    ) -> None:
        """`encoding` is a person's terminal's; None: UTF-8, for programs."""
        self.name = name
        self._encoding = encoding
        self._renderer = renderer
        self._writer = _StreamWriter(fd)

    def render(self, event: dict[str, object]) -> bytes:
        line = _render(self._renderer, event) + b"\n"
        if self._encoding is None:
            return line
        return line.decode("utf-8").encode(self._encoding, "replace")

    def write(self, data: bytes) -> None:
        """Raises SinkError, also when the reader has gone (EPIPE)."""
        self._writer.write(data)

    def reopen(self) -> None:
        """Nothing to open: the descriptor is the caller's."""

    def close(self) -> None:
        """Nothing to release."""


class FileSink:
    """Events to a file, created with mode 0640, one line and one write(2) each.

    A full disk leaves no half line, and the next event is tried again; a file that was moved or
    removed is opened again. With the two files beside it, for the oldest events and for those
    before the newest, it keeps within a size. Raises SinkError when the file cannot be opened.
    """

    name = "file"

    def __init__(self, path: Path, most: int | None = None) -> None:
        """`most`: bytes, None for no bound."""
        self._renderer = _json()
        self._writer = _FileWriter(path, most)

    @property
    def removed_bytes(self) -> int:
        """What was removed between the oldest and the newest events so far."""
        return self._writer.parts.removed_bytes if self._writer.parts else 0

    def render(self, event: dict[str, object]) -> bytes:
        return _render(self._renderer, event) + b"\n"

    def write(self, data: bytes) -> None:
        """Raises SinkError when the line is not in the file."""
        self._writer.write(data)

    def reopen(self) -> None:
        self._writer.open()

    def close(self) -> None:
        self._writer.close()


def pretty(fd: int = 1, *, colours: bool, width: int = 100) -> Sink:
    """A live view for a person; `colours` only where the descriptor is a terminal."""
    from monitor.sinks.console import PrettyRenderer  # noqa: PLC0415

    renderer = PrettyRenderer(colours=colours, width=width)
    return StreamSink("pretty", fd, renderer, terminal_encoding())


def json_lines(fd: int = 1) -> Sink:
    """Events as JSON lines, to a descriptor."""
    return StreamSink("json", fd, _json())


def json_file(path: Path, most: int | None = None) -> FileSink:
    """Events as JSON lines, to a file, with those beside it of `most` bytes. Raises SinkError when
    it cannot be opened.
    """
    return FileSink(path, most)
