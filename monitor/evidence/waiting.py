"""Reads that may wait for a lock that others hold, in threads that can be given up.

A process's command line, its maps and its mapped files can be read only with its mmap_lock
(fs/proc/base.c, fs/proc/task_mmu.c), which any user can keep busy in a process of his own. So such
a read is bounded for whoever asks, and each user has only so much of that time. The kernel waits
for that lock in a state that only the end of the whole process ends (mmap_read_lock_killable()): a
thread there can be given up, not stopped.
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

__all__ = ["Held", "Reads", "TooLong", "Waiting", "user_group"]

SECONDS = 0.05
# Where the thread waits for nothing but a processor, of which a busy host has none left.
LONGEST = 0.5
# What a user's reads may take of the asking thread: so much a second, and so much at once. All
# users but those of the system share twice as much, as one person may have many numbers.
SHARE = 0.2
AT_ONCE = 0.25
SYSTEM_USERS = 1000  # below it: /etc/login.defs, UID_MIN
SUB_USERS = 100_000  # from it on: /etc/login.defs, SUB_UID_MIN; one person has 65,536 of them
THREADS = 4  # that may be stuck at a time; the last is for system users
USERS = 1024  # remembered; the one asked for the longest time ago is forgotten

Value = TypeVar("Value")
_Owner = tuple[str, int]  # place and user


def user_group(uid: int | None) -> int:
    """The same number for all that one person may have in a user namespace; -1: not known."""
    return -1 if uid is None else min(uid, SUB_USERS)


class TooLong(TimeoutError):
    """It would take too long, or has; the text says which."""


class Held:
    """A descriptor, which is closed when nobody has it any more: a thread that was given up may
    still use it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclass
class _Job(Generic[Value]):
    work: Callable[[], Value]
    done: threading.Event = field(default_factory=threading.Event)
    value: Value | None = None
    error: Exception | None = None
    cpu_seconds: float = 0.0

    def run(self) -> None:
        began = time.thread_time()
        try:
            self.value = self.work()
        except Exception as error:
            self.error = error
        del self.work  # and with it whoever asked: the thread must not keep them
        self.cpu_seconds = time.thread_time() - began
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
    """Used by one thread, which waits for `seconds` at most, and for each user only so often.

    On a host that is busy it waits for LONGEST, where that is longer.

    `cpu_seconds` is what the work has taken of the processor: it ran in other threads.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = SECONDS,
        at_once: float = AT_ONCE,
    ) -> None:
        self.cpu_seconds = 0.0
        self._clock = clock
        self._seconds = seconds
        self._at_once = at_once
        self._workers: list[_Worker] = []
        weakref.finalize(self, _end, self._workers)
        self._shares: dict[_Owner | None, _Share] = {}
        self._stuck: dict[_Worker, _Owner] = {}

    def run(self, user: int, work: Callable[[], Value], place: str = "") -> Value:
        """What `work` returns; `user` is the one whose process it reads. In each `place`, which is
        a workload, a user has a share of his own there, and all sub-users have one.

        Raises what `work` raises, and TooLong. Work that is given up goes on: it must own what it
        uses.
        """
        now = self._clock()
        self._stuck = {each: whose for each, whose in self._stuck.items() if not each.is_free}
        is_system = user < SYSTEM_USERS
        owner = (place, user_group(user) if place else user)
        shares = [self._share(owner, 1.0, now)]
        if not is_system:
            shares.append(self._share(None, 2.0, now))
        if owner in self._stuck.values():
            raise TooLong("another look-up of this user's still waits")
        if any(share.left <= 0 for share in shares):
            raise TooLong("look-ups of this user's have taken too long before")
        if len(self._stuck) >= (THREADS if is_system else THREADS - 1):
            raise TooLong("look-ups of other users still wait")
        worker = self._worker()
        job: _Job[Value] = _Job(work)
        worker.begin(job)  # type: ignore[arg-type]
        is_done = job.done.wait(self._seconds)
        while not is_done and self._clock() < now + LONGEST and worker.is_running:
            is_done = job.done.wait(SECONDS)
        # Work is no waiting, and others cannot prolong it.
        waited = self._clock() - now - job.cpu_seconds
        for share in shares:
            share.left -= waited
        if not is_done:
            self._stuck[worker] = owner
            raise TooLong(f"the look-up took longer than {self._seconds * 1000:.0f} ms")
        self.cpu_seconds += job.cpu_seconds
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # else each would keep the other, and what the work used
        return job.value  # type: ignore[return-value]

    def rest(self) -> None:
        """End the threads that have nothing to do; the next work begins one again."""
        free = [worker for worker in self._workers if worker.is_free]
        self._workers[:] = [worker for worker in self._workers if worker not in free]
        _end(free)

    def _worker(self) -> _Worker:
        free = next((worker for worker in self._workers if worker.is_free), None)
        if free is None:
            try:
                free = _Worker()
            except RuntimeError as error:
                raise TooLong(f"it gets no thread: {error}") from error
            self._workers.append(free)
        return free

    def _share(self, owner: _Owner | None, parts: float, now: float) -> _Share:
        most = self._at_once * parts
        share = self._shares.pop(owner, None) or _Share(most, now)
        share.left = min(share.left + (now - share.filled_at) * SHARE * parts, most)
        share.filled_at = now
        if len(self._shares) >= USERS:
            del self._shares[next(iter(self._shares))]
        self._shares[owner] = share
        return share


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads of what one user can hold up."""

    waiting: Waiting
    user: int
    place: str = ""

    def run(self, work: Callable[[], Value]) -> Value:
        """See Waiting.run()."""
        return self.waiting.run(self.user, work, self.place)
