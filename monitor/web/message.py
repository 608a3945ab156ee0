"""Requests and responses of HTTP/1 (RFC 9112): their bytes, and what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

__all__ = ["Headers", "Request", "Response", "answer", "gzipped", "parse"]

_TEXT = "text/plain; charset=utf-8"
_AUTHORITY = r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:@/?#\[\]\\]*)(?::[0-9]*)?"  # without user information
_ABSOLUTE = re.compile(rf"https?://({_AUTHORITY})(/[^?#]*|)(?:[?#].*)?", re.IGNORECASE)

Headers = Mapping[str, str]  # names in lower case


class Request(NamedTuple):
    """`host` is whom it is for, with the port if there is one; empty if it does not say."""

    method: str
    path: str
    headers: Headers
    host: str


def parse(head: bytes) -> Request:
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
        if key == "host" and key in headers:
            raise ValueError("more than one Host")
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    host, target = headers.get("host", ""), start[2]
    if not re.fullmatch(_AUTHORITY, host):
        raise ValueError("a Host that is none")
    if absolute := _ABSOLUTE.fullmatch(target):  # its host replaces the header (3.2.2)
        host, target = absolute[1], absolute[2] or "/"
        if not host:
            raise ValueError("a URL without a host")
    return Request(start[1], target.partition("?")[0], headers, host)


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


def answer(status: HTTPStatus, text: str, *headers: str) -> Response:
    """A line or more of text."""
    return Response(status, f"{text}\n".encode(errors="backslashreplace"), _TEXT, headers)


def gzipped(data: bytes) -> bytes:
    import zlib  # noqa: PLC0415 - only if a client asks; the module gzip is heavy

    packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # higher: 3 times as long
    return packer.compress(data) + packer.flush()
