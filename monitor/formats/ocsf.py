"""Events in the Open Cybersecurity Schema Framework.

A violation is a Memory Activity (class 1004), what it is by its definition: "a process has memory
allocated, read/modified, or other manipulation", with the profile of security controls for
what became of it. It is no Detection Finding: that is what somebody concludes from such events, it
is updated and closed, and OCSF's own guide has single alerts as activities. What has no process, as
the monitor's own health, is a Base Event (class 0).
"""

from __future__ import annotations

from typing import Any

from monitor.evidence.events import encode
from monitor.formats.fields import (
    Event,
    Field,
    always,
    base_name,
    check,
    chosen,
    digits,
    integer,
    lookup,
    milliseconds,
    nested,
    path,
    text,
    translated,
    values,
)
from monitor.formats.own import OWN
from monitor.version import version

__all__ = ["BASE", "COMMON", "MEMORY", "OF_ITSELF", "OF_TARGET", "VERSION", "convert"]

VERSION = "1.8.0"
_MEMORY_ACTIVITY = 1004
_OTHER = 99

_MODIFY, _DELETE, _OVERFLOW, _READ, _WRITE, _MAP = 2, 3, 4, 7, 8, 9
_ACTIVITIES = {
    **dict.fromkeys(("mprotect", "pkey_mprotect"), _MODIFY),
    **dict.fromkeys(("munmap", "shmdt", "brk"), _DELETE),
    **dict.fromkeys(("madvise", "process_madvise", "io_uring_madvise"), _DELETE),
    **dict.fromkeys(("mmap", "mremap", "shmat", "remap_file_pages"), _MAP),
    **dict.fromkeys(("madvise_discard", "guard_remove"), _DELETE),
    **dict.fromkeys(("ptrace_poke", "proc_mem_write"), _WRITE),
    **dict.fromkeys(("userfaultfd_copy", "userfaultfd_move"), _WRITE),
    **dict.fromkeys(("guard_region", "stack_guard"), _OVERFLOW),
    "read": _READ,
    "write": _WRITE,
    **dict.fromkeys(("denial", "fault", "seal", "bypass", "suppression"), _OTHER),
}
_ACTIVITY_NAMES = {
    _MODIFY: "Modify Page",
    _DELETE: "Delete Page",
    _OVERFLOW: "Buffer Overflow",
    _READ: "Read",
    _WRITE: "Write",
    _MAP: "Map View",
}
# For a fault the access matters where the memory does not say enough.
_ACTIVITY = "operation method cause access kind"
_KINDS = {name: name for name in ("denial", "fault", "seal", "bypass", "suppression", "health")}
_SEVERITIES = {"info": 1, "warning": 3, "critical": 5}
_SEVERITY_NAMES = {"info": "Informational", "warning": "Medium", "critical": "Critical"}
_STATUSES = {"denial": 2, "fault": 2, "seal": 1, "bypass": 1}
_ACTIONS = {"denial": 2, "fault": 2, "bypass": 3}
_DISPOSITIONS = {"denial": 2, "fault": 2, "bypass": 15}
_CONFIDENCES = {"sealed": 3, "unverified": 2}


def _type(value: object) -> int | None:
    activity = translated(_ACTIVITIES)(value)
    return None if activity is None else _MEMORY_ACTIVITY * 100 + activity


def _activity_name(value: object) -> str | None:
    activity = translated(_ACTIVITIES)(value)
    if activity is None:
        return None
    return _ACTIVITY_NAMES.get(activity, text(value))


def _is_alert(value: object) -> bool:
    return text(value) != "info"


def _process(name: str, source: str) -> tuple[Field, ...]:
    """What both processes of a bypass have."""
    file = f"{name}.file"
    return (
        Field(f"{name}.pid", f"{source}.pid", integer),
        Field(f"{name}.name", f"{source}.executable {source}.name", base_name),
        Field(f"{name}.created_time", f"{source}.start", milliseconds),
        Field(f"{file}.name", f"{source}.executable", base_name),
        Field(f"{file}.path", f"{source}.executable", path, "where the path is known"),
        Field(f"{file}.type_id", f"{source}.executable", always(1), "1 (Regular File)"),
    )


COMMON: tuple[Field, ...] = (
    Field("metadata.version", "", always(VERSION), f"`{VERSION}`"),
    Field("metadata.product.name", "", always("seal-monitor"), "`seal-monitor`"),
    Field("metadata.product.vendor_name", "", always("seal-monitor"), "`seal-monitor`"),
    Field("metadata.product.version", "", always(version()), "the version that converts"),
    Field("metadata.uid", "id", text),
    Field("metadata.correlation_uid", "fingerprint", text),
    Field("metadata.event_code", "kind", chosen(_KINDS)),
    Field("metadata.original_time", "time", text),
    Field("time", "time", milliseconds, "in ms"),
    Field("severity_id", "severity", chosen(_SEVERITIES), "1, 3 or 5"),
    Field("severity", "severity", chosen(_SEVERITY_NAMES)),
    Field("message", "summary", text),
    Field("count", "count", integer),
    Field("start_time", "first", milliseconds),
    Field("end_time", "last", milliseconds),
    Field("status_id", "of kind", translated(_STATUSES), "1 (Success) of a bypass or seal, else 2"),
    Field("status_detail", "reason", text),
    Field("device.uid", "host.id", text),
    Field("device.hostname", "host.name", text),
    Field("device.boot_uid", "host.boot_id", text),
    Field("device.type_id", "", always(0), "0 (Unknown)"),
    Field("device.os.name", "", always("Linux"), "`Linux`"),
    Field("device.os.type_id", "", always(200), "200 (Linux)"),
    Field("device.os.kernel_release", "host.kernel_release", text),
    *(field._replace(name=f"unmapped.{field.name}") for field in OWN),
)

MEMORY: tuple[Field, ...] = (
    Field("category_uid", "", always(1), "1 (System Activity)"),
    Field("class_uid", "", always(_MEMORY_ACTIVITY), f"{_MEMORY_ACTIVITY} (Memory Activity)"),
    Field("activity_id", _ACTIVITY, translated(_ACTIVITIES), "2, 3, 4, 7, 8, 9, else 99"),
    Field("activity_name", _ACTIVITY, _activity_name),
    Field("type_uid", _ACTIVITY, _type),
    Field("action_id", "of kind", translated(_ACTIONS), "2 (Denied); of a bypass 3 (Observed)"),
    Field("disposition_id", "of kind", translated(_DISPOSITIONS), "2 (Blocked), or 15 (Detected)"),
    Field("is_alert", "severity", _is_alert, "unless it is `info`"),
    Field(
        "confidence_id",
        "verdict",
        translated(_CONFIDENCES),
        "3 (High) of `sealed`, 2 (Medium) of `unverified`",
    ),
    Field("base_address", "address changed.start sealed.start start", text),
    *_process("actor.process", "process"),
    Field("actor.process.tid", "process.tid", integer),
    Field("actor.process.cmd_line", "process.command_line", text),
    Field("actor.process.parent_process.pid", "process.parent_pid", integer),
    Field("actor.process.user.uid", "process.uid", digits),
    Field("actor.process.user.name", "process.user_name", text),
    Field("actor.user.uid", "process.uid", digits),
    Field("actor.user.name", "process.user_name", text),
    Field("unmapped.seal_monitor.container_id", "workload.container_id", text),
    Field("unmapped.seal_monitor.pod_uid", "workload.pod_uid", text),
    Field("unmapped.seal_monitor.cgroup", "workload.cgroup", text),
    Field("unmapped.seal_monitor.build_id", "process.executable_build_id", text),
    Field("unmapped.seal_monitor.assessment", "assessment.name", text),
    Field("unmapped.seal_monitor.likely", "assessment.likely", text),
)
# Whose memory it is.
OF_ITSELF = _process("process", "process")
OF_TARGET = _process("process", "target")

BASE: tuple[Field, ...] = (
    Field("category_uid", "", always(0), "0 (Uncategorized)"),
    Field("class_uid", "", always(0), "0 (Base Event)"),
    Field("activity_id", "", always(_OTHER), f"{_OTHER} (Other)"),
    Field("activity_name", "event kind", text),
    Field("type_uid", "", always(_OTHER), f"{_OTHER}"),
)


def convert(event: Event) -> dict[str, Any]:
    """An OCSF event; `raw_data` is the event's line.

    Raises FormatError for what is not an event of a known kind.
    """
    check(event)
    table: tuple[Field, ...] = (*COMMON, *BASE)
    profiles = ["host"]
    if event["kind"] != "health" and lookup(event, "process") is not None:
        whose = OF_ITSELF if lookup(event, "target") is None else OF_TARGET
        table = (*COMMON, *MEMORY, *whose)
        profiles.append("security_control")
    document = nested(values(table, event))
    document["metadata"]["profiles"] = profiles
    document["raw_data"] = encode(event).decode()
    return document
