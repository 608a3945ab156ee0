"""The table of probes: each a row with its candidate hooks, tried in order.

A probe that cannot be attached by one hook falls back to its next one, alone. A new way to attach
is another hook in a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from monitor.kernel.arch import compat_function, native_function
from monitor.kernel.operations import OPERATIONS

__all__ = [
    "AT_SEAL",
    "MODES",
    "OPTIONAL",
    "PROBES",
    "Hook",
    "Probe",
    "Reporters",
    "candidates",
    "find",
    "reporters",
]

MODES = ("fexit", "tracepoint", "raw_tracepoint")


class Hook(NamedTuple):
    """Where a program is attached.

    `template`: the program in bpf/ that is loaded for it, where that is loaded for several, each
    with its `operation`, an index into OPERATIONS. `switch`: the configuration key that allows it;
    empty: always. `also`: what must be attached with it. `at_seal`: it is a function in
    which a seal refuses, and reports all that call it. `sees_compat`: it sees 32-bit callers.
    `only`: nothing else does its work, so that it is used in every attach mode.
    """

    mode: str
    target: str
    program: str
    template: str = ""
    operation: int = -1
    switch: str = ""
    also: tuple[Hook, ...] = ()
    at_seal: bool = False
    sees_compat: bool = False
    only: bool = False


class Probe(NamedTuple):
    """What is watched, and the hooks that can.

    `comes_with`: where one of these hooks is attached already, for the probe `carrier` if one is
    named, it needs none of its own. `optional`: the monitor is ready without it; what it would
    watch is then a blind spot.
    """

    name: str
    hooks: tuple[Hook, ...] = ()
    comes_with: tuple[Hook, ...] = ()
    carrier: str = ""
    optional: bool = False


_INDEX = {operation.name: index for index, operation in enumerate(OPERATIONS)}
# One hook for every call: it is attached once, however many probes come to share it.
_RAW_EXIT = Hook("raw_tracepoint", "sys_exit", "raw_exit", sees_compat=True)


def _at_seal(function: str, *also: Hook) -> Hook:
    return Hook(
        *("fexit", function, f"fexit_{function}"),
        also=also,
        at_seal=True,
        sees_compat=True,
    )


def _call(operation: str) -> tuple[Hook, ...]:
    """The functions of one system call, for both kinds of callers, or for those that there are."""
    both, native = (
        Hook("fexit", function, f"fexit_{function}", "fexit_call", _INDEX[operation])
        for function in (compat_function(operation), native_function(operation))
    )
    return both._replace(also=(native,), sees_compat=True), native


_UNMAPPING = _at_seal("vms_gather_munmap_vmas")
_PROTECTION = _at_seal("mprotect_fixup")
# A function of its own up to 6.16, can_modify_vma_madv() in mm/mseal.c. can_madvise_modify() in
# mm/madvise.c came in its place, which is static and a part of the function that calls it.
_ADVICE = (_at_seal("can_modify_vma_madv"), _at_seal("madvise_vma_behavior"))
_AT_SEAL: dict[str, tuple[Hook, ...]] = {
    "mprotect": (_PROTECTION,),
    "pkey_mprotect": (_PROTECTION,),
    # mm/mremap.c: check_prep_vma() looks at the source from 6.17 on, and before that the call's
    # function itself. What the move replaces is unmapped.
    "mremap": (_at_seal("check_prep_vma", _UNMAPPING),),
    "madvise": _ADVICE,
    "process_madvise": _ADVICE,
}


def _exit(call: str) -> Hook:
    hook = Hook("tracepoint", f"syscalls:sys_exit_{call}", f"exit_{call}")
    if call not in _INDEX:
        return hook
    return hook._replace(template="exit_call", operation=_INDEX[call])


def _hooks(operation: str) -> tuple[Hook, ...]:
    return (
        *_AT_SEAL.get(operation, (_UNMAPPING,)),
        *_call(operation),
        _exit(operation),
        _RAW_EXIT,
    )


def _around(function: str, *also: Hook) -> Hook:
    return Hook("fexit", function, f"fexit_{function}", also=also, sees_compat=True)


# mm/memory.c: what /proc/PID/mem and ptrace write by.
_REMOTE = _around("access_remote_vm")
_FILLING = _around("mfill_atomic_copy", _around("mfill_atomic_zeropage"))
# mm/userfaultfd.c: where the compiler made it a part of its caller, fs/userfaultfd.c calls that.
_MOVING = (_around("move_pages"), _around("userfaultfd_ioctl"))
_MSEAL, _MSEAL_32 = (
    Hook("fexit", function, f"fexit_{function}")
    for function in (native_function("mseal"), compat_function("mseal"))
)
# include/trace/events/io_uring.h: (ctx, req, user_data, res, ...), newer kernels (ctx, req, cqe).
_IO_URING = ("raw_tracepoint", "io_uring_complete")
PROBES: tuple[Probe, ...] = (
    *(Probe(op.name, _hooks(op.name)) for op in OPERATIONS if op.number is not None),
    Probe("other", comes_with=(_UNMAPPING,)),
    Probe(
        "mseal",
        (
            _MSEAL_32._replace(also=(_MSEAL,), sees_compat=True),
            _MSEAL,
            _exit("mseal"),
            _RAW_EXIT,
        ),
    ),
    Probe(
        "signal_deliver",
        (Hook("raw_tracepoint", "signal_deliver", "signal_deliver", only=True),),
    ),
    Probe(
        "io_uring_madvise",
        (
            Hook("fexit", "io_madvise", "fexit_io_madvise"),
            *(
                Hook(*_IO_URING, program, switch="watch.io_uring", only=True)
                for program in ("io_uring_complete", "io_uring_complete_cqe")
            ),
        ),
    ),
    Probe(
        "compat",
        (
            Hook(
                *("raw_tracepoint", "sys_exit", "raw_exit_compat"),
                switch="watch.compat",
                only=True,
            ),
        ),
        (_RAW_EXIT,),
    ),
    # Ways around a seal.
    Probe("ptrace_poke", (_REMOTE, _exit("ptrace"), _RAW_EXIT), optional=True),
    Probe("proc_mem_write", (_REMOTE,), optional=True),
    Probe("userfaultfd_copy", (_FILLING,), optional=True),
    Probe("userfaultfd_move", _MOVING, optional=True),
    Probe("madvise_discard", (), (*_ADVICE, _exit("madvise"), _RAW_EXIT), "madvise", optional=True),
)


# Where a denial is proved by the refusal itself.
AT_SEAL = frozenset(
    part.target
    for probe in PROBES
    for hook in probe.hooks
    for part in (hook, *hook.also)
    if part.at_seal
)


OPTIONAL = frozenset(probe.name for probe in PROBES if probe.optional)


def candidates(probe: Probe, attach: str, switches: Iterable[str] = ()) -> tuple[Hook, ...]:
    """The probe's hooks that attach mode and switches allow, in the order to try them."""
    return tuple(
        hook
        for hook in probe.hooks
        if (attach in ("auto", hook.mode) or hook.only)
        and (not hook.switch or hook.switch in switches)
    )


def find(probe: str, target: str) -> Hook:
    """The hook by which a probe is attached to a target. Raises KeyError."""
    for row in PROBES:
        if row.name == probe:
            for hook in (*row.hooks, *row.comes_with):
                if hook.target == target:
                    return hook
    raise KeyError(f"{probe} has no hook {target}")


class Reporters(NamedTuple):
    """Who reports which operation: a bit for each, as in `struct config` of bpf/abi.h."""

    functions: int
    raw: int
    compat: int


def reporters(attached: Iterable[tuple[str, str]]) -> Reporters:
    """For probes attached to targets. No operation has two reporters."""
    functions = raw = compat = 0
    for probe, target in attached:
        if probe not in _INDEX:
            continue
        bit, hook = 1 << _INDEX[probe], find(probe, target)
        functions |= bit if hook.at_seal else 0
        raw |= bit if hook.target == _RAW_EXIT.target else 0
        compat |= bit if hook.target == _RAW_EXIT.target or not hook.sees_compat else 0
    return Reporters(functions, raw, compat)
