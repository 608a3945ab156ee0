"""What this kernel does, found out by trying it through the loaded programs.

`python -m monitor.attach.calibrate PID` is the process that tries, started by that one; the daemon
reads from the ring what the programs saw of it. `calibrate()` relies on the order of the calls in
`main()`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from typing import NamedTuple

from monitor.kernel.syscalls import PAGE, call, end_with
from monitor.provoke.provocation import (
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    lay,
    mappings,
    need,
    seal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen

    from monitor.kernel.abi import Config
    from monitor.kernel.ring import Ring

__all__ = ["PARTIAL_OPERATIONS", "CalibrationError", "Findings", "calibrate", "start"]

MADV_DONTNEED, MADV_GUARD_INSTALL = 4, 102
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
_TIMEOUT = 5.0
_VALID_FLAGS, _WRONG_FLAGS = 0, 1


class CalibrationError(Exception):
    """The programs do not see what they must. The message says what they missed."""


# ---- The process that tries ----------------------------------------------------------------------


def _partial_mprotect() -> bool:
    """Whether a refused mprotect over [unsealed][sealed] leaves the unsealed part changed.

    Not before 4a2dd02b0916 ("mm/mprotect: replace can_modify_mm with can_modify_vma"), in 6.12:
    do_mprotect_pkey() looked at the whole range first.
    """
    pages = lay("wS")
    call("mprotect", pages.start, 2 * PAGE, PROT_READ)
    return next(m.permissions for m in mappings() if m.start == pages.start).startswith("r--")


def _partial_madvise() -> bool:
    """The same for madvise, since 23c57d1fa2b9 ("mseal: replace can_modify_mm_madv with a vma
    variant"), in 6.12.
    """
    pages = lay("wS")
    with open("/proc/self/mem", "rb") as memory:
        call("madvise", pages.start, 2 * PAGE, MADV_DONTNEED)
        memory.seek(pages.start)
        return memory.read(1) == b"\0"


def _partial_mremap() -> bool:
    """Whether a fixed move over [unsealed][sealed] moves the unsealed part before it is refused.

    remap_move() in mm/mremap.c: "mm/mremap: permit mremap() move of multiple VMAs", in 6.17.
    """
    pages, target = lay("rS"), lay("nn")
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    result = call("mremap", pages.start, 2 * PAGE, 2 * PAGE, flags, target.start)
    return result == -errno.EPERM and all(m.start != pages.start for m in mappings())


_PARTIAL = {
    "mprotect": _partial_mprotect,
    "madvise": _partial_madvise,
    "mremap": _partial_mremap,
}
# Where a refusal may leave the part before the seal changed.
PARTIAL_OPERATIONS = tuple(_PARTIAL)


def _anonymous_by_ops() -> bool:
    """Whether a private mapping of /dev/zero, a file without vm_ops, counts as anonymous.

    can_madvise_modify() in mm/madvise.c calls vma_is_anonymous(). Before "mm/mseal: update
    madvise() logic", in 6.17, is_ro_anon() in mm/mseal.c looked for a file.
    """
    start = lay("n").start
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    need("mmap", start, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, descriptor, 0)
    os.close(descriptor)
    seal(start, PAGE)
    return call("madvise", start, PAGE, MADV_DONTNEED) == -errno.EPERM


def _guard_files() -> bool:
    """Whether a guard region can be installed in a private mapping of a file.

    "mm: allow guard regions in file-backed and read-only mappings", in 6.15.
    """
    start = lay("n").start
    descriptor = os.memfd_create("seal-monitor")
    os.ftruncate(descriptor, PAGE)
    need("mmap", start, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, descriptor, 0)
    os.close(descriptor)
    return call("madvise", start, PAGE, MADV_GUARD_INSTALL) == 0


def main(parent: int) -> int:
    """Wait for a byte, then make the calls that calibrate() expects; prints what came of them.

    The process ends with `parent`.
    """
    end_with(parent)
    if not os.read(0, 1):
        return 1  # nobody is left that wants to know
    guard, sealed = lay("w").start, lay("r").start
    call("mseal", guard, PAGE, _WRONG_FLAGS)
    guard_regions = call("madvise", guard, PAGE, MADV_GUARD_INSTALL) == 0
    call("mseal", guard, PAGE, _WRONG_FLAGS)
    call("mseal", sealed, PAGE, _WRONG_FLAGS)
    result = call("mseal", sealed, PAGE, _VALID_FLAGS)
    found: dict[str, object] = {"mseal": result, "guard_regions": guard_regions}
    if not result:
        found["partial_updates"] = {name: tried() for name, tried in _PARTIAL.items()}
        found["anonymous_by_ops"] = _anonymous_by_ops()
        found["guard_files"] = _guard_files()
    print(json.dumps(found), flush=True)
    return 0


# ---- The daemon's side ---------------------------------------------------------------------------


def start() -> Popen[str]:
    """Start the process that tries; it waits until calibrate() lets it go."""
    from subprocess import PIPE, Popen  # noqa: PLC0415 - the child needs none of it

    from monitor.provoke.child import environment  # noqa: PLC0415

    command = [sys.executable, "-S", "-P", "-m", "monitor.attach.calibrate", str(os.getpid())]
    # In a process group of its own: Ctrl-C goes to the monitor, which ends this process.
    return Popen(command, env=environment(), stdin=PIPE, stdout=PIPE, text=True, process_group=0)


def _flags_seen(ring: Ring, wanted: int) -> list[int]:
    """vm_flags at each of the `wanted` mseal calls."""
    from monitor.kernel.abi import Kind, RecordFlag  # noqa: PLC0415 - the child needs none of it

    deadline = time.monotonic() + _TIMEOUT
    flags: list[int] = []
    while len(flags) < wanted:
        # Other processes may seal meanwhile.
        flags += [
            record.mapping.flags
            for record in ring.drain().records
            if record.flags & RecordFlag.CANARY and record.kind == Kind.SEAL
        ]
        if time.monotonic() > deadline:
            raise CalibrationError(f"the probe on mseal saw {len(flags)} of {wanted} calls")
        time.sleep(0.001)
    return flags


def _single_bit(before: int, after: int) -> int:
    difference = before ^ after
    return difference if difference.bit_count() == 1 and after & difference else 0


class Findings(NamedTuple):
    """`partial_updates`: by operation, whether a refused call may leave a part changed."""

    guard_regions: bool
    partial_updates: dict[str, bool]


def calibrate(
    process: Popen[str], config: Config, ring: Ring, announce: Callable[[int], None]
) -> Findings:
    """Let the process of start() try, and write what was found into the kernel's configuration.

    `announce` is called with its pid before. Raises CalibrationError.
    """
    from subprocess import TimeoutExpired  # noqa: PLC0415 - the child needs none of it

    from monitor.kernel.counters import mark_canary  # noqa: PLC0415

    try:
        mark_canary(config, process.pid)
        announce(process.pid)
        output, _ = process.communicate("x", timeout=_TIMEOUT)
        found = json.loads(output or "{}")
        if found.get("mseal") != 0:
            raise CalibrationError(f"mseal failed in the calibrating process: {found}")
        plain, guarded, unsealed, sealed, *_ = _flags_seen(ring, 4)
    except TimeoutExpired as error:
        raise CalibrationError(f"its process did not end within {_TIMEOUT:g} s") from error
    except (OSError, json.JSONDecodeError) as error:
        raise CalibrationError(f"its process ended early: {error}") from error
    finally:
        process.kill()
        process.wait()
        mark_canary(config, 0)
    sealed_mask = _single_bit(unsealed, sealed)
    if not sealed_mask:
        raise CalibrationError(f"sealing changed vm_flags from {unsealed:#x} to {sealed:#x}")
    config.maybe_guard_mask = _single_bit(plain, guarded)
    config.anonymous_by_ops = found["anonymous_by_ops"]
    config.guard_files = found["guard_files"]
    for name, may_be in found["partial_updates"].items():
        setattr(config, f"partial_{name}", may_be)
    config.sealed_mask = sealed_mask  # last: from now on the programs count
    return Findings(found["guard_regions"], found["partial_updates"])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
