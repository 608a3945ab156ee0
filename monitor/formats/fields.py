"""What the tables of all formats are made of: a field, and where in an event its value is from.

An event may come from a file that somebody else wrote: a value of another type than the schema has
is an error that names the field, never a record with a wrong value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from monitor.evidence.events import nanoseconds
from monitor.evidence.memory_map import DELETED

__all__ = [
    "Event",
    "Field",
    "FormatError",
    "always",
    "base_name",
    "check",
    "chosen",
    "decimal",
    "digits",
    "flag",
    "integer",
    "listed",
    "lookup",
    "mapped",
    "milliseconds",
    "nested",
    "path",
    "since_1970",
    "stack_lines",
    "text",
    "time_text",
    "translated",
    "values",
]

Event = dict[str, Any]
Value = Any
Convert = Callable[[Any], Value]

_INT64 = 1 << 63
_EVERY_EVENT = ("id", "time", "kind", "severity", "summary", "host.name")


class FormatError(ValueError):
    """An event that cannot be converted; the message names the field and what is wrong with it."""


class Field(NamedTuple):
    """A field of the format.

    `source`: where its value is in the event, as a path with dots; of several, separated by spaces,
    the first that has a value. `convert` returns None where the field is to be left out, and raises
    FormatError. `note` is for the page.
    """

    name: str
    source: str
    convert: Convert
    note: str = ""


# ---- Values --------------------------------------------------------------------------------------


def text(value: object) -> str:
    """A lone surrogate, which no UTF-8 has, becomes the escape that stands for it in JSON."""
    if not isinstance(value, str):
        raise FormatError("is not a string")
    return value.encode("utf-8", "backslashreplace").decode()


def integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError("is not an integer")
    if not -_INT64 <= value < _INT64:
        raise FormatError("has more than 64 bits")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise FormatError("is neither true nor false")
    return value


def path(value: object) -> str | None:
    """The path of an executable; None where only its base name is known."""
    name = text(value).removesuffix(DELETED)
    return name if "/" in name else None


def base_name(value: object) -> str:
    return text(value).removesuffix(DELETED).rpartition("/")[2]


def since_1970(value: object) -> int:
    """Unix time in ns of an event's time."""
    time = text(value)
    try:
        return nanoseconds(time)
    except (ValueError, OverflowError) as error:
        raise FormatError("is not a time like 2026-11-21T17:07:52.898441250Z") from error


def mapped(value: object) -> str | None:
    """Which memory it is, from a mapping of the event: its file or name; None for all other."""
    file = lookup(value, "file.path")
    name = lookup(value, "name") if file is None else file
    return None if name is None else text(name)


def stack_lines(value: object) -> str | None:
    """The frames of a stack, a line each, innermost first: function or place, and the build id."""
    if not isinstance(value, list):
        raise FormatError("is not a list")
    return "\n".join(map(_frame_line, value)) or None


def _frame_line(frame: object) -> str:
    if not isinstance(frame, dict):
        raise FormatError("has a frame that is not an object")
    module, offset, build, symbol = map(frame.get, ("module", "offset", "build_id", "symbol"))
    if module is None or offset is None:
        return text(frame.get("address"))
    place = f"{text(module)}+0x{integer(offset):x}"
    words = [text(symbol), f"({place})"] if symbol is not None else [place]
    return " ".join([*words, f"[{text(build)}]"] if build is not None else words)


def time_text(value: object) -> str:
    """An event's time, as it is written."""
    since_1970(value)
    return text(value)


def milliseconds(value: object) -> int:
    """Unix time in ms of an event's time."""
    return since_1970(value) // 1_000_000


def digits(value: object) -> str:
    """An integer as text: an id, which nobody adds up."""
    return str(integer(value))


def decimal(value: object) -> float | int:
    return value if isinstance(value, float) else integer(value)


def listed(value: object) -> tuple[str]:
    return (text(value),)


def translated(table: Mapping[str, Value]) -> Convert:
    """What the table has for a text; None, where it has nothing."""
    return lambda value: table.get(text(value))


def chosen(table: Mapping[str, Value]) -> Convert:
    """What the table has for a text, which must be in it."""

    def choose(value: object) -> Value:
        name = text(value)
        if name not in table:
            raise FormatError(f"is none of {', '.join(table)}")
        return table[name]

    return choose


def always(value: Value) -> Convert:
    """The same value, whatever the event says."""
    return lambda _: value


# ---- Tables --------------------------------------------------------------------------------------


@cache
def _steps(source: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each path of a field's source, as it is written and name by name."""
    return tuple((place, tuple(place.split("."))) for place in source.split())


def _at(value: Any, names: Iterable[str]) -> Any:
    for name in names:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise FormatError("is not in an object")
        value = value.get(name)
    return value


def lookup(value: object, place: str) -> Any:
    """The value at a path with dots; None where it, or what leads to it, is missing or null.

    Raises FormatError where what leads to it is not an object.
    """
    return _at(value, place.split("."))


def values(table: Iterable[Field], event: Event) -> Iterator[tuple[str, Value]]:
    """The names and values of the fields that the event has something for. Raises FormatError."""
    for name, source, convert, _ in table:
        if not source:
            yield name, convert(None)
            continue
        for place, names in _steps(source):
            try:
                found = _at(event, names)
                value = None if found is None else convert(found)
            except FormatError as error:
                raise FormatError(f"{place} {error}") from error
            if value is not None:
                yield name, value
                break


def check(event: Event) -> None:
    """Raises FormatError unless the event has what every event has."""
    for place in _EVERY_EVENT:
        try:
            text(lookup(event, place))
        except FormatError as error:
            raise FormatError(f"{place} {error}") from error


def nested(pairs: Iterable[tuple[str, Value]]) -> dict[str, Any]:
    """Objects in objects, by the dots in the names."""
    document: dict[str, Any] = {}
    for name, value in pairs:
        *parents, last = name.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return document
