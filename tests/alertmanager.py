"""A real Alertmanager for a test, on loopback, as the example has it; and who gets its messages."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from prometheus import program, running

__all__ = ["EXAMPLE", "Alert", "Message", "Receiver", "alertmanager", "binary", "post", "receiver"]

INSTALLED_TEMPLATES = Path("/usr/share/prometheus/alertmanager")
EXAMPLE = Path(__file__).parents[1] / "dashboards/alertmanager.example.yml"
AT_ONCE = 64  # alerts that Prometheus sends together: notifier.maxBatchSize
WAITS = {"group_wait": 10, "group_interval": 100, "repeat_interval": 100}  # so much faster

Alert = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What one request to a receiver says."""

    to: str
    status: str
    group: Mapping[str, str]
    alerts: list[Alert]
    truncated: int

    @property
    def name(self) -> str:
        return self.group.get("alertname", "")


class Receiver:
    """The messages of all receivers, in the order in which they came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages: list[Message] = []

    def to(self, path: str) -> list[Message]:
        return [message for message in self.messages if message.to == path]

    @property
    def alerts(self) -> list[Alert]:
        """Each with the path that it came to."""
        return [each | {"path": one.to} for one in self.messages for each in one.alerts]


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.messages.append(
                Message(
                    self.path,
                    body["status"],
                    body["groupLabels"],
                    body["alerts"],
                    body["truncatedAlerts"],
                )
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def binary() -> tuple[str, ...]:
    """The command that runs it. Skips the test where it is missing.

    Debian's has its templates at a fixed place: not installed, it sees them in a namespace.
    """
    path = Path(program("prometheus-alertmanager"))
    if INSTALLED_TEMPLATES.exists():
        return (str(path),)
    templates = path.parents[1] / "share/prometheus/alertmanager"
    words = f"""
        mount -t tmpfs tmpfs /usr/share
        mkdir {INSTALLED_TEMPLATES.parent}
        ln -s {shlex.quote(str(templates))} {INSTALLED_TEMPLATES}
        exec "$@"
    """
    return ("unshare", "--map-root-user", "--mount", "sh", "-ec", words, "sh", str(path))


def _routes(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield route
    for each in route.get("routes", ()):
        yield from _routes(each)


def _seconds(duration: str) -> float:
    return sum(
        float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        for number, unit in re.findall(r"(\d+)([smh])", duration)
    )


@contextmanager
def alertmanager(folder: Path, to: Receiver) -> Iterator[str]:
    """Alertmanager as in the example, with another address and shorter waits: its URL."""
    document = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    for route in _routes(document["route"]):
        for name in set(WAITS) & set(route):
            route[name] = f"{round(1000 * _seconds(route[name]) / WAITS[name])}ms"
    for each in document["receivers"]:
        (webhook,) = each["webhook_configs"]
        webhook["url"] = to.url + urlsplit(webhook["url"]).path
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    command = (
        *(*binary(), f"--config.file={file}"),
        *(f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address="),
        "--web.listen-address=127.0.0.1:0",
    )
    with running(folder / "alertmanager.log", *command) as url:
        yield url


def post(url: str, alerts: list[dict[str, str]], firing: bool = True) -> None:
    """Post alerts with these labels as Prometheus does, so many at once."""
    end = datetime.now(UTC) + timedelta(minutes=4 if firing else -1 / 60)
    for first in range(0, len(alerts), AT_ONCE):
        body = [
            {"labels": labels, "annotations": {"summary": " ".join(labels.values())}}
            | {"endsAt": end.isoformat()}
            for labels in alerts[first : first + AT_ONCE]
        ]
        request = urllib.request.Request(
            f"{url}/api/v2/alerts",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):
            pass
