"""The table of what can be configured: a new key is a row of `KEYS`, and a field in its section."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.configuration.values import (
    Check,
    absolute_path,
    base_url,
    build_id,
    host_id,
    host_names,
    integer,
    listen_address,
    non_empty,
    one_of,
    optional_path,
    ring_size,
    some_of,
    switch,
    unit,
    until,
    user,
)
from monitor.kernel.abi import WORKLOADS_MAX, Cause, Method, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import MODES

__all__ = ["KEYS", "MUTE_KEYS", "Key"]

_VERDICTS = tuple(verdict.label for verdict in Verdict)
_CAUSES = tuple(cause.label for cause in Cause)
_OPERATIONS = tuple(operation.name for operation in OPERATIONS)
_METHODS = tuple(method.label for method in Method)


@dataclass(frozen=True)
class Key:
    """A key: `default` as it would be written in the file, and the `flag` that overrides it.

    `reloads`: whether a change takes effect on SIGHUP, or only after a restart. `switches`: whether
    from nothing to something, and back, takes a restart all the same, and with it its section.
    """

    name: str
    default: object
    check: Check
    description: str
    flag: str | None = None
    reloads: bool = False
    switches: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(self.name.split("."))


KEYS: tuple[Key, ...] = (
    Key(
        "attach",
        "auto",
        one_of("auto", *MODES),
        'How probes are attached: "auto" (the best hook that each accepts), "fexit", "tracepoint" '
        'or "raw_tracepoint".',
        "--attach",
    ),
    Key(
        "web.listen_address",
        "127.0.0.1:10462",
        listen_address,
        "ADDR:PORT of /metrics, /-/healthy and /-/ready; an IPv6 address in brackets.",
        "--web.listen-address",
    ),
    Key(
        "web.config_file",
        "",
        optional_path,
        'TLS and basic auth, in the format of the Prometheus exporter toolkit; "" for neither. It '
        "is read again when it changes.",
        "--web.config.file",
    ),
    Key(
        "web.allowed_hosts",
        [],
        host_names,
        "Names by which clients may ask where neither TLS nor a password protects, besides "
        'addresses, localhost and the names of this host; "*" for any.',
    ),
    Key(
        "output.format",
        "auto",
        one_of("auto", "pretty", "json", "none"),
        'Standard output: "pretty", "json" (an event a line), "none" or "auto" (pretty on a '
        "terminal; where journald takes it, entries with fields; else json).",
        "--output",
    ),
    Key(
        "output.events_file",
        "",
        optional_path,
        'A file that events are also appended to, one JSON object a line; "" for none.',
        "--events-file",
    ),
    Key(
        "output.events_file_max_size",
        256 * 1024 * 1024,
        integer(1024 * 1024, 1 << 40),
        "Bytes of the events file with the two beside it. A third is for the oldest events "
        "(NAME.oldest.jsonl), the rest for the newest (NAME.previous.jsonl before the file); what "
        "is between is removed and counted.",
    ),
    Key(
        "output.journal",
        False,
        switch,
        'Whether events also go to journald; as a service they do by the format "auto".',
    ),
    Key(
        "events.denials",
        ["sealed", "unverified"],
        some_of(*_VERDICTS),
        f"Verdicts of denials that make events: {', '.join(_VERDICTS)}.",
        reloads=True,
    ),
    Key(
        "events.faults",
        [cause for cause in _CAUSES if cause != "other"],
        some_of(*_CAUSES),
        f"Causes of faults that make events: {', '.join(_CAUSES)}.",
        reloads=True,
    ),
    Key(
        "events.handled_faults",
        ["sealed"],
        some_of(*_CAUSES),
        "Causes of faults that make events although the process has a handler for them, as JVMs, "
        "V8 and Go have. Where the handler ends the process, events.faults holds.",
        reloads=True,
    ),
    Key("events.seals", False, switch, "Whether a successful mseal makes an event.", reloads=True),
    Key(
        "events.command_line",
        "redacted",
        one_of("redacted", "full", "off"),
        'Command lines in events: "redacted" (values that look secret replaced), "full" or "off".',
        reloads=True,
    ),
    Key(
        "rate_limit.per_caller",
        10,
        integer(1, 1_000_000),
        "Events a second for each process, operation or cause, and caller.",
        reloads=True,
    ),
    Key(
        "rate_limit.burst",
        100,
        integer(1, 1_000_000),
        "Events at once before that limit holds.",
        reloads=True,
    ),
    Key(
        "rate_limit.host",
        1000,
        integer(1, 1_000_000),
        "Events of each kind a second for the whole host.",
        reloads=True,
    ),
    Key(
        "canary.interval",
        60,
        integer(0, 86400),
        "Seconds from one canary to the next; 0: only at start.",
        reloads=True,
    ),
    Key(
        "workloads.maximum",
        64,
        integer(1, WORKLOADS_MAX),
        'Workloads with metrics of their own; any further one counts as "other".',
    ),
    Key(
        "ring.size",
        2 * 1024 * 1024,
        ring_size,
        "Bytes of the ring buffer, a power of two from 65536 to 67108864.",
    ),
    Key(
        "watch.compat",
        False,
        switch,
        "Whether to watch 32-bit callers (int 0x80) where fexit hooks do not see them anyway.",
    ),
    Key(
        "watch.io_uring",
        False,
        switch,
        "Whether to watch madvise through io_uring where fexit hooks do not see it anyway.",
    ),
    Key(
        "host.id",
        "",
        host_id,
        'The id of this host in events, such as the one that its cloud gives it; "" for the '
        "machine id in /etc/machine-id.",
    ),
    Key(
        "state.directory",
        "",
        optional_path,
        "A directory for incidents, and for what the next run needs to know of this one: when it "
        'was last alive, how it ended; "" for the one that systemd gives, else '
        "/var/lib/seal-monitor if it is there.",
    ),
    Key(
        "state.pin",
        "",
        absolute_path,
        "A directory in a bpffs, such as /sys/fs/bpf/seal-monitor, that keeps what is attached "
        'while the monitor is started again; it is made where it is missing. "": systemd keeps it, '
        "where it runs the service.",
    ),
    Key(
        "state.pin_on_stop",
        "remove",
        one_of("remove", "keep"),
        'What a stop does to it: "remove", or "keep", so that the next start goes on, as in the '
        'update of a DaemonSet. Then only "seal-monitor detach" or a reboot ends it.',
    ),
    Key(
        "incidents.enabled",
        True,
        switch,
        "Whether events are also kept as incidents, in incidents.db in the state directory.",
    ),
    Key(
        "incidents.max_age",
        30,
        integer(1, 3650),
        "Days after which an incident that was not seen again is removed.",
    ),
    Key(
        "incidents.max_size",
        64 * 1024 * 1024,
        integer(1024 * 1024, 1 << 40),
        "Bytes of the database and its log; incidents beyond their owners' shares are removed.",
    ),
    Key(
        "incidents.events_kept",
        20,
        integer(1, 1000),
        "How many events of an incident are kept whole, the last ones and the worst one of each "
        "owner; all are counted.",
    ),
    Key(
        "incidents.snapshots",
        True,
        switch,
        "Whether a snapshot of the violating process is taken, once for each incident: "
        "its mappings with their seals, modules, limits, seccomp and parents.",
        reloads=True,
    ),
    Key(
        "posture.interval",
        3600,
        integer(0, 30 * 86400),
        "Seconds from one look at what all processes have sealed to the next; 0: never.",
        reloads=True,
    ),
    Key(
        "otlp.endpoint",
        "",
        base_url,
        "Base URL of a collector that events are sent to, as in https://collector.example:4318; "
        '/v1/logs is added. "" for none.',
        reloads=True,
        switches=True,
    ),
    Key(
        "otlp.headers_file",
        "",
        optional_path,
        "A file of HTTP headers, Name: value, one a line, as for credentials. Only root, its owner "
        "and its group may read it.",
        reloads=True,
    ),
    Key(
        "otlp.ca_file",
        "",
        optional_path,
        'Certificates, in PEM, of the authorities by which the collector is checked; "" for those '
        "of the system.",
        reloads=True,
    ),
    Key(
        "otlp.certificate_file",
        "",
        optional_path,
        'The client\'s certificate, in PEM; "" for none.',
        reloads=True,
    ),
    Key(
        "otlp.key_file",
        "",
        optional_path,
        "Its key, in PEM, not encrypted. Only root, its owner and its group may read it.",
        reloads=True,
    ),
    Key(
        "otlp.compression",
        "gzip",
        one_of("gzip", "none"),
        'How requests are compressed: "gzip" or "none".',
        reloads=True,
    ),
    Key(
        "otlp.timeout",
        10,
        integer(1, 300),
        "Seconds that a request may take, from the connection to the answer.",
        reloads=True,
    ),
    Key(
        "otlp.spool_max_size",
        64 * 1024 * 1024,
        integer(1024 * 1024, 1 << 40),
        "Bytes of events that may wait for the collector, in the state directory; then the least "
        "severe go first, of those the oldest.",
        reloads=True,
    ),
)

MUTE_KEYS: tuple[Key, ...] = (
    Key("mute.executable", None, non_empty, "Glob: with a slash for the path, else the base name."),
    Key("mute.program", None, non_empty, "Glob: the same of the program that a loader runs."),
    Key("mute.operation", None, one_of(*_OPERATIONS), "The operation of the denials to mute."),
    Key("mute.cause", None, one_of(*_CAUSES), "The cause of the faults to mute."),
    Key("mute.method", None, one_of(*_METHODS), "The method of the bypasses to mute."),
    Key("mute.owner", None, user, "Name or number of the user whose file the executable is."),
    Key("mute.user", None, user, "Name or number of the user whose process it is."),
    Key("mute.unit", None, unit, "Glob: the systemd unit; of a user's, user@UID.service/UNIT."),
    Key("mute.build_id", None, build_id, "The GNU build id of the executable, in hexadecimal."),
    Key("mute.until", None, until, "The last date or time of the entry; none: for ever."),
    Key("mute.reason", None, non_empty, "Why these are known and harmless."),
)
