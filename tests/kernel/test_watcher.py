"""What the daemon and exec have in common, with real violations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from test_daemon import Collected

from monitor.configuration.config import parse
from monitor.host import facts
from monitor.kernel.ring import Drained
from monitor.metrics import accounts
from monitor.metrics.tally import Tally
from monitor.provoke import table as provoke
from monitor.sinks.delivery import Delivery
from monitor.watch.watcher import Watcher

DEFAULTS = parse("", "test")
Event = dict[str, Any]


class Setting:
    def __init__(self, cleanup: ExitStack, **options: Any) -> None:
        self._sink = Collected()
        self.tally = Tally([self._sink.name])
        self._delivery = Delivery([self._sink], self.tally)
        cleanup.callback(self._delivery.close)
        host = facts.host_facts()
        self.watcher = cleanup.enter_context(
            Watcher(DEFAULTS, host, self._delivery, self.tally, **options)
        )

    def violate(self) -> int:
        """The pid of a process that was refused an mprotect."""
        lines = provoke.run("mprotect").communicate()[0].splitlines()
        self.watcher.pump.drain()
        pid: int = json.loads(lines[0])["pid"]
        return pid

    @property
    def events(self) -> list[Event]:
        assert self._delivery.wait(10)
        return self._sink.events


@pytest.fixture
def cleanup(require_bpf: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_violation_becomes_an_event_until_none_is_wanted(cleanup: ExitStack) -> None:
    setting = Setting(cleanup)
    pid = setting.violate()
    setting.watcher.reconfigure(parse("events.denials = []", "test"))
    setting.violate()
    assert [(event["kind"], event["process"]["pid"]) for event in setting.events] == [
        ("denial", pid)
    ]
    setting.watcher.loaded.detach()
    setting.watcher.pump.finish(10)
    final = accounts.final(setting.watcher.state.counters(), setting.tally)
    assert final["denial"] == dict.fromkeys(accounts.RESULTS, 0) | {
        "counted": 2,
        "delivered": 1,
        "filtered": 1,
    }


def test_a_mute_holds_from_a_reload_on(cleanup: ExitStack) -> None:
    setting = Setting(cleanup)
    muted = '[[mute]]\noperation = "mprotect"\nreason = "known"\n'
    setting.watcher.reconfigure(parse(muted, "test"))
    setting.violate()
    assert setting.events == []
    assert setting.tally.events["denial", "filtered"] == 1


def test_a_corrupt_record_is_counted_and_reported(
    cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, str]] = []
    to_health = Setting(cleanup)
    to_us = Setting(cleanup, report=lambda *words: reports.append(words))
    for setting in (to_health, to_us):
        entries = iter([Drained([], 3), Drained([], 0)])
        monkeypatch.setattr(setting.watcher.ring, "drain", lambda entries=entries: next(entries))
        setting.watcher.pump.drain()
        assert setting.tally.decode_errors == 3
    words = ("records_corrupt", "3 entries of the ring were no records")
    assert [(event["event"], event["message"]) for event in to_health.events] == [words]
    assert (reports, to_us.events) == ([words], [])
