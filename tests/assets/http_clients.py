"""Clients that ask a web server all the time, for as long as standard input is open.

Arguments: the scheme, the port, then for each kind of client its name, how many there are, and the
addresses that they come from, with commas. At the end prints how often each kind got through.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

Connect = Callable[[], socket.socket]
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"

ends = threading.Event()
done: Counter[str] = Counter()


def read_all(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def loop(connect: Connect) -> None:
    with connect() as connection:
        connection.sendall(REQUEST + b"\r\n")
        read_all(connection)


def guess(connect: Connect) -> None:
    guessed = base64.b64encode(b"prometheus:" + os.urandom(6).hex().encode())
    with connect() as connection:
        connection.sendall(REQUEST + b"Authorization: Basic " + guessed + b"\r\n\r\n")
        read_all(connection)


def slow(connect: Connect) -> None:
    with connect() as connection:
        connection.sendall(REQUEST)
        while not ends.wait(0.2):
            connection.sendall(b"X: y\r\n")
            done["slow"] += 1


def repeat(kind: str, connect: Connect) -> None:
    client: Callable[[Connect], None] = {"loop": loop, "guess": guess, "slow": slow}[kind]
    while not ends.is_set():
        try:
            client(connect)
            done[kind] += 1
        except OSError:
            time.sleep(0.001)


def connector(scheme: str, port: int, source: str) -> Connect:
    context = ssl._create_unverified_context()

    def connect() -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", port), 5, (source, 0))
        return context.wrap_socket(plain) if scheme == "https" else plain

    return connect


def main() -> None:
    scheme, port, *rest = sys.argv[1:]
    threads = [
        threading.Thread(target=repeat, args=(kind, connector(scheme, int(port), source)))
        for kind, count, sources in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        for source in (sources.split(",") * int(count))[: int(count)]
    ]
    for thread in threads:
        thread.start()
    with contextlib.suppress(OSError):
        sys.stdin.read()
    ends.set()
    for thread in threads:
        thread.join()
    print(*(f"{kind} {done[kind]}" for kind in sorted(set(rest[::3]))))


main()
