"""Which processes get a snapshot, how often, and what is counted: without /proc or a kernel."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from threading import Event as Flag
from threading import get_ident
from time import monotonic, sleep, thread_time
from typing import Any

import pytest
from clocks import at_most
from test_fingerprint import EVENTS

from monitor.evidence.fingerprint import fingerprint
from monitor.evidence.owner import owner_of
from monitor.evidence.waiting import Waiting
from monitor.incidents.snapshot import Request, Taken
from monitor.incidents.snapshot_thread import CPU_SECONDS, RESERVED, WAITING, Snapshots
from monitor.incidents.store import SNAPSHOTS_KEPT, snapshot_data
from monitor.kernel.abi import Kind, Record
from monitor.metrics.tally import Tally
from monitor.sinks.delivery import Delivery

Event = dict[str, Any]


class Store:
    """A sink by the name of the store of incidents."""

    name = "incidents"

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.error: OSError | None = None

    def render(self, event: Mapping[str, object]) -> bytes:
        return b"event"

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Setting:
    def __init__(self) -> None:
        self.store = Store()
        self.tally = Tally([self.store.name])
        self.delivery = Delivery([self.store], self.tally)
        self.now = 100.0
        self.asked: list[Request] = []
        self.result: Callable[[Request], Taken] = lambda asked: Taken("taken", 7, b"{}")
        self.open = Flag()
        self.open.set()
        self.snapshots = Snapshots(self.delivery, self.tally, self._take, clock=lambda: self.now)

    def _take(self, asked: Request, waiting: Waiting) -> Taken:
        self.thread = get_ident()
        self.waiting = waiting
        self.asked.append(asked)
        assert self.open.wait(30)
        return self.result(asked)

    def ask(
        self,
        caller: int = 1,
        pid: int = 42,
        start: int = 5,
        kind: Kind = Kind.DENIAL,
        uid: int = 33,
    ) -> None:
        event = copy.deepcopy(EVENTS[kind.label])
        event["process"]["uid"] = uid
        event["caller"] = event["stack"][1]["address"] = hex(0x5500_0000_0000 + caller)
        event["stack"][1]["offset"] = event["stack"][0]["offset"] = caller
        event["fingerprint"] = fingerprint(event).id
        self.snapshots.ask(event, Record(kind=kind, pid=pid, tid=pid, start_boot_ns=start))

    def results(self) -> Mapping[str, int]:
        """Once all has an answer."""
        deadline = monotonic() + 10
        while True:
            self.snapshots.collect()
            self.delivery.wait(1)
            counted = {name: count for name, count in self.tally.snapshots.items() if count}
            if counted and not self.snapshots.waiting:
                return counted
            assert monotonic() < deadline
            sleep(0.002)


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.open.set()
    made.snapshots.finish(10)
    made.delivery.close()


def test_once_for_a_fingerprint_and_a_process(setting: Setting) -> None:
    for _ in range(1000):
        setting.ask(caller=1, pid=42)
        setting.ask(caller=2, pid=42)
        setting.ask(caller=1, pid=43)
        setting.ask(caller=1, pid=43, start=6)  # its pid is another process's
    assert setting.results() == {"taken": 4}
    assert [asked.pid for asked in setting.asked] == [42, 42, 43, 43]
    assert setting.thread != get_ident()


def test_what_the_store_gets(setting: Setting) -> None:
    setting.ask(kind=Kind.FAULT)
    assert setting.results() == {"taken": 1}
    event = EVENTS["fault"]
    (data,) = setting.store.taken
    head, text = data.split(b"\n")
    assert (json.loads(head)["time_ns"], text) == (7, b"{}")
    (asked,) = setting.asked
    assert (asked.event, asked.start) == (event["id"], event["process"]["start"])
    assert data == snapshot_data(json.loads(head)["incident"], 7, b"{}", owner_of(event))


def test_the_incident_is_the_events(setting: Setting) -> None:
    event = EVENTS["denial"]
    setting.snapshots.ask(event, Record(kind=Kind.DENIAL, pid=1))
    assert setting.results() == {"taken": 1}
    assert json.loads(setting.store.taken[0].split(b"\n")[0])["incident"] == fingerprint(event).id


def test_who_goes_around_a_seal_is_looked_at(setting: Setting) -> None:
    record = Record(kind=Kind.BYPASS, pid=1, address=0x7F00_0000_1000)
    setting.snapshots.ask(EVENTS["bypass"], record)
    assert setting.results() == {"taken": 1}
    assert setting.asked[0].touched == 0x7F00_0000_1000


def test_other_events_have_no_snapshot(setting: Setting) -> None:
    setting.snapshots.ask(EVENTS["seal"], Record(kind=Kind.SEAL, pid=1))
    setting.snapshots.finish(1)
    assert sum(setting.tally.snapshots.values()) == 0


def test_off_takes_none(setting: Setting) -> None:
    setting.snapshots.reconfigure(enabled=False)
    setting.ask()
    setting.snapshots.reconfigure(enabled=True)
    setting.ask(pid=77)
    assert setting.results() == {"taken": 1}
    assert [asked.pid for asked in setting.asked] == [77]


@pytest.mark.parametrize(("result", "stored"), [("taken", 1), ("partial", 1), ("gone", 0)])
def test_every_result_is_counted(setting: Setting, result: Any, stored: int) -> None:
    setting.result = lambda asked: Taken(result, 7, b"{}" if stored else b"")
    setting.ask()
    assert setting.results() == {result: 1}
    assert len(setting.store.taken) == stored


def test_what_cannot_be_read_has_failed(setting: Setting) -> None:
    def fail(asked: Request) -> Taken:
        raise (OSError(24, "Too many open files"), ValueError("x"), KeyError("x"), MemoryError)[
            asked.pid
        ]

    setting.result = fail
    for pid in range(4):
        setting.ask(caller=pid, pid=pid)
    assert setting.results() == {"failed": 4}
    assert setting.snapshots.waiting == 0
    setting.result = lambda asked: Taken("taken", 7, b"{}")
    setting.ask(caller=4, pid=4)
    assert setting.results() == {"failed": 4, "taken": 1}


def test_what_the_store_refuses_has_failed(setting: Setting) -> None:
    setting.store.error = OSError(28, "disk full")
    setting.ask()
    assert setting.results() == {"failed": 1}
    assert setting.tally.sink_errors["incidents"] == 0  # those are events


def test_the_queue_is_bounded(setting: Setting) -> None:
    """Each of another incident, while the first one takes long."""
    setting.open.clear()
    for n in range(100):
        setting.ask(caller=n, pid=n)
    assert setting.tally.snapshots["dropped"] == 100 - WAITING
    setting.open.set()
    assert setting.results() == {"taken": WAITING, "dropped": 100 - WAITING}
    setting.ask(caller=99, pid=99)  # what was dropped is asked for again
    assert setting.results() == {"taken": WAITING + 1, "dropped": 100 - WAITING}


def test_one_incident_takes_no_others_place(setting: Setting) -> None:
    """A worker that is started again and again."""
    for pid in range(100):
        setting.ask(caller=1, pid=pid)
    setting.ask(caller=2, pid=1)
    assert setting.results() == {"taken": 4, "dropped": 97}
    setting.now += 10
    setting.ask(caller=1, pid=1000)
    setting.ask(caller=1, pid=1001)
    assert setting.results() == {"taken": 5, "dropped": 98}


def test_the_time_of_a_core_is_bounded(setting: Setting) -> None:
    def busy(asked: Request) -> Taken:
        began = thread_time()
        while thread_time() - began < CPU_SECONDS:
            pass
        return Taken("taken", 7, b"{}")

    setting.result = busy
    setting.ask(caller=1)
    assert setting.results() == {"taken": 1}
    setting.ask(caller=2)
    assert setting.results() == {"taken": 1, "dropped": 1}
    setting.now += 1
    setting.ask(caller=2)
    assert setting.results() == {"taken": 2, "dropped": 1}


def test_no_owner_takes_anothers_place_in_an_incident(setting: Setting) -> None:
    for pid in range(100):
        setting.ask(caller=1, pid=pid)
    setting.ask(caller=1, pid=1000, uid=1000)
    assert setting.results() == {"taken": SNAPSHOTS_KEPT + 1, "dropped": 97}
    assert setting.asked[-1].pid == 1000


def test_nor_the_last_places_that_wait(setting: Setting) -> None:
    setting.open.clear()
    for n in range(100):
        setting.ask(caller=n, pid=n)
    for n in range(2 * RESERVED):
        setting.ask(caller=1, pid=1000 + n, uid=1000 + n)
        setting.ask(caller=2, pid=1000 + n, uid=1000 + n)
    setting.open.set()
    assert setting.results()["taken"] == WAITING + RESERVED
    assert [asked.pid for asked in setting.asked][WAITING:] == [1000, 1001, 1002, 1003]
    assert not setting.snapshots._waiting_of


def test_nor_all_of_the_time(setting: Setting) -> None:
    """What others get beyond the bound is paid back, by whoever comes next."""

    def busy(asked: Request) -> Taken:
        began = thread_time()
        while thread_time() - began < CPU_SECONDS:
            pass
        return Taken("taken", 7, b"{}")

    setting.result = busy
    setting.ask(caller=1)
    setting.results()
    setting.ask(caller=1, pid=1000, uid=1000)
    assert setting.results() == {"taken": 2}
    setting.ask(caller=1, pid=1001, uid=1001)
    setting.ask(caller=2)
    assert setting.results() == {"taken": 2, "dropped": 2}
    setting.now += 1
    setting.ask(caller=2)
    setting.ask(caller=2, pid=1000, uid=1000)
    assert setting.results() == {"taken": 2, "dropped": 4}


def test_the_time_of_threads_that_read_for_it_counts(setting: Setting) -> None:
    def busy() -> None:
        began = thread_time()
        while thread_time() - began < CPU_SECONDS:
            pass

    def read(asked: Request) -> Taken:
        setting.waiting._seconds = 60.0  # however busy the machine
        setting.waiting.run(0, busy)
        return Taken("taken", 7, b"{}")

    setting.result = read
    setting.ask(caller=1)
    setting.results()
    setting.ask(caller=2)
    assert setting.tally.snapshots["dropped"] == 1


def test_the_end_waits_for_the_last(setting: Setting) -> None:
    setting.ask(caller=1)
    setting.ask(caller=2)
    setting.snapshots.finish(10)
    assert setting.delivery.wait(10)
    assert setting.tally.snapshots["taken"] == 2


def test_the_end_does_not_wait_for_ever(setting: Setting) -> None:
    setting.open.clear()
    for n in range(3):
        setting.ask(caller=n)
    began = monotonic()
    with at_most(30, "the snapshot never ends"):
        setting.snapshots.finish(0.1)
    assert monotonic() - began > 0.05
    assert setting.tally.snapshots["dropped"] == 3
    setting.ask(caller=9)
    assert sum(setting.tally.snapshots.values()) == 3


def test_without_a_store_it_has_failed() -> None:
    tally = Tally()
    delivery = Delivery([], tally)
    answers: list[bool] = []
    delivery.hand("incidents", b"x", answers.append)
    assert answers == [False]
    delivery.close()
