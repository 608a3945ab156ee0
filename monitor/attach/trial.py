"""Whether a seal really refuses in the functions that the programs are attached to.

On some kernels the check has moved to another function, or the compiler put the function into its
caller. So a child makes real refusals, and the programs must see each of them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection

from monitor.attach import calibrate
from monitor.kernel.abi import Bank
from monitor.kernel.counters import KernelState, mark_canary
from monitor.kernel.operations import OPERATIONS
from monitor.provoke import child as provoke

__all__ = ["unseen"]

_REFUSALS = ("mprotect", "munmap", "mmap_fixed", "mremap_source", "madvise")
_TIMEOUT = 30.0  # far beyond the slowest machine: a hang


def _denials(state: KernelState) -> dict[str, int]:
    counted = state.counters(Bank.CANARY).denials
    return {operation.name: sum(counted[index]) for index, operation in enumerate(OPERATIONS)}


def unseen(state: KernelState, announce: Callable[[int], None]) -> Collection[str]:
    """Operations whose refusal was made and not counted.

    The process that makes them is marked as the canary, so the host's counts do not change, and
    `announce` is called with its pid before. Raises CalibrationError.
    """
    before = _denials(state)
    with provoke.run(*_REFUSALS, wait=True) as process:
        try:
            mark_canary(state.config, process.pid)
            announce(process.pid)
            output, errors = process.communicate("x", timeout=_TIMEOUT)
            made = [json.loads(line) for line in output.splitlines()]
        except subprocess.TimeoutExpired as error:
            problem = f"a process that provokes refusals did not end within {_TIMEOUT:g} s"
            raise calibrate.CalibrationError(problem) from error
        except (OSError, json.JSONDecodeError) as error:
            problem = f"a process that provokes refusals ended early: {error}"
            raise calibrate.CalibrationError(problem) from error
        finally:
            process.kill()
            process.wait()
            mark_canary(state.config, 0)
    if len(made) != len(_REFUSALS):
        problem = f"a process that provokes refusals ended early: {errors.strip()[-200:]}"
        raise calibrate.CalibrationError(problem)
    after = _denials(state)
    operations = [line["operation"] for line in made if "operation" in line]
    return {name for name in operations if after[name] == before[name]}
