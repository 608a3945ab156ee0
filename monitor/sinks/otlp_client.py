"""One request to a collector: OTLP/HTTP, logs as JSON (opentelemetry.io/docs/specs/otlp).

A deadline holds for the whole exchange, from the connection to the last byte of the answer, and
a bound for all that is read. A redirect is an answer like another, and no proxy is asked: neither
ever sees the headers.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from monitor.parts import without
from monitor.sinks.otlp_answer import MESSAGE, Answer
from monitor.sinks.outputs import SinkError
from monitor.untrusted.printable import printable
from monitor.version import version

if TYPE_CHECKING:
    import ssl

with without("ssl", "http.client"):  # which is imported where it is used
    import http.client

__all__ = ["Client"]

PATH = "/v1/logs"
_ANSWER_BYTES = 64 << 10  # of a body that is looked at
_READ_BYTES = 256 << 10  # of head and body
_PIECE = 64 << 10


class _Stream(io.RawIOBase):
    """What a socket says, until the deadline, and not without end."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._connection.read_into(buffer)


class _Connection:
    """As much of a socket as http.client needs, with one deadline for all that it does."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.deadline = 0.0
        self.readable = 0
        self.has_ended = False

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(self._left())
            view = view[self._socket.send(view[:_PIECE]) :]

    def read_into(self, buffer: bytearray | memoryview) -> int:
        if self.readable <= 0:
            raise SinkError("the answer is too long")
        self._socket.settimeout(self._left())
        number = self._socket.recv_into(buffer)
        self.readable -= number
        self.has_ended = not number
        return number

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self))

    def close(self) -> None:
        """http.client closes before it has read an answer that the end of the connection ends."""

    def release(self) -> None:
        self._socket.close()

    def interrupt(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)


class _Response(http.client.HTTPResponse):
    """Any number of interim answers may come before the answer (RFC 9110, 15.2), and http.client
    knows one of them: it takes 103 for the answer.
    """

    def _read_status(self) -> tuple[str, int, str]:
        protocol, status, reason = super()._read_status()  # type: ignore[misc]
        if status == http.client.SWITCHING_PROTOCOLS:
            raise http.client.HTTPException("it switches protocols, which nobody asked for")
        return protocol, http.client.CONTINUE if status < 200 else status, reason


class Client:
    """Used by one thread, but for `interrupt`."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        context: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        """`endpoint`: the base URL; `context` for https; `timeout` in seconds."""
        url = urlsplit(endpoint)
        self._host = (url.hostname or "").replace("%25", "%")  # RFC 6874: %25eth0
        # The zone of an address is this host's own: no name in a certificate, none for the peer.
        self._name = self._host.partition("%")[0]
        self._port = url.port or (443 if context else 80)
        self._path = url.path.rstrip("/") + PATH
        self._context = context
        self._timeout = timeout
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"seal-monitor/{version()}",
            **headers,
        }
        self._http: http.client.HTTPConnection | None = None
        self._socket: _Connection | None = None

    def post(self, body: bytes, encoding: str | None) -> Answer:
        """The collector's answer. Raises SinkError when there is none."""
        deadline = time.monotonic() + self._timeout
        was_open = self._http is not None
        try:
            try:
                return self._post(body, encoding, deadline)
            except (ConnectionError, http.client.BadStatusLine):
                if not was_open:
                    raise
            self.close()  # it had closed the connection since the last request
            return self._post(body, encoding, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise SinkError(_reason(error)) from error
        except BaseException:  # no memory: the rest of the answer must not be taken for the next
            self.close()
            raise

    def _post(self, body: bytes, encoding: str | None, deadline: float) -> Answer:
        if self._http is None or self._socket is None:
            self._socket = _Connection(self._connect(deadline))
            self._http = http.client.HTTPConnection(self._name, self._port)
            self._http.default_port = 443 if self._context else 80
            self._http.response_class = _Response
            self._http.auto_open = 0  # by itself it would connect without TLS
            self._http.sock = self._socket
        self._socket.deadline, self._socket.readable = deadline, _READ_BYTES
        coding = {"Content-Encoding": encoding} if encoding else {}
        self._http.request("POST", self._path, body, {**self._headers, **coding})
        response = self._http.getresponse()
        if self._socket.has_ended:  # which http.client takes for the end of the headers
            raise SinkError("the answer was cut off")
        text = response.read(_ANSWER_BYTES)
        if response.length and len(text) < _ANSWER_BYTES:
            raise SinkError("the answer was cut off")
        after = response.getheader("Retry-After")
        if response.will_close or not response.isclosed():  # what is left is not worth the time
            self.close()
        if 200 <= response.status < 300:
            return Answer.of_success(response.status, text)
        return Answer.of_failure(response.status, response.reason, after)

    def _connect(self, deadline: float) -> socket.socket:
        """A connection by the first address that answers, in its share of the time."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError = SinkError(f"{self._host} has no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            share = (deadline - time.monotonic()) / (len(found) - index)
            if share <= 0:
                break
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(share)
                connection.connect(address)
                # http.client sends head and body apart, and the body would wait for 40 ms.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._secured(connection, deadline)
            except OSError as error:
                connection.close()
                failure = error
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: they would keep each other, and TLS's MiB

    def _secured(self, connection: socket.socket, deadline: float) -> socket.socket:
        if self._context is None:
            return connection
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        return self._context.wrap_socket(connection, server_hostname=self._name)

    def interrupt(self) -> None:
        """Have a request that waits for an answer fail."""
        if connection := self._socket:
            with contextlib.suppress(OSError):
                connection.interrupt()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        connection, self._http, self._socket = self._socket, None, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.release()


def _reason(error: Exception) -> str:
    tls = sys.modules.get("ssl")
    if tls and isinstance(error, tls.SSLCertVerificationError):
        return f"certificate: {printable(error.verify_message, MESSAGE)}"
    if tls and isinstance(error, tls.SSLError):
        return f"TLS: {printable(error.reason or str(error), MESSAGE)}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return printable(error.strerror or str(error), MESSAGE)
    return f"no HTTP answer: {printable(str(error) or type(error).__name__, MESSAGE)}"
