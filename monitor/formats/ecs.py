"""Events in the Elastic Common Schema."""

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
    listed,
    nested,
    path,
    stack_lines,
    text,
    time_text,
    translated,
    values,
)
from monitor.formats.own import OWN
from monitor.version import version

__all__ = ["FIELDS", "VERSION", "convert"]

VERSION = "9.4.0"

_KINDS = {
    **dict.fromkeys(("denial", "fault", "bypass", "suppression"), "alert"),
    **dict.fromkeys(("seal", "health"), "event"),
}
_CATEGORIES = {
    **dict.fromkeys(("denial", "bypass"), ("intrusion_detection", "process")),
    **dict.fromkeys(("fault", "seal", "suppression"), ("process",)),
    "health": ("host",),
}
_TYPES = {
    "denial": ("denied",),
    "bypass": ("allowed", "change"),
    "seal": ("change",),
    **dict.fromkeys(("fault", "suppression", "health"), ("info",)),
}
_OUTCOMES = {"denial": "failure", "bypass": "success", "seal": "success"}
_SEVERITIES = {"info": 21, "warning": 47, "critical": 99}

FIELDS: tuple[Field, ...] = (
    Field("@timestamp", "time", time_text),
    Field("ecs.version", "", always(VERSION), f"`{VERSION}`"),
    Field("message", "summary", text),
    Field("event.id", "id", text, "a document id that makes a repeated event harmless"),
    Field("event.kind", "kind", chosen(_KINDS), "`alert` for violations, else `event`"),
    Field("event.category", "kind", chosen(_CATEGORIES)),
    Field("event.type", "kind", chosen(_TYPES)),
    Field(
        "event.outcome",
        "kind",
        translated(_OUTCOMES),
        "`failure` of a denial, `success` of a bypass",
    ),
    Field("event.action", "operation cause method event kind", text),
    Field("event.severity", "severity", chosen(_SEVERITIES), "21, 47 or 99, as Elastic's rules"),
    Field("event.reason", "reason", text),
    Field("event.start", "first", time_text),
    Field("event.end", "last", time_text),
    Field("event.module", "", always("seal_monitor"), "`seal_monitor`"),
    Field("event.dataset", "", always("seal_monitor.events"), "`seal_monitor.events`"),
    Field("event.provider", "", always("seal-monitor"), "`seal-monitor`"),
    Field("log.level", "severity", text),
    Field("agent.type", "", always("seal-monitor"), "`seal-monitor`"),
    Field("agent.version", "", always(version()), "the version that converts"),
    Field("rule.name", "assessment.name", text),
    Field("rule.category", "assessment.likely", text),
    Field("host.id", "host.id", text),
    Field("host.name", "host.name", text),
    Field("host.hostname", "host.name", text),
    Field("host.boot.id", "host.boot_id", text),
    Field("host.os.type", "", always("linux"), "`linux`"),
    Field("host.os.kernel", "host.kernel_release", text),
    Field("process.pid", "process.pid", integer),
    Field("process.vpid", "process.vpid", integer),
    Field("process.parent.pid", "process.parent_pid", integer),
    Field("process.thread.id", "process.tid", integer),
    Field("process.thread.name", "process.name", text),
    Field("process.name", "process.executable", base_name),
    Field("process.executable", "process.executable", path, "where the path is known"),
    Field("process.command_line", "process.command_line", text),
    Field("process.start", "process.start", time_text),
    Field("process.real_user.id", "process.uid", digits),
    Field("process.real_user.name", "process.user_name", text),
    Field("process.real_group.id", "process.gid", digits),
    Field("process.real_group.name", "process.group_name", text),
    Field("user.id", "process.uid", digits),
    Field("user.name", "process.user_name", text),
    Field("related.user", "process.user_name", listed),
    Field("related.hosts", "host.name", listed),
    Field("container.id", "workload.container_id", text),
    Field("orchestrator.type", "workload.pod_uid", always("kubernetes"), "`kubernetes`"),
    Field("orchestrator.resource.type", "workload.pod_uid", always("pod"), "`pod`"),
    Field("orchestrator.resource.id", "workload.pod_uid", text),
    Field("file.path", "sealed.file.path mapping.file.path", text, "of the memory"),
    Field("file.device", "sealed.file.device mapping.file.device", text),
    Field("file.inode", "sealed.file.inode mapping.file.inode", digits),
    Field("error.stack_trace", "stack", stack_lines, "a frame a line, innermost first"),
    *OWN,
    Field("seal_monitor.build_id", "process.executable_build_id", text, "of the executable"),
)


def convert(event: Event) -> dict[str, Any]:
    """A document in objects, not with dots in names; `event.original` is the event's line.

    Raises FormatError for what is not an event of a known kind.
    """
    check(event)
    document = nested(values(FIELDS, event))
    document["event"]["original"] = encode(event).decode()
    return document
