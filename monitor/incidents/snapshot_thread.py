"""Which processes a snapshot is taken of, and when: by a separate thread, within a small budget.

The daemon's thread asks and never waits; snapshots go to the store of incidents. Each request is
counted once, by its result.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from monitor.evidence.fingerprint import Event
from monitor.evidence.owner import Owner, owner_of
from monitor.evidence.waiting import Waiting
from monitor.incidents.snapshot import Request, Taken, patience
from monitor.incidents.store import NAME, SNAPSHOTS_KEPT, snapshot_data
from monitor.kernel import abi
from monitor.metrics.tally import SnapshotResult, Tally
from monitor.sinks.delivery import Delivery
from monitor.untrusted.recent import Recent

__all__ = ["Snapshots"]

WAITING = 16  # requests that may wait for a result
# Of one core: seconds at once, and a share of the time in the long run.
CPU_SECONDS, CPU_SHARE = 0.25, 0.05
# Of one owner in one incident, after the first SNAPSHOTS_KEPT: seconds from one snapshot to the
# next. Without it a process that is restarted and violates again would be written every time.
INCIDENT_SECONDS = 10.0
# Beyond both bounds there is something for whoever has had little: places for owners who have
# none, and this part of the CPU time for each, within as much again, which all pay back.
RESERVED, RESERVED_PART = 4, 1 / 4
_KINDS = (abi.Kind.DENIAL, abi.Kind.FAULT, abi.Kind.BYPASS)


class _Allowance:
    """What may be spent: up to `most` at once, and `rate` more each second."""

    def __init__(self, most: float, rate: float, now: float) -> None:
        self._most = self._left = most
        self._rate = rate
        self._at = now

    def left(self, now: float) -> float:
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left

    def spend(self, amount: float) -> None:
        self._left -= amount


class _Asked(NamedTuple):
    incident: str
    owner: Owner
    request: Request


class _Done(NamedTuple):
    """`taken` is None if nothing could be read at all."""

    asked: _Asked
    taken: Taken | None
    cpu_seconds: float


class Snapshots:
    """Used by the daemon's main thread; only `_run` is another thread.

    That thread has the same priority as the others: with a lower one it would hold the
    interpreter's lock, or the mmap lock of a process, while others have the processor.
    """

    def __init__(
        self,
        delivery: Delivery,
        tally: Tally,
        take: Callable[[Request, Waiting], Taken],
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`waiting` counts the requests that the thread has not answered."""
        self._enabled = enabled
        self.waiting = 0
        self._delivery = delivery
        self._tally = tally
        self._take = take
        self._clock = clock
        self._patience = patience()
        self._seen: Recent[tuple[str, int, int], bool] = Recent()
        self._cpu = _Allowance(CPU_SECONDS, CPU_SHARE, clock())
        self._incidents: Recent[tuple[str, Owner], _Allowance] = Recent(256)
        self._owners: Recent[Owner, _Allowance] = Recent(256)
        self._waiting_of: Counter[Owner] = Counter()
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._done: deque[_Done] = deque()
        self._thread: Thread | None = None

    def reconfigure(self, enabled: bool) -> None:
        """Set whether snapshots are taken from now on."""
        self._enabled = enabled

    def ask(self, event: Event, record: abi.Record) -> None:
        """Ask for a snapshot of the process of this event, unless its incident has one of it."""
        if not self._enabled or record.kind not in _KINDS:
            return
        incident = str(event["fingerprint"])
        key = (incident, record.pid, record.start_boot_ns)
        if self._seen.get(key):
            return
        self.collect()
        owner = owner_of(event)
        if not self._is_allowed(incident, owner) or not self._has_thread():
            self._tally.snapshot("dropped")
            return
        self._seen.put(key, True)
        self.waiting += 1
        self._waiting_of[owner] += 1
        self._queue.put(_Asked(incident, owner, _request(event, record, owner)))

    def _is_allowed(self, incident: str, owner: Owner) -> bool:
        now = self._clock()
        reserved = 0 if owner in self._waiting_of else RESERVED
        if self.waiting >= WAITING + reserved or not self._has_time(owner, now):
            return False
        key = (incident, owner)
        own = self._incidents.get(key)
        if own is None:
            own = _Allowance(SNAPSHOTS_KEPT, 1 / INCIDENT_SECONDS, now)
            self._incidents.put(key, own)
        if own.left(now) < 1:
            return False
        own.spend(1)
        return True

    def _has_time(self, owner: Owner, now: float) -> bool:
        left = self._cpu.left(now)
        return left > 0 or (left > -CPU_SECONDS and self._cpu_of(owner).left(now) > 0)

    def _cpu_of(self, owner: Owner) -> _Allowance:
        """What an owner may spend even where nothing is left."""
        found = self._owners.get(owner)
        if found is None:
            own = CPU_SECONDS * RESERVED_PART, CPU_SHARE * RESERVED_PART
            found = _Allowance(*own, self._clock())
            self._owners.put(owner, found)
        return found

    def _has_thread(self) -> bool:
        """Whether the thread runs; the first request starts it, because programs load in a fork."""
        if self._thread is None:
            thread = Thread(target=self._run, name="snapshots", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: the next request tries again
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None:
            began = self._cpu_seconds()
            taken = None
            # After any error the request counts as failed, and the next one is served.
            with contextlib.suppress(Exception):
                taken = self._take(asked.request, self._patience)
            self._done.append(_Done(asked, taken, self._cpu_seconds() - began))

    def _cpu_seconds(self) -> float:
        """Of the thread, and of those that read for it."""
        return time.thread_time() + self._patience.cpu_seconds

    def collect(self) -> None:
        """Hand the snapshots to the store, and count the other requests."""
        while self._done:
            done = self._done.popleft()
            owner = done.asked.owner
            self.waiting -= 1
            self._waiting_of[owner] -= 1
            self._waiting_of += Counter()  # forget those who wait for nothing
            self._cpu.spend(done.cpu_seconds)
            self._cpu_of(owner).spend(done.cpu_seconds)
            if done.taken is None:
                self._tally.snapshot("failed")
            elif done.taken.result == "gone":
                self._tally.snapshot("gone")
            else:
                self._hand(done.asked, done.taken)

    def _hand(self, asked: _Asked, taken: Taken) -> None:
        result: SnapshotResult = taken.result

        def on_answer(is_stored: bool) -> None:
            self._tally.snapshot(result if is_stored else "failed")

        data = snapshot_data(asked.incident, taken.time_ns, taken.text, asked.owner)
        self._delivery.hand(NAME, data, on_answer)

    def finish(self, seconds: float) -> None:
        """Wait at most so many seconds for the requests; those without an answer are dropped."""
        self._enabled = False
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(seconds)
        self.collect()
        for _ in range(self.waiting):
            self._tally.snapshot("dropped")
        self.waiting = 0


def _request(event: Event, record: abi.Record, owner: Owner) -> Request:
    is_denial = record.kind == abi.Kind.DENIAL
    return Request(
        event=event["id"],
        pid=record.pid,
        tid=record.tid,
        start_boot_ns=record.start_boot_ns,
        start=event["process"]["start"],
        base_name=record.executable,
        touched=(record.mapping.start or record.arguments[0]) if is_denial else record.address,
        uid=record.uid,
        workload=owner.workload,
    )
