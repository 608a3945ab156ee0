"""A real collector, rotel, understands what is sent: it gives every record on, with all fields."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, Request, collecting, until
from test_otlp import event, settings

from monitor.evidence.events import encode
from monitor.formats.opentelemetry import log_record, resource
from monitor.sinks.otlp import OtlpSink, Times, request

logs = pytest.importorskip("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
json_format = pytest.importorskip("google.protobuf.json_format")

EVENTS = 3000
IN_TIME = 60.0


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.fixture
def behind() -> Iterator[Collector]:
    """What rotel exports to: OTLP over HTTP in protobuf."""

    def take(_: Collector, connection: socket.socket, __: Request) -> None:
        kind = b"Content-Type: application/x-protobuf\r\nContent-Length: 0\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n")

    with collecting() as made:
        made.behave = take
        yield made


@pytest.fixture
def rotel(behind: Collector, tmp_path: Path) -> Iterator[str]:
    """Its endpoint."""
    found = find_spec("rotel")
    if found is None or found.origin is None:
        pytest.skip("rotel is not installed; run: make test")
    agent = Path(found.origin).parent / "rotel-agent"
    port = free_port()
    exporter = ("--exporter", "otlp", "--otlp-exporter-protocol", "http")
    to = ("--otlp-exporter-endpoint", behind.endpoint, "--otlp-exporter-compression", "gzip")
    at = ("--otlp-http-endpoint", f"127.0.0.1:{port}")
    command = [str(agent), "start", *at, "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"]
    with (tmp_path / "rotel.log").open("wb") as log:
        process = subprocess.Popen([*command, *exporter, *to], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def exported(behind: Collector) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Resource and record of each, in the JSON form."""
    for each in list(behind.requests):
        found = logs.ExportLogsServiceRequest.FromString(each.text)
        for of_resource in json_format.MessageToDict(found).get("resourceLogs", []):
            for of_scope in of_resource["scopeLogs"]:
                for record in of_scope["logRecords"]:
                    yield of_resource["resource"], record


def test_a_request_is_that_of_the_protocol() -> None:
    sent = [event(number) for number in range(3)]
    rendered = [b"\t".join((encode(resource(each)), encode(log_record(each)))) for each in sent]
    found = json_format.Parse(request(rendered), logs.ExportLogsServiceRequest())
    (of_resource,) = found.resource_logs
    (of_scope,) = of_resource.scope_logs
    assert len(of_scope.log_records) == 3


def test_rotel_gives_every_record_on(rotel: str, behind: Collector, tmp_path: Path) -> None:
    sink = OtlpSink(settings(rotel), tmp_path, Times(gather=0.05, first=0.1))
    sent = [event(number, ("info", "critical")[number % 2]) for number in range(EVENTS)]
    try:
        for each in sent:
            sink.write(sink.render(each))
        assert until(lambda: sum(1 for _ in exported(behind)) >= EVENTS, IN_TIME)
        assert sink.sent == {"accepted": EVENTS, "refused": 0}
    finally:
        sink.close()
    found = list(exported(behind))
    by_body = {record["body"]["stringValue"]: (of, record) for of, record in found}
    assert len(by_body) == EVENTS
    for each in sent:
        expected = json.loads(json.dumps(log_record(each)))
        of, record = by_body[expected["body"]["stringValue"]]
        assert sorted(record["attributes"], key=str) == sorted(expected["attributes"], key=str)
        for name in ("timeUnixNano", "severityText", "eventName"):
            assert record[name] == expected[name]
        assert of["attributes"] == resource(each)["attributes"]
