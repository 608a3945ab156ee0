"""A PostgreSQL of a test's own behind HTTP, so that a page in a browser can ask it.

A query is the body of a POST. The answer is as ClickHouse's JSONCompactEachRowWithNamesAndTypes: a
line with the names of the columns, one with their types, and one for each row.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from centre import PostgreSQL

__all__ = ["serving"]

# PostgreSQL's types by number (pg_type.dat), as ClickHouse would name them; all others are texts.
_TYPES = {
    1184: "DateTime64(6)",
    20: "Int64",
    21: "Int16",
    23: "Int32",
    701: "Float64",
    1700: "Float64",
}


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return float(value) if isinstance(value, Decimal) else value


def _answer(centre: PostgreSQL, query: str) -> bytes:
    with centre.connect() as connection:
        connection.execute("SET timezone = 'UTC'; SET default_transaction_read_only = on")
        found = connection.execute(query.encode())
        names = [column.name for column in found.description]
        types = [_TYPES.get(column.type_code, "String") for column in found.description]
        rows = [[*map(_written, row)] for row in found.fetchall()]
    return "".join(f"{json.dumps(line)}\n" for line in (names, types, *rows)).encode()


@contextmanager
def serving(centre: PostgreSQL) -> Iterator[str]:
    """The URL, on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                status, answer = 200, _answer(centre, query)
            except Exception as error:  # whatever the database says, the page is to show it
                status, answer = 500, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
