"""The record of a set of descriptors: what they are, of which version, and for what they were made.

It is kept as the last one, in memory that nobody can change any more: a set without it was not
given over whole.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from monitor.keep import memory
from monitor.keep.identify import (
    IdentityError,
    describe_link,
    describe_map,
    describe_program,
    link_id,
    map_fields,
    map_id,
    program_id,
    program_in,
)
from monitor.keep.ledger import Ledger, LedgerError
from monitor.kernel import privileges
from monitor.kernel.abi import (
    ABI_VERSION,
    WORKLOADS_MAX,
    Bank,
    Bucket,
    Config,
    Counters,
    SharedBucket,
    Workload,
    description,
)
from monitor.kernel.loaded import (
    KEPT_MAPS,
    AttachedProbe,
    Loaded,
    LoadRequest,
    Made,
    possible_cpus,
)
from monitor.kernel.probes import PROBES
from monitor.kernel.ring import is_at
from monitor.kernel.slots import Slot
from monitor.version import revision, version

__all__ = [
    "ATTEMPTS",
    "CANARY_FAILED",
    "HOOKS_BLIND",
    "NAMES",
    "RECORDS_CORRUPT",
    "Facts",
    "Found",
    "SetError",
    "Unread",
    "Written",
    "check",
    "generation_after",
    "unread_by",
    "write",
]

# What a name begins with. After a dot comes what makes it one of its kind.
NAMES = ("map", "program", "link", "ledger", "record")
_DESCRIBED = ("map", "program", "link")
# Of a generation, of its ring, and of the arrays of its tail calls; of a hook.
_NAME = re.compile(
    r"(map|ledger|record)\.[0-9]{1,9}|map\.[rt][0-9]{1,9}|(map|program|link)\.h[0-9]{1,9}"
)
ATTEMPTS = 2  # that may end while the daemon looks at a set
CANARY_FAILED, RECORDS_CORRUPT, HOOKS_BLIND = 1, 2, 4
_DOUBTS = {
    CANARY_FAILED: "the canary had failed",
    RECORDS_CORRUPT: "in its ring was what is no record",
    HOOKS_BLIND: "a function that it is attached to sees no refusal",
}
_FORMAT = 3
_SIZE_LIMIT = 1 << 20
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_OBJECT_HEAD = 256
# What may have changed: the programs are replaced then, and the maps go on. Those of another ring
# size write to a ring of their own.
_REPLACED = (
    *("version", "object", "attach", "switches", "pid_namespace", "capabilities"),
    "ring_size",
)

Handed = Mapping[str, Sequence[int]]  # descriptors by name


class SetError(Exception):
    """Why a set is not taken over, in words that follow "what systemd kept is let go:"."""


class Facts(NamedTuple):
    """What is true of this host until it boots again. `blind`: functions that do not see what they
    must. `since`: Unix time at which the counters began.
    """

    guard_regions: bool
    partial_updates: dict[str, bool]
    blind: frozenset[str]
    since: float


class Unread(NamedTuple):
    """A ring that others have taken the place of, and that still has records."""

    descriptor: int
    name: str  # by which it is kept
    said: str  # what the kernel says of it


@dataclass
class Found:
    """A set that was taken over. `changed`: why its programs are to be replaced, empty when not.

    `names`: those by which it is kept, by what the kernel says of each descriptor. `unread`: rings
    before that of the set, the oldest first. `leftovers`: descriptors by name that are no part.
    """

    loaded: Loaded
    ledger: Ledger
    facts: Facts
    generation: int
    changed: str
    names: dict[str, str]
    unread: list[Unread]
    leftovers: dict[str, list[int]]

    @property
    def ring_size(self) -> int:
        """In bytes. Raises OSError, IdentityError."""
        return map_fields(self.loaded.maps["ring"])["max_entries"]

    def close(self) -> None:
        self.loaded.close()
        self.close_unread()

    def close_unread(self) -> None:
        for ring in self.unread:
            os.close(ring.descriptor)
        self.unread.clear()


class Written(NamedTuple):
    """`groups`: descriptors by name to be kept in this order, that of the record last. `dropped`:
    names of what is kept of the set before and is no part of this one.
    """

    groups: list[tuple[str, list[int]]]
    dropped: list[str]


def _maker(request: LoadRequest, made: str, ledger: Ledger) -> dict[str, Any]:
    """What is compared with the life that takes a set over. `made`: the object's digest."""
    return {
        "format": _FORMAT,
        "abi": _abi(),
        "user": os.geteuid(),
        "set": ledger.number("set"),
        "ring_size": request.ring_size,
        "buckets_max": request.buckets_max,
        "version": [version(), revision()],
        "object": made,
        "attach": request.attach,
        "switches": sorted(request.switches),
        "pid_namespace": _PID_NAMESPACE.stat().st_ino,
        "capabilities": sorted(capability.name for capability in privileges.held()),
    }


def _abi() -> int:
    """Programs and daemons with the same number can share maps and counts."""
    rows = (*description(), ABI_VERSION, *(probe.name for probe in PROBES))
    return crc32(repr(rows).encode())


def _kind(name: str) -> str:
    return name.partition(".")[0]


# ---- Written -------------------------------------------------------------------------------------


def generation_after(handed: Handed) -> int:
    """A number that no name of these has."""
    numbers = [name.partition(".")[2].lstrip("rt") for name in handed]
    return 1 + max((int(each) for each in numbers if each.isascii() and each.isdigit()), default=0)


def _groups(loaded: Loaded, generation: int) -> Iterator[tuple[str, list[int]]]:
    """What is let go by itself has a name of its own: hooks, and arrays of tail calls."""
    yield f"map.{generation}", [loaded.maps[name] for name in KEPT_MAPS if name != "ring"]
    yield f"map.r{generation}", [loaded.maps["ring"]]
    tails = [each for name, each in loaded.maps.items() if name not in KEPT_MAPS]
    if tails:
        yield f"map.t{generation}", tails
    for slot in loaded.slots:
        number = link_id(slot.link)
        yield f"map.h{number}", [slot.array]
        yield f"program.h{number}", [slot.stub]
        yield f"link.h{number}", [slot.link]


def _described(groups: Handed) -> dict[int, str]:
    """What the kernel says of each descriptor. Raises IdentityError."""
    programs = [each for name in groups if _kind(name) == "program" for each in groups[name]]
    ours = {program_id(program) for program in programs}
    describe: dict[str, Callable[[int], str]] = {
        "map": describe_map,
        "program": describe_program,
        "link": lambda descriptor: describe_link(descriptor, ours),
    }
    # Programs first: a link is described by its program.
    order = sorted(groups, key=lambda name: _DESCRIBED.index(_kind(name)))
    return {each: describe[_kind(name)](each) for name in order for each in groups[name]}


def write(
    loaded: Loaded,
    ledger: Ledger,
    request: LoadRequest,
    facts: Facts,
    *,
    generation: int,
    before: Found | None = None,
) -> Written:
    """The set, to be kept; the caller closes the last descriptor, of the record.

    `before`: the one whose programs it replaces. What goes on keeps its name. Raises OSError,
    IdentityError.
    """
    groups = dict(_groups(loaded, generation))
    said = _described(groups)
    kept = before.names if before else {}
    names = {said[each]: kept.get(said[each], name) for name in groups for each in groups[name]}
    unread = unread_by(loaded, before)
    names["ledger"] = kept.get("ledger", f"ledger.{generation}")
    running = [program_id(each) for each in loaded.waiting] or [
        program_in(slot.array) for slot in loaded.slots
    ]
    document = {
        "maker": _maker(request, loaded.made.digest, ledger),
        "names": names,
        "maps": {name: said[each] for name, each in loaded.maps.items()},
        "unread": [[ring.name, ring.said] for ring in unread],
        "slots": [
            [slot.key, *(said[each] for each in slot[1:]), program]
            for slot, program in zip(loaded.slots, running, strict=True)
        ],
        "probes": [
            [*row[:4], said.get(row.program), row.fallback, [said[each] for each in row.also]]
            for row in loaded.probes
        ],
        "made": loaded.made,
        "facts": [*facts[:2], sorted(facts.blind), facts.since],
    }
    new = [
        (name, [each for each in group if said[each] not in kept]) for name, group in groups.items()
    ]
    if "ledger" not in kept:
        new.append((names["ledger"], [ledger.descriptor]))
    new.append((f"record.{generation}", [memory.frozen(json.dumps(document).encode())]))
    dropped = set(kept.values()) - {*names.values(), *(ring.name for ring in unread)}
    if before:
        dropped |= {f"record.{before.generation}", *before.leftovers}
    return Written([each for each in new if each[1]], sorted(dropped))


def unread_by(loaded: Loaded, before: Found | None) -> list[Unread]:
    """The rings that are to be read before that of the set, when it replaces the one before.

    Their descriptors belong to the one before. Raises IdentityError.
    """
    if before is None:
        return []
    ring = before.loaded.maps["ring"]
    said = describe_map(ring)
    if said == describe_map(loaded.maps["ring"]):
        return before.unread
    return [*before.unread, Unread(ring, before.names[said], said)]


# ---- Checked -------------------------------------------------------------------------------------


def check(handed: dict[str, list[int]], request: LoadRequest, path: Path) -> Found:
    """The newest set, when it is whole and its counts can go on. `path`: of the object.

    All that is handed then belongs to it. Raises SetError; nothing was closed then.
    """
    strange = sorted(name for name in handed if not _NAME.fullmatch(name))
    if strange:
        raise SetError(f"it has a descriptor named {strange[0][:40]!r}")
    try:
        generation, document = _newest(handed)
        ledger = Ledger.found(_only(handed, document["names"]["ledger"]))
        _check_doubts(ledger)
        with ledger.risk():
            return _taken_over(handed, ledger, document, generation, request, path)
    except LedgerError as error:
        raise SetError(f"of its counts, {error}") from error
    except IdentityError as error:
        raise SetError(str(error)) from error
    except OSError as error:
        raise SetError(f"it cannot be read ({error.strerror})") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise SetError(f"its record cannot be understood ({error!r:.80})") from error


def _only(handed: Handed, name: str) -> int:
    if name not in handed:
        raise SetError(f"it has no {_kind(name)}")
    if len(handed[name]) != 1:
        raise SetError(f"it has more than one {_kind(name)}")
    return handed[name][0]


def _newest(handed: Handed) -> tuple[int, dict[str, Any]]:
    """Generation and content of the record that was kept last: the set before it goes on."""
    numbers = [int(name.partition(".")[2]) for name in handed if _kind(name) == "record"]
    if not numbers:
        raise SetError("it has no record")
    generation = max(numbers)
    data = memory.read_frozen(_only(handed, f"record.{generation}"), _SIZE_LIMIT)
    if data is None:
        raise SetError("its record could have been changed")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise SetError("its record is no object")
    return generation, document


def _check_doubts(ledger: Ledger) -> None:
    attempts = ledger.number("attempts")
    if attempts >= ATTEMPTS:
        raise SetError(f"{attempts} starts ended while they looked at it")
    for bit, reason in _DOUBTS.items():
        if ledger.number("doubts") & bit:
            raise SetError(reason)


def _taken_over(  # noqa: PLR0917 - all that a set is compared with
    handed: dict[str, list[int]],
    ledger: Ledger,
    document: dict[str, Any],
    generation: int,
    request: LoadRequest,
    path: Path,
) -> Found:
    mine = _maker(request, object_digest(path), ledger)
    theirs = document["maker"]
    differ = [name for name in mine if theirs.get(name) != mine[name]]
    final = [name for name in differ if name not in _REPLACED]
    if final:
        raise SetError(f"it is of another {final[0].replace('_', ' ')}")
    ledger.check()
    names: dict[str, str] = document["names"]
    found = _matched(handed, names)
    slots = [Slot(key, *(found[each] for each in rest)) for key, *rest, _ in document["slots"]]
    loaded = Loaded(
        maps={name: found[said] for name, said in document["maps"].items()},
        slots=slots,
        probes=[
            AttachedProbe(
                *(probe, mode, target, error),
                -1 if program is None else found[program],
                fallback,
                tuple(found[each] for each in also),
            )
            for probe, mode, target, error, program, fallback, also in document["probes"]
        ],
        made=_made(document["made"]),
    )
    _check_shapes(loaded.maps)
    unread = _unread(handed, document["unread"], loaded.maps["ring"], ledger.words("taken"))
    lost = [f"probe {probe.probe} is not attached" for probe in loaded.probes if probe.lost]
    others = [
        f"{slot.key} runs another program"
        for slot, (*_, program) in zip(slots, document["slots"], strict=True)
        if program_in(slot.array) != program
    ]
    changed = [f"another {name.replace('_', ' ')}" for name in differ]
    regions, partial, blind, since = document["facts"]
    used = {*names.values(), *(ring.name for ring in unread), f"record.{generation}"}
    return Found(
        loaded,
        ledger,
        Facts(
            bool(regions),
            {str(name): bool(may_be) for name, may_be in partial.items()},
            frozenset(map(str, blind)),
            float(since),
        ),
        generation,
        "; ".join(changed + lost[:1] + others[:1]),
        names,
        unread,
        {name: group for name, group in handed.items() if name not in used},
    )


def _unread(handed: Handed, rows: list[list[str]], ring: int, taken: memoryview) -> list[Unread]:
    """From the one that was being read on, up to the one before `ring`."""
    found: list[Unread] = []
    current = ring
    for name, said in reversed(rows):
        if is_at(current, map_id(current), taken):
            return found
        current = _only(handed, name)
        if describe_map(current) != said:
            raise SetError(f"it misses {said}")
        found.insert(0, Unread(current, name, said))
    if not is_at(current, map_id(current), taken):
        raise SetError("its ring was read by somebody else")
    return found


def _made(row: list[Any]) -> Made:
    path, digest, built, compiler, absent = row
    return Made(path, digest, built, compiler, tuple(absent))


def _matched(handed: Handed, names: Mapping[str, str]) -> dict[str, int]:
    """The set's descriptors by what the kernel says of each: all of those, and no others."""
    wanted: dict[str, set[str]] = {}
    for said, name in names.items():
        if _kind(name) in _DESCRIBED:
            wanted.setdefault(name, set()).add(said)
    for name in wanted:
        if name not in handed:
            raise SetError(f"it has no {_kind(name)}")
    found = _described({name: handed[name] for name in wanted})
    for name, all_said in wanted.items():
        group = [found[each] for each in handed[name]]
        missing = all_said.difference(group)
        if missing:
            raise SetError(f"it misses {min(missing)}")
        if len(group) != len(all_said):
            raise SetError(f"it has a {_kind(name)} of somebody else")
    return {said: each for each, said in found.items()}


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


def _check_shapes(maps: Mapping[str, int]) -> None:
    """What maps them relies on their sizes, and the configuration on the places of one."""
    wanted = (
        ("counters", possible_cpus() * len(Bank) * ctypes.sizeof(Counters)),
        ("config", ctypes.sizeof(Config)),
        ("shared_buckets", (max(SharedBucket) + 1) * ctypes.sizeof(Bucket)),
        ("workloads", WORKLOADS_MAX * ctypes.sizeof(Workload)),
    )
    for name, size in wanted:
        fields = map_fields(maps[name])
        # An element begins at a word.
        found = fields["max_entries"] * (-(-fields["value_size"] // 8) * 8)
        if found != size:
            raise SetError(f"its map {name} has {found} bytes, not {size}")
    for name in KEPT_MAPS:
        if name not in maps:
            raise SetError(f"it has no map {name}")
