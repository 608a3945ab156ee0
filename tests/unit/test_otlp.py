"""Events reach a collector at least once, however it behaves, and nothing waits for it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most
from collector import (
    Collector,
    Request,
    answer,
    collecting,
    say_and_close,
    say_nothing,
    say_slowly,
    say_without_end,
    until,
)

from monitor.configuration.config import ConfigError, Otlp, parse
from monitor.formats.opentelemetry import SCHEMA_URL
from monitor.sinks import otlp_files
from monitor.sinks.otlp import NAME, OtlpSink, Times, request, wait_seconds
from monitor.sinks.otlp_answer import RETRIED, partial_success, seconds
from monitor.sinks.otlp_client import Client
from monitor.sinks.outputs import SinkError
from monitor.sinks.spool import DIRECTORY

QUICK = Times(gather=0.05, first=0.02, most=0.05, asked=0.2, failing=0.3, notice=3600.0, end=0.5)
IN_TIME = 20.0


def event(number: int, severity: str = "critical") -> dict[str, Any]:
    """An event of the monitor itself."""
    return {
        "id": f"id-{number}",
        "time": "2026-11-28T10:00:00.000000001Z",
        "time_boot_ns": 1,
        "kind": "health",
        "severity": severity,
        "summary": f"it is {number}",
        "host": {"name": "host", "boot_id": "b" * 32, "id": "a" * 32, "kernel_release": "6.12"},
        "process": None,
        "workload": None,
        "event": "started",
        "message": "m",
        "blind_seconds": None,
        "details": {},
        "schema": 2,
    }


def settings(collector: Collector | str, **changes: Any) -> Otlp:
    endpoint = collector if isinstance(collector, str) else collector.endpoint
    return replace(parse("", "").otlp, endpoint=endpoint, timeout=0.5, **changes)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


Make = Callable[..., OtlpSink]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def build(collector: Collector | str, times: Times = QUICK, **changes: Any) -> OtlpSink:
        made.append(OtlpSink(settings(collector, **changes), tmp_path, times))
        return made[-1]

    yield build
    for sink in made:
        sink.close()


def send(sink: OtlpSink, *numbers: int, severity: str = "critical") -> None:
    for number in numbers:
        sink.write(sink.render(event(number, severity)))


def is_stored(collector: Collector, *numbers: int) -> bool:
    return until(lambda: collector.stored.keys() >= {f"id-{n}" for n in numbers}, IN_TIME)


def is_empty(sink: OtlpSink) -> bool:
    return until(lambda: sink.spool.used_bytes == 0, IN_TIME)


# ---- What is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_what_is_sent_is_otlp(collector: Collector, make: Make, compression: str) -> None:
    sink = make(collector, compression=compression)
    send(sink, 1, 2, 3)
    assert is_stored(collector, 1, 2, 3)
    (request,) = collector.requests
    assert request.path == "/v1/logs"
    assert request.headers["content-type"] == "application/json"
    assert request.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    (of_resource,) = json.loads(request.text)["resourceLogs"]
    (of_scope,) = of_resource["scopeLogs"]
    assert of_scope["scope"]["name"] == "seal-monitor"
    bodies = [json.loads(record["body"]["stringValue"]) for record in of_scope["logRecords"]]
    assert bodies == [event(number) for number in (1, 2, 3)]
    assert of_scope["schemaUrl"] == of_resource["schemaUrl"] == SCHEMA_URL
    assert is_empty(sink)
    assert sink.sent == {"accepted": 3, "refused": 0}


def test_a_path_is_kept_before_that_of_the_specification(collector: Collector, make: Make) -> None:
    send(make(f"{collector.endpoint}/tenant/a/"), 1)
    assert is_stored(collector, 1)
    assert collector.requests[0].path == "/tenant/a/v1/logs"


def test_ipv6(make: Make) -> None:
    with collecting(family=socket.AF_INET6) as collector:
        send(make(collector), 1)
        assert is_stored(collector, 1)
        assert collector.requests[0].headers["host"] == f"[::1]:{collector.port}"


@pytest.mark.parametrize("zone", ["%1", "%251"])
def test_the_zone_of_an_address_stays_here(make: Make, zone: str) -> None:
    with collecting(family=socket.AF_INET6) as collector:
        send(make(f"http://[::1{zone}]:{collector.port}"), 1)
        assert is_stored(collector, 1)
        assert collector.requests[0].headers["host"] == f"[::1]:{collector.port}"


def test_no_proxy_of_the_environment_is_asked(
    collector: Collector, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    send(make(collector), 1)
    assert is_stored(collector, 1)


# ---- Answers -------------------------------------------------------------------------------------


def in_turn(*behaviours: Callable[[Collector, socket.socket, Request], None]) -> Any:
    left = list(behaviours)

    def behave(collector: Collector, connection: socket.socket, request: Request) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(collector, connection, request)

    return behave


@pytest.mark.parametrize("status", RETRIED)
def test_it_is_tried_again(collector: Collector, make: Make, status: int) -> None:
    collector.behave = in_turn(*(answer(status) for _ in range(4)), answer())
    sink = make(collector)
    send(sink, 1)
    assert is_stored(collector, 1)
    assert len(collector.requests) == 5
    assert is_empty(sink)
    assert sink.sent == {"accepted": 1, "refused": 0}


@pytest.mark.parametrize("status", [302, 307, 400, 401, 403, 404, 413, 415, 500, 501, 505])
def test_another_answer_is_final_and_counted(collector: Collector, make: Make, status: int) -> None:
    where = {"Location": f"{collector.endpoint}/elsewhere/v1/logs"}
    collector.behave = in_turn(answer(status, headers=where), answer())
    sink = make(collector)
    send(sink, 1)
    assert is_empty(sink)
    send(sink, 3)
    assert is_stored(collector, 3)
    assert is_empty(sink)
    assert {request.path for request in collector.requests} == {"/v1/logs"}
    assert collector.stored == {"id-3": 1}
    assert sink.sent == {"accepted": 1, "refused": 1}
    (notice,) = sink.notices
    assert notice.event == "collector_refused"
    assert notice.message == (
        f"{collector.endpoint} refused 1 of 1 events for good: it answered {status} (Said)"
    )


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_event_that_is_refused_takes_no_others_with_it(
    collector: Collector, make: Make, status: int
) -> None:
    def behave(collector: Collector, connection: socket.socket, request: Request) -> None:
        bad = "id-37" in request.ids
        answer(status if bad else 200)(collector, connection, request)

    collector.behave = behave
    sink = make(collector)
    send(sink, *range(100))
    assert is_empty(sink)
    assert sink.sent == {"accepted": 99, "refused": 1}
    assert set(collector.stored.values()) == {1}
    (notice,) = sink.notices
    assert notice.event == "collector_refused"
    assert f"it answered {status}" in notice.message


def test_a_collector_that_refuses_all_is_not_asked_for_each(
    collector: Collector, make: Make
) -> None:
    collector.behave = answer(400)
    sink = make(collector)
    send(sink, *range(500))
    assert is_empty(sink)
    assert sink.sent == {"accepted": 0, "refused": 500}
    assert len(collector.requests) < 100


def test_after_a_refusal_it_waits(collector: Collector, make: Make) -> None:
    collector.behave = answer(401)
    sink = make(collector, QUICK._replace(first=600.0, most=600.0))
    send(sink, 1)
    assert until(lambda: sink.sent["refused"] == 1, IN_TIME)
    send(sink, 2, 3)
    time.sleep(0.3)
    assert len(collector.requests) == 1
    assert sink.spool.used_bytes > 0


def test_a_partial_success_is_counted_and_reported(collector: Collector, make: Make) -> None:
    said = b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too\\u001b[31m old"}}'
    collector.behave = answer(200, said)
    sink = make(collector)
    send(sink, 1, 2, 3)
    assert is_empty(sink)
    assert sink.sent == {"accepted": 1, "refused": 2}
    (notice,) = sink.notices
    assert notice.message == (
        f"{collector.endpoint} refused 2 of 3 events for good: it answered 200 (too\\x1b[31m old)"
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", (0, "")),
        (b"{}", (0, "")),
        (b'{"partialSuccess":{}}', (0, "")),
        (b'{"partialSuccess":{"rejectedLogRecords":3}}', (3, "")),
        (b'{"partialSuccess":{"rejectedLogRecords":-3}}', (0, "")),
        (b'{"partialSuccess":{"rejectedLogRecords":"many"}}', (0, "")),
        (b'{"partialSuccess":[1]}', (0, "")),
        (b"[" * 60000, (0, "")),
        (b"\x08\x00", (0, "")),
        (b'{"partialSuccess":{"rejectedLogRecords":1e999}}', (0, "")),
    ],
)
def test_what_a_success_says(said: bytes, expected: tuple[int, str]) -> None:
    assert partial_success(said) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("9" * 5000, 9999999999.0),
        ("-1", None),
        ("soon", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "later"),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00", 0.0),
        (f"Thu, 01 Jan 1970 00:00:00 +{'9' * 30}", None),
        (f"Thu, 01 Jan {'9' * 30} 00:00:00 GMT", None),
    ],
)
def test_retry_after_has_two_forms(value: str | None, expected: object) -> None:
    found = seconds(value)
    assert found is not None and found > 1e9 if expected == "later" else found == expected


def test_a_wait_is_full_jitter_and_bounded() -> None:
    times = Times()
    for failures, most in ((1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (10_000, 60.0)):
        found = [wait_seconds(failures, None) for _ in range(300)]
        assert 0 <= min(found) < most / 4
        assert most * 3 / 4 < max(found) <= most
    asked = [wait_seconds(1, 30.0) for _ in range(100)]
    assert min(asked) >= 30.0
    assert max(asked) <= 31.0
    assert wait_seconds(1, 1e12) <= times.asked + 1.0


def test_what_a_collector_asks_for_is_waited(collector: Collector, make: Make) -> None:
    collector.behave = in_turn(answer(503, headers={"Retry-After": "1"}), answer())
    sink = make(collector, QUICK._replace(asked=300.0))
    began = time.monotonic()
    send(sink, 1)
    assert is_stored(collector, 1)
    assert time.monotonic() - began >= 1.0


# ---- Collectors that misbehave -------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
LIST = {
    "silence": say_nothing,
    "a slow status line": say_slowly(b"H"),
    "slow headers": say_slowly(HEAD + b"X: y\r\n"),
    "a slow body": say_slowly(HEAD + b"Content-Length: 99999\r\n\r\n" + b"{" * 9999, 0.01),
    "headers without end": say_without_end(HEAD, b"X: " + b"y" * 60000 + b"\r\n"),
    "one header without end": say_without_end(HEAD + b"X: ", b"y" * 60000),
    "100 Continue without end": say_without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints without end": say_without_end(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "another protocol, by 101": say_and_close(b"HTTP/1.1 101 Switching\r\n\r\n" + HEAD + b"\r\n"),
    "an interim answer alone": say_and_close(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "no HTTP": say_and_close(b"220 mail.example ESMTP\r\n"),
    "an answer that is cut off": say_and_close(HEAD + b"Content-Length: 100\r\n\r\n{"),
    "a head that is cut off": say_and_close(HEAD + b"Content-Le"),
    "a closed connection": say_and_close(b""),
    "a chunk of no size": say_and_close(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a status that is no number": say_and_close(b"HTTP/1.1 two OK\r\n\r\n"),
    "another protocol": say_and_close(b"HTTP/2.0 200 OK\r\n\r\n"),
}


@pytest.mark.parametrize("way", LIST)
def test_of_no_answer_nothing_is_lost(collector: Collector, make: Make, way: str) -> None:
    collector.behave = LIST[way]
    sink = make(collector)
    send(sink, 1)
    assert until(lambda: sink._failures >= 1, IN_TIME)
    with at_most(0.5, "the sink waits for the collector"):
        send(sink, 2)
    assert sink.sent == {}
    collector.behave = answer()
    assert is_stored(collector, 1, 2)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers_are_not_the_answer(collector: Collector, make: Make, status: int) -> None:
    def behave(collector: Collector, connection: socket.socket, request: Request) -> None:
        interim = f"HTTP/1.1 {status} Wait\r\nLink: </a>\r\n\r\n".encode()
        connection.sendall(interim * 3)
        answer()(collector, connection, request)

    collector.behave = behave
    sink = make(collector)
    for number in range(3):  # by one connection, which has to stay in step
        send(sink, number)
        assert is_stored(collector, number)
    assert is_empty(sink)
    assert (sink.sent, collector.connections) == ({"accepted": 3, "refused": 0}, 1)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (HEAD + b"\r\n", b"{" * 60000),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"{" * 60000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"ea60\r\n" + b"{" * 60000 + b"\r\n"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n", b"\x1f\x8b\x08" + b"\0" * 60000),
    ],
    ids=["close", "length", "chunked", "gzip"],
)
def test_a_body_without_end_is_not_read(
    collector: Collector, make: Make, start: bytes, more: bytes
) -> None:
    collector.behave = say_without_end(start, more)
    sink = make(collector)
    send(sink, 1)
    assert is_empty(sink)
    assert sink.sent == {"accepted": 1, "refused": 0}


def test_a_collector_that_takes_nothing_is_given_up(make: Make) -> None:
    with socket.socket() as listener:  # the kernel accepts, nobody reads
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        sink = make(f"http://127.0.0.1:{listener.getsockname()[1]}")
        send(sink, *range(2000))
        assert until(lambda: sink._failures >= 2, IN_TIME)
        assert sink.spool.dropped == {}


def test_nobody_listens(make: Make, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sink = make(f"http://127.0.0.1:{unused.getsockname()[1]}")
        send(sink, 1)
        assert until(lambda: len(sink.notices) > 0, IN_TIME)
    (notice,) = sink.notices
    assert notice.event == "sink_failed"
    assert notice.message.endswith(": Connection refused; 4096 bytes of events wait")
    sink.close()
    assert len(list((tmp_path / DIRECTORY).iterdir())) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("end", ["refused", "closed", "cut off"])
def test_requests_that_fail_leave_no_descriptor(scheme: str, end: str, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if end != "refused":
            listener.listen(1)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        if end == "cut off":
                            connection.recv(65536)
                            connection.sendall(HEAD)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        context = otlp_files.load(settings(endpoint)).context
        client = Client(endpoint, {}, context, timeout=5.0)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(500):
            with pytest.raises(SinkError):
                client.post(b"{}", None)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's own
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        server.join(5)


def test_a_request_that_fails_leaves_nothing_to_the_garbage_collector(
    certificates: Path,
) -> None:
    """Authorities take MiB, and that collector comes by when it likes."""
    gc.disable()
    try:
        with collecting(served_by(certificates)) as collector:
            context = otlp_files.load(settings(collector)).context
            client = Client(collector.endpoint, {}, context, timeout=5.0)
            with contextlib.suppress(SinkError):
                client.post(b"{}", None)
            assert collector.connections == 1
            assert context is not None
            kept = weakref.ref(context)
            del client, context
            assert kept() is None
    finally:
        gc.enable()


def test_after_any_error_the_next_request_has_a_connection_of_its_own(
    collector: Collector,
) -> None:
    """And makes it itself: http.client would make one without TLS."""
    client = Client(collector.endpoint, {}, None, timeout=5.0)

    body = request([])

    class NoMemory(bytes):
        def __len__(self) -> int:
            raise MemoryError

    assert client.post(body, None).status == 200
    with pytest.raises(MemoryError):
        client.post(NoMemory(), None)
    assert client.post(body, None).status == 200
    assert client._http is not None
    client._http.close()  # as it does by itself
    with pytest.raises(SinkError, match="NotConnected"):
        client.post(body, None)
    assert client.post(body, None).status == 200
    assert collector.connections == 3


def test_without_a_thread_events_wait_and_go_with_the_next(
    collector: Collector, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make(collector)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        send(sink, 1)
    (notice,) = sink.notices
    assert notice.event == "sink_failed"
    assert "it gets no thread" in notice.message
    send(sink, 2)
    assert is_stored(collector, 1, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sender_that_a_bug_has_ended_is_replaced(collector: Collector, make: Make) -> None:
    sink = make(collector)
    send(sink, 1)
    assert is_empty(sink)
    take = sink.spool.take

    def fail(_: float) -> None:
        sys.exit()

    sink.spool.take = fail  # type: ignore[assignment, method-assign]
    sender = sink._thread
    assert sender is not None
    sink.reopen()
    sender.join(IN_TIME)
    assert not sender.is_alive()
    sink.spool.take = take  # type: ignore[method-assign]
    send(sink, 2)
    assert is_stored(collector, 1, 2)


def test_a_recovery_is_reported(collector: Collector, make: Make) -> None:
    collector.behave = answer(503)
    sink = make(collector)
    send(sink, 1)
    assert until(lambda: len(sink.notices) == 1, IN_TIME)
    collector.behave = answer()
    assert is_stored(collector, 1)
    assert until(lambda: len(sink.notices) == 2, IN_TIME)
    assert [notice.event for notice in sink.notices] == ["sink_failed", "sink_recovered"]
    assert sink.notices[1].message == f"{NAME}: {collector.endpoint} takes events again"


def test_a_connection_is_used_again_and_opened_again(collector: Collector, make: Make) -> None:
    sink = make(collector)
    send(sink, *range(2000))
    assert is_stored(collector, *range(2000))
    assert collector.connections == 1
    assert len(collector.requests) >= 4
    connection = sink._running.client._socket
    assert connection is not None
    is_prompt = connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert is_prompt  # else each request takes 40 ms

    def once(collector: Collector, connection: socket.socket, request: Request) -> None:
        answer()(collector, connection, request)
        raise ConnectionAbortedError

    collector.behave = once
    assert is_empty(sink)
    send(sink, *range(2000, 4000))
    assert is_stored(collector, *range(2000, 4000))
    assert sink._failures == 0


# ---- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, other.pem; server.pem and client.pem with their keys, by ca.pem."""
    place = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        run(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        names = ("-addext", "subjectAltName=IP:127.0.0.1", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE")
        run(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", *names, *signed)
    for key in place.glob("*.key"):
        key.chmod(0o600)
    return place


def served_by(place: Path, *, asks: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem", place / "server.key")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(place / "ca.pem")
    return context


def test_tls_with_a_certificate_of_the_client(certificates: Path, make: Make) -> None:
    with collecting(served_by(certificates, asks=True)) as collector:
        sink = make(
            collector,
            ca_file=certificates / "ca.pem",
            certificate_file=certificates / "client.pem",
            key_file=certificates / "client.key",
        )
        send(sink, 1)
        assert is_stored(collector, 1)


def test_a_wrong_certificate_gets_nothing(certificates: Path, make: Make) -> None:
    with collecting(served_by(certificates)) as collector:
        sink = make(collector, ca_file=certificates / "other.pem")
        send(sink, 1)
        assert until(lambda: len(sink.notices) > 0, IN_TIME)
        assert collector.requests == []
        assert "certificate: " in sink.notices[0].message
        sink.reconfigure(settings(collector, ca_file=certificates / "ca.pem"))
        assert is_stored(collector, 1)


def test_a_certificate_for_another_name_gets_nothing(certificates: Path, make: Make) -> None:
    with collecting(served_by(certificates)) as collector:
        sink = make(f"https://localhost:{collector.port}", ca_file=certificates / "ca.pem")
        send(sink, 1)
        assert until(lambda: sink._failures > 1, IN_TIME)
        assert collector.requests == []


def test_a_handshake_that_never_ends_is_given_up(certificates: Path, make: Make) -> None:
    with collecting(served_by(certificates)) as collector:
        collector.on_connect = lambda _: collector.hold()
        sink = make(collector, ca_file=certificates / "ca.pem")
        send(sink, 1)
        assert until(lambda: sink._failures > 1, IN_TIME)
        collector.on_connect = lambda _: None
        assert is_stored(collector, 1)


# ---- Reloads, files ------------------------------------------------------------------------------


def test_another_endpoint_gets_what_waits(collector: Collector, make: Make) -> None:
    collector.behave = answer(503, headers={"Retry-After": "300"})
    sink = make(collector, QUICK._replace(asked=300.0))
    send(sink, 1)
    assert until(lambda: sink._failures > 0, IN_TIME)
    with collecting() as other:
        sink.reconfigure(settings(other))
        send(sink, 2)
        assert is_stored(other, 1, 2)


def test_sighup_tries_again_at_once(collector: Collector, make: Make) -> None:
    collector.behave = in_turn(answer(503, headers={"Retry-After": "300"}), answer())
    sink = make(collector, QUICK._replace(asked=300.0))
    send(sink, 1)
    assert until(lambda: sink._failures > 0, IN_TIME)
    sink.reopen()
    assert is_stored(collector, 1)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_headers_are_read_again_when_they_change(
    collector: Collector, make: Make, tmp_path: Path
) -> None:
    file = private(tmp_path / "headers", "# of the collector\nAuthorization: Bearer one\nX-A: b\n")
    sink = make(collector, headers_file=file)
    send(sink, 1)
    assert is_stored(collector, 1)
    private(tmp_path / "new", "Authorization: Bearer two\n").rename(file)
    send(sink, 2)
    assert is_stored(collector, 2)
    said = [request.headers.get("authorization") for request in collector.requests]
    assert said == ["Bearer one", "Bearer two"]
    assert collector.requests[0].headers["x-a"] == "b"


def test_headers_that_cannot_be_read_any_more_lose_nothing(
    collector: Collector, make: Make, tmp_path: Path
) -> None:
    file = private(tmp_path / "headers", "Authorization: Bearer one\n")
    sink = make(collector, headers_file=file)
    file.chmod(0o604)
    file.write_text("Authorization: Bearer three\n")
    send(sink, 1)
    assert until(lambda: len(sink.notices) > 0, IN_TIME)
    assert "mode 0604" in sink.notices[0].message
    assert "Bearer" not in sink.notices[0].message
    private(file, "Authorization: Bearer four\n")
    assert is_stored(collector, 1)
    assert collector.requests[0].headers["authorization"] == "Bearer four"


def test_headers_that_are_being_written_are_waited_for(
    collector: Collector, make: Make, tmp_path: Path
) -> None:
    """Whoever writes them in place empties the file first: nothing is sent without a password."""
    file = private(tmp_path / "headers", "Authorization: Bearer one\n")
    sink = make(collector, headers_file=file)
    file.write_text("")
    send(sink, 1)
    assert until(lambda: len(sink.notices) > 0, IN_TIME)
    assert sink.notices[0].message.startswith(
        f"{NAME}: {collector.endpoint}: otlp.headers_file: {file}: no header is in it; write one"
    )
    private(file, "Authorization: Bearer two\n")
    assert is_stored(collector, 1)
    assert [request.headers["authorization"] for request in collector.requests] == ["Bearer two"]


def test_headers_written_with_the_time_of_before_are_read(
    collector: Collector, make: Make, tmp_path: Path
) -> None:
    file = private(tmp_path / "headers", "Authorization: Bearer one\n")
    sink = make(collector, headers_file=file)
    before = file.stat()
    private(file, "Authorization: Bearer two\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    send(sink, 1)
    assert is_stored(collector, 1)
    assert collector.requests[0].headers["authorization"] == "Bearer two"


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("A: b\n", 0o644, "mode 0644 lets others read it"),
        ("A: b\n", 0o660, "mode 0660 lets others read it"),
        ("secret\n", 0o600, "headers:1: not a header"),
        ("A: secret\u00e9\n", 0o600, "headers:1: not a header"),
        ("A: secret\rB: c\n", 0o600, "headers:1: not a header"),
        ("A: \n", 0o600, "headers:1: not a header"),
        ("", 0o600, "headers: no header is in it"),
        ("# secret\n", 0o600, "headers: no header is in it"),
        ("Content-Length: 1\n", 0o600, "headers:1: the header Content-Length is set by"),
        ("HOST: secret\n", 0o600, "headers:1: the header HOST is set by"),
        ("A: secret\n\na: secret\n", 0o600, "headers:3: the header a is there twice"),
        ("".join(f"A{n}: secret\n" for n in range(33)), 0o600, "headers:33: more than 32"),
        ("x" * 300000, 0o600, "larger than 262144 bytes"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, text: str, mode: int, message: str) -> None:
    file = tmp_path / "headers"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        otlp_files.load(settings("http://127.0.0.1:1", headers_file=file))
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o664])
def test_authorities_that_others_can_write_are_refused(
    certificates: Path, tmp_path: Path, mode: int
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes((certificates / "ca.pem").read_bytes())
    otlp = settings("https://127.0.0.1:1", ca_file=file)
    file.chmod(0o644)
    assert otlp_files.load(otlp).context is not None
    file.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        otlp_files.load(otlp)
    assert str(refused.value) == (
        f"otlp.ca_file: {file}: mode {mode:04o} lets others write it; run: chmod 0644 {file}"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("key", ["headers_file", "ca_file"])
def test_files_of_others_are_refused(tmp_path: Path, key: str) -> None:
    file = private(tmp_path / "file", "A: b\n")
    os.chown(file, 12345, 0)
    with pytest.raises(ConfigError, match=rf"otlp\.{key}: .*: belongs to user 12345; run: chown"):
        otlp_files.load(settings("https://127.0.0.1:1", **{key: file}))


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, message in (("missing", "No such file"), ("pipe", "not a regular file")):
        with pytest.raises(ConfigError, match=message):
            otlp_files.load(settings("http://127.0.0.1:1", headers_file=tmp_path / name))
    wrong = private(tmp_path / "wrong.pem", "no certificate")
    with pytest.raises(ConfigError, match="belong together"):
        otlp_files.load(settings("https://127.0.0.1:1", certificate_file=wrong))
    for changes in (
        {"ca_file": wrong},
        {"certificate_file": wrong, "key_file": wrong},
    ):
        with pytest.raises(ConfigError, match="PEM"):
            otlp_files.load(settings("https://127.0.0.1:1", **changes))


# ---- The end, and the next life ------------------------------------------------------------------


def test_the_end_sends_what_waits(collector: Collector, make: Make) -> None:
    sink = make(collector)
    send(sink, 1, 2, severity="info")
    sink.close()
    assert collector.stored == {"id-1": 1, "id-2": 1}


def test_the_end_does_not_wait_for_a_silent_collector(
    collector: Collector, make: Make, tmp_path: Path
) -> None:
    collector.behave = say_nothing
    sink = make(collector)
    send(sink, 1)
    assert until(lambda: len(collector.requests) == 1, IN_TIME)
    with at_most(5, "it waits for the collector"):
        sink.close()
    collector.behave = answer()
    again = OtlpSink(settings(collector), tmp_path, QUICK)
    try:
        send(again, 2)
        assert is_stored(collector, 1, 2)
    finally:
        again.close()


def test_a_disk_that_takes_nothing_is_reported(collector: Collector, tmp_path: Path) -> None:
    sink = OtlpSink(settings(collector), tmp_path / "missing", QUICK)
    try:
        send(sink, 1)
        assert is_stored(collector, 1)
        (notice,) = sink.notices
        assert notice.event == "state_failed"
        assert notice.message.startswith("the spool: [Errno 2] No such file")
        assert notice.message.endswith("is kept in memory, 4 MiB at most")
    finally:
        sink.close()


def test_what_is_dropped_is_reported_by_severity(collector: Collector, make: Make) -> None:
    collector.behave = answer(503)
    sink = make(collector, spool_max_size=1 << 20)
    big = "x" * 60_000
    for number in range(40):
        sink.write(sink.render({**event(number, "info"), "summary": big}))
    for number in range(5):
        sink.write(sink.render({**event(number, "warning"), "summary": big}))
    assert until(lambda: any(n.event == "spool_dropped" for n in sink.notices), IN_TIME)
    lost = sink.spool.dropped["info"]
    assert lost > 0
    assert sink.spool.dropped == {"info": lost}
    notice = next(notice for notice in sink.notices if notice.event == "spool_dropped")
    assert notice.details is not None
    assert notice.message.startswith("the spool had no room or was damaged, and events were never")
