"""/metrics, /-/healthy and /-/ready over HTTP, under the conditions of `Access`.

A slow or hostile client can only hold one of a few connections, for a few seconds. When all are
taken, the oldest one that waits for its client gives way to the next, though not before it had a
fair time; new clients wait in the kernel's queue. So a flood of clients that send nothing does not
keep out a client that sends at once, as long as that queue is not full.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from monitor.metrics.exposition import CollectorRegistry, choose_format
from monitor.untrusted.printable import joined
from monitor.web.errors import AddressError, WebError

if TYPE_CHECKING:
    import ssl

__all__ = ["Access", "AddressError", "Server", "Tls", "WebError", "listen"]

CONNECTIONS = 16
REQUEST_SECONDS = 5.0
FAIR_SECONDS = 0.05  # to send a request before another may take the place
MAKE_ROOM_SECONDS = 1.0  # for the end of the thread whose connection gave way
LINGER_SECONDS = 1.0
HEAD_LIMIT = 8192  # bytes of a request line and its headers

_TEXT = "text/plain; charset=utf-8"
_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>seal-monitor</title></head><body>
<h1>seal-monitor</h1>
<ul>
<li><a href="/metrics">Metrics</a></li>
<li><a href="/-/healthy">Healthy</a></li>
<li><a href="/-/ready">Ready</a></li>
</ul>
</body></html>
"""

Headers = Mapping[str, str]  # names in lower case


class Tls(NamedTuple):
    """`admits` returns, after the handshake, whether this client may go on; None: any may."""

    context: ssl.SSLContext
    admits: Callable[[ssl.SSLSocket], bool] | None = None


class Access(NamedTuple):
    """Who may ask, and how. None: there is no such condition.

    `accepts` returns whether an Authorization header may pass, and raises TimeoutError; `passes`
    returns whether one more request is within the rate limit. `headers` go with every response.
    """

    tls: Tls | None = None
    accepts: Callable[[str], bool] | None = None
    headers: tuple[str, ...] = ()
    passes: Callable[[], bool] | None = None


class Response(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    headers: tuple[str, ...] = ()

    def encode(self, more: tuple[str, ...] = (), with_body: bool = True) -> bytes:
        """The bytes to send; `more` are headers, added unless they are there already."""
        lines: tuple[str, ...] = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            "X-Content-Type-Options: nosniff",
            *self.headers,
        )
        lines += tuple(line for line in more if line not in lines)
        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"
        return head + self.body if with_body else head


def _answer(status: HTTPStatus, text: str, *headers: str) -> Response:
    return Response(status, f"{text}\n".encode(errors="backslashreplace"), _TEXT, headers)


class Request(NamedTuple):
    method: str
    path: str
    headers: Headers


def _parse(head: bytes) -> Request:
    """The request of a request line and headers. Raises ValueError when it is not HTTP/1."""
    lines = re.split("\r?\n", head.decode("latin-1"))
    if any(re.search(r"[\x00-\x08\x0a-\x1f\x7f]", line) for line in lines):
        raise ValueError("a control character")
    start = re.fullmatch(r"(\S+) (\S+) HTTP/1\.[0-9]", lines[0])
    if start is None:
        raise ValueError("no HTTP/1 request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"\S+", name):
            raise ValueError("a header without a name")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Request(start[1], start[2].partition("?")[0], headers)


Route = Callable[[Headers], Response]


def _metrics(registry: CollectorRegistry, lock: threading.Lock, headers: Headers) -> Response:
    # One scrape at a time: collectors need not be thread-safe, and a flood of scrapes costs at most
    # one core.
    if not lock.acquire(timeout=REQUEST_SECONDS):
        return _answer(HTTPStatus.SERVICE_UNAVAILABLE, "another scrape is still running")
    try:
        form = choose_format(headers.get("accept", ""))
        return Response(HTTPStatus.OK, form.encode(registry), form.content_type)
    finally:
        lock.release()


def _ready(ready: Callable[[], list[str]], _headers: Headers) -> Response:
    if reasons := ready():
        text = "\n".join(map(joined, reasons))
        return _answer(HTTPStatus.SERVICE_UNAVAILABLE, text)
    return _answer(HTTPStatus.OK, "ready")


def _refusal(request: Request, access: Access) -> Response | None:
    """The response that refuses a request; None if it is allowed."""
    if access.passes is not None and not access.passes():
        return _answer(HTTPStatus.TOO_MANY_REQUESTS, "more requests than the rate limit")
    try:
        if access.accepts is None or access.accepts(request.headers.get("authorization", "")):
            return None
    except TimeoutError:
        return _answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many passwords wait to be checked")
    challenge = 'WWW-Authenticate: Basic realm="seal-monitor", charset="UTF-8"'
    return _answer(HTTPStatus.UNAUTHORIZED, "name or password is wrong", challenge)


def _serve(request: Request, routes: Mapping[str, Route]) -> Response:
    if request.method not in ("GET", "HEAD"):
        text = "only GET and HEAD are known here"
        return _answer(HTTPStatus.METHOD_NOT_ALLOWED, text, "Allow: GET, HEAD")
    route = routes.get(request.path)
    if route is None:
        return _answer(HTTPStatus.NOT_FOUND, f"not found; there are {', '.join(routes)}")
    try:
        return route(request.headers)
    except Exception as error:
        reason = joined(f"{type(error).__name__}: {error}")
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"failed: {reason}")


def _respond(head: bytes, access: Access, *, routes: Mapping[str, Route]) -> bytes:
    try:
        request = _parse(head)
    except ValueError as error:
        return _answer(HTTPStatus.BAD_REQUEST, f"bad request: {error}").encode(access.headers)
    response = _refusal(request, access) or _serve(request, routes)
    return response.encode(access.headers, with_body=request.method != "HEAD")


def _limit(connection: socket.socket, deadline: float) -> None:
    """Limit the time of the next operation, so that all of them end by the deadline."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection.settimeout(remaining)


def _read_head(connection: socket.socket, deadline: float) -> bytes | None:
    """The bytes before the empty line that ends the headers; None when they are too long."""
    data = b""
    while (end := re.search(b"\r?\n\r?\n", data)) is None:
        if len(data) >= HEAD_LIMIT:
            return None
        _limit(connection, deadline)
        received = connection.recv(HEAD_LIMIT + 4 - len(data))
        if not received:
            raise ConnectionError("closed before the end of its request")
        data += received
    return data[: end.start()]


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    rest = memoryview(data)
    while rest:
        _limit(connection, deadline)
        rest = rest[connection.send(rest) :]


def _finish(connection: socket.socket, encrypted: ssl.SSLSocket | None, deadline: float) -> None:
    """End the connection after its response was sent.

    Closing with input unread (the body of a POST) would reset the connection, and the client
    might lose the response.
    """
    deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
    with contextlib.suppress(OSError):
        _limit(connection, deadline)
        if encrypted is not None:
            encrypted.unwrap()
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            _limit(connection, deadline)


@dataclass
class _Client:
    """`answering`: the request has come and the response is being made; else the client is slow."""

    connection: socket.socket
    since: float  # of the monotonic clock
    answering: bool = False
    gives_way: bool = False


class Server:
    """Serves from `start()` until `close()`.

    `address` is the one bound. Connections are counted: `rejected` are those closed because every
    place was taken by a request being answered, `evicted` those that waited for their client and
    gave way to a newer one, `aborted` those that ended before their response was sent.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Callable[[bytes, Access], bytes],
        access: Callable[[], Access],
        connections: int,
        request_seconds: float,
    ) -> None:
        host, port = listener.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self.rejected = 0
        self.evicted = 0
        self.aborted = 0
        self._listener = listener
        self._respond = respond
        self._access = access
        self._connections = connections
        self._seconds = request_seconds
        self._open: dict[threading.Thread, _Client] = {}  # the oldest first
        self._lock = threading.Lock()  # over _open, its connections and the counts
        self._ended = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="web", daemon=True)

    def start(self) -> None:
        """Answer from now on; until then clients wait in the backlog."""
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, and wait for the running requests, within their time limit."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._acceptor.ident is not None:
            self._acceptor.join()
        self._listener.close()
        with self._lock:
            still_open = list(self._open)
            for client in self._open.values():
                _shut_down(client.connection, socket.SHUT_RD)
        deadline = time.monotonic() + self._seconds
        for thread in still_open:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closing, or out of descriptors: the client waits in the backlog
                self._closing.wait(0.1)
                continue
            thread = threading.Thread(target=self._handle, args=(connection,), daemon=True)
            with self._lock:
                admitted = self._has_room()
                if admitted:
                    self._open[thread] = _Client(connection, time.monotonic())
            try:
                if admitted:
                    thread.start()
            except RuntimeError:  # no more threads
                admitted = False
                with self._lock:
                    del self._open[thread]
            if not admitted:
                with self._lock:
                    self.rejected += 1
                connection.close()

    def _has_room(self) -> bool:
        """Whether there is a place; the oldest connection that waits for its client gives way."""

        def is_free() -> bool:
            return len(self._open) < self._connections

        while not is_free():
            clients = self._open.values()
            waiting = (c for c in clients if not (c.answering or c.gives_way))
            oldest = next(waiting, None)
            if oldest is None:
                return False
            rest = oldest.since + FAIR_SECONDS - time.monotonic()
            if rest > 0:
                self._ended.wait_for(is_free, rest)
                continue
            oldest.gives_way = True
            self.evicted += 1
            _shut_down(oldest.connection, socket.SHUT_RDWR)  # its thread wakes up and ends
            return self._ended.wait_for(is_free, MAKE_ROOM_SECONDS)
        return True

    def _handle(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + self._seconds
        with self._lock:
            client = self._open[threading.current_thread()]
        try:
            access = self._access()
            encrypted = self._encrypt(access.tls, client, deadline) if access.tls else None
            head = _read_head(client.connection, deadline)
            if head is None:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                text = f"more than {HEAD_LIMIT} bytes of headers"
                data = _answer(status, text).encode(access.headers)
            else:
                client.answering = True
                data = self._respond(head, access)
                client.answering = False
            _send(client.connection, data, deadline)
            _finish(client.connection, encrypted, deadline)
        except OSError:  # the client went away, was too slow, gave way, or spoke no TLS
            with self._lock:
                self.aborted += 1
        finally:
            with self._ended:  # closed under the lock: nobody shuts down another's descriptor
                client.connection.close()
                del self._open[threading.current_thread()]
                self._ended.notify()

    def _encrypt(self, tls: Tls, client: _Client, deadline: float) -> ssl.SSLSocket:
        with self._lock:  # the connection's descriptor moves to another object
            encrypted = tls.context.wrap_socket(
                client.connection, server_side=True, do_handshake_on_connect=False
            )
            client.connection = encrypted
        _limit(encrypted, deadline)
        encrypted.do_handshake()
        if tls.admits is not None and not tls.admits(encrypted):
            raise ConnectionError("the client's certificate has none of the names that may ask")
        return encrypted


def _shut_down(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown, which would go on in clear text.
        socket.socket.shutdown(connection, how)


def _bind(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        family, _, _, _, resolved = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(resolved[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            known = error.strerror if isinstance(error, socket.gaierror) else None
            reason = known or os.strerror(error.errno)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise AddressError(
            f"cannot listen on {shown}: {reason[:1].lower()}{reason[1:]}; "
            "choose another with --web.listen-address"
        ) from None


def listen(
    address: tuple[str, int],
    registry: CollectorRegistry,
    ready: Callable[[], list[str]],
    access: Callable[[], Access] = Access,
    *,
    connections: int = CONNECTIONS,
    request_seconds: float = REQUEST_SECONDS,
) -> Server:
    """A server that listens on `address` (host, port); once started it answers in its own threads.

    `ready` returns the reasons why the monitor is not ready, none when it is. `access` is called at
    each connection. When `connections` are open, a new one takes the place of the oldest that waits
    for its client; if there is none, the new one is closed unanswered. A request must be read and
    answered within `request_seconds`. Raises WebError when the address cannot be listened on.
    """
    routes: Mapping[str, Route] = {
        "/": lambda _: Response(HTTPStatus.OK, _PAGE, "text/html; charset=utf-8"),
        "/metrics": partial(_metrics, registry, threading.Lock()),
        "/-/healthy": lambda _: _answer(HTTPStatus.OK, "healthy"),
        "/-/ready": partial(_ready, ready),
    }
    respond = partial(_respond, routes=routes)
    return Server(_bind(address), respond, access, connections, request_seconds)
