"""`seal-monitor posture`: what processes have sealed, for a person or as JSON for a program."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monitor.evidence.memory_map import Mapping as MemoryMapping
from monitor.host import facts as host
from monitor.posture.scan import (
    PAGE_TABLES_LIMIT,
    STATES,
    Group,
    Memory,
    Process,
    Reader,
    State,
    grouped,
)
from monitor.posture.smaps import patience
from monitor.sizes import rough
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import Column, counted, table, text, width_of_output

__all__ = ["as_document", "listed", "process_lines", "run"]

MAPPINGS_SHOWN = 1000
ONE_SECONDS = 30.0  # for one read of the process that was asked for
_PATH_LIMIT = 4096
_UNKNOWN = "unknown"

# What stands in place of what is sealed; of several the first.
_NOT_READ: Mapping[State, str] = {
    "too_large": "too large",
    "timed_out": "timed out",
    "unreadable": "unreadable",
}

# What a line may stand for, and where its name comes from.
_KEYS: Mapping[str, Callable[[Process], str]] = {
    "process": lambda process: str(process.pid),
    "executable": lambda process: process.executable or _UNKNOWN,
    "workload": lambda process: process.workload,
}


# ---- Values --------------------------------------------------------------------------------------


def _share(part: int, whole: int) -> str:
    """A share in per cent, rounded down, so that 100% means all of it."""
    if not whole:
        return "-"
    return "<1%" if 0 < part * 100 < whole else f"{part * 100 // whole}%"


def _whole(processes: Sequence[Process]) -> Group:
    """One group of all the processes."""
    empty = Group("", dict.fromkeys(STATES, 0), Memory())
    return next(iter(grouped(processes, lambda _: "")), empty)


# ---- As text -------------------------------------------------------------------------------------


def _numbers(groups: Sequence[Group]) -> list[Column]:
    def cells(show: Callable[[Memory], str]) -> list[str]:
        return [show(group.memory) if _is_read(group) else "" for group in groups]

    sealed = [
        rough(group.memory.sealed_bytes)
        if _is_read(group)
        else next((words for state, words in _NOT_READ.items() if group.states[state]), "")
        for group in groups
    ]
    code = cells(lambda memory: _share(memory.executable_sealed_bytes, memory.executable_bytes))
    relro = cells(lambda memory: _share(memory.relro_sealed_bytes, memory.relro_bytes))
    return [
        Column("RANGES", cells(lambda memory: f"{memory.sealed_ranges:,}"), is_number=True),
        Column("SEALED", sealed, is_number=True),
        Column("CODE", code, is_number=True),
        Column("RELRO", relro, is_number=True),
    ]


def _is_read(group: Group) -> bool:
    """Whether the memory of any process of the group was read."""
    return group.states["sealing"] + group.states["not_sealing"] > 0


def _summary(processes: Sequence[Process], whole: Group) -> list[str]:
    memory, states = whole.memory, whole.states
    lines = [
        f"{states['sealing']:,} of {counted(len(processes), 'process')} "
        f"{'has' if states['sealing'] == 1 else 'have'} sealed memory"
        + (
            f": {counted(memory.sealed_ranges, 'range')}, {rough(memory.sealed_bytes)}"
            if memory[0]
            else ""
        )
    ]
    if memory.sealed_bytes:
        code = _share(memory.executable_sealed_bytes, memory.executable_bytes)
        relro = _share(memory.relro_sealed_bytes, memory.relro_bytes)
        lines.append(
            f"{code} of all processes' executable memory is sealed, and {relro} of their RELRO"
        )
    if count := states["unreadable"]:
        hint = "" if os.geteuid() == 0 else "; root may read more"
        lines.append(f"{counted(count, 'process')} could not be read{hint}")
    if count := states["too_large"]:
        lines.append(
            f"{counted(count, 'process')} with more than {rough(PAGE_TABLES_LIMIT)} of page tables "
            f"{'was' if count == 1 else 'were'} not read; --pid reads one"
        )
    if count := states["timed_out"]:
        lines.append(
            f"{counted(count, 'process')} could not be read in time: somebody keeps the lock of "
            "their mappings, or of another process of their owner; --pid waits longer"
        )
    return lines


def _order(process: Process) -> tuple[int, int]:
    return (-(process.memory.sealed_bytes if process.memory else 0), process.pid)


def _shown(processes: Sequence[Process], by: str, everything: bool) -> list[Group]:
    return [
        group for group in grouped(processes, _KEYS[by]) if everything or group.states["sealing"]
    ]


def listed(processes: Sequence[Process], by: str, everything: bool, width: int | None) -> list[str]:
    """The lines of a table, the most sealed memory first, and of a summary.

    `width` is that of the terminal; None cuts no name.
    """
    if by == "process":
        shown = sorted((p for p in processes if everything or p.state == "sealing"), key=_order)
        columns = [
            Column("PID", [str(process.pid) for process in shown], is_number=True),
            Column(
                "EXECUTABLE",
                [process.executable or f"[{process.name or _UNKNOWN}]" for process in shown],
            ),
            *_numbers([_whole([process]) for process in shown]),
            Column("WORKLOAD", [process.workload for process in shown]),
        ]
    else:
        groups = _shown(processes, by, everything)
        columns = [
            Column(by.upper(), [group.name for group in groups]),
            Column(
                "PROCESSES",
                [f"{sum(group.states.values()):,}" for group in groups],
                is_number=True,
            ),
            Column("SEALING", [f"{group.states['sealing']:,}" for group in groups], is_number=True),
            *_numbers(groups),
        ]
    lines = [*table(columns, width), ""] if columns[0].cells else []
    return [*lines, *_summary(processes, _whole(processes))]


def _what(mapping: MemoryMapping) -> str:
    if mapping.path is None:
        return printable(mapping.name) if mapping.name else "anonymous"
    return f"{printable(mapping.path, _PATH_LIMIT)}+0x{mapping.offset or 0:x}"


def process_lines(process: Process, width: int | None) -> list[str]:
    """All that could be read of one process, as lines."""
    memory = process.memory or Memory()
    lines = [f"process {process.pid}, {process.name}"]
    parts = (
        ("code", memory.executable_sealed_bytes, memory.executable_bytes),
        ("RELRO", memory.relro_sealed_bytes, memory.relro_bytes),
    )
    facts = [
        ("executable", process.executable or _UNKNOWN),
        ("build id", process.build_id or "none that could be read"),
        ("workload", process.workload),
        ("sealed", f"{counted(memory.sealed_ranges, 'range')}, {rough(memory.sealed_bytes)}"),
        *(
            (name, f"{_share(part, whole)} sealed: {rough(part)} of {rough(whole)}")
            for name, part, whole in parts
            if whole
        ),
    ]
    lines += [f"  {name:<10}  {value}" for name, value in facts]
    if process.sealed:
        columns = [
            Column("SEALED", [f"0x{m.start:x}-0x{m.end:x}" for m in process.sealed]),
            Column("PERM", [m.permissions for m in process.sealed]),
            Column("SIZE", [rough(m.size) for m in process.sealed], is_number=True),
            Column("WHAT", [_what(m) for m in process.sealed]),
        ]
        lines += ["", *table(columns, width)]
    if len(process.sealed) == MAPPINGS_SHOWN:
        lines.append(f"no more than {MAPPINGS_SHOWN:,} mappings are shown")
    return lines


# ---- As JSON -------------------------------------------------------------------------------------


def _mapping(mapping: MemoryMapping) -> dict[str, object]:
    file = None
    if mapping.path is not None:
        file = {
            "path": printable(mapping.path, _PATH_LIMIT),
            "device": mapping.device,
            "inode": mapping.inode,
            "offset": mapping.offset,
        }
    return {
        "start": f"0x{mapping.start:x}",
        "end": f"0x{mapping.end:x}",
        "permissions": mapping.permissions,
        "file": file,
        "name": None if mapping.name is None else printable(mapping.name),
    }


def _process(process: Process) -> dict[str, object]:
    memory = process.memory
    return {
        "pid": process.pid,
        "name": process.name,
        "executable": process.executable,
        "build_id": process.build_id,
        "workload": process.workload,
        "state": process.state,
        **(dict.fromkeys(Memory._fields) if memory is None else memory._asdict()),
    }


def _group(group: Group) -> dict[str, object]:
    return {"processes": dict(group.states), **group.memory._asdict()}


def as_document(processes: Sequence[Process], by: str, everything: bool) -> dict[str, object]:
    """The same as `listed`, ready for JSON; sizes are in bytes."""
    rows: list[dict[str, object]]
    if by == "process":
        shown = sorted((p for p in processes if everything or p.state == "sealing"), key=_order)
        rows = [_process(process) for process in shown]
    else:
        rows = [{by: group.name, **_group(group)} for group in _shown(processes, by, everything)]
    return {"by": by, "rows": rows, "total": _group(_whole(processes))}


# ---- The command ---------------------------------------------------------------------------------


def _one(pid: int, proc: Path) -> Process:
    waiting = patience(ONE_SECONDS)
    reader = Reader(proc, page_tables_limit=None, keep=MAPPINGS_SHOWN, waiting=waiting)
    process = reader.process(pid)
    if process is None:
        raise ProcessLookupError(f"there is no process {pid} with memory of its own")
    if process.state == "unreadable":
        hint = "" if os.geteuid() == 0 else "; run as its user or as root"
        raise PermissionError(f"the mappings of process {pid} may not be read{hint}")
    if process.state == "timed_out":
        raise TimeoutError(
            f"the mappings of process {pid} could not be read within {ONE_SECONDS:.0f} s: "
            "something keeps their lock; try again, or look at what its threads do"
        )
    return process


def run(
    arguments: Namespace,
    proc: Path = Path("/proc"),
    width_of: Callable[[], int | None] = width_of_output,
) -> int:
    """Print what `arguments` ask for; returns 0. Raises HostError, OSError."""
    host.require_mseal()
    width = width_of()
    document: dict[str, object]
    if arguments.pid is not None:
        process = _one(arguments.pid, proc)
        lines = process_lines(process, width)
        document = _process(process) | {"sealed": [_mapping(m) for m in process.sealed]}
    else:
        processes = list(Reader(proc).processes())
        lines = listed(processes, arguments.by, arguments.all, width)
        document = as_document(processes, arguments.by, arguments.all)
    print(json.dumps(document, indent=2) if arguments.json else text(lines))
    return 0
