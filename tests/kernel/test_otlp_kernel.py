"""A daemon, real violations, and a collector that is killed, silent, elsewhere, back again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most
from collector import Collector, answer, collecting, say_nothing, until
from test_daemon import Compile, Event, Running, Start, start, storm

from monitor.provoke import table as provoke

__all__ = ["start"]

IN_TIME = 30.0
ALL = """
[rate_limit]
per_caller = 1000000
burst = 1000000
host = 1000000
[ring]
size = 16777216
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def configured(collector: Collector, state: Path, more: str = "") -> str:
    return f"""{ALL}
[state]
directory = "{state}"
[otlp]
endpoint = "{collector.endpoint}"
{more}
"""


def ids(path: Path, kind: str = "denial") -> list[str]:
    """Of the whole lines of a file of events."""
    lines = path.read_text("utf-8").split("\n")[:-1]
    return [event["id"] for event in map(json.loads, lines) if event["kind"] == kind]


def denials(collector: Collector) -> set[str]:
    """The ids of those that the collector has."""
    return {
        attribute["value"]["stringValue"]
        for request in list(collector.requests)
        for record in request.records
        if record["eventName"] == "seal_monitor.denial"
        for attribute in record["attributes"]
        if attribute["key"] == "log.record.uid"
    } & collector.stored.keys()


def reload(daemon: Running, text: str) -> Event:
    daemon.configuration.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    return daemon.health("reloaded")


def test_every_event_is_at_the_collector_once(
    start: Start, collector: Collector, compiled: Compile, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    daemon = start(configured(collector, tmp_path), "--events-file", str(file))
    made = storm(compiled("storm"), 1, 997, 0, "mprotect")["total"]
    assert until(lambda: len(denials(collector)) == made, IN_TIME)
    assert daemon.metric('seal_monitor_sink_sent_total{result="refused",sink="otlp"}') == 0
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(IN_TIME) == 0
    found = ids(file)
    assert denials(collector) == set(found)
    assert {collector.stored[number] for number in found} == {1}  # nothing was sent again
    # The last words, too.
    assert set(ids(file, "health")) <= collector.stored.keys()


def test_a_silent_collector_holds_up_nothing(
    start: Start, collector: Collector, compiled: Compile, tmp_path: Path
) -> None:
    collector.behave = say_nothing
    file = tmp_path / "events.jsonl"
    daemon = start(configured(collector, tmp_path), "--events-file", str(file))
    made = storm(compiled("storm"), 1, 997, 0, "mprotect")["total"]
    daemon.wait_for_metric('seal_monitor_events_total{kind="denial",result="delivered"}', made)
    with at_most(5, "a scrape waits for the collector"):
        assert daemon.metric('seal_monitor_sink_spool_bytes{sink="otlp"}') > made * 1000
    daemon.process.send_signal(signal.SIGTERM)
    with at_most(25, "the end waits for the collector"):
        assert daemon.process.wait() == 0
    assert len(ids(file)) == made
    collector.behave = answer()
    start(configured(collector, tmp_path))
    assert until(lambda: len(denials(collector)) == made, IN_TIME)
    assert denials(collector) == set(ids(file))


def test_a_kill_loses_nothing(
    start: Start, collector: Collector, compiled: Compile, tmp_path: Path
) -> None:
    collector.behave = answer(503)
    file = tmp_path / "events.jsonl"
    daemon = start(configured(collector, tmp_path), "--events-file", str(file))
    made = storm(compiled("storm"), 1, 499, 0, "mprotect")["total"]
    daemon.wait_for_metric('seal_monitor_events_total{kind="denial",result="delivered"}', made)
    daemon.wait_for_metric('seal_monitor_sink_queue_events{sink="otlp"}', 0)
    daemon.process.kill()
    daemon.process.wait()
    collector.behave = answer()
    again = start(configured(collector, tmp_path))
    assert until(lambda: len(denials(collector)) == made, IN_TIME)
    assert denials(collector) == set(ids(file))
    again.wait_for_metric('seal_monitor_sink_spool_bytes{sink="otlp"}', 0)


def test_a_reload_loses_nothing_and_credentials_stay_where_they_are(
    start: Start, collector: Collector, tmp_path: Path
) -> None:
    collector.behave = answer(429, headers={"Retry-After": "300"})
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer s3cret-t0ken\n")
    headers.chmod(0o600)
    more = f'headers_file = "{headers}"'
    daemon = start(configured(collector, tmp_path, more))
    provoke.run("mprotect").communicate()
    denied = daemon.wait_for(lambda event: event["kind"] == "denial")["id"]
    assert until(lambda: len(collector.requests) > 0, IN_TIME)
    with collecting() as other:
        event = reload(daemon, configured(other, tmp_path, more))
        assert event["details"]["changed"] == ["otlp.endpoint"]
        assert until(lambda: denied in other.stored, IN_TIME)
        assert other.requests[0].headers["authorization"] == "Bearer s3cret-t0ken"
        headers.chmod(0o644)
        daemon.process.send_signal(signal.SIGHUP)
        assert "mode 0644" in daemon.health("reload_failed")["message"]
    shown = [
        json.dumps(daemon.events()),
        daemon.errors.read_text(),
        daemon.get("/metrics")[1],
        Path(f"/proc/{daemon.process.pid}/cmdline").read_text(),
        *(path.read_text() for path in (tmp_path / "otlp").iterdir()),
    ]
    assert not any("s3cret" in text for text in shown)


def test_it_begins_to_send_after_a_restart_only(
    start: Start, collector: Collector, tmp_path: Path
) -> None:
    daemon = start(f'[state]\ndirectory = "{tmp_path}"\n')
    event: dict[str, Any] = reload(daemon, configured(collector, tmp_path))
    assert "otlp.endpoint" in event["details"]["refused"]
    assert collector.requests == []
