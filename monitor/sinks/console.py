"""The live view: an event as a summary line and its essentials, for a person at a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monitor.evidence.doubts import doubt, named

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

__all__ = ["COLOURS", "DIM", "RESET", "PrettyRenderer", "program_items"]

RESET = "\x1b[0m"
DIM = "\x1b[2m"
COLOURS = {"critical": "\x1b[1;31m", "warning": "\x1b[33m", "info": "\x1b[36m"}

_CLOCK_WIDTH = len("HH:MM:SS")
_KIND_WIDTH = len("suppression")
_INDENT = _CLOCK_WIDTH + 1 + _KIND_WIDTH + 1


def _visible(text: str) -> str:
    """The text without characters that a terminal would obey, whatever the event holds."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _extent(part: Mapping[str, Any]) -> str:
    return f"{part['start']}-{part['end']}"


def _mapping_items(label: str, mapping: Mapping[str, Any] | None) -> list[str]:
    if mapping is None:
        return []
    items = [f"{label} {_extent(mapping)} {mapping['permissions']}"]
    if mapping["file"]:
        items.append(f"file {mapping['file']['path']}+0x{mapping['file']['offset']:x}")
    elif mapping["name"]:
        items.append(f"name {mapping['name']}")
    return items


def _place(event: Mapping[str, Any], address: str) -> str:
    """The file and offset of an address, which are the same in every run; else the address."""
    for frame in event["stack"]:
        if frame["address"] == address and frame["module"]:
            return f"{frame['module']}+0x{frame['offset']:x}"
    return address


def _denial_items(event: Mapping[str, Any]) -> list[str]:
    reason = f" ({event['reason']})" if event["reason"] else ""
    changed = event["partial_update"]
    return [
        f"verdict {event['verdict']}{reason}",
        *_mapping_items("seal", event["sealed"]),
        *([f"changed {_extent(changed)}"] if changed else []),
        *([f"caller {_place(event, event['caller'])}"] if event["caller"] != "0x0" else []),
    ]


def _fault_items(event: Mapping[str, Any]) -> list[str]:
    return [
        f"cause {event['cause']}{' (inferred)' if event['inferred'] else ''}",
        *_mapping_items("mapping", event["mapping"]),
        f"instruction {_place(event, event['instruction_pointer'])}",
    ]


def _seal_items(event: Mapping[str, Any]) -> list[str]:
    return _mapping_items("mapping", event["mapping"])


def _bypass_items(event: Mapping[str, Any]) -> list[str]:
    target = event["target"]
    of = f"{named(target)} (pid {target['pid']})" if target else "unknown"
    return [
        f"method {event['method']}",
        *_mapping_items("seal", event["sealed"]),
        f"changed {_extent(event['changed'])}",
        f"memory of {of}",
        *([f"caller {_place(event, event['caller'])}"] if event["caller"] != "0x0" else []),
    ]


def _suppression_items(event: Mapping[str, Any]) -> list[str]:
    caller = event["caller"]
    return [
        f"first {event['first'][11:23]}",
        f"last {event['last'][11:23]}",
        *([f"caller {caller}"] if caller else []),
    ]


def _health_items(event: Mapping[str, Any]) -> list[str]:
    blind = event["blind_seconds"]
    items = [event["event"], *([f"blind for {blind:g} s"] if blind is not None else [])]
    for key, value in event["details"].items():
        if isinstance(value, Mapping):
            # Tables are for programs; only the final counts are shown, as numbers by name.
            numbers = [f"{name} {number}" for name, number in value.items() if number]
            items += [f"{key}: {', '.join(numbers)}"] if "counted" in value and numbers else []
        elif isinstance(value, Sequence) and not isinstance(value, str):
            items += map(str, value)
        elif value is not None:
            items.append(f"{key} {value}")
    return items


_ITEMS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "denial": _denial_items,
    "fault": _fault_items,
    "seal": _seal_items,
    "bypass": _bypass_items,
    "suppression": _suppression_items,
    "health": _health_items,
}


def program_items(process: Mapping[str, Any]) -> list[str]:
    """The program, where its path is not the host's, or something is missing."""
    path, identity = process.get("executable") or "", process.get("identity") or {}
    mark = doubt(process)
    if not mark or ("/" not in path and identity.get("result") != "partial"):
        return []
    return [f"program {path or process['name']}", f"({mark})"]


def _owner_items(event: Mapping[str, Any]) -> list[str]:
    """Which program it is, and who owns the process: unit or container, and user."""
    workload = event["workload"] or {}
    process = event["process"] or {}
    items = program_items(process)
    items += [f"{key} {workload[key]}" for key in ("unit", "container_id") if workload.get(key)]
    if process.get("user_name"):
        items.append(f"user {process['user_name']}")
    elif process.get("uid") is not None:
        items.append(f"uid {process['uid']}")
    return items


def _shorten(item: str, width: int) -> str:
    """The item, without its middle if it is too long: the end of a path says most."""
    half = (width - 1) // 2
    return item if len(item) <= width else f"{item[:half]}\N{HORIZONTAL ELLIPSIS}{item[-half:]}"


def _fill(items: Sequence[str], width: int) -> list[str]:
    """Items two spaces apart, in as many lines as they need; an item is never broken."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


class PrettyRenderer:
    """A structlog processor: an event as a summary line and its essentials, indented below.

    `width` is that of the terminal in columns. Times are UTC, as in the event.
    """

    def __init__(self, *, colours: bool, width: int = 100) -> None:
        self._colours = colours
        self._width = max(width - _INDENT, 40)

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{RESET}" if self._colours and text else text

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> str:
        items = [*_ITEMS[event["kind"]](event), *_owner_items(event)]
        summary = textwrap.wrap(
            _visible(event["summary"]),
            self._width,
            break_long_words=False,
            break_on_hyphens=False,
        )
        essentials = _fill([_shorten(_visible(i), self._width) for i in items], self._width)
        severity = event["severity"]
        colour = COLOURS[severity]
        margin = " " * _INDENT
        clock = event["time"][11:19]
        kind = self._paint(f"{event['kind']:<{_KIND_WIDTH}}", colour)
        rank = self._paint(f"{severity:<{_KIND_WIDTH}}", colour)
        lines = [
            f"{clock} {kind} {''.join(summary[:1])}",
            *(margin + line for line in summary[1:]),
            f"{' ' * _CLOCK_WIDTH} {rank} {self._paint(''.join(essentials[:1]), DIM)}",
            *(margin + self._paint(line, DIM) for line in essentials[1:]),
        ]
        return "\n".join(line.rstrip() for line in lines)
