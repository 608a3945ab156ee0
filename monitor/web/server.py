"""/metrics, /-/healthy and /-/ready over HTTP, under the conditions of `Access`.

A slow or hostile client can only hold one of a few connections, for a few seconds. Who comes while
all are taken waits, and is served in the order of `places`: fairly by source, first those who have
sent something. Meanwhile a client that is slow gives way, though not before it had a fair time. So
neither a flood of clients that send nothing nor one that asks all the time keeps out others.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from monitor.metrics.exposition import CollectorRegistry
from monitor.untrusted.printable import joined
from monitor.untrusted.recent import Recent
from monitor.web.errors import AddressError, WebError
from monitor.web.hosts import Hosts
from monitor.web.message import Headers, Request, Response, answer, parse
from monitor.web.places import FAIR_SECONDS, Client, Queue, pick_slow, source_of
from monitor.web.scrape import Scrapes

if TYPE_CHECKING:
    import ssl

__all__ = ["Access", "AddressError", "Server", "Tls", "WebError", "listen"]

CONNECTIONS = 16
QUEUE = 256  # further ones that wait
BACKLOG = 1024  # of the kernel, for a moment in which this host is too busy to accept
REQUEST_SECONDS = 5.0
LINGER_SECONDS = 1.0
HEAD_LIMIT = 8192  # bytes of a request line and its headers

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


class Tls(NamedTuple):
    """`admits` returns, after the handshake, whether this client may go on; None: any may."""

    context: ssl.SSLContext
    admits: Callable[[ssl.SSLSocket], bool] | None = None


class Access(NamedTuple):
    """Who may ask, and how. None: there is no such condition.

    `accepts` returns whether an Authorization header, of a source, may pass, and raises
    TimeoutError; `passes` returns whether one more request is within the rate limit. `headers` go
    with every response.
    """

    tls: Tls | None = None
    accepts: Callable[[str, str], bool] | None = None
    headers: tuple[str, ...] = ()
    passes: Callable[[], bool] | None = None


Route = Callable[[Headers], Response]


def _ready(ready: Callable[[], list[str]], _headers: Headers) -> Response:
    if reasons := ready():
        text = "\n".join(map(joined, reasons))
        return answer(HTTPStatus.SERVICE_UNAVAILABLE, text)
    return answer(HTTPStatus.OK, "ready")


def _refusal(request: Request, access: Access, source: str, hosts: Hosts) -> Response | None:
    """The response that refuses a request; None if it is allowed."""
    if access.passes is not None and not access.passes():
        return answer(HTTPStatus.TOO_MANY_REQUESTS, "more requests than the rate limit")
    if access.accepts is None:
        # With TLS, a certificate of another name protects the browser.
        if access.tls is not None or hosts.know(request.host):
            return None
        text = f"{joined(request.host)} is no name of this server; name it in web.allowed_hosts"
        return answer(HTTPStatus.MISDIRECTED_REQUEST, text)
    try:
        if access.accepts(request.headers.get("authorization", ""), source):
            return None
    except TimeoutError:
        return answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many passwords wait to be checked")
    challenge = 'WWW-Authenticate: Basic realm="seal-monitor", charset="UTF-8"'
    return answer(HTTPStatus.UNAUTHORIZED, "name or password is wrong", challenge)


def _serve(request: Request, routes: Mapping[str, Route]) -> Response:
    if request.method not in ("GET", "HEAD"):
        text = "only GET and HEAD are known here"
        return answer(HTTPStatus.METHOD_NOT_ALLOWED, text, "Allow: GET, HEAD")
    route = routes.get(request.path)
    if route is None:
        return answer(HTTPStatus.NOT_FOUND, f"not found; there are {', '.join(routes)}")
    try:
        return route(request.headers)
    except Exception as error:
        reason = joined(f"{type(error).__name__}: {error}")
        return answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"failed: {reason}")


def _respond(
    head: bytes, access: Access, source: str, *, routes: Mapping[str, Route], hosts: Hosts
) -> tuple[bytes, bool]:
    """The response's bytes, and whether the request was allowed."""
    try:
        request = parse(head)
    except ValueError as error:
        refused = answer(HTTPStatus.BAD_REQUEST, f"bad request: {error}")
        return refused.encode(access.headers), False
    refusal = _refusal(request, access, source, hosts)
    response = refusal or _serve(request, routes)
    return response.encode(access.headers, request.method != "HEAD"), refusal is None


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


class Server:
    """Serves from `start()` until `close()`.

    `address` is the one bound. Connections are counted: `rejected` are those closed because they
    had waited too long for a place, or too many did; `evicted` those that waited for their client
    and gave way to another; `aborted` those that ended before their response was sent.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Callable[[bytes, Access, str], tuple[bytes, bool]],
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
        self._served: dict[Client, threading.Thread] = {}  # the oldest first
        self._known: Recent[str, bool] = Recent()  # sources that had a right password
        self._queue = Queue(QUEUE, lambda source: self._known.get(source) is not None)
        self._lock = threading.Lock()  # over those two, all connections and the counts
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
            self._reject(self._queue.clear())
            still_open = list(self._served.values())
            for client in self._served:
                _shut_down(client.connection, socket.SHUT_RD)
        deadline = time.monotonic() + self._seconds
        for thread in still_open:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._closing.is_set():
            if not poll.poll(self._make_room()):
                continue
            try:
                connection, address = self._listener.accept()
            except OSError:  # closing, or out of descriptors: the client waits in the backlog
                self._closing.wait(0.1)
                continue
            client = Client(connection, source_of(address[0]), time.monotonic())
            with self._lock:
                last = self._queue.add(client)
                self._reject([last] if last else [])
                self._fill()

    def _fill(self) -> None:
        """Start a thread for each free place, if clients wait. The lock is held."""
        while len(self._served) < self._connections and (client := self._next()):
            thread = threading.Thread(target=self._work, args=(client,), daemon=True)
            self._served[client] = thread
            try:
                thread.start()
            except RuntimeError:  # no more threads
                del self._served[client]
                self._reject([client])

    def _next(self) -> Client | None:
        """The client that is served next; none once the server is closing."""
        client = None if self._closing.is_set() else self._queue.take(self._served)
        if client is not None:
            client.since = time.monotonic()
        return client

    def _reject(self, clients: Collection[Client]) -> None:
        self.rejected += len(clients)
        for client in clients:
            client.connection.close()

    def _make_room(self) -> float | None:
        """Let slow clients give way to those that wait.

        Returns the milliseconds until the next look; None if nobody waits.
        """
        now = time.monotonic()
        with self._lock:
            self._reject(self._queue.overdue(now - self._seconds / 2))
            self._fill()
            leaving = sum(client.gives_way for client in self._served)
            while leaving < len(self._queue):
                slow = pick_slow(self._served, self._queue.source_next(self._served), now)
                if slow is None:
                    break
                slow.gives_way = True
                leaving += 1
                self.evicted += 1
                _shut_down(slow.connection, socket.SHUT_RDWR)  # its thread wakes up and goes on
            return FAIR_SECONDS / 4 * 1000 if self._queue else None

    def _work(self, client: Client) -> None:
        """Serve a client, then others for as long as any wait."""
        serving: Client | None = client
        while serving is not None:
            try:
                self._handle(serving)
            finally:
                with self._lock:  # closed under the lock: nobody shuts down another's descriptor
                    serving.connection.close()
                    thread = self._served.pop(serving)
            with self._lock:
                has_place = len(self._served) < self._connections
                serving = self._next() if has_place else None
                if serving is not None:
                    self._served[serving] = thread

    def _handle(self, client: Client) -> None:
        deadline = time.monotonic() + self._seconds
        try:
            access = self._access()
            encrypted = self._encrypt(access.tls, client, deadline) if access.tls else None
            head = _read_head(client.connection, deadline)
            if head is None:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                text = f"more than {HEAD_LIMIT} bytes of headers"
                data = answer(status, text).encode(access.headers)
            else:
                client.awaits = 0
                data, allowed = self._respond(head, access, client.source)
                if allowed and access.accepts is not None:
                    self._known.put(client.source, True)
                client.since = time.monotonic()
                client.awaits = select.POLLOUT
            _send(client.connection, data, deadline)
            client.awaits = select.POLLIN
            _finish(client.connection, encrypted, deadline)
        except OSError:  # the client went away, was too slow, gave way, or spoke no TLS
            with self._lock:
                self.aborted += 1

    def _encrypt(self, tls: Tls, client: Client, deadline: float) -> ssl.SSLSocket:
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
        return socket.create_server(resolved[:2], family=family, backlog=BACKLOG)
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
    allowed_hosts: Collection[str] = (),
    *,
    connections: int = CONNECTIONS,
    request_seconds: float = REQUEST_SECONDS,
) -> Server:
    """A server that listens on `address` (host, port); once started it answers in its own threads.

    `ready` returns the reasons why the monitor is not ready, none when it is. `access` is called at
    each connection. `allowed_hosts` are names besides the host's own. When `connections` are open,
    others wait, for half of `request_seconds` at most. A request must be read and answered within
    `request_seconds`. Raises WebError when the address cannot be listened on.
    """
    routes: Mapping[str, Route] = {
        "/": lambda _: Response(HTTPStatus.OK, _PAGE, "text/html; charset=utf-8"),
        "/metrics": Scrapes(registry),
        "/-/healthy": lambda _: answer(HTTPStatus.OK, "healthy"),
        "/-/ready": partial(_ready, ready),
    }
    respond = partial(_respond, routes=routes, hosts=Hosts(address[0], allowed_hosts))
    return Server(_bind(address), respond, access, connections, request_seconds)
