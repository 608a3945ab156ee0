"""The record of a set of descriptors: what they are, of which version, and for what they were made.

It is kept as the last one, in memory that nobody can change any more: a set without it was not
given over whole.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.keep import memory
from monitor.keep.identify import (
    IdentityError,
    describe_link,
    describe_map,
    describe_program,
    program_id,
    program_in,
)
from monitor.keep.ledger import Ledger, LedgerError
from monitor.kernel import privileges
from monitor.kernel.abi import Bank, Bucket, Config, Counters, SharedBucket
from monitor.kernel.loaded import AttachedProbe, Loaded, LoadRequest, Made, possible_cpus
from monitor.kernel.ring import is_at
from monitor.kernel.slots import Slot
from monitor.version import revision, version

__all__ = [
    "ATTEMPTS",
    "CANARY_FAILED",
    "NAMES",
    "RECORDS_CORRUPT",
    "Found",
    "SetError",
    "check",
    "write",
]

NAMES = ("map", "program", "link", "ledger", "record")  # in the order in which they are given over
ATTEMPTS = 2  # that may end while the daemon looks at a set
CANARY_FAILED, RECORDS_CORRUPT = 1, 2
_DOUBTS = {
    CANARY_FAILED: "the canary had failed",
    RECORDS_CORRUPT: "in its ring was what is no record",
}
_FORMAT = 1
_SIZE_LIMIT = 1 << 20
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_OBJECT_HEAD = 256


class SetError(Exception):
    """Why a set is not taken over, in words that follow "what systemd kept is let go:"."""


@dataclass
class Found:
    """A set that was taken over. `since`: Unix time at which its counters began."""

    loaded: Loaded
    ledger: Ledger
    guard_regions: bool
    partial_updates: dict[str, bool]
    since: float


def _wanted(request: LoadRequest) -> dict[str, Any]:
    """What the maps and programs depend on."""
    return {
        "attach": request.attach,
        "switches": sorted(request.switches),
        "ring_size": request.ring_size,
        "workloads_max": request.workloads_max,
        "buckets_max": request.buckets_max,
    }


def _maker(request: LoadRequest, made: str, ledger: Ledger) -> dict[str, Any]:
    """All that must be the same in the life that takes a set over. `made`: the object's digest."""
    return {
        "format": _FORMAT,
        "version": [version(), revision()],
        "object": made,
        "request": _wanted(request),
        "pid_namespace": _PID_NAMESPACE.stat().st_ino,
        "user": os.geteuid(),
        "capabilities": sorted(capability.name for capability in privileges.held()),
        "set": ledger.number("set"),
    }


# ---- Written -------------------------------------------------------------------------------------


def _groups(loaded: Loaded) -> dict[str, list[int]]:
    arrays = [slot.array for slot in loaded.slots]
    return {
        "map": [*loaded.maps.values(), *arrays],
        "program": [slot.stub for slot in loaded.slots],
        "link": loaded.links,
    }


def _described(groups: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Raises IdentityError."""
    ours = {program_id(program) for program in groups["program"]}
    return {
        "map": [describe_map(each) for each in groups["map"]],
        "program": [describe_program(each) for each in groups["program"]],
        "link": [describe_link(each, ours) for each in groups["link"]],
    }


def write(
    loaded: Loaded,
    ledger: Ledger,
    request: LoadRequest,
    *,
    guard_regions: bool,
    partial_updates: Mapping[str, bool],
    since: float,
) -> list[tuple[str, list[int]]]:
    """The set for Store.keep(), by name; the caller closes the last descriptor, of the record.

    Raises OSError, IdentityError.
    """
    groups = _groups(loaded)
    place = {descriptor: index for index, descriptor in enumerate(groups["program"])} | {-1: -1}
    document = {
        "maker": _maker(request, loaded.made.digest, ledger),
        "descriptors": _described(groups),
        "maps": list(loaded.maps),
        "slots": [[slot.key, program_in(slot.array)] for slot in loaded.slots],
        "probes": [
            [*row[:4], place[row.program], row.fallback, [place[each] for each in row.also]]
            for row in loaded.probes
        ],
        "made": loaded.made,
        "guard_regions": guard_regions,
        "partial_updates": dict(partial_updates),
        "since": since,
    }
    record = memory.frozen(json.dumps(document).encode())
    return [*groups.items(), ("ledger", [ledger.descriptor]), ("record", [record])]


# ---- Checked -------------------------------------------------------------------------------------


def check(handed: dict[str, list[int]], request: LoadRequest, path: Path) -> Found:
    """The set, when it is whole and matches the request and the object at `path`.

    All that is handed then belongs to it. Raises SetError; nothing was closed then.
    """
    strange = sorted(handed.keys() - set(NAMES))
    if strange:
        raise SetError(f"it has a descriptor named {strange[0][:40]!r}")
    for name in NAMES:
        if name not in handed:
            raise SetError(f"it has no {name}")
    for name in ("ledger", "record"):
        if len(handed[name]) != 1:
            raise SetError(f"it has more than one {name}")
    try:
        ledger = Ledger.found(handed["ledger"][0])
        document = _read(handed["record"][0])
        _check_doubts(ledger)
        with ledger.risk():
            return _taken_over(handed, ledger, document, request, path)
    except LedgerError as error:
        raise SetError(f"of its counts, {error}") from error
    except IdentityError as error:
        raise SetError(str(error)) from error
    except OSError as error:
        raise SetError(f"it cannot be read ({error.strerror})") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise SetError(f"its record cannot be understood ({error!r:.80})") from error


def _read(descriptor: int) -> dict[str, Any]:
    data = memory.read_frozen(descriptor, _SIZE_LIMIT)
    if data is None:
        raise SetError("its record could have been changed")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise SetError("its record is no object")
    return document


def _check_doubts(ledger: Ledger) -> None:
    attempts = ledger.number("attempts")
    if attempts >= ATTEMPTS:
        raise SetError(f"{attempts} starts ended while they looked at it")
    for bit, reason in _DOUBTS.items():
        if ledger.number("doubts") & bit:
            raise SetError(reason)


def _taken_over(
    handed: dict[str, list[int]],
    ledger: Ledger,
    document: dict[str, Any],
    request: LoadRequest,
    path: Path,
) -> Found:
    mine = _maker(request, object_digest(path), ledger)
    theirs = document["maker"]
    differ = [name for name in mine if theirs.get(name) != mine[name]]
    if differ:
        raise SetError(f"it is of another {differ[0].replace('_', ' ')}")
    ledger.check()
    descriptors = _matched(handed, document["descriptors"])
    names, rows = document["maps"], document["slots"]
    arrays = descriptors["map"][len(names) :]
    loaded = Loaded(
        maps=dict(zip(names, descriptors["map"][: len(names)], strict=True)),
        slots=[
            Slot(key, *rest)
            for (key, _), *rest in zip(
                rows, arrays, descriptors["program"], descriptors["link"], strict=True
            )
        ],
        probes=[
            AttachedProbe(
                *(probe, mode, target, error),
                descriptors["program"][index] if index >= 0 else -1,
                fallback,
                tuple(descriptors["program"][each] for each in also),
            )
            for probe, mode, target, error, index, fallback, also in document["probes"]
        ],
        made=_made(document["made"]),
    )
    lost = [probe.probe for probe in loaded.probes if probe.lost]
    if lost:  # what kept it from being attached may be mended
        raise SetError(f"probe {lost[0]} is not attached")
    for slot, (_, program) in zip(loaded.slots, rows, strict=True):
        if program_in(slot.array) != program:
            raise SetError(f"at {slot.key} runs another program")
    _check_shapes(loaded.maps, request)
    if not is_at(loaded.maps["ring"], ledger.words("taken")):
        raise SetError("its ring was read by somebody else")
    return Found(
        loaded,
        ledger,
        bool(document["guard_regions"]),
        {str(name): bool(may_be) for name, may_be in document["partial_updates"].items()},
        float(document["since"]),
    )


def _made(row: list[Any]) -> Made:
    path, digest, built, compiler, absent = row
    return Made(path, digest, built, compiler, tuple(absent))


def _matched(handed: dict[str, list[int]], recorded: dict[str, list[str]]) -> dict[str, list[int]]:
    """The descriptors in the order of the record."""
    groups = {name: handed[name] for name in ("map", "program", "link")}
    found = {}
    for name, described in _described(groups).items():
        by_description = dict(zip(described, handed[name], strict=True))
        wanted = recorded[name]
        if len(by_description) != len(described) or by_description.keys() != set(wanted):
            missing = set(wanted) - by_description.keys()
            what = f"misses {min(missing)}" if missing else f"has a {name} of somebody else"
            raise SetError(f"it {what}")
        found[name] = [by_description[each] for each in wanted]
    return found


def object_digest(path: Path) -> str:
    """As the object itself has it; empty where there is none. The loader checks that it is right;
    here it says only whether the set was made from the same file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_OBJECT_HEAD)
    except OSError:
        return ""
    from monitor.kernel.object import digest_in  # noqa: PLC0415 - else only the loader needs it

    return digest_in(head)


def _check_shapes(maps: Mapping[str, int], request: LoadRequest) -> None:
    """Whoever maps them relies on their sizes."""
    wanted = (
        ("counters", possible_cpus() * len(Bank) * ctypes.sizeof(Counters)),
        ("config", ctypes.sizeof(Config)),
        ("shared_buckets", (max(SharedBucket) + 1) * ctypes.sizeof(Bucket)),
        ("ring", request.ring_size),
    )
    for name, size in wanted:
        info = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/self/fdinfo/{maps[name]}").read_text("ascii").splitlines()
            if ":\t" in line
        )
        entries, value = int(info["max_entries"]), int(info["value_size"])
        each = 1 if name == "ring" else -(-value // 8) * 8  # an element begins at a word
        found = entries * each
        if found != size:
            raise SetError(f"its map {name} has {found} bytes, not {size}")
    for name in (
        "workloads",
        "workload_quotas",
        "buckets",
        "shares",
        "watched_cgroup",
        "announced_cgroups",
    ):
        if name not in maps:
            raise SetError(f"it has no map {name}")
