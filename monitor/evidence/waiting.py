"""Reads that may wait for a lock that others hold, in threads that can be given up.

A process's command line, its maps and its mapped files can be read only with its mmap_lock
(fs/proc/base.c, fs/proc/task_mmu.c), which any user can keep busy in a process of his own. So such
a read is bounded for whoever asks, and each user has only so much of that time.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from monitor.untrusted.process_stat import parse_stat

__all__ = ["TooLong", "Waiting"]

SECONDS = 0.05
# Where the thread waits for nothing but a processor, of which a busy host has none left.
LONGEST = 0.5
# What a user's reads may take of the asking thread: so much a second, and so much at once. All
# users but those of the system share twice as much, as one person may have many numbers.
SHARE = 0.2
AT_ONCE = 0.25
SYSTEM_USERS = 1000  # below it: /etc/login.defs, UID_MIN
THREADS = 4  # that may be stuck at a time; the last is for system users
USERS = 1024  # remembered; the one asked for the longest time ago is forgotten

Value = TypeVar("Value")


class TooLong(Exception):
    """It would take too long, or has; the text says which."""


@dataclass
class _Job(Generic[Value]):
    work: Callable[[], Value]
    done: threading.Event = field(default_factory=threading.Event)
    value: Value | None = None
    error: OSError | None = None

    def run(self) -> None:
        try:
            self.value = self.work()
        except OSError as error:
            self.error = error
        del self.work  # and with it whoever asked: the thread must not keep them
        self.done.set()


@dataclass
class _Share:
    """A bucket of seconds."""

    left: float
    filled_at: float


class _Worker:
    """A thread that does one job at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self.job: _Job[object] | None = None
        self._thread = threading.Thread(target=self._run, name="look-ups", daemon=True)
        self._thread.start()

    def begin(self, job: _Job[object]) -> None:
        self.job = job
        self._jobs.put(job)

    @property
    def is_free(self) -> bool:
        return self.job is None or self.job.done.is_set()

    @property
    def is_running(self) -> bool:
        """Whether it has a processor or waits for one: a lock of others' is waited for asleep."""
        path = f"/proc/self/task/{self._thread.native_id}/stat"
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_stat(os.read(file, 4096)).state == b"R"
        finally:
            os.close(file)

    def end(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # what it has read is not kept until the next one


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


class Waiting:
    """Used by one thread, which waits for SECONDS at most, and for each user only so often.

    On a host that is busy it waits for LONGEST at most.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers: list[_Worker] = []
        weakref.finalize(self, _end, self._workers)
        self._shares: dict[int | None, _Share] = {}
        self._stuck: dict[_Worker, int] = {}

    def run(self, user: int, work: Callable[[], Value]) -> Value:
        """What `work` returns; `user` is the one whose process it reads.

        Raises what `work` raises as OSError, and TooLong. Work that is given up goes on: it must
        own what it uses.
        """
        now = self._clock()
        self._stuck = {each: whose for each, whose in self._stuck.items() if not each.is_free}
        is_system = user < SYSTEM_USERS
        shares = [self._share(user, 1.0, now)]
        if not is_system:
            shares.append(self._share(None, 2.0, now))
        if user in self._stuck.values():
            raise TooLong("another look-up of this user's still waits")
        if any(share.left <= 0 for share in shares):
            raise TooLong("look-ups of this user's have taken too long before")
        if len(self._stuck) >= (THREADS if is_system else THREADS - 1):
            raise TooLong("look-ups of other users still wait")
        worker = self._worker()
        job: _Job[Value] = _Job(work)
        worker.begin(job)  # type: ignore[arg-type]
        is_done = job.done.wait(SECONDS)
        while not is_done and self._clock() < now + LONGEST and worker.is_running:
            is_done = job.done.wait(SECONDS)
        taken = self._clock() - now
        for share in shares:
            share.left -= taken
        if not is_done:
            self._stuck[worker] = user
            raise TooLong(f"the look-up took longer than {SECONDS * 1000:.0f} ms")
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]

    def _worker(self) -> _Worker:
        free = next((worker for worker in self._workers if worker.is_free), None)
        if free is None:
            free = _Worker()
            self._workers.append(free)
        return free

    def _share(self, user: int | None, parts: float, now: float) -> _Share:
        share = self._shares.pop(user, None) or _Share(AT_ONCE * parts, now)
        share.left = min(share.left + (now - share.filled_at) * SHARE * parts, AT_ONCE * parts)
        share.filled_at = now
        if len(self._shares) >= USERS:
            del self._shares[next(iter(self._shares))]
        self._shares[user] = share
        return share
