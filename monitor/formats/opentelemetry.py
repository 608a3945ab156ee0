"""Events as OpenTelemetry log records, in the JSON form of OTLP.

The names are those of the semantic conventions where these have one for the same thing, and begin
with `seal_monitor.` where they have none. The body is the event's own line, so nothing is lost.

uid is the real one, as the kernel's bpf_get_current_uid_gid() returns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from monitor.evidence.events import encode
from monitor.formats.fields import (
    Event,
    Field,
    FormatError,
    always,
    base_name,
    check,
    integer,
    path,
    since_1970,
    stack_lines,
    text,
    values,
)
from monitor.formats.own import OWN
from monitor.version import version

__all__ = [
    "ATTRIBUTES",
    "CONVENTIONS",
    "RESOURCE",
    "SCHEMA_URL",
    "SEVERITIES",
    "log_record",
    "request",
    "resource",
]

CONVENTIONS = "1.44.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{CONVENTIONS}"

# Those of syslog's info, warning and crit, which the journal has for the same events.
SEVERITIES: Mapping[str, int] = {"info": 9, "warning": 13, "critical": 18}


def _cgroup(value: object) -> str:
    return f"0::{text(value)}"


RESOURCE: tuple[Field, ...] = (
    Field("service.name", "", always("seal-monitor"), "`seal-monitor`"),
    Field("service.version", "", always(version()), "the version that converts"),
    Field("host.id", "host.id", text),
    Field("host.name", "host.name", text),
    Field("os.type", "", always("linux"), "`linux`"),
    Field("os.version", "host.kernel_release", text, "the kernel's release"),
    Field("seal_monitor.boot_id", "host.boot_id", text),
)

ATTRIBUTES: tuple[Field, ...] = (
    Field("log.record.uid", "id", text, "records with the same one are duplicates"),
    Field("process.pid", "process.pid", integer),
    Field("process.parent_pid", "process.parent_pid", integer),
    Field("process.vpid", "process.vpid", integer),
    Field("process.creation.time", "process.start", text),
    Field("process.executable.path", "process.executable", path, "where the path is known"),
    Field("process.executable.name", "process.executable", base_name),
    Field("process.executable.build_id.gnu", "process.executable_build_id", text),
    Field("process.command_line", "process.command_line", text),
    Field("process.real_user.id", "process.uid", integer),
    Field("process.real_user.name", "process.user_name", text),
    Field("process.linux.cgroup", "workload.cgroup", _cgroup, "as in `/proc/PID/cgroup`"),
    Field("thread.name", "process.name", text),
    Field("container.id", "workload.container_id", text),
    Field("k8s.pod.uid", "workload.pod_uid", text),
    Field("security_rule.name", "assessment.name", text),
    Field("security_rule.category", "assessment.likely", text),
    Field("code.stacktrace", "stack", stack_lines, "a frame a line, innermost first"),
    Field("seal_monitor.thread_id", "process.tid", integer, "the kernel's, not a runtime's"),
    *OWN,
)


def log_record(event: Event) -> dict[str, Any]:
    """A LogRecord: the same of the same event, whenever it is sent.

    Raises FormatError for what is not an event.
    """
    check(event)
    try:
        time = str(since_1970(event["time"]))
    except FormatError as error:
        raise FormatError(f"time {error}") from error
    severity = event["severity"]
    if severity not in SEVERITIES:
        raise FormatError(f"severity is none of {', '.join(SEVERITIES)}")
    return {
        "timeUnixNano": time,
        "observedTimeUnixNano": time,
        "severityNumber": SEVERITIES[severity],
        "severityText": severity,
        "eventName": f"seal_monitor.{text(event['kind'])}",
        "body": {"stringValue": encode(event).decode()},
        "attributes": [*_attributes(ATTRIBUTES, event)],
    }


def resource(event: Event) -> dict[str, Any]:
    """The Resource of an event: this program on the event's host. Raises FormatError."""
    return {"attributes": [*_attributes(RESOURCE, event)]}


def request(events: Iterable[Event]) -> dict[str, Any]:
    """An ExportLogsServiceRequest with the events, together where they are of the same host.

    It is also a LogsData, a line of which collectors read from files. Raises FormatError.
    """
    groups: dict[tuple[object, ...], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for event in events:
        key = tuple(values(RESOURCE, event))
        if key not in groups:
            groups[key] = (resource(event), [])
        groups[key][1].append(log_record(event))
    scope = {"name": "seal-monitor", "version": version()}
    return {
        "resourceLogs": [
            {
                "resource": of,
                "scopeLogs": [{"scope": scope, "logRecords": records, "schemaUrl": SCHEMA_URL}],
                "schemaUrl": SCHEMA_URL,
            }
            for of, records in groups.values()
        ]
    }


def _attributes(table: Iterable[Field], event: Event) -> Iterator[dict[str, Any]]:
    for name, value in values(table, event):
        yield {"key": name, "value": _any_value(value)}


def _any_value(value: str | bool | int | float) -> dict[str, Any]:
    """An AnyValue; the JSON of protobuf has integers of 64 bits as strings."""
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
    return {"stringValue": value}
