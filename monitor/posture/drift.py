"""Finds executables that used to seal memory and no longer do. Pure functions, and the file that
keeps what is known from one scan, and one run, to the next.

An executable is known by its path and by the service that it runs in, because one interpreter runs
many programs. Its file may change: this is made to find an update that no longer seals.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from monitor.evidence.events import timestamp
from monitor.posture.scan import Process
from monitor.untrusted import state_file
from monitor.untrusted.printable import printable
from monitor.untrusted.shares import keep_fairly

__all__ = [
    "FILE",
    "SETTLED_SECONDS",
    "Change",
    "Known",
    "Program",
    "Sighting",
    "load",
    "look",
    "save",
    "see",
]

FILE = "posture.json"
SETTLED_SECONDS = 60.0
PROGRAMS_LIMIT = 512
FORGET_SECONDS = 30 * 86_400.0
FORGET_STOPPED_SECONDS = 7 * 86_400.0  # by then somebody has noticed
_TEXT_LIMIT = 512
_SIZE_LIMIT = 4 << 20
_VERSION = 1
_BAD = f"{FILE}.bad"


class Program(NamedTuple):
    """`service` is None for a program that runs in no service: names of scopes do not last."""

    executable: str
    service: str | None

    @property
    def words(self) -> str:
        return f"{self.executable} in {self.service}" if self.service else self.executable


@dataclass(frozen=True, slots=True)
class Known:
    """`last_sealed` is in Unix seconds; `build_id` is the one at that time. `owner`: see
    Process.
    """

    is_sealing: bool
    last_sealed: float
    build_id: str | None
    owner: tuple[str, int | None] = ("", None)


@dataclass(slots=True)
class Sighting:
    """Processes of one program in one scan.

    `unknown` counts those that may not be read, and young ones that seal: they may soon be gone.
    Young ones that do not seal are not counted.
    """

    sealing: int = 0
    without: int = 0
    unknown: int = 0
    build_id: str | None = None
    owner: tuple[str, int | None] | None = None


class Change(NamedTuple):
    """`event` is the name of a health event."""

    event: str
    message: str
    details: dict[str, object]


def see(sightings: dict[Program, Sighting], process: Process, settled: float) -> None:
    """Add a process to what a scan has seen. One that is younger than `settled` seconds shows
    little: it may not have sealed yet, or live only for a moment.
    """
    if process.executable is None:
        return
    is_service = process.workload.endswith(".service")
    program = Program(process.executable, process.workload if is_service else None)
    sighting = sightings.setdefault(program, Sighting())
    is_settled = process.age >= settled
    if is_settled and process.state == "sealing":
        sighting.sealing += 1
    elif is_settled and process.state == "not_sealing":
        sighting.without += 1
    elif process.state != "not_sealing":
        sighting.unknown += 1
    sighting.build_id = process.build_id or sighting.build_id
    sighting.owner = _first(sighting.owner, process.owner)


def _first(
    one: tuple[str, int | None] | None, other: tuple[str, int | None] | None
) -> tuple[str, int | None]:
    """Of several owners of a program the one with the least uid, above all root: what the others
    run as well is not theirs to have forgotten.
    """
    known = [owner for owner in (one, other) if owner is not None and owner[1] is not None]
    return min(known, key=lambda owner: (owner[1] or 0, owner[0]), default=("", None))


def look(
    known: Mapping[Program, Known], sightings: Mapping[Program, Sighting], now: float
) -> tuple[dict[Program, Known], list[Change]]:
    """What is known after a scan at this Unix time, and what has changed.

    A program has stopped when it runs, all of its processes can be read, and none seals. Each
    workload, and in it each user, has a share of PROGRAMS_LIMIT: no number of programs that
    somebody makes up has another's forgotten.
    """
    after = {
        program: facts
        for program, facts in known.items()
        if now - facts.last_sealed
        < (FORGET_SECONDS if facts.is_sealing else FORGET_STOPPED_SECONDS)
    }
    changes = []
    for program, sighting in sightings.items():
        before = after.get(program)
        if sighting.sealing:
            owner = _first(before.owner if before else None, sighting.owner)
            after[program] = Known(True, now, sighting.build_id, owner)
            if before is not None and not before.is_sealing:
                changes.append(_change("sealing_resumed", program, before, sighting))
        elif before is not None and before.is_sealing and sighting.without and not sighting.unknown:
            after[program] = replace(before, is_sealing=False)
            changes.append(_change("sealing_stopped", program, before, sighting))
    kept = sorted(after.items(), key=lambda item: item[1].last_sealed, reverse=True)
    owners = (lambda item: item[1].owner[0], lambda item: item[1].owner[1])
    return dict(keep_fairly(kept, PROGRAMS_LIMIT, owners)), changes


def _change(event: str, program: Program, before: Known, sighting: Sighting) -> Change:
    last = timestamp(int(before.last_sealed * 1e9), 0)
    count = sighting.sealing or sighting.without
    processes = f"{count} process{'' if count == 1 else 'es'}"
    message = (
        f"{program.words} seals memory again: {processes}"
        if event == "sealing_resumed"
        else f"{program.words} seals no memory any more: {processes}; it last did at {last[:19]}Z"
    )
    if sighting.build_id != before.build_id:
        message += "; it is another build now"
    return Change(
        event,
        message,
        {
            "executable": program.executable,
            "service": program.service,
            "processes": count,
            "last_sealed": last,
            "build_id": sighting.build_id,
            "build_id_before": before.build_id,
        },
    )


# ---- The file ------------------------------------------------------------------------------------


def _entry(document: Any) -> tuple[Program, Known]:
    texts = [document[name] for name in ("executable", "service", "build_id")]
    if not all(isinstance(text, str | None) for text in texts) or texts[0] is None:
        raise ValueError("a text is missing")
    executable, service, build_id = (text and printable(text, _TEXT_LIMIT) for text in texts)
    is_sealing, last = document["sealing"], document["last_sealed"]
    if (
        not isinstance(is_sealing, bool)
        or not isinstance(last, int | float)
        or not 0 <= last < 1e12
    ):
        raise ValueError("a value is missing or out of range")
    workload, uid = document.get("workload"), document.get("uid")  # 0.1.0 had no owners
    if not isinstance(workload, str | None) or not isinstance(uid, int | None):
        raise ValueError("an owner is out of range")  # noqa: TRY004 - of the file, not of a caller
    owner = printable(workload or "", _TEXT_LIMIT), uid
    return Program(executable, service), Known(is_sealing, float(last), build_id, owner)


def _parse(data: bytes) -> dict[Program, Known]:
    """The contents of the file. Raises ValueError when `save` did not write it."""
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError(f"not of version {_VERSION}")
        return dict(_entry(entry) for entry in document["programs"][:PROGRAMS_LIMIT])
    except (KeyError, TypeError) as error:
        raise ValueError(f"a part is missing or wrong ({error})"[:200]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load(path: Path) -> tuple[dict[Program, Known], str | None]:
    """What the file in the state directory knows, and what is wrong with it. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        data = state_file.read(directory, FILE, _SIZE_LIMIT)
        return ({} if data is None else _parse(data)), None
    except (OSError, ValueError) as error:
        os.rename(FILE, _BAD, src_dir_fd=directory, dst_dir_fd=directory)
        return {}, f"{path / FILE} does not say what used to seal: {error}; set aside as {_BAD}"
    finally:
        os.close(directory)


def save(path: Path, known: Mapping[Program, Known]) -> None:
    """Write the file in the state directory. Raises OSError."""
    programs: Iterable[dict[str, object]] = (
        {
            "executable": program.executable,
            "service": program.service,
            "sealing": facts.is_sealing,
            "last_sealed": facts.last_sealed,
            "build_id": facts.build_id,
            "workload": facts.owner[0],
            "uid": facts.owner[1],
        }
        for program, facts in known.items()
    )
    text = json.dumps({"version": _VERSION, "programs": list(programs)}, indent=1)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        state_file.write(directory, FILE, text.encode() + b"\n")
    finally:
        os.close(directory)
