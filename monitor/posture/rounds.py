"""Scans all processes from time to time while the daemon runs, each time in a new, slow thread.

The thread, and those that read for it, use SHARE of a core at most. They have the daemon's
priority: with a lower one, on a busy host, they would hold the interpreter's lock while the
daemon's other threads wait for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from monitor.evidence.waiting import Waiting
from monitor.evidence.workloads import OTHER
from monitor.posture import drift as posture_drift
from monitor.posture.drift import SETTLED_SECONDS, Change, Known, Program, Sighting
from monitor.posture.scan import STATES, Figures, Memory, Reader, State
from monitor.posture.smaps import patience

__all__ = ["Outcome", "PostureRounds"]

SHARE = 0.01
FIRST_SECONDS = 60.0  # by then what a boot has started has settled
_SLICE_SECONDS = 0.001
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """Of a scan: `figures` is None when it failed. `problems`: why, or what else failed."""

    figures: Figures | None
    changes: tuple[Change, ...]
    problems: tuple[str, ...]


class _Stopped(Exception):
    pass


class PostureRounds:
    """Starts a scan when one is due, and takes its outcome."""

    def __init__(
        self,
        directory: Path | None,
        workloads: int,
        *,
        proc: Path = Path("/proc"),
        settled: float = SETTLED_SECONDS,
        share: float = SHARE,
        parent: int | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        """`directory` keeps what used to seal; None: nothing is kept after this run. At most
        `workloads` have separate figures. Children of `parent`, else of this process, do not count:
        the canary seals, too.
        """
        self._directory = directory
        self._workloads = workloads
        self._proc = proc
        self._settled = settled
        self._share = share
        self._parent = os.getpid() if parent is None else parent
        self._waiting = waiting or patience()
        self._known: dict[Program, Known] | None = None
        self._is_saved = True
        self._since: float | None = None
        self._began: float | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._outcome: Outcome | None = None
        self._busy = 0.0

    def turn(self, now: float, interval: float) -> Outcome | None:
        """Begin a scan when one is due. Returns the outcome of one that has ended, once. Never
        waits.
        """
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            outcome, self._outcome = self._outcome, None
            return outcome
        if self._since is None:
            self._since = now
        due = (
            self._since + min(interval, FIRST_SECONDS)
            if self._began is None
            else self._began + interval
        )
        if not interval or now < due or self._stop.is_set():
            return None
        self._began = now
        thread = threading.Thread(target=self._run, name="posture", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return Outcome(None, (), (f"cannot start a thread to look at processes: {error}",))
        self._thread = thread
        return None

    def stop(self) -> None:
        """Stop a running scan. It is not waited for long: it may hang."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    # ---- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._outcome = self.scan()
        except _Stopped:
            pass
        except OSError as error:
            self._outcome = Outcome(None, (), (f"cannot look at processes: {error}",))

    def _cpu_seconds(self) -> float:
        return time.thread_time() + self._waiting.cpu_seconds

    def _pause(self) -> None:
        busy = self._cpu_seconds() - self._busy
        if busy >= _SLICE_SECONDS:
            self._stop.wait(busy * (1 / self._share - 1))
            self._busy = self._cpu_seconds()
        if self._stop.is_set():
            raise _Stopped

    def scan(self) -> Outcome:
        """Look at all processes now. Raises OSError."""
        started, self._busy = time.monotonic(), self._cpu_seconds()
        states: Counter[State] = Counter(dict.fromkeys(STATES, 0))
        sealed_bytes: Counter[str] = Counter()
        memory = Memory()
        sightings: dict[Program, Sighting] = {}
        reader = Reader(self._proc, pause=self._pause, waiting=self._waiting)
        for process in reader.processes():
            if process.parent_pid == self._parent:
                continue
            states[process.state] += 1
            posture_drift.see(sightings, process, self._settled)
            if process.memory is not None:
                memory = memory.plus(process.memory)
                if process.memory.sealed_bytes:
                    sealed_bytes[process.workload] += process.memory.sealed_bytes
        self._waiting.rest()
        finished = time.time()
        changes, problems = self._drift(sightings, finished)
        stopped = sum(not known.is_sealing for known in (self._known or {}).values())
        figures = Figures(
            processes=states,
            sealed_bytes=_bounded(sealed_bytes, self._workloads),
            memory=memory,
            sealing_executables=len(self._known or {}) - stopped,
            stopped_executables=stopped,
            duration=time.monotonic() - started,
            finished=finished,
        )
        return Outcome(figures, tuple(changes), tuple(problems))

    def _drift(
        self, sightings: Mapping[Program, Sighting], now: float
    ) -> tuple[list[Change], list[str]]:
        problems: list[str] = []
        if self._known is None:
            self._known = {}
            if self._directory is not None:
                try:
                    self._known, problem = posture_drift.load(self._directory)
                    problems += [problem] if problem else []
                except OSError as error:
                    problems.append(f"cannot read what used to seal: {error}")
        self._known, changes = posture_drift.look(self._known, sightings, now)
        if self._directory is not None:
            try:
                posture_drift.save(self._directory, self._known)
            except OSError as error:
                if self._is_saved:
                    problems.append(
                        f"cannot write {posture_drift.FILE}: {error}; the next start will not know "
                        "what used to seal"
                    )
                self._is_saved = False
            else:
                self._is_saved = True
        return changes, problems


def _bounded(sealed_bytes: Mapping[str, int], limit: int) -> dict[str, int]:
    """The workloads with the most sealed bytes; those beyond the limit together, as `other`."""
    most = sorted(sealed_bytes.items(), key=lambda item: (-item[1], item[0]))
    bounded = dict(most[:limit])
    if rest := sum(size for _, size in most[limit:]):
        bounded[OTHER] = bounded.get(OTHER, 0) + rest
    return bounded
