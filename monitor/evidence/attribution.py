"""Who caused a record: the process, its workload, the file that it mapped, a bypass's target.

The kernel's facts come with the record. /proc, the user database and the cgroup tree add what they
still have. What they do not give is left out; that is not an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from monitor.evidence import classify, events
from monitor.evidence.cgroups import NO_WORKLOAD, Cgroups
from monitor.evidence.identity import Identities, Identity
from monitor.evidence.image import recorded
from monitor.evidence.waiting import TooLong
from monitor.kernel import abi
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import number_of
from monitor.untrusted.redact import CommandLine

__all__ = ["Attribution", "Owner"]

PROCESS_NAME_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Owner:
    """Who caused a record.

    `identity` is what was added to the record. `file_path` is the full path of the mapped file,
    None where only the kernel's base name is known. `target` is the process whose memory a bypass
    changed; None for other kinds.
    """

    process: events.Process
    identity: Identity
    workload: events.Workload
    file_path: str | None
    target: events.Target | None


class Attribution:
    """Used by one thread."""

    def __init__(
        self,
        identities: Identities,
        cgroups: Cgroups,
        *,
        proc: Path = Path("/proc"),
        start_offset: int | None = None,
    ) -> None:
        """`start_offset`: nanoseconds from the boot clock to the real-time clock, for start times;
        None: the present offset.
        """
        self._identities = identities
        self._cgroups = cgroups
        self._proc = proc
        # Fixed: else a process would seem to start again when the clock is set.
        self._start_offset = events.clock_offset() if start_offset is None else start_offset

    def reconfigure(self, command_line: CommandLine) -> None:
        """Set how command lines are shown from now on."""
        self._identities.reconfigure(command_line)

    def learn(self, record: abi.Record) -> None:
        """Look up a process that seals: it may be gone by the time of a violation."""
        self._identity(record)
        self.workload(record.cgroup_id, record.pid)

    def owner(self, record: abi.Record) -> Owner:
        """Who caused this record of a violation."""
        identity = self._identity(record)
        return Owner(
            process=self._process(record, identity),
            identity=identity,
            workload=self.workload(record.cgroup_id, record.pid),
            file_path=self._mapped_file(record),
            target=self._target(record.bypass, record.uid),
        )

    def workload(self, cgroup_id: int, pid: int | None = None) -> events.Workload:
        """The workload of a cgroup; `pid` is of a process in it."""
        try:
            return self._cgroups.workload(cgroup_id, pid)
        except OSError:  # cgroup2 is being unmounted
            return NO_WORKLOAD

    def known(self, pid: int, start_boot_ns: int) -> tuple[Identity, int | None]:
        """A process as the last record had it found, and its uid.

        Nothing is looked up: what the process has executed since is another program.
        """
        return self._identities.known(pid, start_boot_ns)

    def _identity(self, record: abi.Record) -> Identity:
        try:
            return self._identities.lookup(
                record.pid,
                record.start_boot_ns,
                record.uid,
                record.executable,
                record.gid,
                image=recorded(record.image),
            )
        except OSError:  # /proc hides it (hidepid), or no descriptor is left on the host
            return Identity(None, None, None, "partial")

    def _process(self, record: abi.Record, identity: Identity) -> events.Process:
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
            identity=events.Identified(identity.result, identity.reason or None),
            files=identity.files,
            executable_owner=identity.owner,
            executable_build_id=identity.build_id,
            program=identity.program,
        )

    def _target(self, target: abi.Bypass, user: int) -> events.Target | None:
        if not target.pid:
            return None
        try:
            path, files = self._identities.executable(
                target.pid, target.start_boot_ns, recorded(target.image), user
            )
        except OSError:
            path, files = None, None
        return events.Target(
            pid=target.pid,
            start=events.timestamp(target.start_boot_ns, self._start_offset),
            name=printable(target.task_name, PROCESS_NAME_LIMIT),
            executable=path or printable(target.executable) or None,
            files=files,
        )

    def _mapped_file(self, record: abi.Record) -> str | None:
        mapping, target = record.mapping, record.bypass
        if not mapping.file:
            return None
        pid, start, image = record.pid, record.start_boot_ns, record.image
        if record.kind == abi.Kind.BYPASS:
            pid, start, image = target.pid, target.start_boot_ns, target.image
        try:
            process = self._proc / str(number_of(self._proc, pid))
            entry = process / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
            path = self._identities.waiting.run(record.uid, lambda: os.readlink(os.fsencode(entry)))
            is_its = recorded(image) is None or self._identities.runs(pid, start, recorded(image))
        # The process is gone, the mapping has changed, we may not look, or may not wait.
        except (OSError, TooLong):
            return None
        is_same = is_its and os.path.basename(path).startswith(mapping.file)
        return printable(path, classify.PATH_LIMIT) if is_same else None
