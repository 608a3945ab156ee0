"""Hooks whose program can be replaced while they stay attached.

What is attached is a stub, which tail-calls the program in an array of one entry. A program is
replaced by one update of the entry, so that each run is one of either the older or the newer, on
every kernel and by every way to attach; and what the kernel counts of a hook, such as runs that it
skipped, it counts of the stub. An array for each: the kernel lets only programs for the same
function into one (bpf_prog_map_compatible()).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from monitor.kernel import bpf
from monitor.kernel.probes import Hook

__all__ = ["TYPES", "Slot", "attach", "key_of", "stub", "target_of"]

TYPES = {
    "fexit": bpf.TRACING,
    "tracepoint": bpf.TRACEPOINT,
    "raw_tracepoint": bpf.RAW_TRACEPOINT,
}
_ARRAY = "slot"
# include/uapi/linux/bpf.h: code, registers (source, destination), offset, constant.
_INSTRUCTION = "<BBhi"
_LOAD_WORD, _LOAD_MAP, _MOVE, _CALL, _EXIT = 0x79, 0x18, 0xB7, 0x85, 0x95
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD
_TAIL_CALL = 12  # enum bpf_func_id


class Slot(NamedTuple):
    """Descriptors of an attached hook: `array` has its program, `link` keeps `stub` attached."""

    key: str
    array: int
    stub: int
    link: int

    def fill(self, program: int) -> None:
        """From now on the hook runs this program. Raises OSError."""
        bpf.set_element(self.array, 0, program)

    def empty(self) -> None:
        """From now on the hook runs nothing. Raises OSError."""
        bpf.remove_element(self.array, 0)


def key_of(hook: Hook) -> str:
    """The same in every version that has the hook."""
    return f"{hook.mode} {hook.target} {hook.program}"


def target_of(key: str) -> str:
    return key.split()[1]


def stub(array: int, arguments: int) -> bytes:
    """Goes on to the program in the array; does nothing when there is none.

    `arguments`: how many of a raw tracepoint the program reads. The kernel attaches no program that
    reads more than there are, and does not ask about one that is tail-called: so the stub reads the
    last one.
    """
    rows = [(_LOAD_WORD, 0x10, 8 * (arguments - 1), 0)] if arguments else []
    rows += [
        (_LOAD_MAP, _MAP_DESCRIPTOR << 4 | 2, 0, array),
        (0, 0, 0, 0),
        (_MOVE, 3, 0, 0),
        (_CALL, 0, 0, _TAIL_CALL),
        (_MOVE, 0, 0, 0),
        (_EXIT, 0, 0, 0),
    ]
    return b"".join(struct.pack(_INSTRUCTION, *row) for row in rows)


def attach(hook: Hook, program: int | None, function: int) -> Slot:
    """Attach a hook, with its program or with none yet. `function`: BTF id of an fexit hook's.

    Raises OSError.
    """
    made: list[int] = []
    try:
        array = bpf.create_map(bpf.PROG_ARRAY, _ARRAY, key=4, value=4, entries=1, flags=0)
        made.append(array)
        code = stub(array, hook.arguments)
        made.append(bpf.load_program(TYPES[hook.mode], hook.program, code, function))
        if program is not None:
            bpf.set_element(array, 0, program)  # before it is attached: it misses no run
        made.append(_attach(hook, made[-1]))
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise
    return Slot(key_of(hook), *made)


def _attach(hook: Hook, program: int) -> int:
    """Descriptor that keeps the program attached."""
    if hook.mode == "fexit":
        return bpf.attach_fexit(program)
    if hook.mode == "tracepoint":
        return bpf.attach_tracepoint(hook.target, program)
    return bpf.attach_raw_tracepoint(hook.target, program)
