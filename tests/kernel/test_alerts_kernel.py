"""From a real violation to the pager: daemon, Prometheus, rules, Alertmanager, webhook."""

from __future__ import annotations

import http.server
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus import program, running, serving
from test_daemon import READY_SECONDS, Start, start

from monitor.provoke import table as provoke

__all__ = ["start"]

INSTALLED_TEMPLATES = Path("/usr/share/prometheus/alertmanager")
DASHBOARDS = Path(__file__).parents[2] / "dashboards"
RULES = DASHBOARDS / "rules"
# A scrape and two evaluations a second each, and what Alertmanager waits for more of the group.
SECONDS = 30.0

Alert = dict[str, Any]


@contextmanager
def webhook() -> Iterator[tuple[str, list[Alert]]]:
    """A receiver of alerts: its URL, and what has come."""
    received: list[Alert] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.extend(alert | {"path": self.path} for alert in body["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _with_templates(binary: Path) -> tuple[str, ...]:
    """Debian's has its templates at a fixed place: not installed, it sees them in a namespace."""
    if INSTALLED_TEMPLATES.exists():
        return ()
    templates = binary.parents[1] / "share/prometheus/alertmanager"
    words = f"""
        mount -t tmpfs tmpfs /usr/share
        mkdir {INSTALLED_TEMPLATES.parent}
        ln -s {shlex.quote(str(templates))} {INSTALLED_TEMPLATES}
        exec "$@"
    """
    return ("unshare", "--mount", "sh", "-ec", words, "sh")


@contextmanager
def alertmanager(folder: Path, receiver: str) -> Iterator[str]:
    """Alertmanager as in the example, with another address and without delay; its own address."""
    file = folder / "alertmanager.yml"
    document = yaml.safe_load((DASHBOARDS / "alertmanager.example.yml").read_text("utf-8"))
    for route in (document["route"], *document["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for each in document["receivers"]:
        (webhook,) = each["webhook_configs"]
        webhook["url"] = receiver + urlsplit(webhook["url"]).path
    file.write_text(yaml.safe_dump(document), "utf-8")
    binary = Path(program("prometheus-alertmanager"))
    command = (
        *(*_with_templates(binary), str(binary), f"--config.file={file}"),
        *(f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address="),
        "--web.listen-address=127.0.0.1:0",
    )
    with running(folder / "alertmanager.log", *command) as url:
        yield url.removeprefix("http://")


def until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return result


def test_a_denial_reaches_the_pager(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start()
    url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
    target = url.removeprefix("http://").removesuffix("/metrics")
    with webhook() as (receiver, received), alertmanager(tmp_path, receiver) as manager:
        document = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
            "scrape_configs": [
                {"job_name": "seal-monitor", "static_configs": [{"targets": [target]}]}
            ],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
        }

        def alert(name: str) -> Alert | None:
            return next((each for each in received if each["labels"]["alertname"] == name), None)

        with serving(tmp_path, yaml.safe_dump(document)) as prometheus:
            until(lambda: prometheus.instant("up == 1", time.time()), "it is not scraped")
            assert alert("SealDenial") is None
            began = time.monotonic()
            (denied,) = map(json.loads, provoke.run("mprotect").communicate()[0].splitlines())
            denial = until(lambda: alert("SealDenial"), "no alert came")
            seconds = time.monotonic() - began
            newcomer = until(lambda: alert("SealDenialNewWorkload"), "no second alert came")

    event = daemon.wait_for(
        lambda event: event["kind"] == "denial" and event["process"]["pid"] == denied["pid"]
    )
    workload = event["workload"]["unit"] or event["workload"]["cgroup"]
    assert (denial["status"], denial["path"]) == ("firing", "/phone")
    assert denial["labels"] == {
        "alertname": "SealDenial",
        "instance": target,
        "job": "seal-monitor",
        "severity": event["severity"],
        "workload": workload,
    }
    assert event["severity"] == "critical"
    assert denial["annotations"]["summary"] == (
        f"A seal refused {workload} on {target} a change of memory."
    )
    assert denial["annotations"]["runbook_url"].endswith("/runbooks.md#sealdenial")
    assert newcomer["labels"] == denial["labels"] | {"alertname": "SealDenialNewWorkload"}
    daemon.stop()
    with capsys.disabled():
        print(f" [{seconds:.1f} s from the denial to the webhook]", end="")
