"""TOML and command-line overrides -> one frozen `Config`; a clear message for every mistake."""

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
from monitor.configuration.keys import KEYS, MUTE_KEYS, Key
from monitor.configuration.mutes import Mute
from monitor.configuration.toml_lines import KeyPath, key_lines, line_of
from monitor.configuration.values import Invalid
from monitor.untrusted.redact import CommandLine

__all__ = [
    "DEFAULT_PATH",
    "Config",
    "ConfigError",
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

_BY_PATH = {key.path: key for key in KEYS}
_BY_NAME = {key.name: key for key in KEYS}
_MUTE_BY_PATH = {key.path: key for key in MUTE_KEYS}
_MUTED = {key.path[1] for key in MUTE_KEYS} - {"until", "reason"}


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
        values: dict[str, Any] = {key.path[1]: None for key in MUTE_KEYS}
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
