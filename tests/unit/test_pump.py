"""Records, suppressions and losses reach the pipeline: all of them, and in bounded time."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Timer
from typing import Any

import pytest
from clocks import at_most
from test_ring import BUSY, LENGTH, SIZE, KernelSide, no_descriptor_left
from test_suppression import KEY, Kernel

from monitor.evidence.suppression import Gap, Suppressions
from monitor.kernel.abi import Disposition, Kind, Record
from monitor.kernel.ring import Drained, Ring
from monitor.watch import pump
from monitor.watch.pump import Pump

NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")


class Pipeline:
    """In place of the real pipeline: keeps what it was given, in order."""

    def __init__(self) -> None:
        self.given: list[int | str] = []
        self.on_take: Callable[[], None] = lambda: None

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            self.given.append(record.pid)
            self.on_take()

    def suppression(self, gap: Gap) -> None:
        self.given.append(f"{gap.bucket.suppressed} suppressed")


class Losses:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.error: OSError | None = None

    def look(self) -> None:
        if self.error is not None:
            raise self.error
        self._pipeline.given.append("losses")


class Setting:
    def __init__(self, side: KernelSide, **settings: Any) -> None:
        self.side = side
        self.ring = Ring(side.descriptor, SIZE)
        self.kernel = Kernel()
        self.pipeline = Pipeline()
        self.losses = Losses(self.pipeline)
        self.corrupt: list[int] = []
        self.merged: list[int] = []
        self.trouble: list[str] = []
        self.pump = Pump(
            self.ring,
            self.pipeline,  # type: ignore[arg-type]
            Suppressions(self.kernel, severity=lambda _: "warning"),  # type: ignore[arg-type]
            self.losses,  # type: ignore[arg-type]
            corrupt=self.corrupt.append,
            merged=self.merged.append,
            trouble=self.trouble.append,
            **settings,
        )

    def suppress(self, count: int) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.kernel.suppress(KEY, count, now, now)


Make = Callable[..., Setting]


@pytest.fixture
def make(side: KernelSide) -> Iterator[Make]:
    made: list[Setting] = []

    def _make(**settings: Any) -> Setting:
        made.append(Setting(side, **settings))
        return made[-1]

    yield _make
    for setting in made:
        setting.ring.close()


@pytest.fixture
def side() -> Iterator[KernelSide]:
    side = KernelSide()
    yield side
    os.close(side.descriptor)


def test_the_second_record_of_a_fault_is_waited_for(make: Make) -> None:
    """It comes while the first one is looked at, after a batch of others, or not at all."""
    setting = make()
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    first = Record(pid=1, kind=Kind.FAULT, disposition=Disposition.HANDLER, time_boot_ns=now)
    second = Record(pid=1, kind=Kind.FAULT, disposition=Disposition.HANDLER_FAILED)
    alone = Record(pid=2, kind=Kind.FAULT, disposition=Disposition.HANDLER, time_boot_ns=now)
    read, waiting = setting.ring.drain, [second]

    def reads(most: int = 256) -> Drained:
        drained = read(most)
        if waiting:
            setting.side.whole(waiting.pop())
        return drained

    setting.side.whole(first)
    setting.ring.drain = reads  # type: ignore[method-assign]
    assert setting.pump.drain() == 2
    assert (setting.pipeline.given, setting.merged) == ([1], [1])
    setting.ring.drain = read  # type: ignore[method-assign]
    setting.side.whole(alone)
    assert setting.pump.drain() == 1
    assert (setting.pipeline.given, setting.merged) == ([1, 2], [1])


def test_a_second_record_that_cannot_be_read_yet_loses_nothing(make: Make) -> None:
    setting = make()
    first = Record(pid=1, kind=Kind.FAULT, disposition=Disposition.HANDLER)
    read, answers = setting.ring.drain, [True, False]

    def reads(most: int = 256) -> Drained:
        if not answers or answers.pop(0):
            return read(most)
        raise NO_MEMORY

    setting.side.whole(first)
    setting.ring.drain = reads  # type: ignore[method-assign]
    assert setting.pump.drain() == 1
    assert (setting.pipeline.given, setting.trouble) == ([1], [])


def test_all_records_in_order(make: Make) -> None:
    setting = make()
    for pid in range(1, 41):
        setting.side.record(pid)
    assert setting.pump.drain() == 40
    assert setting.pipeline.given == list(range(1, 41))
    assert setting.pump.drain() == 0
    assert setting.corrupt == []


def test_another_may_take_the_records(make: Make) -> None:
    taken: list[int] = []
    setting = make(take=lambda records: taken.extend(record.pid for record in records))
    setting.side.record(7)
    assert setting.pump.drain() == 1
    assert (taken, setting.pipeline.given) == ([7], [])


def test_corrupt_records_are_reported_once_a_turn(make: Make) -> None:
    setting = make()
    setting.side.record(1)
    for _ in range(3):
        setting.side.entry(24)
    setting.side.record(2)
    assert setting.pump.drain() == 2
    assert setting.pipeline.given == [1, 2]
    assert setting.corrupt == [3]


def test_a_storm_leaves_the_rest_to_the_next_turn(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "TURN_SECONDS", 0.1)
    setting = make()
    setting.pipeline.on_take = lambda: setting.side.record(1)  # one more for each
    setting.side.record(1)
    began = time.monotonic()
    with at_most(30, "every record that is taken brings another"):
        taken = setting.pump.drain()
    assert time.monotonic() - began >= 0.1
    assert setting.ring.used_bytes
    assert taken == len(setting.pipeline.given)


def test_the_rest_stays_in_the_ring_while_there_is_no_room(make: Make) -> None:
    room = [True, False]
    setting = make(has_room=lambda: room.pop(0))
    for pid in range(1, 41):
        setting.side.record(pid)
    first = setting.pump.drain()
    room[:] = [False]
    assert setting.pump.drain() == 0
    room[:] = [True, True, True]
    assert first + setting.pump.drain() == 40
    assert setting.pipeline.given == list(range(1, 41))


def test_suppressions_are_reported_when_they_are_due(make: Make) -> None:
    setting = make()
    setting.pump.sweep_when_due(10.0)
    reads = setting.kernel.buckets.reads
    setting.suppress(5)
    setting.pump.sweep_when_due(10.9)
    assert setting.kernel.buckets.reads == reads
    setting.pump.sweep_when_due(11.0)
    assert setting.kernel.buckets.reads == reads + 1


def test_the_end_takes_all_and_closes_every_gap(make: Make) -> None:
    setting = make()
    setting.suppress(5)
    setting.side.record(1)
    with at_most(30, "nothing is left to wait for"):
        setting.pump.finish(60)
    assert setting.pipeline.given == [1, "losses", "5 suppressed"]


def test_the_end_waits_for_a_late_record_and_not_for_ever(make: Make) -> None:
    setting = make()
    setting.side.record(1, BUSY)
    began = time.monotonic()
    with at_most(30, "the record never becomes whole"):
        setting.pump.finish(0.2)
    assert time.monotonic() - began >= 0.2
    assert setting.pipeline.given == ["losses"]
    Timer(0.1, lambda: setting.side.put(struct.pack("<II", LENGTH, 0), 0)).start()
    setting.pump.finish(10)
    assert setting.pipeline.given == ["losses", 1, "losses"]


def test_trouble_is_reported_once_until_it_is_over(make: Make) -> None:
    setting = make()
    suppressed = "cannot read what was suppressed: [Errno 12] Cannot allocate memory"
    missed = "cannot read the runs that probes missed: [Errno 12] Cannot allocate memory"
    for now in (1.0, 2.0, 3.0):
        setting.suppress(1)
        setting.kernel.buckets.error = setting.losses.error = None if now == 3.0 else NO_MEMORY
        setting.pump.sweep_when_due(now)
        setting.pump.look_at_losses()
    assert setting.trouble == [suppressed, missed]
    setting.kernel.buckets.error = setting.losses.error = NO_MEMORY
    setting.suppress(1)
    setting.pump.finish(0)
    assert setting.trouble == [suppressed, missed, missed, suppressed]


def test_a_ring_that_cannot_be_read_keeps_its_records(make: Make) -> None:
    setting = make()
    setting.side.record(1)
    with no_descriptor_left():
        assert [setting.pump.drain(), setting.pump.drain()] == [0, 0]
    assert setting.trouble == ["cannot read the ring: [Errno 24] Too many open files"]
    assert setting.pump.drain() == 1
    assert setting.pipeline.given == [1]
