"""What no convention has a name for, under the same names in every format."""

from __future__ import annotations

from monitor.formats.fields import Field, decimal, flag, integer, mapped, text

__all__ = ["OWN"]

OWN: tuple[Field, ...] = (
    Field("seal_monitor.schema", "schema", integer),
    Field("seal_monitor.kind", "kind", text),
    Field("seal_monitor.fingerprint", "fingerprint", text),
    Field("seal_monitor.operation", "operation", text),
    Field("seal_monitor.cause", "cause", text),
    Field("seal_monitor.method", "method", text),
    Field("seal_monitor.verdict", "verdict", text),
    Field("seal_monitor.reason", "reason", text),
    Field("seal_monitor.access", "access", text),
    Field("seal_monitor.disposition", "disposition", text),
    Field("seal_monitor.address", "address changed.start sealed.start start", text),
    Field("seal_monitor.memory", "sealed mapping", mapped, "the file, or the name of the memory"),
    Field("seal_monitor.hidden", "hidden", flag),
    Field("seal_monitor.identity", "process.identity.result", text),
    Field("seal_monitor.files", "process.files", text),
    Field("seal_monitor.executable_owner", "process.executable_owner", integer),
    Field("seal_monitor.program", "process.program.path", text),
    Field("seal_monitor.unit", "workload.unit", text),
    Field("seal_monitor.target.pid", "target.pid", integer),
    Field("seal_monitor.target.executable", "target.executable", text),
    Field("seal_monitor.of", "of", text, "the kind that was held back"),
    Field("seal_monitor.count", "count", integer),
    Field("seal_monitor.event", "event", text),
    Field("seal_monitor.blind_seconds", "blind_seconds", decimal),
)
