"""From the kernel's records to events for the sinks; counts those that never get there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monitor.configuration.config import Config, Mute
from monitor.evidence import classify, events
from monitor.evidence.cgroups import NO_WORKLOAD, Cgroups
from monitor.evidence.identity import Identities, Identity
from monitor.evidence.suppression import Gap
from monitor.kernel import abi
from monitor.metrics.tally import Tally
from monitor.sinks.delivery import Delivery
from monitor.untrusted.printable import printable

__all__ = ["Pipeline", "clock_offset"]

PROCESS_NAME_LIMIT = 64


def clock_offset() -> int:
    """Nanoseconds from the boot clock to the real-time clock, now."""
    boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - boot


def _mapped_file(record: abi.Record, proc: Path) -> str | None:
    """Full path of the mapped file while its process lives; the kernel told the base name."""
    mapping = record.mapping
    if not mapping.file:
        return None
    owner = record.bypass.pid if record.kind == abi.Kind.BYPASS else record.pid
    entry = proc / str(owner) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
    try:
        path = os.readlink(os.fsencode(entry))
    except OSError:  # the process is gone, the mapping has changed, or we may not look
        return None
    is_same = os.path.basename(path).startswith(mapping.file)
    return printable(path, classify.PATH_LIMIT) if is_same else None


class Pipeline:
    """Used by the daemon's one thread."""

    def __init__(
        self,
        host: events.Host,
        sealed_mask: int,
        *,
        identities: Identities,
        cgroups: Cgroups,
        delivery: Delivery,
        tally: Tally,
        mutes: Sequence[Mute] = (),
        proc: Path = Path("/proc"),
        ask_snapshot: Callable[[Mapping[str, Any], abi.Record], None] | None = None,
        offset: Callable[[], int] = clock_offset,
    ) -> None:
        """`ask_snapshot` hears of each event of a process, just before it is sent. `offset` is
        asked again for all records that are taken at once, and for each other event.
        """
        self._host = host
        self._sealed_mask = sealed_mask
        self._identities = identities
        self._cgroups = cgroups
        self._delivery = delivery
        self._tally = tally
        self._mutes = mutes
        self._proc = proc
        self._ask_snapshot = ask_snapshot
        self._sequence = 0
        self._sample_offset = offset
        # One offset for start times: when the clock is set, no process must seem to start again.
        self._start_offset = self._offset = offset()

    def reconfigure(self, config: Config) -> None:
        """Put in force what may change of mutes and command lines."""
        self._mutes = config.mutes
        self._identities.reconfigure(config.events.command_line)

    def take(self, records: Iterable[abi.Record]) -> None:
        """Make each record an event and send it, unless a mute applies.

        One that only says who seals is learnt: the process may be gone at its violation.
        """
        self._offset = self._sample_offset()
        for record in records:
            self._take(record)

    def _take(self, record: abi.Record) -> None:
        try:
            kind = abi.Kind(record.kind)
        except ValueError:
            self._tally.decode_error()
            return
        if record.flags & abi.RecordFlag.SEALER:
            self._identity(record)
            self._workload(record.cgroup_id, record.pid)
            return
        process = self._process(record)
        origin = self._origin(
            record.time_boot_ns, process, self._workload(record.cgroup_id, record.pid)
        )
        path = _mapped_file(record, self._proc)
        try:
            event = classify.classify(
                record,
                origin,
                sealed_mask=self._sealed_mask,
                file_path=path,
                target=self._target(record),
            )
        except classify.ClassifyError:
            self._tally.decode_error()
            self._tally.event(kind.label, "failed")
            return
        if self._is_muted(event, process.executable):
            self._tally.event(kind.label, "filtered")
            return
        told = events.to_dict(event)
        if self._ask_snapshot:  # first: the process may not live for long
            self._ask_snapshot(told, record)
        self._delivery.send(told, record.time_boot_ns)

    def suppression(self, gap: Gap) -> None:
        """Tell of events that the rate limit held back, unless a mute applies to them."""
        key, bucket = gap
        self._offset = self._sample_offset()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        workload = self._workload(bucket.cgroup_id) if key.pid else None
        origin = self._origin(now, None, workload)
        try:
            event = classify.suppression(key, bucket, origin, offset_ns=self._offset)
        except classify.ClassifyError:
            self._tally.decode_error()
            self._tally.event("suppression", "failed")
            return
        if (
            self._mutes
            and key.pid
            and self._is_muted(event, self._executable(key.pid, key.start_boot_ns))
        ):
            self._tally.event("suppression", "filtered")
            return
        self._delivery.send(events.to_dict(event))

    def health(
        self,
        name: str,
        message: str,
        blind_seconds: float | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        """Report something of the monitor itself."""
        self._offset = self._sample_offset()
        origin = self._origin(time.clock_gettime_ns(time.CLOCK_BOOTTIME), None, None)
        event = events.Health(
            id=origin.id,
            time=origin.time,
            time_boot_ns=origin.time_boot_ns,
            severity=events.HEALTH_SEVERITY[name],
            summary=f"{name.replace('_', ' ')}: {message}",
            host=origin.host,
            process=None,
            workload=None,
            event=name,
            message=message,
            blind_seconds=blind_seconds,
            details=details or {},
        )
        self._delivery.send(events.to_dict(event))

    def _origin(
        self, boot_ns: int, process: events.Process | None, workload: events.Workload | None
    ) -> events.Origin:
        self._sequence += 1
        return events.Origin(
            events.event_id(self._host.boot_id, boot_ns, self._sequence),
            events.timestamp(boot_ns, self._offset),
            boot_ns,
            self._host,
            process,
            workload,
        )

    def _target(self, record: abi.Record) -> events.Target | None:
        target = record.bypass
        if not target.pid:
            return None
        path = self._executable(target.pid, target.start_boot_ns)
        return events.Target(
            pid=target.pid,
            start=events.timestamp(target.start_boot_ns, self._start_offset),
            name=printable(target.task_name, PROCESS_NAME_LIMIT),
            executable=path or printable(target.executable) or None,
        )

    def _process(self, record: abi.Record) -> events.Process:
        identity = self._identity(record)
        self._tally.identity(identity.result)
        return events.Process(
            pid=record.pid,
            tid=record.tid,
            parent_pid=record.parent_pid,
            vpid=record.vpid,
            name=printable(record.task_name, PROCESS_NAME_LIMIT),
            executable=identity.executable or printable(record.executable) or None,
            command_line=identity.command_line,
            start=events.timestamp(record.start_boot_ns, self._start_offset),
            uid=record.uid,
            gid=record.gid,
            user_name=identity.user_name,
            group_name=identity.group_name,
        )

    def _identity(self, record: abi.Record) -> Identity:
        try:
            return self._identities.lookup(
                record.pid, record.start_boot_ns, record.uid, record.executable, record.gid
            )
        except OSError:  # /proc hides it (hidepid), or no descriptor is left on the host
            return Identity(None, None, None, "partial")

    def _executable(self, pid: int, start_boot_ns: int) -> str | None:
        try:
            return self._identities.lookup(pid, start_boot_ns).executable
        except OSError:
            return None

    def _workload(self, cgroup_id: int, pid: int | None = None) -> events.Workload:
        try:
            return self._cgroups.workload(cgroup_id, pid)
        except OSError:  # cgroup2 is being unmounted
            return NO_WORKLOAD

    def _is_muted(self, event: events.Event, executable: str | None) -> bool:
        now = datetime.now(UTC)
        named = (getattr(event, name, None) for name in ("operation", "cause", "method"))
        what = next(filter(None, named), None)
        return any(
            mute.applies(what=what, executable=executable or "", now=now) for mute in self._mutes
        )
