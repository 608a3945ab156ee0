"""Prints the verifier's log of one program, for a developer who changes it.

    python -m monitor.kernel.verifier PROGRAM     every instruction, with the registers after it
    python -m monitor.kernel.verifier             the programs' names, and which are refused

The exit code is 1 when the verifier refuses one. It attaches nothing, and nothing stays loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from monitor.kernel import bpf, compiler, object
from monitor.kernel.attacher import look_at_kernel
from monitor.kernel.btf import LayoutError
from monitor.kernel.loaded import LoadError, LoadRequest
from monitor.kernel.probes import PROBES, Hook
from monitor.kernel.programs import Kernel, Programs, missing, parts

__all__ = ["hooks", "main", "summary"]

_PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)


def hooks() -> dict[str, Hook]:
    """The hook of every program in the table of probes, by the program's name. Programs such as
    `denied`, which others call, have none.
    """
    rows = (hook for probe in PROBES for each in probe.hooks for hook in parts(each))
    return {hook.program: hook for hook in rows}


def summary(log: str, refused: OSError | None) -> str:
    """A log in one line: how many instructions the verifier walked, or why it refused."""
    if refused is None:
        found = _PROCESSED.search(log)
        return f"taken, {found[1]} instructions walked" if found else "taken"
    lines = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    return f"refused: {lines[-1] if lines else refused.strerror}"


def why_not(hook: Hook, compiled: object.Object, kernel: Kernel) -> str:
    """Why this kernel cannot have the hook, so nothing is verified; empty when it can."""
    if hook.mode == "fexit" and kernel.fexit_refused:
        return kernel.fexit_refused
    if hook.mode == "fexit" and hook.target not in kernel.functions:
        return f"this kernel's BTF has no function {hook.target} of the form that is known"
    if missing(hook, compiled, kernel):
        return "this kernel's BTF lacks what the program reads; seal-monitor doctor names it"
    return ""


def _results(name: str) -> Iterator[tuple[str, str, OSError | None, str]]:
    """For one program, or for all: name, log, why it is refused, why it was not tried."""
    compiled = object.read(compiler.OBJECT, compiler.digests())
    kernel = look_at_kernel()
    programs = Programs(LoadRequest(), compiled, kernel)
    done: set[str] = set()

    def wanted(each: str) -> bool:
        return each not in done and name in ("", each)

    for hook in hooks().values():
        if why := why_not(hook, compiled, kernel):
            if name in ("", hook.program):
                yield hook.program, "", None, why
            continue
        for each, log, refused in programs.logs(hook, wanted):
            done.add(each)
            yield each, log, refused, ""


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or arguments[:1] == ["--help"]:
        sys.exit(__doc__)
    (name,) = arguments or [""]
    wrong, found = False, False
    try:
        for each, log, refused, why in _results(name):
            found = True
            wrong |= refused is not None or bool(name and why)
            line = f"not tried: {why}" if why else summary(log, refused)
            print(log if name and log else f"{each:34}{line}")
    except FileNotFoundError as error:
        sys.exit(f"no compiled programs at {error.filename}; run: make setup")
    except (LayoutError, object.ObjectError, bpf.LibraryError, LoadError) as error:
        sys.exit(str(error))
    if not found:
        sys.exit(f"no program {name}; python -m monitor.kernel.verifier lists them")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
