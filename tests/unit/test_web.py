from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest
from clocks import at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily

from monitor.web.access import WebAccess
from monitor.web.server import Access, Server, WebError, listen

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()
OTHER_HASH = bcrypt.hashpw(b"a" * 72, b"$2b$05$" + b"." * 22).decode().replace("$2b$", "$2y$")

Start = Callable[..., Server]
Answer = tuple[int, str, dict[str, str]]


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seal_monitor_seals", "Seals.", registry=registry).inc(7)
    return registry


@pytest.fixture
def start(registry: CollectorRegistry) -> Iterator[Start]:
    servers: list[Server] = []

    def start(
        access: Callable[[], Access] = Access,
        ready: Callable[[], list[str]] = list,
        registry: CollectorRegistry = registry,
        connections: int = 16,
        request_seconds: float = 5.0,
    ) -> Server:
        server = listen(
            ("127.0.0.1", 0),
            registry,
            ready,
            access,
            connections=connections,
            request_seconds=request_seconds,
        )
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def ask(
    server: Server,
    path: str,
    method: str = "GET",
    *,
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    body: bytes | None = None,
) -> Answer:
    host, port = server.address
    connection = (
        http.client.HTTPSConnection(host, port, timeout=10, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=10)
    )
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        answer = response.read().decode()
        return response.status, answer, {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def send(server: Server, data: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def basic(name: str, password: str) -> dict[str, str]:
    token = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def test_metrics(start: Start) -> None:
    status, body, headers = ask(start(), "/metrics?debug=1")
    assert status == 200
    assert "seal_monitor_seals_total 7.0\n" in body
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"


def test_metrics_as_openmetrics(start: Start) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    status, body, headers = ask(start(), "/metrics", headers=accept)
    assert status == 200
    assert body.endswith("# EOF\n")
    assert headers["content-type"].startswith("application/openmetrics-text; version=")


def test_healthy(start: Start) -> None:
    assert ask(start(), "/-/healthy")[:2] == (200, "healthy\n")


def test_ready_follows_the_monitor(start: Start) -> None:
    reasons = ["probe mprotect: not\nattached", "canary: not passed yet"]
    server = start(ready=lambda: reasons)
    expected = "probe mprotect: not attached\ncanary: not passed yet\n"
    assert ask(server, "/-/ready")[:2] == (503, expected)
    reasons.clear()
    assert ask(server, "/-/ready")[:2] == (200, "ready\n")


def test_page_links_to_everything_else(start: Start) -> None:
    server = start()
    status, body, headers = ask(server, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r'href="([^"]+)"', body)
    assert links == ["/metrics", "/-/healthy", "/-/ready"]
    assert [ask(server, link)[0] for link in links] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//", "/../metrics", "*"])
def test_not_found(start: Start, path: str) -> None:
    expected = "not found; there are /, /metrics, /-/healthy, /-/ready\n"
    assert ask(start(), path)[:2] == (404, expected)


def test_head_has_the_headers_of_get_and_no_body(start: Start) -> None:
    server = start()
    _, body, of_get = ask(server, "/metrics")
    assert ask(server, "/metrics", "HEAD") == (200, "", of_get)
    assert of_get["content-length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("body", [b"", b"x" * 60000])
def test_other_methods(start: Start, method: str, body: bytes) -> None:
    status, answer, headers = ask(start(), "/metrics", method, body=body)
    assert (status, answer) == (405, "only GET and HEAD are known here\n")
    assert headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("request_bytes", "status_line"),
    [
        (b"GET /-/healthy HTTP/1.0\n\n", b"HTTP/1.1 200 OK"),
        (b"GET /-/healthy HTTP/2.0\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /-/healthy\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/1.1\r\nA: b\rSet-Cookie: c\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /\xff\x00 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /" + b"a" * 9000, b"HTTP/1.1 431 Request Header Fields Too Large"),
    ],
)
def test_raw_requests(start: Start, request_bytes: bytes, status_line: bytes) -> None:
    assert send(start(), request_bytes).splitlines()[0] == status_line


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(), st.binary().map(lambda data: b"GET /metrics HTTP/1.1\r\nAccept: " + data)
    )
)
def test_any_request_has_an_answer(start: Start, data: bytes) -> None:
    server = start()
    status_line = send(server, data + b"\r\n\r\n").splitlines()[0]
    assert re.fullmatch(rb"HTTP/1\.1 (200|400|404|405) [A-Za-z ]+", status_line)
    server.close()


def test_failed_scrape_is_reported_and_survived(start: Start, registry: CollectorRegistry) -> None:
    class Broken:
        broken = True

        def collect(self) -> Iterator[CounterMetricFamily]:
            if self.broken:
                raise ValueError("counters\nunreadable")
            yield CounterMetricFamily("seal_monitor_denials", "Denials.", value=3)

    collector = Broken()
    collector.broken = False
    registry.register(collector)
    server = start()
    collector.broken = True
    assert ask(server, "/metrics")[:2] == (500, "failed: ValueError: counters unreadable\n")
    assert ask(server, "/-/healthy")[0] == 200
    collector.broken = False
    assert "seal_monitor_denials_total 3.0\n" in ask(server, "/metrics")[1]


def test_scrapes_never_run_at_once(start: Start, registry: CollectorRegistry) -> None:
    class Slow:
        running = highest = 0

        def collect(self) -> Iterator[CounterMetricFamily]:
            self.running += 1
            self.highest = max(self.highest, self.running)
            time.sleep(0.02)
            self.running -= 1
            yield from ()

    collector = Slow()
    registry.register(collector)
    server = start()
    threads = [threading.Thread(target=ask, args=(server, "/metrics")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.highest == 1


def test_nothing_is_printed(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    server = start(request_seconds=0.2)
    ask(server, "/metrics")
    ask(server, "/nothing")
    send(server, b"nonsense\r\n\r\n")
    socket.create_connection(server.address).close()
    until(lambda: server.aborted == 1)
    assert capfd.readouterr() == ("", "")


def test_slow_client_is_cut_off_and_stalls_nobody(start: Start) -> None:
    server = start(request_seconds=0.5)
    began = time.monotonic()
    with socket.create_connection(server.address, timeout=10) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        while time.monotonic() < began + 30:
            try:
                slow.sendall(b"a")
            except OSError:
                break
            assert ask(server, "/-/healthy")[0] == 200
            time.sleep(0.05)
        assert time.monotonic() - began > 0.4
    until(lambda: server.aborted == 1)
    assert server.rejected == 0


def test_client_that_does_not_read_is_cut_off(start: Start) -> None:
    registry = CollectorRegistry()
    Counter("x", "y" * 20_000_000, registry=registry)
    server = start(registry=registry, request_seconds=0.5)
    with socket.create_connection(server.address, timeout=10) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: server.aborted == 1)


def test_the_oldest_that_waits_for_its_client_gives_way(start: Start) -> None:
    server = start(connections=3)
    held = [socket.create_connection(server.address, timeout=10) for _ in range(5)]
    try:
        assert [connection.recv(1) for connection in held[:2]] == [b"", b""]
        assert ask(server, "/-/healthy")[0] == 200
        assert held[2].recv(1) == b""
        assert (server.evicted, server.rejected) == (3, 0)
        held[3].sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")  # the newer ones are as they were
        assert held[3].recv(12) == b"HTTP/1.1 200"
    finally:
        for connection in held:
            connection.close()
    until(lambda: server.aborted == 4)


def test_idle_clients_keep_nobody_out(start: Start) -> None:
    before = threading.active_count()
    server = start(request_seconds=60)
    held: list[socket.socket] = []
    try:
        for _ in range(200):
            held.append(socket.create_connection(server.address, timeout=10))
            assert threading.active_count() <= before + 17
        with at_most(50, "no place comes free by itself in 60 s"):
            for _ in range(50):
                assert ask(server, "/metrics")[0] == 200
        assert server.rejected == 0
    finally:
        for connection in held:
            connection.close()


def test_clients_that_do_not_read_keep_nobody_out(start: Start) -> None:
    registry = CollectorRegistry()
    Counter("x", "y" * 8_000_000, registry=registry)
    server = start(registry=registry, connections=3)
    held = [socket.create_connection(server.address, timeout=10) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert [connection.recv(1) for connection in held] == [b"H"] * 3
        assert ask(server, "/-/healthy")[0] == 200
        assert server.rejected == 0
    finally:
        for connection in held:
            connection.close()


def test_what_is_being_answered_does_not_give_way(
    start: Start, registry: CollectorRegistry
) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    class Slow:
        def collect(self) -> Iterator[CounterMetricFamily]:
            entered.release()
            leave.wait(10)
            yield CounterMetricFamily("seal_monitor_slow", "Slow.", value=1)

    server = start(connections=1)
    registry.register(Slow())
    answers: list[Answer] = []
    scrape = threading.Thread(target=lambda: answers.append(ask(server, "/metrics")))
    scrape.start()
    assert entered.acquire(timeout=10)
    with socket.create_connection(server.address, timeout=10) as refused:
        assert refused.recv(1) == b""
    assert (server.evicted, server.rejected) == (0, 1)
    leave.set()
    scrape.join()
    assert "seal_monitor_slow_total 1.0" in answers[0][1]


def test_close_ends_threads_and_frees_the_port(start: Start) -> None:
    before = threading.active_count()
    server = start(request_seconds=60)
    with socket.create_connection(server.address, timeout=10) as idle:
        idle.sendall(b"GET / HTT")
        until(lambda: threading.active_count() == before + 2)
        with at_most(30, "the client has 60 s for its request"):
            server.close()
        assert idle.recv(1) == b""
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=10)
    listen(server.address, CollectorRegistry(), list).close()


def test_close_lets_a_running_scrape_finish(start: Start, registry: CollectorRegistry) -> None:
    class Slow:
        started = threading.Event()

        def collect(self) -> Iterator[CounterMetricFamily]:
            self.started.set()
            time.sleep(0.3)
            yield CounterMetricFamily("seal_monitor_slow", "Slow.", value=1)

    answers: list[Answer] = []
    registry.register(collector := Slow())
    server = start()
    collector.started.clear()
    thread = threading.Thread(target=lambda: answers.append(ask(server, "/metrics")))
    thread.start()
    assert collector.started.wait(5)
    server.close()
    thread.join()
    assert answers[0][0] == 200
    assert "seal_monitor_slow_total 1.0\n" in answers[0][1]


def test_ipv6(registry: CollectorRegistry) -> None:
    try:
        server = listen(("::1", 0), registry, list)
    except WebError as error:
        pytest.skip(str(error))
    try:
        server.start()
        assert server.address[0] == "::1"
        assert ask(server, "/-/healthy")[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:1: cannot assign requested address; "),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:1: "),
        ("a..b", "cannot listen on a..b:1: "),
    ],
)
def test_address_that_cannot_be_used(registry: CollectorRegistry, host: str, expected: str) -> None:
    with pytest.raises(WebError) as caught:
        listen((host, 1), registry, list)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith("; choose another with --web.listen-address")


def test_port_taken(start: Start, registry: CollectorRegistry) -> None:
    _, port = start().address
    with pytest.raises(WebError) as caught:
        listen(("127.0.0.1", port), registry, list)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another with --web.listen-address"
    )


def web_config(folder: Path, text: str) -> WebAccess:
    file = folder / "web.yml"
    file.write_text(text)
    return WebAccess(file, lambda _: None)


USERS = f"basic_auth_users:\n  prometheus: {HASH}\n  käthe: '{OTHER_HASH}'\n"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (basic("prometheus", "correct horse"), 200),
        (basic("prometheus", "correct horse "), 401),
        (basic("prometheus", ""), 401),
        (basic("nobody", "correct horse"), 401),
        (basic("käthe", "a" * 72), 200),
        (basic("käthe", "a" * 73), 200),  # bcrypt reads 72 bytes
        (basic("käthe", "a" * 71), 401),
        (basic("käthe", "correct horse"), 401),
        (basic("prometheus", "correct\0horse"), 401),
        ({"Authorization": "Basic !"}, 401),
        ({"Authorization": "Basic"}, 401),
        ({"Authorization": "Bearer x"}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"prometheus").decode()}, 401),
    ],
)
def test_basic_auth(start: Start, tmp_path: Path, headers: dict[str, str], status: int) -> None:
    server = start(web_config(tmp_path, USERS))
    for path in ("/metrics", "/", "/-/healthy", "/-/ready"):
        answer = ask(server, path, headers=headers)
        assert answer[0] == status
        if status == 401:
            assert answer[1] == "name or password is wrong\n"
            assert answer[2]["www-authenticate"].startswith("Basic realm=")
    assert ask(server, "/nothing", headers=headers)[0] == (404 if status == 200 else 401)


TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


def client_context(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates / "server.pem")


def test_tls(start: Start, certificates: Path) -> None:
    server = start(web_config(certificates, TLS))
    tls = client_context(certificates)
    status, body, _ = ask(server, "/metrics", tls=tls)
    assert status == 200
    assert "seal_monitor_seals_total 7.0\n" in body
    assert ask(server, "/metrics", "POST", tls=tls, body=b"x")[0] == 405
    with contextlib.suppress(ConnectionResetError):
        assert b"HTTP" not in send(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    until(lambda: server.aborted == 1)
    assert ask(server, "/-/healthy", tls=tls)[0] == 200


def test_tls_with_basic_auth(start: Start, certificates: Path) -> None:
    server = start(web_config(certificates, TLS + USERS))
    tls = client_context(certificates)
    assert ask(server, "/metrics", tls=tls)[0] == 401
    right = basic("prometheus", "correct horse")
    assert ask(server, "/metrics", tls=tls, headers=right)[0] == 200


def test_tls_handshake_that_never_comes_stalls_nobody(start: Start, certificates: Path) -> None:
    server = start(web_config(certificates, TLS), request_seconds=0.5)
    with socket.create_connection(server.address, timeout=10) as silent:
        assert ask(server, "/-/healthy", tls=client_context(certificates))[0] == 200
        assert silent.recv(1) == b""
    until(lambda: server.aborted == 1)


def test_tls_minimum_version(start: Start, certificates: Path) -> None:
    server = start(web_config(certificates, TLS + "  min_version: TLS13\n"))
    tls = client_context(certificates)
    assert ask(server, "/", tls=tls)[0] == 200
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        ask(server, "/", tls=tls)


def test_tls_client_certificate(start: Start, certificates: Path) -> None:
    text = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.pem\n"
    server = start(web_config(certificates, TLS + text))
    tls = client_context(certificates)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(server, "/", tls=tls)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(server, "/", tls=tls)
    tls = client_context(certificates)
    tls.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    assert ask(server, "/", tls=tls)[0] == 200
