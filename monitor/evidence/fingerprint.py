"""What makes two events the same incident: pure functions of an event as it is written.

Two violations are the same when the same place in the same program did the same to the same kind of
memory. Pids, addresses, times, hosts and workloads are not compared: they differ from one violation
to the next. So every host gives the same violation the same fingerprint.

All parts are claims of the process: names that it chose, build ids in its memory. Whoever runs the
same program can make the same fingerprint, and no length of the id would prevent it. So it only
groups: severity and title of an incident are those of its worst event, whoever made the others.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from monitor.evidence.memory_map import DELETED
from monitor.untrusted.redact import REDACTED

__all__ = ["UNKNOWN", "Fingerprint", "fingerprint", "unattributed", "what_of"]

UNKNOWN = "unknown"
_ID_DIGITS = 12
_SCRIPT_LIMIT = 200

# Parts of names that are new in each process, container or deployment, but for those of a build:
# UUIDs, digests, random and process numbers. Short numbers are versions (libc.so.6).
_CHANGING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{12,}|\d{5,}")
# Since 2.39 glibc can name stacks by their thread, as in "glibc: pthread stack: 4711"
# (name_stack_maps); programs number their arenas.
_NUMBER = re.compile(r"\d+")
_TRANSIENT = re.compile(r"run-[pru]?[0-9a-f]+(?:-i\d+)?\.service")  # of systemd-run, without --unit

# By base name: what runs programs that are no files of code of their own.
_INTERPRETER = re.compile(
    r"(?:python|pypy|perl|ruby|php(?:-cgi|-fpm)?|lua(?:jit)?|tclsh|guile)[\d.-]*"
    r"|node(?:js)?|deno|bun|java|mono|dotnet|Rscript|R|bash|dash|sh|zsh|ksh|fish|beam\.smp"
)
_CODE = frozenset(("-c", "-e", "-E", "-r", "-p", "--eval", "--command"))
_PROGRAMS = frozenset(("-m", "-jar", "--module"))
_VALUES = frozenset(
    ("-W", "-X", "-I", "-O", "-o", "-cp", "-classpath", "--class-path", "--require")
)

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


def _lasting(name: str) -> str:
    """The name without those parts of it that differ between hosts and runs."""
    return _CHANGING.sub("*", name)


def _executable(event: Event) -> str:
    """The executable's build id, which does not depend on the path; else its base name.

    The path itself is not always known: of a process that ended too soon there is only a base name.
    """
    path = (event["process"] or {}).get("executable")
    if not path:
        return UNKNOWN
    name = _base_name(path)
    loaded = (event["process"] or {}).get("program")
    if loaded:  # an executable that is a dynamic loader
        runs = f" program {_lasting(_base_name(loaded['path']))[:_SCRIPT_LIMIT]}"
    else:
        runs = program_of(event) if _INTERPRETER.fullmatch(name) else ""
    for frame in event["stack"]:
        if frame["module"] and frame["build_id"] and _base_name(frame["module"]) == name:
            return f"build-id {frame['build_id']}{runs}"
    return f"name {_lasting(name)}{runs}"


def program_of(event: Event) -> str:
    """What an interpreter runs: the script in its command line, else the system's unit; "" where
    neither is known. In a user's manager units have any name.
    """
    words = str((event["process"] or {}).get("command_line") or "").split()[1:]
    script = _script(words)
    if script:
        return f" script {_lasting(script)[:_SCRIPT_LIMIT]}"
    workload = event["workload"] or {}
    unit, path = workload.get("unit") or "", workload.get("cgroup") or ""
    if (
        unit.endswith(".service")
        and path.startswith("/system.slice/")
        and not _TRANSIENT.fullmatch(unit)
    ):
        # One template's instances run the same.
        return f" unit {re.sub('@.*', '@.service', _lasting(unit))[:_SCRIPT_LIMIT]}"
    return ""


def _script(words: Sequence[str]) -> str | None:
    """The first argument that is no option; that of -m or -jar is one, a program in the command
    line itself is none.
    """
    rest = iter(words)
    for word in rest:
        if word in _CODE:
            return None
        if word in _PROGRAMS or not word.startswith("-"):
            found = next(rest, None) if word in _PROGRAMS else word
            return None if found is None or REDACTED in found else found
        if word in _VALUES:
            next(rest, None)
    return None


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
    module = frame["module"].removesuffix(DELETED)
    place = f"{module} {frame['build_id']}" if frame["build_id"] else _lasting(module)
    return f"{place}+0x{frame['offset']:x}"


def _mapping(mapping: Event | None) -> str:
    if mapping is None:
        return "none"
    if mapping["file"] is not None:
        return f"file {_lasting(_base_name(mapping['file']['path']))}"
    return f"name {_NUMBER.sub('*', mapping['name'])}" if mapping["name"] else "anonymous"
