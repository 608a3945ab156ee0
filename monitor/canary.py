"""A real violation every minute, end to end: the only proof that the monitor sees.

A child makes a seal denial and a guard-page fault that it survives to handle; both must come back
through the ring with the right verdict. The kernel counts them apart from everyone else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from monitor import abi, calibrate, provoke
from monitor.operations import OPERATIONS

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = ["Canary"]

TIMEOUT = 5.0


def _matches(expected: dict[str, Any], record: abi.Record) -> bool:
    if expected["kind"] == "denial":
        names = ("operation", "verdict", "sealed_start", "sealed_end")
        seen: tuple[object, ...] = (
            OPERATIONS[record.operation].name,
            abi.Verdict(record.verdict).label,
            record.mapping.start,
            record.mapping.end,
        )
    else:
        names = ("cause", "disposition", "address", "access")
        seen = (
            abi.Cause(record.cause).label,
            abi.Disposition(record.disposition).label,
            record.address,
            abi.Access(record.access).label,
        )
    return abi.Kind(record.kind).label == expected["kind"] and seen == tuple(
        expected[name] for name in names
    )


def _missing(lines: list[dict[str, Any]], records: list[abi.Record]) -> str:
    """What did not come back; empty when all did."""
    if not lines:
        return "the canary's process did nothing"
    for line in lines:
        if "unsupported" in line:
            return f"{line['name']} cannot be made: {line['unsupported']}"
        if not any(_matches(line, record) for record in records):
            return f"{line['name']} was not seen with its verdict"
    return ""


class Canary:
    """One run at a time, driven by the daemon's loop; nothing here waits."""

    def __init__(self, config: abi.Config, clock: Callable[[], float], guard_regions: bool) -> None:
        """`guard_regions`: whether the kernel has them; else an inaccessible page stands in."""
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
        """Spawn the child and let it go once the kernel knows it. Raises OSError."""
        self._records.clear()
        self._lines.clear()
        self._deadline = self._clock() + TIMEOUT
        self._child = provoke.run(*self._names, wait=True)
        assert self._child.stdin is not None
        calibrate.mark(self._config, self._child.pid)
        self._child.stdin.close()

    def collect(self, record: abi.Record) -> None:
        """Take a record that the kernel marked as the canary's."""
        if self.running:
            self._records.append(record)

    def result(self) -> str | None:
        """None while it runs; then once: empty for success, else what is wrong."""
        if self._child is None:
            return None
        has_ended = self._child.poll() is not None
        if has_ended and not self._lines:
            assert self._child.stdout is not None
            # Two short lines: they fit into the pipe of a child that has ended.
            self._lines = [json.loads(line) for line in self._child.stdout.read().splitlines()]
        problem = _missing(self._lines, self._records) if has_ended else "it did not end in time"
        if problem and self._clock() < self._deadline:
            return None  # the record may be on its way
        self.stop()
        return problem

    def stop(self) -> None:
        """End the child, if there is one."""
        self._config.canary_pid = 0
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
                if stream is not None:
                    stream.close()
            self._child = None
