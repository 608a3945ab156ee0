"""Events to the sinks: each sink has a queue and a writer thread, and holds up nothing else.

The daemon's thread renders, queues and counts, and never waits for a sink. A writer thread writes
and hands back an answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from monitor.evidence.owner import NOBODY, Owner, owner_of
from monitor.metrics.tally import Tally
from monitor.sinks.outputs import BatchSink, Sink, SinkError
from monitor.sizes import kibibytes

__all__ = ["LIMITS", "Delivery", "Limits"]

CLOSE_SECONDS = 0.5
BATCH = 64  # events that a sink may take at once


class Limits(NamedTuple):
    """How much may wait for a sink, and how long, before it counts as failing.

    The rate limit lets 1,000 events of a kind pass at once and 1,000 a second after: the queue
    holds the first second of a storm of two kinds, of one owner half of that. An event is 1 to 2
    KiB; `bytes` bounds the memory that a stuck sink costs.
    """

    events: int = 2048
    bytes: int = 4 << 20
    health: int = 64  # health events beyond `events`: they report that others are refused
    suppressions: int = 256  # at most, which wait until all others are written
    stall_seconds: float = 10.0  # without taking one of the waiting events
    quiet_seconds: float = 2.0  # without an error, before it has recovered


LIMITS = Limits()

# How far events of a severity may fill a queue; all others to its end.
_PARTS = {"info": 0.5, "warning": 0.75}


@dataclass(eq=False, slots=True)
class _Event:
    """An event on its way; `open` sinks have not answered."""

    kind: str
    owner: Owner
    record_ns: int | None
    open: int
    delivered: bool = False


@dataclass(eq=False, slots=True, frozen=True)
class _Item:
    """A task for one sink: to write an event, or other data with `on_answer`; else to reopen."""

    event: _Event | None
    data: bytes = b""
    on_answer: Callable[[bool], None] | None = None

    @property
    def is_reopening(self) -> bool:
        return self.event is None and self.on_answer is None


class _Answer(NamedTuple):
    writer: _Writer
    item: _Item
    error: OSError | None
    boot_ns: int


class _Writer:
    """A sink and its thread. The daemon's thread calls everything but `_run`."""

    def __init__(self, sink: Sink, answers: deque[_Answer], wake: Callable[[], None]) -> None:
        self.sink = sink
        self._write_all = sink.write_all if isinstance(sink, BatchSink) else None
        self.unanswered: deque[_Item] = deque()
        self.later: deque[_Item] = deque()  # not handed to the thread yet
        self.bytes = 0  # of both
        self.bytes_of: Counter[Owner] = Counter()  # of `unanswered`
        self.events_of: Counter[Owner] = Counter()
        self.failing = False
        self.moved_at = self.taken_at = self.failed_at = 0.0  # monotonic
        self._answers = answers
        self._wake = wake
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run. Raises RuntimeError.

        Called with the first event, not before: programs are loaded in a fork. A thread that has
        ended is replaced once its items are given up.
        """
        if self._thread is None or not (self._thread.is_alive() or self.unanswered):
            thread = Thread(target=self._run, name=f"sink-{self.sink.name}", daemon=True)
            thread.start()
            self._thread = thread

    @property
    def waiting(self) -> int:
        return len(self.unanswered) + len(self.later)

    def put(self, item: _Item) -> None:
        self.bytes += len(item.data)
        self._hand_over(item)

    def put_later(self, item: _Item) -> None:
        """Behind all that is put until the queue is empty."""
        self.bytes += len(item.data)
        self.later.append(item)
        self.go_on()

    def go_on(self) -> None:
        """Hand over what waited for an empty queue."""
        while self.later and len(self.unanswered) < BATCH:
            self._hand_over(self.later.popleft())

    def drop_later(self) -> _Item:
        """The newest of those that wait behind the others."""
        item = self.later.pop()
        self.bytes -= len(item.data)
        return item

    def _hand_over(self, item: _Item) -> None:
        if not self.unanswered:
            self.moved_at = time.monotonic()
        self.unanswered.append(item)
        self._count(item, 1)
        self._queue.put(item)

    def _count(self, item: _Item, sign: int) -> None:
        if item.event is not None and (owner := item.event.owner) != NOBODY:
            self.bytes_of[owner] += sign * len(item.data)
            self.events_of[owner] += sign
            if not self.events_of[owner]:
                del self.events_of[owner], self.bytes_of[owner]

    def is_answered(self, item: _Item) -> bool:
        """Take the item off the list; False if it was given up before."""
        if not self.unanswered or self.unanswered[0] is not item:
            return False
        self.unanswered.popleft()
        self._count(item, -1)
        self.bytes -= len(item.data)
        self.moved_at = time.monotonic()
        return True

    def is_dead(self) -> bool:
        """Whether the thread has ended while items wait for an answer."""
        return bool(self.unanswered and self._thread and not self._thread.is_alive())

    def give_up(self) -> list[_Item]:
        """The items without an answer, which then wait no longer.

        The item or batch that is being written may still be stored although it counts as failed:
        only the sink's answer would say.
        """
        with contextlib.suppress(Empty):
            while True:
                self._queue.get_nowait()
        left = [*self.unanswered, *self.later]
        self.unanswered.clear()
        self.later.clear()
        self.events_of.clear()
        self.bytes_of.clear()
        self.bytes = 0
        return left

    def end(self) -> None:
        self._queue.put(None)

    def has_ended(self, deadline: float) -> bool:
        if self._thread is not None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            items: list[_Item | None] = [item]
            with contextlib.suppress(Empty):
                while self._write_all and len(items) < BATCH and items[-1] is not None:
                    items.append(self._queue.get_nowait())
            is_last = items[-1] is None
            self._do([item for item in items if item is not None])
            if self._queue.empty():  # in a burst, once
                self._wake()
            if is_last:
                return

    def _do(self, items: Sequence[_Item]) -> None:
        """Write the data or reopen the file, item by item in order, and hand back the answers."""
        batch = [item.data for item in items if not item.is_reopening]
        if self._write_all and len(batch) == len(items) > 1 and not _error(self._write_all, batch):
            self._answer(items, None)
            return
        for item in items:
            if item.is_reopening:
                error = _error(self.sink.reopen)
            else:
                error = _error(self.sink.write, item.data)
            self._answer([item], error)

    def _answer(self, items: Sequence[_Item], error: OSError | None) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._answers.extend(_Answer(self, item, error, now) for item in items)


def _error(do: Callable[..., None], *arguments: object) -> OSError | None:
    """The error that a sink's method raised; None if it succeeded."""
    try:
        do(*arguments)
    except OSError as error:
        return error
    except Exception as error:  # no memory, or a bug: only this item fails, the next may succeed
        return SinkError(repr(error))
    return None


class Delivery:
    """Gives each event to every sink and counts the results. Used by the daemon's main thread.

    An event is delivered once the first sink has taken it, and has failed once none is left that
    might. Within a sink events keep their order, but for suppressions, which come once nothing else
    waits, and are the first to go when the queue is full.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        tally: Tally,
        on_sink: Callable[[str, OSError | None], None] = lambda name, error: None,
        limits: Limits = LIMITS,
    ) -> None:
        """`on_sink` is called once when a sink begins to fail, and with None when it has recovered.

        The sinks belong to this object from now on: it closes them.
        """
        self._tally = tally
        self._on_sink = on_sink
        self._limits = limits
        self._answers: deque[_Answer] = deque()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._writers = [_Writer(sink, self._answers, self._wake) for sink in sinks]

    def _wake(self) -> None:
        """Called in a writer's thread."""
        os.eventfd_write(self.descriptor, 1)

    def send(self, event: dict[str, object], record_ns: int | None = None) -> None:
        """Queue the event for every sink; never waits.

        `record_ns`, on the boot clock, is when the kernel made the record: the event's delay counts
        from then.
        """
        if self._answers:
            self._count_answers()
        sent = _Event(str(event["kind"]), owner_of(event), record_ns, len(self._writers))
        if not self._writers:
            self._tally.event(sent.kind, "failed")
        for writer in self._writers:
            try:
                writer.start()
            except RuntimeError as error:
                self._not_taken(writer, sent, SinkError(f"it gets no thread: {error}"))
                continue
            self._queue(writer, _Item(sent, writer.sink.render(event)), str(event.get("severity")))
            self._tally.sink_queue(writer.sink.name, writer.waiting)

    def _queue(self, writer: _Writer, item: _Item, severity: str) -> None:
        assert item.event is not None
        if item.event.kind == "suppression":
            if self._has_room(writer, "info") and len(writer.later) < self._limits.suppressions:
                writer.put_later(item)
            else:
                self._refuse(writer, item.event)
            return
        level = "health" if item.event.kind == "health" else severity
        if not self._has_share(writer, item.event.owner):
            self._refuse(writer, item.event)
            return
        while writer.later and not self._has_room(writer, level):
            dropped = writer.drop_later().event
            if dropped is not None:
                self._refuse(writer, dropped)
        if self._has_room(writer, level):
            writer.put(item)
        else:
            self._refuse(writer, item.event)

    def _refuse(self, writer: _Writer, event: _Event) -> None:
        self._not_taken(writer, event, SinkError(f"its queue is full: {_waiting(writer)}"))

    def hand(self, sink: str, data: bytes, on_answer: Callable[[bool], None]) -> None:
        """Queue data that is not an event for one sink; `on_answer` is called once: was it taken?

        The data is refused when the queue is half full: the rest is for events.
        """
        for writer in self._writers:
            if writer.sink.name == sink and writer.bytes + len(data) <= self._limits.bytes // 2:
                with contextlib.suppress(RuntimeError):  # no thread: the next event reports it
                    writer.start()
                    writer.put(_Item(None, data, on_answer))
                    return
        on_answer(False)

    def _has_room(self, writer: _Writer, level: str) -> bool:
        """The queue fills by severity: the last of it is for what matters most."""
        limits, waiting = self._limits, writer.waiting
        if level == "health":
            return waiting < limits.events + limits.health
        part = _PARTS.get(level, 1.0)
        return waiting < limits.events * part and writer.bytes < limits.bytes * part

    def _has_share(self, writer: _Writer, owner: Owner) -> bool:
        """Of what is left, nobody may have as much waiting already: one owner has half of a queue
        at most, two have a third each, and whoever comes next finds room.
        """
        return owner == NOBODY or (
            writer.events_of[owner] < self._limits.events - len(writer.unanswered)
            and writer.bytes_of[owner] < self._limits.bytes - writer.bytes
        )

    def reopen(self) -> None:
        """Have every sink reopen its file, after the events that were sent before."""
        for writer in self._writers:
            writer.put(_Item(None))

    def collect(self) -> None:
        """Count the sinks' answers, and report which sinks fail or have recovered."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        self._count_answers()
        now = time.monotonic()
        for writer in self._writers:
            if writer.is_dead():
                self._count_answers()  # the last ones of that thread
                self._give_up(writer, "its thread has ended")
            if writer.unanswered and now - writer.moved_at > self._limits.stall_seconds:
                stalled = f"it has taken nothing for {now - writer.moved_at:.0f} s"
                self._fails(writer, SinkError(f"{stalled}: {_waiting(writer)}"))
            elif writer.failing and self._has_recovered(writer, now):
                writer.failing = False
                self._on_sink(writer.sink.name, None)

    def _has_recovered(self, writer: _Writer, now: float) -> bool:
        is_quiet = now - writer.failed_at >= self._limits.quiet_seconds
        return is_quiet and writer.taken_at > writer.failed_at and not writer.unanswered

    def _count_answers(self) -> None:
        while self._answers:
            writer, item, error, boot_ns = self._answers.popleft()
            if not writer.is_answered(item):
                continue
            writer.go_on()
            self._tally.sink_queue(writer.sink.name, writer.waiting)
            if item.on_answer is not None:
                item.on_answer(error is None)
            if error is None:
                if item.event is not None:
                    self._taken(writer, item.event, boot_ns)
            elif item.event is not None:
                self._not_taken(writer, item.event, error)
            else:
                self._fails(writer, error)

    def _taken(self, writer: _Writer, event: _Event, boot_ns: int) -> None:
        writer.taken_at = time.monotonic()
        event.open -= 1
        if event.delivered:
            return
        event.delivered = True
        self._tally.event(event.kind, "delivered")
        if event.record_ns is not None:
            self._tally.delay((boot_ns - event.record_ns) / 1e9)

    def _not_taken(self, writer: _Writer, event: _Event, error: OSError) -> None:
        self._tally.sink_error(writer.sink.name)
        self._fails(writer, error)
        event.open -= 1
        if not event.open and not event.delivered:
            self._tally.event(event.kind, "failed")

    def _fails(self, writer: _Writer, error: OSError) -> None:
        writer.failed_at = time.monotonic()
        if not writer.failing:
            writer.failing = True
            self._on_sink(writer.sink.name, error)

    def wait(self, seconds: float) -> bool:
        """Wait until every sink has answered, `seconds` at most; whether they all have."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while True:
            self.collect()
            if not any(writer.unanswered for writer in self._writers):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)

    def finish(self, seconds: float, most: float = 0.0) -> None:
        """Wait as in `wait`, and longer, up to `most`, while some sink takes an event within
        `seconds`.

        A sink never gets what it has not taken by then. Those events count as failed, and so do the
        ones that it is just writing and may still store: up to BATCH if it takes many at once.
        """
        end = time.monotonic() + most
        while not self.wait(seconds):
            now = time.monotonic()
            moved_at = max(writer.moved_at for writer in self._writers if writer.unanswered)
            if now + seconds > end or now - moved_at > seconds:
                for writer in self._writers:
                    self._give_up(writer, "given up at the end")
                return

    def _give_up(self, writer: _Writer, why: str) -> None:
        error = SinkError(f"{why}: {_waiting(writer)}")
        for item in writer.give_up():
            if item.event is not None:
                self._not_taken(writer, item.event, error)
            elif item.on_answer is not None:
                item.on_answer(False)
        self._tally.sink_queue(writer.sink.name, 0)

    def close(self) -> None:
        """End the threads and close the sinks. A sink that hangs stays open until the exit."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for writer in self._writers:
            writer.end()
        ended = [writer.has_ended(deadline) for writer in self._writers]
        for writer, has_ended in zip(self._writers, ended, strict=True):
            if has_ended:
                writer.sink.close()
        if all(ended):
            os.close(self.descriptor)


def _waiting(writer: _Writer) -> str:
    return f"events that wait: {writer.waiting} ({kibibytes(writer.bytes)})"
