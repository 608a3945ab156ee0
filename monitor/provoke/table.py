"""Makes small real violations in a separate process, for the canary, the demo and the tests.

`python -m monitor.provoke.table [--wait] [--parent=PID] NAME...` makes each in order and prints a
JSON line for each: what was done, and what a monitor should say of it. A fault's line comes before
the fault. What this kernel or CPU cannot make has the line {"name": ..., "unsupported": reason}.
With --wait nothing happens before a byte or the end of standard input arrives. With
--parent it ends with the process that started it.

A forked child makes a provocation that ends its process or leaves it under a filter. But the
process itself makes the last one named; `pid` in the line says which process it was.
"""

from __future__ import annotations

import json
import os
import sys

from monitor.kernel.syscalls import end_with
from monitor.provoke.bypasses import BYPASSES
from monitor.provoke.child import command, environment, run
from monitor.provoke.denials import DENIALS, SEALS
from monitor.provoke.faults import FAULTS
from monitor.provoke.indirect import INDIRECT_DENIALS
from monitor.provoke.others import OTHERS
from monitor.provoke.provocation import Fault, Provocation, Unsupported

__all__ = ["PROVOCATIONS", "Provocation", "command", "environment", "main", "run"]

PROVOCATIONS: tuple[Provocation, ...] = (
    *DENIALS,
    *INDIRECT_DENIALS,
    *SEALS,
    *OTHERS,
    *FAULTS,
    *BYPASSES,
)

_PARENT = "--parent="
_BY_NAME = {provocation.name: provocation for provocation in PROVOCATIONS}


def _print(provocation: Provocation, **facts: object) -> None:
    line = {"name": provocation.name, "kind": provocation.kind, "pid": os.getpid(), **facts}
    print(json.dumps(line), flush=True)


def _make(provocation: Provocation) -> None:
    try:
        made = provocation.function()
    except Unsupported as problem:
        _print(provocation, unsupported=str(problem))
        return
    facts, strike = made if isinstance(made, Fault) else (made, None)
    _print(provocation, **facts)
    if strike is not None:
        strike()
        raise RuntimeError(f"{provocation.name}: the process survived it")


def _make_apart(provocation: Provocation) -> None:
    """Make it in a forked child, which may die of it. Exit code 1: an error in this program."""
    child = os.fork()
    if not child:
        _make(provocation)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1:
        raise RuntimeError(f"{provocation.name}: its child failed")


def main(arguments: list[str] | None = None) -> int:
    """Make the provocations named; 0, or 2 for a wrong command line. A fault ends the process."""
    names = list(sys.argv[1:] if arguments is None else arguments)
    wait = "--wait" in names
    parents = [name for name in names if name.startswith(_PARENT)]
    names = [name for name in names if name != "--wait" and name not in parents]
    unknown = [name for name in names if name not in _BY_NAME]
    if unknown or not names:
        problem = f"unknown provocation {unknown[0]!r}" if unknown else "no provocation named"
        print(f"{problem}; known: {' '.join(_BY_NAME)}", file=sys.stderr)
        return 2
    for parent in parents:
        end_with(int(parent.removeprefix(_PARENT)))
    if wait:
        os.read(0, 1)
    for name in names[:-1]:
        provocation = _BY_NAME[name]
        (_make_apart if provocation.lasting else _make)(provocation)
    _make(_BY_NAME[names[-1]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
