"""Makes events from the kernel's records and sends them to sinks; counts those it does not send."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from monitor.configuration.config import Config
from monitor.configuration.mutes import Mute, User, Violation
from monitor.evidence import classify, events
from monitor.evidence.attribution import Attribution
from monitor.evidence.cgroups import unit_of
from monitor.evidence.identity import Identity
from monitor.evidence.libraries import Libraries, Role
from monitor.evidence.memory_map import DELETED
from monitor.evidence.programs import base_name
from monitor.evidence.reported import Reported
from monitor.evidence.severities import Severities
from monitor.evidence.suppression import Gap
from monitor.kernel import abi
from monitor.metrics.tally import Tally
from monitor.sinks.delivery import Delivery
from monitor.untrusted.printable import printable

__all__ = ["Pipeline"]


class Pipeline:
    """Used by the daemon's one thread."""

    def __init__(
        self,
        host: events.Host,
        sealed_mask: int,
        *,
        attribution: Attribution,
        delivery: Delivery,
        tally: Tally,
        severities: Severities | None = None,
        mutes: Sequence[Mute] = (),
        reported: Reported | None = None,
        ask_snapshot: Callable[[Mapping[str, Any], abi.Record], None] | None = None,
        role_of: Callable[[abi.Module], Role | None] | None = None,
        kernel_seals: bool = False,
        offset: Callable[[], int] = events.clock_offset,
        host_name: Callable[[], str] | None = None,
    ) -> None:
        """`reported` learns what the events are, for those that are suppressed later.
        `ask_snapshot` gets each event of a process, just before it is sent. `role_of` says
        which of the host's own libraries a module is. `severities` counts what is judged.
        `kernel_seals`: the kernel seals its own mappings. `offset` and `host_name`, which an
        administrator may change, are read once for all records that are taken together, and once
        for each other event.
        """
        self._host = host
        self._sealed_mask = sealed_mask
        self._attribution = attribution
        self._delivery = delivery
        self._tally = tally
        self._severities = severities
        self._mutes = mutes
        self._reported = reported or Reported()
        self._ask_snapshot = ask_snapshot
        self._role_of = role_of or Libraries().role
        self._kernel_seals = kernel_seals
        self._sequence = tally.sequence
        self._sample_offset = offset
        self._host_name = host_name or (lambda: host.name)
        self._offset = offset()

    def reconfigure(self, config: Config) -> None:
        """Apply the configuration's mutes and its setting of command lines."""
        self._mutes = config.mutes
        self._attribution.reconfigure(config.events.command_line)

    def take(self, records: Iterable[abi.Record]) -> None:
        """Make each record an event and send it, unless a mute applies.

        A record that only says who seals makes no event: the process is looked up, because it may
        be gone when its violation comes.
        """
        self._sample()
        for record in records:
            self._take(record)

    def _take(self, record: abi.Record) -> None:
        try:
            kind = abi.Kind(record.kind)
        except ValueError:
            self._tally.decode_error()
            return
        if record.flags & abi.RecordFlag.SEALER:
            self._attribution.learn(record)
            return
        owner = self._attribution.owner(record)
        self._tally.identity(owner.identity.result)
        origin = self._origin(record.time_boot_ns, owner.process, owner.workload)
        try:
            event = classify.classify(
                record,
                origin,
                sealed_mask=self._sealed_mask,
                file_path=owner.file_path,
                target=owner.target,
                role_of=self._role_of,
                kernel_seals=self._kernel_seals,
            )
        except classify.ClassifyError:
            self._tally.decode_error()
            self._tally.event(kind.label, "failed")
            self._judged(record.cgroup_id, kind.label, "critical")
            self._tally.judged(kind.label)
            return
        if not isinstance(event, events.Denial) or event.verdict != abi.Verdict.NOT_SEALED.label:
            self._judged(record.cgroup_id, kind.label, event.severity, 1, owner.process)
        self._tally.judged(kind.label)
        self._reported.add(record, event.severity, owner.process)
        if self._mutes and self._is_muted(event, owner.identity, record.uid):
            self._tally.event(kind.label, "filtered")
            return
        sent = events.to_dict(event)
        if self._ask_snapshot:  # first: the process may not live for long
            self._ask_snapshot(sent, record)
        self._delivery.send(sent, record.time_boot_ns)

    def suppression(self, gap: Gap) -> None:
        """Report events that the rate limit suppressed, unless a mute applies to them."""
        key, bucket, severity = gap
        self._tally.made("suppression")
        self._sample()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        workload = self._attribution.workload(bucket.cgroup_id) if key.pid else None
        process = self._suppressed(key, bucket) if key.pid else None
        origin = self._origin(now, process, workload)
        try:
            event = classify.suppression(
                key, bucket, origin, severity=severity, offset_ns=self._offset
            )
        except classify.ClassifyError:
            self._tally.decode_error()
            self._tally.event("suppression", "failed")
            return
        self._judged_suppressed(event, bucket, bool(key.pid))
        self._tally.judged(event.of, event.count)
        if (
            self._mutes
            and key.pid
            and self._is_muted(event, *self._attribution.known(key.pid, key.start_boot_ns))
        ):
            self._tally.event("suppression", "filtered")
            return
        self._delivery.send(events.to_dict(event))

    def _judged(
        self,
        cgroup_id: int | None,
        kind: str,
        severity: str,
        count: int = 1,
        process: events.Process | None = None,
    ) -> None:
        if self._severities:
            self._severities.add(cgroup_id, kind, severity, count, process)

    def _judged_suppressed(
        self, event: events.Suppression, bucket: abi.Bucket, is_of_one: bool
    ) -> None:
        """What several processes share may be anybody's, and anything: it weighs most."""
        if is_of_one:
            self._judged(bucket.cgroup_id, event.of, event.severity, event.count, event.process)
        else:
            self._judged(None, event.of, "critical", event.count)

    def _suppressed(self, key: abi.BucketKey, bucket: abi.Bucket) -> events.Process:
        """Of the process whose events were held back: what all of them have in common. `name` is
        the program's, where that is known, and not that of one of its threads.
        """
        known = self._reported.process(key.pid, key.start_boot_ns)
        if known is None:
            return events.Process(
                key.pid,
                *(None, None, None, printable(bucket.task_name)),
                *(None, None, None, None, None, None, None),
            )
        return replace(known, tid=None, name=base_name(known) or known.name)

    def health(
        self,
        name: str,
        message: str,
        blind_seconds: float | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        """Report something of the monitor itself."""
        self._tally.made("health")
        self._sample()
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
        self._sequence[0] += 1  # first: an id is used once, whatever happens next
        return events.Origin(
            events.event_id(self._host.boot_id, boot_ns, self._sequence[0]),
            events.timestamp(boot_ns, self._offset),
            boot_ns,
            self._host,
            process,
            workload,
        )

    def _sample(self) -> None:
        self._offset = self._sample_offset()
        name = self._host_name()
        if name != self._host.name:
            self._host = replace(self._host, name=name)

    def _is_muted(self, event: events.Event, identity: Identity, uid: int | None) -> bool:
        """`uid` is that of the process, as `identity` is what is known of it."""
        process, workload = event.process, event.workload
        named = (getattr(event, name, None) for name in ("operation", "cause", "method"))
        executable = identity.executable or (process.executable if process else None)
        if executable and identity.is_deleted:
            executable = executable.removesuffix(DELETED)
        violation = Violation(
            next(filter(None, named), None),
            executable,
            identity.files,
            identity.build_id,
            User(identity.owner, identity.owner_name),
            User(uid, identity.user_name),
            unit_of(workload.cgroup) if workload and workload.cgroup else None,
            identity.program.path if identity.program else None,
            identity.program.files if identity.program else None,
        )
        now = datetime.now(UTC)
        return any(mute.applies(violation, now) for mute in self._mutes)
