"""What was reported of each place that violates: how severe it was, and which program did it.

The kernel knows neither of the events that the rate limit holds back. Before that, the first ones
of the same place were reported.
"""

from __future__ import annotations

from typing import NamedTuple

from monitor.evidence.assessment import worst, worst_denial
from monitor.evidence.events import Process, Severity
from monitor.evidence.waiting import user_group
from monitor.kernel.abi import BucketKey, Cause, Kind, Record
from monitor.kernel.operations import OPERATIONS
from monitor.untrusted.recent import SharedRecent

__all__ = ["Reported"]

PLACES = 4096  # an eighth of a KiB each


class _Process(NamedTuple):
    pid: int
    start_boot_ns: int


class Reported:
    """Bounded: of the places, and of the processes, that were reported last; shared by user."""

    def __init__(self) -> None:
        self._severities: SharedRecent[bytes, Severity] = SharedRecent(PLACES)
        self._processes: SharedRecent[_Process, Process] = SharedRecent()

    def add(self, record: Record, severity: Severity, process: Process) -> None:
        """The event of `record` had this severity, and was of this process."""
        key, owner = bytes(_key(record)), user_group(record.uid)
        known = self._severities.get(key)
        self._severities.put(key, worst(severity, known) if known else severity, owner)
        self._processes.put(_Process(record.pid, record.start_boot_ns), process, owner)

    def severity(self, key: BucketKey) -> Severity:
        """Of events that the bucket of this key holds back: the worst of those before them.

        Of denials at least the worst that their operation can be: after a hundred harmless ones
        others may come.
        """
        known = self._severities.get(bytes(key))
        if key.kind == Kind.DENIAL and key.pid and key.what < len(OPERATIONS):
            possible = worst_denial(OPERATIONS[key.what].name)
            return worst(possible, known) if known else possible
        return known or _at_worst(key)

    def process(self, pid: int, start_boot_ns: int) -> Process | None:
        """As it was reported last; None where no event of it was, lately."""
        return self._processes.get(_Process(pid, start_boot_ns))


def _at_worst(key: BucketKey) -> Severity:
    """Of events of which nothing is known; nobody hides one behind a limit."""
    if key.kind == Kind.SEAL:
        return "info"
    if key.kind == Kind.FAULT and key.pid and key.what != Cause.SEALED:
        return "warning"
    return "critical"


def _key(record: Record) -> BucketKey:
    """That of the bucket in which the kernel has counted the record: `what` as in bpf/abi.h."""
    what = {
        Kind.DENIAL: record.operation,
        Kind.FAULT: record.cause,
        Kind.SEAL: 0,
        Kind.BYPASS: record.bypass.method,
    }[Kind(record.kind)]
    return BucketKey(
        start_boot_ns=record.start_boot_ns,
        caller=record.caller,
        pid=record.pid,
        kind=record.kind,
        what=what,
    )
