"""Events to sinks that are slow, hang, fail and recover: nothing waits, everything is counted."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread, active_count, stack_size

import pytest
from clocks import at_most

from monitor.metrics.tally import Tally
from monitor.sinks.delivery import BATCH, LIMITS, Delivery, Limits
from monitor.sinks.outputs import Sink, json_lines

DISK_FULL = OSError(errno.ENOSPC, "disk full")
LONG = 1e9  # seconds


class Gate:
    """A sink that takes an event only while it is open, and none while it has an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: list[bytes] = []
        self.error: BaseException | None = None
        self.open = Event()
        self.open.set()
        self.is_writing = Event()
        self.is_closed = False

    def render(self, event: dict[str, object]) -> bytes:
        return str(event["n"]).encode() + b"." * int(str(event.get("padding", 0)))

    def write(self, data: bytes) -> None:
        self.is_writing.set()
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        self.taken.append(data)

    def reopen(self) -> None:
        self.write(b"reopened")

    def close(self) -> None:
        self.is_closed = True


class BatchGate(Gate):
    """A sink that takes all that waits at once, but no batch with an event that it refuses."""

    def __init__(self, name: str, refused: bytes = b"") -> None:
        super().__init__(name)
        self.refused = refused
        self.batches: list[list[bytes]] = []

    def write(self, data: bytes) -> None:
        if data == self.refused:
            raise DISK_FULL
        super().write(data)

    def write_all(self, batch: Sequence[bytes]) -> None:
        if self.refused in batch:
            raise DISK_FULL
        self.batches.append(list(batch))
        self.taken += batch


class Setting:
    def __init__(self, *sinks: Sink, limits: Limits = LIMITS) -> None:
        self.tally = Tally(sink.name for sink in sinks)
        self.reports: list[tuple[str, str | None]] = []
        self.delivery = Delivery(
            sinks,
            self.tally,
            lambda name, error: self.reports.append((name, str(error) if error else None)),
            limits,
        )

    def send(self, *numbers: int, **facts: object) -> None:
        for number in numbers:
            self.delivery.send({"kind": "denial", "n": number, **facts})

    def results(self) -> tuple[int, int]:
        """Delivered and failed."""
        events = self.tally.events
        return events["denial", "delivered"], events["denial", "failed"]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.delivery.collect()
            time.sleep(0.002)


Make = Callable[..., Setting]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[Setting, tuple[Sink, ...]]] = []

    def _make(*sinks: Sink, limits: Limits = LIMITS) -> Setting:
        made.append((Setting(*sinks, limits=limits), sinks))
        return made[-1][0]

    yield _make
    for setting, sinks in made:
        for sink in sinks:
            if isinstance(sink, Gate):
                sink.open.set()
        setting.delivery.close()


def numbers(*values: int) -> list[bytes]:
    return [str(value).encode() for value in values]


def held_up(sink: Gate, setting: Setting) -> None:
    """The writer is in the middle of event 0."""
    sink.open.clear()
    setting.send(0)
    assert sink.is_writing.wait(10)


def test_what_has_waited_is_written_at_once(make: Make) -> None:
    sink = BatchGate("one")
    setting = make(sink)
    held_up(sink, setting)
    setting.send(*range(1, 200))
    setting.delivery.reopen()
    setting.send(200, 201)
    sink.open.set()
    assert setting.delivery.wait(10)
    assert list(map(len, sink.batches[:3])) == [BATCH, BATCH, BATCH]
    assert sink.taken == [*numbers(*range(200)), b"reopened", *numbers(200, 201)]
    assert setting.results() == (202, 0)
    assert setting.tally.sink_queue_events == {"one": 0}


def test_one_that_is_refused_takes_no_others_with_it(make: Make) -> None:
    sink = BatchGate("one", refused=b"7")
    setting = make(sink)
    held_up(sink, setting)
    setting.send(*range(1, 100))
    sink.open.set()
    assert setting.delivery.wait(10)
    assert sink.taken == numbers(*(n for n in range(100) if n != 7))
    assert setting.results() == (99, 1)
    assert setting.tally.sink_errors == {"one": 1}
    assert setting.reports == [("one", "[Errno 28] disk full")]


def test_every_sink_gets_every_event_in_order(make: Make) -> None:
    one, two = Gate("one"), Gate("two")
    setting = make(one, two)
    setting.send(*range(500))
    assert setting.delivery.wait(10)
    assert one.taken == two.taken == numbers(*range(500))
    assert setting.results() == (500, 0)
    assert setting.tally.sink_errors == setting.tally.sink_queue_events == {"one": 0, "two": 0}
    assert setting.reports == []


def test_the_delay_ends_where_the_first_sink_has_taken_it(make: Make) -> None:
    fast, slow = Gate("fast"), Gate("slow")
    slow.open.clear()
    setting = make(fast, slow)
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    setting.delivery.send({"kind": "denial", "n": 1}, now - 3_000_000_000)
    setting.delivery.send({"kind": "health", "n": 2})
    setting.until(lambda: setting.tally.events["health", "delivered"] == 1)
    assert setting.results() == (1, 0)
    assert sum(setting.tally.delays) == 1
    assert 3 <= setting.tally.delay_seconds < 13
    slow.open.set()
    assert setting.delivery.wait(10)
    assert sum(setting.tally.delays) == 1


def test_a_sink_that_hangs_holds_up_nothing(make: Make) -> None:
    good, hung = Gate("good"), Gate("hung")
    hung.open.clear()
    setting = make(good, hung, limits=LIMITS._replace(events=100))
    for number in range(300):
        setting.send(number)
        setting.until(lambda: setting.tally.sink_queue_events["good"] == 0)
    assert good.taken == numbers(*range(300))
    assert setting.results() == (300, 0)
    assert setting.tally.sink_queue_events == {"good": 0, "hung": 100}
    assert setting.tally.sink_errors == {"good": 0, "hung": 200}
    assert setting.reports == [("hung", "its queue is full: events that wait: 100 (0 KiB)")]


def test_a_queue_is_full_by_bytes_too(make: Make) -> None:
    hung = Gate("hung")
    hung.open.clear()
    setting = make(hung, limits=LIMITS._replace(bytes=10 * 1024))
    setting.send(*range(20), padding=1023)
    assert setting.tally.sink_queue_events == {"hung": 10}
    assert setting.results() == (0, 10)
    hung.open.set()
    assert setting.delivery.wait(10)
    assert setting.results() == (10, 10)
    assert setting.tally.sink_errors == {"hung": 10}
    assert len(hung.taken) == 10


def test_a_full_queue_has_room_for_news_of_the_monitor(make: Make) -> None:
    hung = Gate("hung")
    hung.open.clear()
    setting = make(hung, limits=LIMITS._replace(events=10, bytes=100, health=5))
    setting.send(*range(20), padding=50)
    setting.send(*range(20), kind="health")
    events = setting.tally.events
    assert (events["denial", "failed"], events["health", "failed"]) == (18, 7)
    assert setting.tally.sink_queue_events == {"hung": 15}
    assert len(setting.reports) == 1


@pytest.mark.parametrize("kind", [Gate, BatchGate])
def test_what_no_sink_should_raise_is_an_error_like_any_other(make: Make, kind: type[Gate]) -> None:
    sink = kind("file")
    setting = make(sink)
    sink.error = MemoryError("no room")
    held_up(sink, setting)
    setting.send(1, 2)
    sink.open.set()
    setting.until(lambda: setting.tally.sink_errors["file"] > 0)
    sink.error = None
    setting.send(3)
    setting.delivery.reopen()
    assert setting.delivery.wait(10)
    delivered, failed = setting.results()
    assert delivered + failed == 4
    assert sink.taken[-2:] == [b"3", b"reopened"]
    assert setting.reports == [("file", "MemoryError('no room')")]


def test_a_batch_with_an_unknown_failure_is_written_one_by_one(make: Make) -> None:
    class Odd(BatchGate):
        def write_all(self, batch: Sequence[bytes]) -> None:
            raise KeyError(len(batch))

    sink = Odd("one")
    setting = make(sink)
    held_up(sink, setting)
    setting.send(*range(1, 10))
    sink.open.set()
    assert setting.delivery.wait(10)
    assert sink.taken == numbers(*range(10))
    assert setting.results() == (10, 0)
    assert setting.reports == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_replaced(make: Make) -> None:
    sink = Gate("file")
    setting = make(sink, limits=LIMITS._replace(quiet_seconds=0.1))
    sink.error = SystemExit()
    held_up(sink, setting)
    setting.send(1, 2)
    answers: list[bool] = []
    setting.delivery.hand("file", b"x", answers.append)
    threads = active_count()
    sink.open.set()
    while active_count() == threads:
        time.sleep(0.002)
    setting.send(3)
    setting.until(lambda: setting.results() == (0, 4))
    assert answers == [False]
    assert setting.tally.sink_queue_events == {"file": 0}
    assert setting.reports == [("file", "its thread has ended: events that wait: 5 (0 KiB)")]
    sink.error = None
    setting.send(4)
    assert setting.delivery.wait(10)
    assert sink.taken == numbers(4)
    assert setting.results() == (1, 4)
    setting.until(lambda: setting.reports[-1] == ("file", None))


@pytest.mark.parametrize("way", ["it hung", "it failed"])
def test_a_sink_that_recovers_is_reported_once(make: Make, way: str) -> None:
    sink = Gate("file")
    setting = make(sink, limits=Limits(events=4, quiet_seconds=0.2))
    if way == "it hung":
        sink.open.clear()
    else:
        sink.error = DISK_FULL
    setting.send(*range(10))
    setting.until(lambda: setting.tally.sink_errors["file"] >= 6)
    assert [name for name, _ in setting.reports] == ["file"]
    sink.error = None
    sink.open.set()
    setting.until(lambda: setting.tally.sink_queue_events["file"] == 0)
    setting.send(10)
    setting.until(lambda: len(setting.reports) > 1)
    setting.send(11)
    assert setting.delivery.wait(10)
    assert [reason is None for _, reason in setting.reports] == [False, True]
    assert sink.taken[-2:] == numbers(10, 11)
    delivered, failed = setting.results()
    assert delivered == len(sink.taken)
    assert failed == setting.tally.sink_errors["file"]
    assert delivered + failed == 12


def test_a_sink_that_fails_now_and_then_is_reported_once(make: Make) -> None:
    sink = Gate("file")
    setting = make(sink, limits=LIMITS._replace(quiet_seconds=LONG))
    for number in range(100):
        sink.error = DISK_FULL if number % 2 else None
        setting.send(number)
        assert setting.delivery.wait(10)
    assert setting.results() == (50, 50)
    assert setting.reports == [("file", str(DISK_FULL))]


def test_a_stuck_sink_is_reported_before_its_queue_is_full(make: Make) -> None:
    sink = Gate("json")
    sink.open.clear()
    setting = make(sink, limits=LIMITS._replace(stall_seconds=0.1, quiet_seconds=0.1))
    setting.send(1)
    setting.until(lambda: bool(setting.reports))
    assert setting.reports == [
        ("json", "it has taken nothing for 0 s: events that wait: 1 (0 KiB)")
    ]
    sink.open.set()
    setting.until(lambda: len(setting.reports) == 2)
    assert setting.reports[1] == ("json", None)
    assert setting.tally.sink_errors == {"json": 0}
    assert setting.results() == (1, 0)


def test_an_event_fails_when_the_last_sink_has_refused_it(make: Make) -> None:
    broken, hung = Gate("broken"), Gate("hung")
    broken.error = DISK_FULL
    hung.open.clear()
    setting = make(broken, hung)
    setting.send(1, 2)
    setting.until(lambda: setting.tally.sink_errors["broken"] == 2)
    assert setting.results() == (0, 0)  # the other one may still take them
    hung.open.set()
    assert setting.delivery.wait(10)
    assert setting.results() == (2, 0)
    hung.error = DISK_FULL
    setting.send(3)
    assert setting.delivery.wait(10)
    assert setting.results() == (2, 1)


def test_what_is_not_taken_at_the_end_has_failed(make: Make) -> None:
    good, hung = Gate("good"), Gate("hung")
    hung.open.clear()
    alone = make(hung)
    both = make(good, hung)
    for setting in (alone, both):
        setting.send(1, 2, 3)
    with at_most(30, "a sink that hangs never ends"):
        for setting in (alone, both):
            setting.delivery.finish(0.2)
    assert (alone.results(), both.results()) == ((0, 3), (3, 0))
    for setting in (alone, both):
        assert setting.tally.sink_errors["hung"] == 3
        assert setting.tally.sink_queue_events["hung"] == 0
        assert setting.reports == [("hung", "given up at the end: events that wait: 3 (0 KiB)")]


def test_a_slow_sink_gets_its_time_at_the_end(make: Make) -> None:
    """As long as it takes something now and then, but not for ever."""

    class Slow(Gate):
        def write(self, data: bytes) -> None:
            time.sleep(0.05)
            super().write(data)

    patient, impatient = make(Slow("slow")), make(Slow("slow"))
    for setting in (patient, impatient):
        setting.send(*range(10))
    patient.delivery.finish(20, 60)
    assert patient.results() == (10, 0)
    impatient.send(*range(90))
    impatient.delivery.finish(0.5, 1)
    delivered, failed = impatient.results()
    assert delivered + failed == 100
    assert 0 < delivered < 100


def test_an_answer_that_comes_too_late_counts_nothing(make: Make) -> None:
    sink = Gate("json")
    sink.open.clear()
    setting = make(sink)
    setting.send(1, 2, 3)
    assert sink.is_writing.wait(10)
    setting.delivery.finish(0.01)
    assert setting.results() == (0, 3)
    setting.send(4)
    sink.open.set()
    setting.delivery.finish(10)
    assert sink.taken == numbers(1, 4)  # the one that was being written, and the last
    assert setting.results() == (1, 3)
    assert setting.tally.sink_errors == {"json": 3}


def test_a_sink_that_gets_no_thread(make: Make) -> None:
    sink = Gate("json")
    setting = make(sink, limits=LIMITS._replace(quiet_seconds=0.1))
    before = stack_size(1 << 45)  # more than there are addresses
    try:
        setting.send(1)
    finally:
        stack_size(before)
    assert setting.results() == (0, 1)
    assert setting.reports == [("json", "it gets no thread: can't start new thread")]
    setting.delivery.reopen()
    setting.send(2)
    assert setting.delivery.wait(10)
    assert sink.taken[-1] == b"2"
    assert setting.results() == (1, 1)
    setting.until(lambda: setting.reports[-1] == ("json", None))


def test_no_sink_at_all(make: Make) -> None:
    setting = make()
    setting.send(1)
    assert setting.delivery.wait(0)
    assert setting.results() == (0, 1)


def test_opened_again_in_turn(make: Make) -> None:
    sink = Gate("file")
    setting = make(sink)
    setting.send(1)
    setting.delivery.reopen()
    setting.send(2)
    assert setting.delivery.wait(10)
    assert sink.taken == [b"1", b"reopened", b"2"]
    sink.error = DISK_FULL
    setting.delivery.reopen()
    assert setting.delivery.wait(10)
    assert setting.reports == [("file", str(DISK_FULL))]
    assert setting.tally.sink_errors == {"file": 0}  # no event was lost
    assert setting.results() == (2, 0)


def test_an_idle_delivery_wakes_nobody(make: Make) -> None:
    setting = make(Gate("json"))

    def is_readable(seconds: float) -> bool:
        return bool(select.select([setting.delivery.descriptor], [], [], seconds)[0])

    assert not is_readable(0)
    setting.send(1)
    assert is_readable(10)
    setting.delivery.collect()
    assert setting.results() == (1, 0)
    assert not is_readable(0.1)


def test_a_pipe_that_nobody_reads_and_then_somebody(make: Make) -> None:
    reader, writer = os.pipe()
    setting = make(json_lines(writer), limits=LIMITS._replace(quiet_seconds=0.1))
    setting.send(*range(5000), text="x" * 90)
    assert setting.results()[1] > 0
    assert [name for name, _ in setting.reports] == ["json"]
    delivered = setting.tally.sink_queue_events["json"] + setting.results()[0]
    lines: list[str] = []

    def read() -> None:
        with os.fdopen(reader) as file:
            lines.extend(file)

    thread = Thread(target=read)
    thread.start()
    setting.until(lambda: len(setting.reports) == 2)
    os.close(writer)
    thread.join(10)
    assert setting.results() == (delivered, 5000 - delivered)
    assert len(lines) == delivered
    assert setting.reports[1] == ("json", None)


@pytest.mark.parametrize("blocking", [True, False])
def test_the_end_with_a_pipe_that_nobody_reads(blocking: bool) -> None:
    before = active_count()
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    setting = Setting(json_lines(writer))
    setting.send(*range(1000), text="x" * 900)
    with at_most(30, "nobody ever reads the pipe"):
        setting.delivery.finish(0.2, 1)
        delivered, failed = setting.results()
        assert 0 < delivered < 100  # 64 KiB
        assert delivered + failed == 1000
        setting.delivery.close()
    assert active_count() == before + 1  # it ends with the process
    os.close(reader)
    setting.delivery.close()
    assert active_count() == before
    os.close(writer)


def test_closed_with_a_sink_that_hangs() -> None:
    before = active_count()
    good, hung, unused = Gate("good"), Gate("hung"), Gate("unused")
    hung.open.clear()
    setting = Setting(good, hung)
    idle = Setting(unused)
    setting.send(1, 2)
    with at_most(30, "a sink that hangs never ends"):
        setting.delivery.close()
        idle.delivery.close()
    assert good.taken == numbers(1, 2)
    assert (good.is_closed, hung.is_closed, unused.is_closed) == (True, False, True)
    assert active_count() == before + 1
    hung.open.set()
    setting.delivery.close()
    assert active_count() == before


def test_other_data_get_an_answer_and_stay_in_order(make: Make) -> None:
    first, second = Gate("one"), Gate("two")
    setting = make(first, second)
    answers: list[bool] = []
    setting.send(0)
    setting.delivery.hand("two", b"handed", answers.append)
    setting.send(1)
    setting.delivery.hand("three", b"handed", answers.append)
    assert answers == [False]  # no such sink
    assert setting.delivery.wait(10)
    assert answers == [False, True]
    assert (first.taken, second.taken) == ([b"0", b"1"], [b"0", b"handed", b"1"])
    assert setting.results() == (2, 0)
    second.error = DISK_FULL
    setting.delivery.hand("two", b"handed", answers.append)
    assert setting.delivery.wait(10)
    assert answers == [False, True, False]
    assert setting.reports == [("two", str(DISK_FULL))]


def test_events_keep_half_of_the_room(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink, limits=LIMITS._replace(bytes=1000))
    held_up(sink, setting)
    answers: list[bool] = []
    for _ in range(10):
        setting.delivery.hand("one", b"x" * 100, answers.append)
    assert answers == [False] * 6  # beside event 0
    setting.send(*range(1, 6), padding=90)
    sink.open.set()
    assert setting.delivery.wait(10)
    assert answers == [False] * 6 + [True] * 4
    assert setting.results() == (6, 0)


def test_a_batch_given_up_has_failed_and_may_still_be_stored(make: Make) -> None:
    class Slow(BatchGate):
        def write_all(self, batch: Sequence[bytes]) -> None:
            self.open.clear()
            self.is_writing.set()
            assert self.open.wait(30)
            super().write_all(batch)

    sink = Slow("one")
    setting = make(sink)
    held_up(sink, setting)
    setting.send(*range(1, 1 + 2 * BATCH))
    sink.is_writing.clear()
    sink.open.set()
    assert sink.is_writing.wait(10)  # the first batch
    setting.delivery.finish(0.05)
    assert setting.results() == (1, 2 * BATCH)
    sink.open.set()
    setting.until(lambda: len(sink.taken) == 1 + BATCH)
    assert setting.results() == (1, 2 * BATCH)


def test_data_given_up_get_an_answer(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink)
    held_up(sink, setting)
    answers: list[bool] = []
    setting.delivery.hand("one", b"x", answers.append)
    setting.delivery.finish(0.05)
    assert answers == [False]


def test_suppressions_wait_until_all_others_are_written(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink)
    held_up(sink, setting)
    setting.send(*range(1, BATCH))
    setting.send(1001, 1002, kind="suppression")
    setting.send(*range(BATCH, 3 * BATCH))
    sink.open.set()
    assert setting.delivery.wait(10)
    place = {number: sink.taken.index(b"%d" % number) for number in (1001, 1002)}
    assert place[1001] < place[1002]
    assert place[1001] > BATCH  # behind those that were sent before it, and more
    assert len(sink.taken) == 3 * BATCH + 2
    assert setting.results() == (3 * BATCH, 0)
    assert setting.tally.events["suppression", "delivered"] == 2


def test_a_full_queue_drops_suppressions_before_violations(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink, limits=LIMITS._replace(events=200, suppressions=30))
    held_up(sink, setting)
    setting.send(*range(1, BATCH))
    setting.send(*range(1000, 1040), kind="suppression")
    events = setting.tally.events
    assert events["suppression", "failed"] == 10  # more than may wait
    setting.send(*range(BATCH, 200), severity="critical")
    assert setting.results() == (0, 0)
    assert events["suppression", "failed"] == 40
    assert setting.tally.sink_queue_events == {"one": 200}
    setting.send(200, severity="critical")
    assert setting.results() == (0, 1)
    sink.open.set()
    assert setting.delivery.wait(10)
    assert setting.results() == (200, 1)
    assert events["suppression", "delivered"] + events["suppression", "failed"] == 40


def of(user: int, workload: str = "/a.service") -> dict[str, object]:
    return {"process": {"uid": user}, "workload": {"cgroup": workload}, "severity": "critical"}


def test_an_owner_leaves_room_for_others(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink, limits=LIMITS._replace(events=100))
    held_up(sink, setting)
    waiting = [1]
    for owner in (of(1000), of(1001), of(1000, "/b.service"), of(1000), of(0)):
        setting.send(*range(100), **owner)
        waiting.append(setting.tally.sink_queue_events["one"])
    # Half of what is left for the first, half of the rest for the next, and so on.
    assert waiting == [1, 51, 76, 88, 88, 94]
    assert setting.results() == (0, 500 - 93)
    sink.open.set()
    assert setting.delivery.wait(10)
    sink.open.clear()
    held_up(sink, setting)
    setting.send(*range(100), **of(1000))  # what was taken counts no longer
    assert setting.tally.sink_queue_events["one"] == 51


def test_an_owner_leaves_bytes_for_others(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink, limits=LIMITS._replace(bytes=100 << 10))
    held_up(sink, setting)
    setting.send(*range(100), padding=1 << 10, **of(1000))
    assert 49 <= setting.tally.sink_queue_events["one"] <= 51
    setting.send(*range(100), padding=1 << 10, **of(0))
    assert 73 <= setting.tally.sink_queue_events["one"] <= 77


def test_a_queue_fills_by_severity(make: Make) -> None:
    sink = Gate("one")
    setting = make(sink, limits=LIMITS._replace(events=100))
    held_up(sink, setting)
    waiting = []
    for severity in ("info", "warning", "critical"):
        setting.send(*range(1, 101), severity=severity)
        waiting.append(setting.tally.sink_queue_events["one"])
    assert waiting == [50, 75, 100]
    sink.open.set()
    assert setting.delivery.wait(10)
    assert setting.results() == (100, 201)
