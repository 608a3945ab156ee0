"""The last snapshot of an incident as text for a person: the parts that explain a violation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from monitor.incidents.store import nanoseconds
from monitor.sizes import kibibytes
from monitor.untrusted.terminal import visible

__all__ = ["summarized"]

SEALED_SHOWN = 8
TEXT_LIMIT = 300
_LIMITS = ("stack", "data", "as", "memlock", "core")  # the limits of memory

Snapshot = Mapping[str, Any]
Event = Mapping[str, Any]


def summarized(snapshots: Sequence[Snapshot], events: Sequence[Event]) -> list[str]:
    """Lines of text. `events` are the kept ones: they say which address was touched, and when."""
    snapshot = snapshots[-1]
    event = next((each for each in events if each.get("id") == snapshot["event"]), None)
    after = ""
    if event is not None:
        late = (nanoseconds(snapshot["time"]) - nanoseconds(event["time"])) / 1e6
        after = f", {late:.1f} ms after the violation"
    when = snapshot["time"][:23].replace("T", " ")
    lines = [
        f"the last of {len(snapshots)} snapshots" if len(snapshots) > 1 else "a snapshot",
        f"  of pid {snapshot['pid']} at {when} UTC{after}",
    ]
    for name, part in _PARTS.items():
        lines += [
            f"  {name if not index else '':<10}  {visible(text, TEXT_LIMIT)}"
            for index, text in enumerate(part(snapshot, event))
        ]
    lines += [
        f"  {'missing':<10}  {visible(f'{name}: {why}', TEXT_LIMIT)}"
        for name, why in snapshot["missing"].items()
    ]
    return lines


def _touched(event: Event | None) -> int | None:
    if event is None or event.get("target"):  # it touched another process's memory
        return None
    address = event.get("address") or (event.get("sealed") or {}).get("start")
    return int(address, 16) if address else None


def _sealed(snapshot: Snapshot, event: Event | None) -> Iterator[str]:
    mappings = snapshot["memory_map"]
    if mappings is None:
        return
    sealed = [mapping for mapping in mappings if mapping["sealed"]]
    of = "" if snapshot["memory_map_complete"] else " around the violation"
    yield f"{len(sealed)} of {len(mappings)} mappings{of}"
    touched = _touched(event)
    at = touched or 0
    nearest = sorted(sealed, key=lambda mapping: _distance(mapping, at))[:SEALED_SHOWN]
    for mapping in sorted(nearest, key=lambda mapping: int(mapping["start"], 16)):
        mark = " <- touched" if touched is not None and not _distance(mapping, touched) else ""
        label = (mapping["file"] or {}).get("path") or mapping["name"] or ""
        place = f"{mapping['start']}-{mapping['end']} {mapping['permissions']} {label}"
        yield f"{place.rstrip()}{mark}"
    if len(sealed) > len(nearest):
        yield f"and {len(sealed) - len(nearest)} further away"


def _distance(mapping: Mapping[str, Any], address: int) -> int:
    """Bytes from the address to the mapping; 0 inside it."""
    start, end = int(mapping["start"], 16), int(mapping["end"], 16)
    return max(start - address, address - end + 1, 0)


def _limits(snapshot: Snapshot, _: Event | None) -> Iterator[str]:
    limits = snapshot["limits"] or {}
    texts = [f"{name} {_size(limits[name]['soft'])}" for name in _LIMITS if name in limits]
    if texts:
        yield ", ".join(texts)


def _size(value: int | None) -> str:
    if value is None:
        return "unlimited"
    return kibibytes(value)


def _seccomp(snapshot: Snapshot, _: Event | None) -> Iterator[str]:
    seccomp = snapshot["seccomp"]
    if seccomp is None:
        return
    filters = f" ({seccomp['filters']})" if seccomp["filters"] else ""
    yield (
        seccomp["mode"] + filters + (", no new privileges" if seccomp["no_new_privileges"] else "")
    )


def _parents(snapshot: Snapshot, _: Event | None) -> Iterator[str]:
    parents = snapshot["parents"]
    if parents:
        yield " < ".join(f"{parent['name']} {parent['pid']}" for parent in parents)


def _modules(snapshot: Snapshot, _: Event | None) -> Iterator[str]:
    modules = snapshot["modules"]
    if modules is not None:
        named = sum(module["build_id"] is not None for module in modules)
        yield f"{len(modules)}, {named} of them with a build id; --json has all"


_PARTS: Mapping[str, Callable[[Snapshot, Event | None], Iterator[str]]] = {
    "sealed": _sealed,
    "limits": _limits,
    "seccomp": _seccomp,
    "parents": _parents,
    "modules": _modules,
}
