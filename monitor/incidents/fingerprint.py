"""What makes two events the same incident: pure functions of an event as it is written.

Two violations are the same when the same place in the same program did the same to the same kind of
memory. Pids, addresses, times, hosts and workloads are not compared: they differ from one violation
to the next.
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
    """SHA-256 without hashlib, which would load OpenSSL, 3.6 MiB."""
    for name in ("_sha2", "_sha256"):  # Python 3.12 and later, 3.11
        with contextlib.suppress(ImportError):
            function: Callable[[bytes], Any] = import_module(name).sha256
            return function
    from hashlib import sha256  # noqa: PLC0415 - an interpreter built without these modules

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
        """A stable text. Different fingerprints have different texts, whatever their parts are."""
        return json.dumps(self, separators=(",", ":"))

    @property
    def id(self) -> str:
        """The name that a person types: 12 hexadecimal digits."""
        return str(_sha256(self.text.encode()).hexdigest())[:_ID_DIGITS]


def fingerprint(event: Event) -> Fingerprint:
    """The fingerprint of an event of any kind. A suppression names no place: it is unattributed."""
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
    """The operation, cause or method of an event, or of the events that a suppression counts."""
    return event.get("operation") or event.get("cause") or event.get("method")


def unattributed(kind: str, what: str | None) -> Fingerprint:
    """The fingerprint of violations at unknown places; without `what` their operation is unknown
    as well.
    """
    what = what or (kind if kind == "seal" else UNKNOWN)
    return Fingerprint(kind, what, UNKNOWN, UNKNOWN, UNKNOWN)


def _base_name(path: str) -> str:
    return path.removesuffix(DELETED).rpartition("/")[2]


def _executable(event: Event) -> str:
    """The executable's build id, which does not depend on the path; else its base name.

    The path itself is not always known: of a process that ended too soon there is only a base name.
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
    """The frame that made the call or, of a fault, the frame of the instruction.

    Code in no file has another address in every process, so its address is left out.
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
