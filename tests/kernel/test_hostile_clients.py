"""Clients of the web server that are slow, many or mad, against the real daemon: events and scrapes
go on, and the clients leave nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clocks import at_most
from test_daemon import READY_SECONDS, Running, assert_conserved

from monitor.evidence import waiting
from monitor.provoke import table as provoke
from monitor.web.scrape import KEPT_SECONDS
from monitor.web.server import CONNECTIONS, REQUEST_SECONDS

SECONDS = 6.0
IDLE = 200
RSS_MIB = 4.0  # a thread has its stack, a scrape its text, a TLS connection its buffers
SERIES = 'seal_monitor_denials_total{operation="munmap",verdict="sealed"}'
Address = tuple[str, int]
Connect = Callable[..., socket.socket]
Client = Callable[[Connect, threading.Event], None]


def plainly(address: Address) -> Connect:
    def connect(receive_bytes: int = 0) -> socket.socket:
        connection = socket.socket()
        try:
            if receive_bytes:  # before the window is announced
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.settimeout(2)
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection

    return connect


def encrypted(address: Address, context: ssl.SSLContext) -> Connect:
    """Connections whose handshake is done."""

    def connect(receive_bytes: int = 0) -> socket.socket:
        connection = plainly(address)(receive_bytes)
        try:
            return context.wrap_socket(connection, server_hostname=address[0])
        except OSError:
            connection.close()
            raise

    return connect


def again(pause: float) -> Callable[[Client], Client]:
    """The client comes again for as long as the test lasts, whatever the server does to it."""

    def wrap(client: Client) -> Client:
        def repeated(connect: Connect, ends: threading.Event) -> None:
            while not ends.wait(pause):
                with contextlib.suppress(OSError):
                    client(connect, ends)

        return repeated

    return wrap


def idle(connect: Connect, ends: threading.Event) -> None:
    """Two hundred connections that send nothing; each that is closed comes again at once."""
    held: list[socket.socket] = []
    try:
        while not ends.wait(0.05):
            for connection in list(held):
                connection.setblocking(False)
                try:
                    connection.recv(1)
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                except OSError:
                    pass
                connection.close()
                held.remove(connection)
            with contextlib.suppress(OSError):
                while len(held) < IDLE and not ends.is_set():
                    held.append(connect())
    finally:
        for connection in held:
            connection.close()


@again(0)
def byte_a_second(connect: Connect, ends: threading.Event) -> None:
    with connect() as connection:
        for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 100:
            connection.send(bytes([byte]))
            if ends.wait(1):
                return


@again(0.05)
def huge_headers(connect: Connect, _: threading.Event) -> None:
    with connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 170_000)


@again(0.02)
def garbage(connect: Connect, _: threading.Event) -> None:
    with connect() as connection:
        connection.sendall(os.urandom(2000))
        connection.recv(100)


@again(0)
def reads_nothing(connect: Connect, ends: threading.Event) -> None:
    with connect(2048) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        ends.wait(1)


@again(0)
def half_a_handshake(connect: Connect, ends: threading.Event) -> None:
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with connect() as connection:
        connection.sendall(hello.read()[:100])
        ends.wait(1)


@again(0)
def nothing_after_the_handshake(connect: Connect, _: threading.Event) -> None:
    connect().close()


CLIENTS: tuple[tuple[Client, int], ...] = (
    (idle, 1),
    (byte_a_second, 8),
    (huge_headers, 1),
    (garbage, 2),
    (reads_nothing, 8),
    (half_a_handshake, 4),
    (nothing_after_the_handshake, 1),
)


@contextlib.contextmanager
def beset(*ways: Connect) -> Iterator[None]:
    """All of them at once, in each of the ways to connect."""
    ends = threading.Event()
    threads = [
        threading.Thread(target=client, args=(connect, ends))
        for connect in ways
        for client, number in CLIENTS
        for _ in range(number)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def figure(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0])


def at_rest(pid: int) -> tuple[int, int]:
    """The least number of descriptors and threads in a second: a connection may be about to end."""
    counts = []
    for _ in range(50):
        counts.append((len(os.listdir(f"/proc/{pid}/fd")), figure(pid, "Threads")))
        time.sleep(0.02)
    return min(counts)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_events_and_scrapes_go_on(
    tmp_path: Path, require_bpf: None, certificates: Path, scheme: str
) -> None:
    flags, context = [], None
    if scheme == "https":
        web = certificates / "web.yml"
        web.write_text("tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n")
        flags = ["--web.config.file", str(web)]
        context = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    daemon = Running(tmp_path, "[canary]\ninterval = 0\n", *flags)
    try:
        url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
        assert url.startswith(f"{scheme}://")
        host, _, port = url.split("/")[2].rpartition(":")
        address = (host, int(port))
        ways = [plainly(address), *([encrypted(address, context)] if context else [])]

        def scrape() -> dict[str, float]:
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                lines = answer.read().decode().splitlines()
            pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
            return {name: float(value) for name, _, value in pairs}

        scrape()
        pid = daemon.process.pid
        rss, before = figure(pid, "VmRSS"), at_rest(pid)
        made = scrapes = 0
        with beset(*ways):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                provoke.run("munmap", "guard_region_handled").communicate()
                made += 1
                # Many ask: an answer may have been computed just before the violation.
                with at_most(KEPT_SECONDS + 4, "an answer that is kept for more than a second"):
                    while (series := scrape())[SERIES] < made:
                        time.sleep(0.1)
                scrapes += 1
                assert series[SERIES] == made
                assert figure(pid, "Threads") <= before[1] + CONNECTIONS + 1 + waiting.THREADS
                time.sleep(0.5)
        assert scrapes >= SECONDS / 4
        time.sleep(REQUEST_SECONDS)
        descriptors, threads = at_rest(pid)
        assert descriptors == before[0]
        assert before[1] <= threads <= before[1] + waiting.THREADS
        assert (figure(pid, "VmRSS") - rss) / 1024 < RSS_MIB
        series = scrape()
        delay = "seal_monitor_event_delay_seconds"
        assert series[f'{delay}_bucket{{le="1.0"}}'] == series[f"{delay}_count"] == 2 * made
        stopped = daemon.stop()
        assert stopped["details"]["denial"]["delivered"] == made
        assert_conserved(stopped)
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
