"""What makes two events the same incident: pure functions of an event as it is written.

Two violations are the same when the same place in the same program did the same to the same kind of
memory. Pids, addresses, times, hosts and workloads differ from one to the next and are no part of
it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from monitor.evidence.memory_map import DELETED

__all__ = ["UNKNOWN", "Fingerprint", "fingerprint", "unattributed", "what_of"]

UNKNOWN = "unknown"
_ID_DIGITS = 12

Event = Mapping[str, Any]


def _sha256_function() -> Callable[[bytes], Any]:
    """hashlib's digest without OpenSSL, 3.6 MiB, which hashlib loads where it can."""
    for name in ("_sha2", "_sha256"):  # Python 3.12 and later, 3.11
        with contextlib.suppress(ImportError):
            function: Callable[[bytes], Any] = import_module(name).sha256
            return function
    from hashlib import sha256  # noqa: PLC0415 - an interpreter that is built without

    return sha256


_sha256 = _sha256_function()


class Fingerprint(NamedTuple):
    """`what` is the operation of a denial, the cause of a fault, the method of a bypass, the name
    of a health event.
    """

    kind: str
    what: str
    executable: str
    caller: str
    mapping: str

    @property
    def text(self) -> str:
        """Stable, and different for different fingerprints whatever their parts hold."""
        return json.dumps(self, separators=(",", ":"))

    @property
    def id(self) -> str:
        """The name that a person types: 12 hexadecimal digits."""
        return str(_sha256(self.text.encode()).hexdigest())[:_ID_DIGITS]


def fingerprint(event: Event) -> Fingerprint:
    """Of an event of any kind; a suppression, which tells nothing of the place, is unattributed."""
    kind = str(event["kind"])
    if kind == "suppression":
        return unattributed(str(event["of"]), what_of(event))
    if kind == "health":
        return Fingerprint(kind, str(event["event"]), "", "", "")
    return Fingerprint(
        kind,
        str(what_of(event) or kind),
        _executable(event),
        _caller(event),
        _mapping(event["sealed"] if kind in ("denial", "bypass") else event["mapping"]),
    )


def what_of(event: Event) -> str | None:
    """What was done: the operation, cause or method of the event, or of those held back."""
    return event.get("operation") or event.get("cause") or event.get("method")


def unattributed(kind: str, what: str | None) -> Fingerprint:
    """Of violations that nobody can tell the place of; without `what` not even what they were."""
    what = what or (kind if kind == "seal" else UNKNOWN)
    return Fingerprint(kind, what, UNKNOWN, UNKNOWN, UNKNOWN)


def _base_name(path: str) -> str:
    return path.removesuffix(DELETED).rpartition("/")[2]


def _executable(event: Event) -> str:
    """By its build id, which is the same wherever the file lies; else by its base name.

    A path would not do: of a process that was gone too soon only the base name is known.
    """
    path = (event["process"] or {}).get("executable")
    if not path:
        return UNKNOWN
    name = _base_name(path)
    for frame in event["stack"]:
        if frame["module"] and frame["build_id"] and _base_name(frame["module"]) == name:
            return f"build-id {frame['build_id']}"
    return f"name {name}"


def _caller(event: Event) -> str:
    """The frame that called; of a fault the one that the instruction is in.

    Code in no file lies elsewhere in every process: its address tells nothing.
    """
    stack = event["stack"]
    if event["kind"] == "fault":
        frame = stack[0] if stack else None
    else:
        frame = next((frame for frame in stack if frame["address"] == event["caller"]), None)
    if frame is None:
        return UNKNOWN
    if not frame["module"] or frame["offset"] is None:
        return "anonymous"
    build = f" {frame['build_id']}" if frame["build_id"] else ""
    return f"{frame['module'].removesuffix(DELETED)}{build}+0x{frame['offset']:x}"


def _mapping(mapping: Event | None) -> str:
    if mapping is None:
        return "none"
    if mapping["file"] is not None:
        return f"file {_base_name(mapping['file']['path'])}"
    return f"name {mapping['name']}" if mapping["name"] else "anonymous"
