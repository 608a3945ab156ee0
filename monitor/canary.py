"""A real violation every minute, from end to end: only this proves that the monitor sees.

A child makes a seal denial, and a guard-page fault that it handles. Both must come back through the
ring with the right verdict. The kernel counts them separately from the host's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from monitor.kernel import abi
from monitor.kernel.counters import mark_canary
from monitor.kernel.operations import OPERATIONS
from monitor.provoke import child as provoke
from monitor.untrusted.printable import printable

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = ["Canary", "Outcome", "Rounds"]

TIMEOUT = 5.0
RETRY_SECONDS = 60
LATE_SECONDS = TIMEOUT + 10  # the canary's process may be slow to start


_OPERATION_NAMES = [operation.name for operation in OPERATIONS]


def _matches(expected: dict[str, Any], record: abi.Record) -> bool:
    if expected["kind"] == "denial":
        return (record.kind, record.operation, record.verdict) == (
            abi.Kind.DENIAL,
            _OPERATION_NAMES.index(expected["operation"]),
            abi.Verdict[expected["verdict"].upper()],
        ) and (record.mapping.start, record.mapping.end) == (
            expected["sealed_start"],
            expected["sealed_end"],
        )
    return (record.kind, record.cause, record.disposition, record.access, record.address) == (
        abi.Kind.FAULT,
        abi.Cause[expected["cause"].upper()],
        abi.Disposition[expected["disposition"].upper()],
        abi.Access[expected["access"].upper()],
        expected["address"],
    )


def _missing(
    names: Sequence[str], lines: Sequence[dict[str, Any]], records: Sequence[abi.Record]
) -> str:
    """What the child did not make or what did not come back; empty when nothing is missing."""
    by_name = {line["name"]: line for line in lines}
    for name in names:
        line = by_name.get(name)
        if line is None:
            return f"its process did not make {name}"
        if "unsupported" in line:
            return f"{name} cannot be made: {line['unsupported']}"
        if not any(_matches(line, record) for record in records):
            return f"{name} was not seen with its verdict"
    return ""


def _last_words(child: Popen[str]) -> str:
    """How the child ended, for a person."""
    assert child.stderr is not None
    lines = child.stderr.read().split("\n")
    words = printable(next((line for line in reversed(lines) if line.strip()), ""))
    return f"status {child.returncode}{': ' if words else ''}{words}"


class Canary:
    """Makes one run at a time, driven by the daemon's loop. Nothing here waits."""

    def __init__(
        self,
        config: abi.Config,
        clock: Callable[[], float],
        guard_regions: bool,
        announce: Callable[[int], None] = provoke.nobody,
    ) -> None:
        """`guard_regions`: whether the kernel has them; else an inaccessible page is used.
        `announce` is called with the pid of each child before it acts.
        """
        self._announce = announce
        self._config = config
        self._clock = clock
        fault = "guard_region_handled" if guard_regions else "prot_none_handled"
        self._names = ("mprotect", fault)
        self._child: Popen[str] | None = None
        self._deadline = 0.0
        self._records: list[abi.Record] = []
        self._lines: list[dict[str, Any]] = []

    @property
    def running(self) -> bool:
        return self._child is not None

    def start(self) -> None:
        """Start the child, and let it act once the kernel knows its pid. Raises OSError."""
        self._records.clear()
        self._lines.clear()
        self._deadline = self._clock() + TIMEOUT
        self._child = provoke.run(*self._names, wait=True)
        assert self._child.stdin is not None
        mark_canary(self._config, self._child.pid)
        self._announce(self._child.pid)
        self._child.stdin.close()

    def collect(self, record: abi.Record) -> None:
        """Take a record that the kernel marked as the canary's; ignore it if of an earlier run."""
        if self._child is not None and record.pid == self._child.pid:
            self._records.append(record)

    def result(self) -> str | None:
        """None while the canary runs; then once its result: empty for success, else the problem."""
        if self._child is None:
            return None
        if self._child.poll() is None:
            problem = "its process did not end in time"
        else:
            self._read_lines(self._child)
            problem = _missing(self._names, self._lines, self._records)
        if problem and self._clock() < self._deadline:
            return None  # the record may be on its way
        if problem and self._child.returncode and len(self._lines) < len(self._names):
            problem += f" ({_last_words(self._child)})"
        self.stop()
        return problem

    def _read_lines(self, child: Popen[str]) -> None:
        """Read what the child did. It has ended: its lines are short and fit into the pipe."""
        assert child.stdout is not None
        for line in child.stdout:
            # A child that was killed may leave half a line: that violation was not made.
            with contextlib.suppress(json.JSONDecodeError):
                self._lines.append(json.loads(line))

    def stop(self) -> None:
        """End the child, if there is one, while the kernel still counts it separately."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
                if stream is not None:
                    stream.close()
            self._child = None
        self._config.canary_pid = 0


class Outcome(NamedTuple):
    """The outcome of a run. `problem` is empty when it passed. `blind_seconds`: when runs before it
    have failed, the time from the last run that passed to this one.
    """

    problem: str
    blind_seconds: float | None


class Rounds:
    """When the canary runs, and what its runs show about the monitor.

    `problem`: why it is not proved that the monitor sees; None when the last run has passed.
    """

    def __init__(self, canary: Canary, now: float) -> None:
        """The caller starts the first run."""
        self._canary = canary
        self.problem: str | None = "the canary has not come back yet"
        self.is_late = False
        self._passed_at = self._ended = now

    def turn(self, now: float, interval: float) -> Outcome | None:
        """The outcome of a run that has ended; None without one. Starts the next run `interval`
        seconds after the last.

        With an interval of 0 there are runs only until one has passed.
        """
        if not interval and self.problem:
            interval = RETRY_SECONDS
        # A run has neither passed nor failed for longer than one can take.
        self.is_late = 0 < interval < now - self._ended - LATE_SECONDS
        problem = self._canary.result()
        if problem is not None:
            return self._came_back(problem, now)
        if not self._canary.running and 0 < interval <= now - self._ended:
            try:
                self._canary.start()
            except OSError as error:
                self._canary.stop()
                return self._came_back(f"its process cannot be started: {error}", now)
        return None

    def _came_back(self, problem: str, now: float) -> Outcome:
        was_blind = self.problem is not None
        self._ended = now
        self.is_late = False
        self.problem = problem or None
        if problem:
            return Outcome(problem, None)
        blind = now - self._passed_at if was_blind else None
        self._passed_at = now
        return Outcome("", blind)
