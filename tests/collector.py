"""A collector of a test's own, on loopback by default, that behaves as badly as the test asks."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = [
    "Collector",
    "Request",
    "answer",
    "collecting",
    "say_and_close",
    "say_nothing",
    "say_slowly",
    "say_without_end",
    "until",
]

_LIMIT = 8 << 20  # bytes of a request


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> bytes:
        is_gzip = self.headers.get("content-encoding") == "gzip"
        return gzip.decompress(self.body) if is_gzip else self.body

    @property
    def records(self) -> list[dict[str, Any]]:
        return [
            record
            for of_resource in json.loads(self.text)["resourceLogs"]
            for of_scope in of_resource["scopeLogs"]
            for record in of_scope["logRecords"]
        ]

    @property
    def ids(self) -> list[str]:
        return [
            attribute["value"]["stringValue"]
            for record in self.records
            for attribute in record["attributes"]
            if attribute["key"] == "log.record.uid"
        ]


Behaviour = Callable[["Collector", socket.socket, Request], None]


def answer(
    status: int = 200, body: bytes = b"{}", headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answers so, and keeps the records if the status is a success."""

    def behave(collector: Collector, connection: socket.socket, request: Request) -> None:
        if status == 200:
            collector.stored.update(request.ids)
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    return behave


class Collector:
    """`behave` is called with each request; the connection is closed when it raises."""

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        family: int = socket.AF_INET,
        port: int = 0,
        address: str = "",
    ) -> None:
        self.address = address or ("::1" if family == socket.AF_INET6 else "127.0.0.1")
        self.behave: Behaviour = answer()
        self.on_connect: Callable[[socket.socket], None] = lambda connection: None
        self.requests: list[Request] = []
        self.connections = 0
        self.stored: Counter[str] = Counter()
        self._context = context
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.address, port))
        self.port = int(self._listener.getsockname()[1])
        self._listener.listen(16)
        self.stopping = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self._context else 'http'}://{host}:{self.port}"

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.on_connect(connection)
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection, connection.makefile("rb") as stream:
                while (request := _request(stream)) is not None:
                    self.requests.append(request)
                    self.behave(self, connection, request)
        except (OSError, ValueError):
            connection.close()

    def hold(self) -> None:
        """Wait until the test is over."""
        self.stopping.wait(60)

    def close(self) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                connection.close()
        for thread in self._threads:
            thread.join(5)


def _request(stream: Any) -> Request | None:
    first = stream.readline(65536).decode()
    if not first:
        return None
    headers: dict[str, str] = {}
    while line := stream.readline(65536).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(min(int(headers.get("content-length", 0)), _LIMIT))
    return Request(first.split()[1], headers, body)


@contextmanager
def collecting(
    context: ssl.SSLContext | None = None, family: int = socket.AF_INET
) -> Iterator[Collector]:
    collector = Collector(context, family)
    try:
        yield collector
    finally:
        collector.close()


# ---- Ways to misbehave ---------------------------------------------------------------------------


def say_slowly(data: bytes, pause: float = 0.05) -> Behaviour:
    """A byte at a time, over and over, so that no single read takes long."""

    def behave(collector: Collector, connection: socket.socket, _: Request) -> None:
        while not collector.stopping.wait(pause):
            for byte in data:
                if collector.stopping.wait(pause):
                    return
                connection.sendall(bytes((byte,)))

    return behave


def say_without_end(start: bytes, more: bytes) -> Behaviour:
    def behave(collector: Collector, connection: socket.socket, _: Request) -> None:
        connection.sendall(start)
        while not collector.stopping.is_set():
            connection.sendall(more)

    return behave


def say_and_close(data: bytes) -> Behaviour:
    def behave(_: Collector, connection: socket.socket, __: Request) -> None:
        connection.sendall(data)
        raise ConnectionAbortedError

    return behave


def say_nothing(collector: Collector, _: socket.socket, __: Request) -> None:
    collector.hold()


def until(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
