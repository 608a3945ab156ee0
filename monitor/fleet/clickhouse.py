"""ClickHouse over HTTP: a question in a request, a row in each line of the answer."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from monitor.fleet import questions
from monitor.fleet.answer import ANSWER_LIMIT, SECONDS, CentreError, Row, within
from monitor.untrusted.printable import printable

__all__ = ["ClickHouse"]

_CHUNK = 1 << 16
_ERROR_LIMIT = 4096
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})?")
_FORMAT = "\nFORMAT JSONCompactEachRowWithNamesAndTypes"


class ClickHouse:
    """A connection for each question, so that no state outlives it. Follows no redirect."""

    def __init__(
        self,
        place: tuple[str, int, str],
        user: str,
        password: str,
        tls: bool,
        seconds: float = SECONDS,
    ) -> None:
        """`place`: host, port and path."""
        self._seconds = seconds
        self._host, self._port, self._path = place
        self._tls = tls
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {secret}", "Content-Type": "text/plain"}
        self.name = f"http{'s' if tls else ''}://{printable(self._host)}:{self._port}"

    def text(self, question: str) -> str:
        return questions.clickhouse(question)

    def ask(self, text: str, values: Mapping[str, object]) -> list[Row]:
        given = {f"param_{name}": _written(value) for name, value in values.items()}
        # Otherwise a number of 64 bits would be a text, and an error might come amid rows.
        given |= {"output_format_json_quote_64bit_integers": "0", "wait_end_of_query": "1"}
        given |= {"max_execution_time": str(max(int(self._seconds), 1))}
        where = f"{self._path}?{urllib.parse.urlencode(given)}"
        status, body = self._answer(where, f"{text}{_FORMAT}".encode())
        if status != http.client.OK:
            words = printable(body[:_ERROR_LIMIT].decode("utf-8", "replace"), 500)
            raise CentreError(f"{self.name} answered with {status}: {words}")
        try:
            return _rows(body)
        except (ValueError, RecursionError, TypeError, LookupError) as error:
            raise CentreError(f"{self.name} does not answer as ClickHouse does") from error

    def _answer(self, where: str, query: bytes) -> tuple[int, bytes]:
        begun = time.monotonic()
        error: Exception | None = None
        try:
            answer = self._read(where, query)
        except CentreError:
            raise
        except (OSError, http.client.HTTPException) as failed:
            error = failed
        if time.monotonic() - begun >= self._seconds:
            raise CentreError(f"{self.name}: no whole answer in {self._seconds:g} s") from error
        if error is not None:
            why = printable(str(error) or type(error).__name__, 500)
            raise CentreError(f"{self.name} does not answer: {why}") from error
        return answer

    def _read(self, where: str, query: bytes) -> tuple[int, bytes]:
        sockets: list[socket.socket] = []  # the connection forgets its own amid an answer
        connection = self._connection()

        def descriptor() -> int:
            return (sockets or [connection.sock])[0].fileno()

        with contextlib.closing(connection), within(self._seconds, descriptor):
            connection.connect()
            sockets.append(connection.sock)
            connection.request("POST", where, query, self._headers)
            answer = connection.getresponse()
            found = bytearray()
            while chunk := answer.read1(_CHUNK):
                found += chunk
                if len(found) > ANSWER_LIMIT:
                    raise CentreError(f"{self.name} answers with over {ANSWER_LIMIT:,} bytes")
            return answer.status, bytes(found)

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls:
            context = ssl.create_default_context()  # SSL_CERT_FILE names another authority
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._seconds, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)

    def close(self) -> None:
        pass


def _written(value: object) -> str:
    """A value as ClickHouse reads a parameter."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, list | tuple):
        return f"[{','.join(_quoted(str(each)) for each in value)}]"
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _rows(body: bytes) -> list[Row]:
    lines = body.decode("utf-8", "replace").splitlines()
    if not lines:
        return []
    types = json.loads(lines[1])
    return [
        [_read(type, value) for type, value in zip(types, json.loads(line), strict=True)]
        for line in lines[2:]
        if line
    ]


def _read(type: str, value: Any) -> Any:
    if type.startswith("DateTime") and isinstance(value, str) and _TIME.fullmatch(value):
        return datetime.fromisoformat(value[:26]).replace(tzinfo=UTC)
    return value
