"""The event contract: what one line of output holds, by kind, and the version of its schema.

`events.schema.json` says the same for other programs; a test compares the two field by field.
Addresses are "0x..." strings, sizes and offsets are bytes, times are RFC 3339 in UTC.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping as ReadOnlyMapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

from monitor.evidence.fingerprint import fingerprint

__all__ = [
    "HEALTH_SEVERITY",
    "SCHEMA_VERSION",
    "AddressRange",
    "Assessment",
    "Bypass",
    "Denial",
    "Event",
    "Fault",
    "File",
    "Frame",
    "Health",
    "Host",
    "Identified",
    "Likely",
    "Mapping",
    "Origin",
    "Process",
    "Program",
    "Seal",
    "Sealed",
    "Severity",
    "Suppression",
    "Target",
    "Workload",
    "clock_offset",
    "encode",
    "event_id",
    "nanoseconds",
    "schema",
    "timestamp",
    "to_dict",
]

# It grows by one when a field is added. A field keeps its name, type and meaning, so whoever reads
# by name, and ignores what it does not know, reads every later version.
SCHEMA_VERSION = 2  # 2 added `fingerprint` and `host.id`

Severity = Literal["info", "warning", "critical"]
Likely = Literal["attack", "bug", "leak", "unknown", "handled"]

# Every `event` of kind health with its severity. Critical: the monitor does not see.
HEALTH_SEVERITY: ReadOnlyMapping[str, Severity] = {
    "started": "info",
    "stopped": "info",
    "reloaded": "info",
    "reload_failed": "warning",
    "probe_lost": "critical",
    "probe_degraded": "warning",
    "runs_missed": "warning",
    "events_dropped": "warning",
    "records_corrupt": "critical",
    "sink_failed": "warning",
    "sink_recovered": "info",
    "collector_refused": "warning",
    "spool_dropped": "warning",
    "canary_failed": "critical",
    "canary_recovered": "info",
    "state_failed": "warning",
    "posture_failed": "warning",
    "events_file_full": "warning",
    "sealing_stopped": "warning",
    "sealing_resumed": "info",
    "incidents_removed": "warning",
    "trials_announced": "info",
    "trials_ended": "info",
    "announcement_refused": "warning",
}


@dataclass(frozen=True, slots=True)
class Host:
    """`id` is the machine id (machine-id(5)), or what the configuration says; None without one."""

    name: str
    boot_id: str
    kernel_release: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Identified:
    """How much of a process is known; `reason`: why not all, for a person."""

    result: Literal["complete", "partial", "gone", "reused"]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Program:
    """What a process runs whose executable is a dynamic loader; `files` is as in Process."""

    path: str
    files: Literal["host", "namespace"] | None


@dataclass(frozen=True, slots=True)
class Process:
    """`executable` is the full path if /proc still had it, else the base name.

    `executable_owner` is the uid of its file's owner, where that proves whose file it is.
    """

    pid: int
    tid: int | None
    parent_pid: int | None
    vpid: int | None
    name: str
    executable: str | None
    command_line: str | None
    start: str | None
    uid: int | None
    gid: int | None
    user_name: str | None
    group_name: str | None
    identity: Identified | None = None
    files: Literal["host", "namespace"] | None = None
    executable_owner: int | None = None
    executable_build_id: str | None = None
    program: Program | None = None

    @property
    def is_system_program(self) -> bool:
        """Whether its executable is known to be the host's own file, and root's."""
        return self.files == "host" and self.executable_owner == 0


@dataclass(frozen=True, slots=True)
class Workload:
    unit: str | None
    container_id: str | None
    pod_uid: str | None
    cgroup: str | None


@dataclass(frozen=True, slots=True)
class File:
    path: str
    device: str
    inode: int
    offset: int


@dataclass(frozen=True, slots=True)
class Mapping:
    start: str
    end: str
    permissions: str
    sealed: bool
    file: File | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Sealed:
    start: str
    end: str
    permissions: str
    file: File | None
    name: str | None


@dataclass(frozen=True, slots=True)
class AddressRange:
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a violation probably is. `name` is a row of the table in assessment.py."""

    name: str
    likely: Likely


@dataclass(frozen=True, slots=True)
class Target:
    """The process whose memory was changed; `executable` and `files` are as in Process."""

    pid: int
    start: str
    name: str
    executable: str | None
    files: Literal["host", "namespace"] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """`module` is a file's base name; `offset` is the place of `address` in that file."""

    address: str
    module: str | None
    build_id: str | None
    offset: int | None
    symbol: str | None


@dataclass(frozen=True, slots=True)
class Origin:
    """What every kind of event needs besides its own facts: when, where and who."""

    id: str
    time: str
    time_boot_ns: int
    host: Host
    process: Process | None
    workload: Workload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`fingerprint` is the id of its incident (fingerprint.py); to_dict fills it in."""

    schema: int = field(default=SCHEMA_VERSION, init=False)
    id: str
    time: str
    time_boot_ns: int
    kind: str = field(init=False)
    severity: Severity
    summary: str
    fingerprint: str | None = field(default=None, init=False)
    host: Host
    process: Process | None
    workload: Workload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial(Event):
    kind: str = field(default="denial", init=False)
    operation: str
    arguments: dict[str, str | int | list[str]]
    verdict: str
    reason: str | None
    assessment: Assessment | None
    role: str
    sealed: Sealed | None
    partial_update: AddressRange | None
    hidden: bool
    compat: bool
    instruction_pointer: str
    caller: str
    stack: tuple[Frame, ...]
    stack_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Event):
    kind: str = field(default="fault", init=False)
    cause: str
    inferred: bool
    assessment: Assessment | None
    access: str
    address: str
    mapping: Mapping | None
    disposition: str
    instruction_pointer: str
    pkey: int | None
    signal_code: int
    stack: tuple[Frame, ...]
    stack_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(Event):
    kind: str = field(default="seal", init=False)
    start: str
    length: int
    mapping: Mapping | None
    caller: str
    stack: tuple[Frame, ...]
    stack_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass(Event):
    kind: str = field(default="bypass", init=False)
    method: str
    assessment: Assessment | None
    target: Target | None
    changed: AddressRange
    sealed: Sealed
    compat: bool
    instruction_pointer: str
    caller: str
    stack: tuple[Frame, ...]
    stack_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression(Event):
    kind: str = field(default="suppression", init=False)
    of: str
    operation: str | None
    cause: str | None
    method: str | None
    caller: str | None
    count: int
    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Event):
    kind: str = field(default="health", init=False)
    event: str
    message: str
    blind_seconds: float | None
    details: dict[str, object]


def _reader(cls: type[Any]) -> tuple[tuple[str, ...], attrgetter[tuple[object, ...]]]:
    names = tuple(item.name for item in fields(cls))
    return names, attrgetter(*names)


_READERS: dict[type, tuple[tuple[str, ...], attrgetter[tuple[object, ...]]]] = {
    cls: _reader(cls)
    for cls in (
        *(
            Host,
            Process,
            Program,
            Identified,
            Workload,
            File,
            Mapping,
            Sealed,
            AddressRange,
            Assessment,
        ),
        *(Frame, Denial, Fault, Seal, Bypass, Suppression, Health, Target),
    )
}


def _plain(value: object) -> object:
    reader = _READERS.get(type(value))
    if reader is not None:
        names, read = reader
        return dict(zip(names, map(_plain, read(value)), strict=True))
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def to_dict(event: Event) -> dict[str, object]:
    """The event as JSON-ready dicts and lists, keys in the contract's order, with its fingerprint.

    `arguments` and `details` are shared with the event, not copied.
    """
    names, read = _READERS[type(event)]
    document = dict(zip(names, map(_plain, read(event)), strict=True))
    # The place of those that a suppression counts is not known.
    if not isinstance(event, Suppression):
        document["fingerprint"] = fingerprint(document).id
    return document


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(document: ReadOnlyMapping[str, object]) -> bytes:
    """An event's line, without its end: JSON in UTF-8.

    A lone surrogate becomes the escape that stands for it in JSON.
    """
    return _ENCODER.encode(document).encode("utf-8", "backslashreplace")


def event_id(boot_id: str, time_boot_ns: int, sequence: int) -> str:
    """An id that sorts by time within a boot and is unique; `sequence` wraps at 32 bits."""
    return f"{boot_id[:8]}-{time_boot_ns:016x}-{sequence & 0xFFFFFFFF:08x}"


def clock_offset() -> int:
    """Nanoseconds from the boot clock to the real-time clock, now."""
    boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - boot


def timestamp(boot_ns: int, offset_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds; `offset_ns` is the real-time clock minus the boot clock."""
    seconds, nanoseconds = divmod(boot_ns + offset_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def nanoseconds(time: str) -> int:
    """Unix time in ns of an event's time: RFC 3339, in UTC, with nine digits after the point.

    Raises ValueError, OverflowError.
    """
    return int(datetime.fromisoformat(f"{time[:19]}+00:00").timestamp()) * 1_000_000_000 + int(
        time[20:29]
    )


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every emitted event satisfies."""
    from importlib import resources  # noqa: PLC0415 - a daemon reads no schema

    text = resources.files("monitor").joinpath("events.schema.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
