"""ClickHouse's engine, chdb, behind as much of ClickHouse's HTTP interface as seal-monitor uses.

    clickhouse_engine.py DIRECTORY

Serves on a port of its choice on loopback, prints it, and ends when its standard input does. A
query is the body of a POST; parameters are `param_NAME` in the URL, as the server has it. Users and
passwords are not checked: the engine has none.
"""

from __future__ import annotations

import http.server
import os
import sys
import threading
import urllib.parse
from typing import Any

import chdb.session


def main(directory: str) -> None:
    session: Any = chdb.session
    engine = session.Session(directory)
    one_at_a_time = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = urllib.parse.urlsplit(self.path)
            given = urllib.parse.parse_qsl(asked.query, keep_blank_values=True)
            values = {name[6:]: text for name, text in given if name.startswith("param_")}
            try:
                with one_at_a_time:
                    answer = bytes(engine.query(query, "JSONCompactEachRow", params=values).bytes())
                status = 200
            except Exception as error:  # whatever the engine says, the client is to see
                status, answer = 500, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Access-Control-Allow-Origin", "*")  # a page that tests made may ask
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)  # its data is thrown away, and the engine's own end may take for ever


if __name__ == "__main__":
    main(sys.argv[1])
