"""TOML and command-line overrides -> one frozen `Config`; a clear message for every mistake.

`KEYS` is the table of what can be configured: a new key is a row there and a field in its section.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from monitor.configuration.files import (
    ConfigError,
    Source,
    drop_ins,
    main_file,
    require_readable_again,
)
from monitor.configuration.mutes import Mute
from monitor.configuration.toml_lines import KeyPath, key_lines, line_of
from monitor.configuration.values import (
    Check,
    Invalid,
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
from monitor.untrusted.redact import CommandLine

__all__ = [
    "DEFAULT_PATH",
    "KEYS",
    "Config",
    "ConfigError",
    "Key",
    "Placed",
    "load",
    "load_again",
    "load_placed",
    "parse",
]

DEFAULT_PATH = Path("/etc/seal-monitor/config.toml")


@dataclass(frozen=True)
class Web:
    listen_address: tuple[str, int]
    config_file: Path | None
    allowed_hosts: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    format: str
    events_file: Path | None
    events_file_max_size: int
    journal: bool


@dataclass(frozen=True)
class Events:
    denials: tuple[str, ...]
    faults: tuple[str, ...]
    handled_faults: tuple[str, ...]
    seals: bool
    command_line: CommandLine


@dataclass(frozen=True)
class RateLimit:
    per_caller: int
    burst: int
    host: int  # 0: no limit; a file cannot set that


@dataclass(frozen=True)
class Canary:
    interval: int


@dataclass(frozen=True)
class Workloads:
    maximum: int


@dataclass(frozen=True)
class Ring:
    size: int


@dataclass(frozen=True)
class Watch:
    compat: bool
    io_uring: bool


@dataclass(frozen=True)
class Host:
    id: str  # "": the machine id


@dataclass(frozen=True)
class State:
    directory: Path | None
    pin: Path | None
    pin_on_stop: str


@dataclass(frozen=True)
class Incidents:
    enabled: bool
    max_age: int
    max_size: int
    events_kept: int
    snapshots: bool


@dataclass(frozen=True)
class Posture:
    interval: int


@dataclass(frozen=True)
class Otlp:
    endpoint: str  # "": nothing is sent
    headers_file: Path | None
    ca_file: Path | None
    certificate_file: Path | None
    key_file: Path | None
    compression: str
    timeout: float
    spool_max_size: int


@dataclass(frozen=True)
class Config:
    attach: str
    web: Web
    output: Output
    events: Events
    rate_limit: RateLimit
    canary: Canary
    workloads: Workloads
    ring: Ring
    watch: Watch
    host: Host
    state: State
    incidents: Incidents
    posture: Posture
    otlp: Otlp
    mutes: tuple[Mute, ...]


class Placed(NamedTuple):
    """A configuration, and where it comes from.

    `places` are FILE:LINE, or "command line", by the names of the keys that are set;
    `mute_places` are those of `config.mutes`.
    """

    config: Config
    files: tuple[str, ...]
    places: Mapping[str, str]
    mute_places: tuple[str, ...]


_SECTIONS: Mapping[str, type] = {
    "web": Web,
    "output": Output,
    "events": Events,
    "rate_limit": RateLimit,
    "canary": Canary,
    "workloads": Workloads,
    "ring": Ring,
    "watch": Watch,
    "host": Host,
    "state": State,
    "incidents": Incidents,
    "posture": Posture,
    "otlp": Otlp,
}


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

_MUTE_KEYS: tuple[Key, ...] = (
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

_BY_PATH = {key.path: key for key in KEYS}
_BY_NAME = {key.name: key for key in KEYS}
_MUTE_BY_PATH = {key.path: key for key in _MUTE_KEYS}
_MUTED = {key.path[1] for key in _MUTE_KEYS} - {"until", "reason"}


def _dotted(path: KeyPath) -> str:
    parts = [part for part in path if isinstance(part, str)]
    text = ".".join(
        part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in parts
    )
    return text if len(text) <= 100 else text[:97] + "..."


def _unknown(path: KeyPath, keys: Mapping[tuple[str, ...], Key]) -> str:
    if path[0] in _SECTIONS and len(path) == 1:
        return f"it is a section; write [{path[0]}] and its keys on the lines beneath"
    names = [".".join(known) for known in keys]
    if len(path) == 1:
        names += [*_SECTIONS, "mute"]
    import difflib  # noqa: PLC0415 - only needed for mistakes

    nearest = difflib.get_close_matches(_dotted(path), names, n=1, cutoff=0.0)[0]
    return f"there is no such key; the nearest valid one is '{nearest}'"


class _Reader:
    """Checks the values of a file one by one and collects the mistakes."""

    def __init__(self, name: str, lines: Mapping[KeyPath, int]) -> None:
        self._name = name
        self._lines = lines
        self.mistakes: list[tuple[int, str]] = []  # line, message

    def place(self, path: KeyPath) -> str:
        return f"{self._name}:{line_of(self._lines, path)}"

    def mistake(self, path: KeyPath, text: str) -> None:
        message = f"{self.place(path)}: key '{_dotted(path)}': {text}"
        self.mistakes.append((line_of(self._lines, path), message))

    def value(
        self, keys: Mapping[tuple[str, ...], Key], place: KeyPath, value: object
    ) -> tuple[Key, object] | None:
        path = tuple(part for part in place if isinstance(part, str))
        if path not in keys:
            self.mistake(place, _unknown(path, keys))
            return None
        try:
            return keys[path], keys[path].check(value)
        except Invalid as error:
            self.mistake(place, str(error))
            return None

    def mutes(self, entries: object) -> tuple[Mute, ...]:
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.mistake(("mute",), "it is a list of tables; write [[mute]] above each entry")
            return ()
        found = (self._mute(("mute", index), entry) for index, entry in enumerate(entries))
        return tuple(mute for mute in found if mute)

    def _mute(self, place: KeyPath, entry: Mapping[str, object]) -> Mute | None:
        before = len(self.mistakes)
        values: dict[str, Any] = {key.path[1]: None for key in _MUTE_KEYS}
        for name, value in entry.items():
            if (checked := self.value(_MUTE_BY_PATH, (*place, name), value)) is not None:
                values[name] = checked[1]
        if "reason" not in entry:
            self.mistake(place, 'it has no reason; add one, as in reason = "unmaps what it sealed"')
        named = entry.keys() & {"operation", "cause", "method"}
        if not entry.keys() & _MUTED:
            self.mistake(
                place,
                "it names nothing to mute; add executable, program, operation, cause, method, "
                "owner, user, unit or build_id",
            )
        if len(named) > 1:
            self.mistake(
                place,
                "only denials have an operation, only faults a cause, only bypasses a method; "
                "write an entry for each",
            )
        return Mute(**values) if len(self.mistakes) == before else None


def _leaves(document: Mapping[str, Any]) -> Iterator[tuple[KeyPath, object]]:
    for key, value in document.items():
        if key in _SECTIONS and isinstance(value, dict):
            yield from (((key, leaf), item) for leaf, item in value.items())
        elif key != "mute":
            yield (key,), value


def _syntax_error(error: Exception, source: Source) -> str:
    place, what = source.name, str(error)
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    elif "int_max_str_digits" in what:
        what = "a number of thousands of digits"
    elif found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", what, re.DOTALL):
        place, what = f"{source.name}:{found[2]}", f"{found[1]} at column {found[3]}"
    elif what.endswith("(at end of document)"):
        place = f"{source.name}:{len(source.text.splitlines()) or 1}"
    return (
        f"{place}: not valid TOML: {what}; "
        "write key = value, strings in quotes, switches as true or false"
    )


class _Merged:
    """What the files say together: a later one replaces a key and adds mutes."""

    def __init__(self) -> None:
        self.values = {key.path: key.check(key.default) for key in KEYS}
        self.places: dict[str, str] = {}
        self.mutes: list[Mute] = []
        self.mute_places: list[str] = []
        self.mistakes: list[str] = []

    def read(self, source: Source) -> None:
        try:
            document = tomllib.loads(source.text)
            lines = key_lines(source.text)
        except (ValueError, RecursionError) as error:
            self.mistakes.append(_syntax_error(error, source))
            return
        reader = _Reader(source.name, lines)
        for place, value in _leaves(document):
            if (checked := reader.value(_BY_PATH, place, value)) is not None:
                self.values[checked[0].path] = checked[1]
                self.places[checked[0].name] = reader.place(place)
        found = reader.mutes(document.get("mute", []))
        self.mutes += found
        self.mute_places += [reader.place(("mute", index)) for index in range(len(found))]
        self.mistakes += [message for _, message in sorted(reader.mistakes, key=itemgetter(0))]

    def override(self, dotted: str, value: object) -> None:
        key = _BY_NAME.get(dotted)
        if key is None:
            path = tuple(dotted.split("."))
            unknown = _unknown(path, _BY_PATH)
            self.mistakes.append(f"command line: key '{_dotted(path)}': {unknown}")
            return
        try:
            self.values[key.path] = key.check(value)
            self.places[key.name] = "command line"
        except Invalid as error:
            self.mistakes.append(f"command line: {key.flag or key.name}: {error}")

    def config(self) -> Config:
        """Raises ConfigError with all mistakes."""
        values = self.values
        if values["output", "format"] == "none" and not (
            values["output", "events_file"] or values["output", "journal"]
        ):
            self.mistakes.append(
                "output.format is none, and events would go nowhere; "
                "name an output.events_file or set output.journal = true"
            )
        if self.mistakes:
            raise ConfigError("\n".join(self.mistakes))
        sections: dict[str, Any] = {
            title: section(**{path[1]: value for path, value in values.items() if path[0] == title})
            for title, section in _SECTIONS.items()
        }
        return Config(attach=values["attach",], mutes=tuple(self.mutes), **sections)


def parse(text: str, name: str) -> Config:
    """The configuration in `text`; `name` is the file that messages name.

    Raises ConfigError with all mistakes.
    """
    merged = _Merged()
    merged.read(Source(name, text))
    return merged.config()


def load(
    path: Path | None, overrides: Mapping[str, object], *, default: Path = DEFAULT_PATH
) -> Config:
    """The configuration of the file at `path` and its drop-ins, with `overrides` (dotted key ->
    value) on top.

    Without a path the file at `default` is read; if it is not there, every key has its default.
    Raises ConfigError with all mistakes, or with the reason why a file cannot be read.
    """
    return load_placed(path, overrides, default=default).config


def load_again(path: Path | None, overrides: Mapping[str, object]) -> Config:
    """As load(), of files that have been read before."""
    require_readable_again(path or DEFAULT_PATH)
    return load(path, overrides)


def load_placed(
    path: Path | None, overrides: Mapping[str, object], *, default: Path = DEFAULT_PATH
) -> Placed:
    """As load(), with the place of each value."""
    file = default if path is None else path
    main = main_file(file, may_be_missing=path is None)
    added, problems = drop_ins(file)
    sources: Sequence[Source] = added if main is None else [main, *added]
    merged = _Merged()
    for source in sources:
        merged.read(source)
    merged.mistakes += problems
    for dotted, value in overrides.items():
        merged.override(dotted, value)
    return Placed(
        merged.config(),
        tuple(source.name for source in sources),
        merged.places,
        tuple(merged.mute_places),
    )
