"""The table of probes: each a row with its candidate hooks, tried in order.

A probe that cannot be attached by one hook falls back to its next one; other probes keep theirs.
A new way to attach is another hook in a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from monitor.kernel.arch import THIS
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

    `template`: the program in bpf/ that several hooks share, empty where `program` is in bpf/
    itself; it is loaded for each with its `operation`, an index into OPERATIONS. `switch`: the
    configuration key that allows it; empty: always. `also`: what must be attached with it.
    `at_seal`: it is a function in which a seal refuses, and reports the refusals of all that call
    it. `sees_compat`: it sees 32-bit callers. `only`: nothing else does its work, so every attach
    mode uses it. `arguments`: of a raw tracepoint, how many the program reads.
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
    arguments: int = 0


class Probe(NamedTuple):
    """What is watched, and the hooks that can watch it.

    `comes_with`: hooks of other probes (of `carrier` only, if it is named) that do this probe's
    work, too: where one of them is attached, it needs no other. `optional`: the monitor is ready
    without it; what it would watch is then a blind spot.
    """

    name: str
    hooks: tuple[Hook, ...] = ()
    comes_with: tuple[Hook, ...] = ()
    carrier: str = ""
    optional: bool = False


_INDEX = {operation.name: index for index, operation in enumerate(OPERATIONS)}
# One hook for every call: it is attached once, however many probes share it.
_RAW_EXIT = Hook("raw_tracepoint", "sys_exit", "raw_exit", sees_compat=True, arguments=2)


def _at_seal(function: str, *also: Hook) -> Hook:
    return Hook(
        *("fexit", function, f"fexit_{function}"),
        also=also,
        at_seal=True,
        sees_compat=True,
    )


def _call(call: str, template: str = "") -> tuple[Hook, ...]:
    """The functions of one system call: for 64-bit and 32-bit callers, or for 64-bit ones only."""
    native, compat = (
        Hook("fexit", function, f"fexit_{function}", template, _INDEX.get(call, -1))
        for function in (THIS.native_function(call), THIS.compat_function(call))
    )
    if native == compat:  # one function for both kinds
        return (native._replace(sees_compat=True),)
    return compat._replace(also=(native,), sees_compat=True), native


_UNMAPPING = _at_seal("vms_gather_munmap_vmas")
_PROTECTION = _at_seal("mprotect_fixup")
# Up to 6.16 can_modify_vma_madv() in mm/mseal.c refuses. Since "mm/mseal: update madvise() logic",
# in 6.17, it is can_madvise_modify() in mm/madvise.c; that is static, and compilers put it into its
# caller, madvise_vma_behavior().
_ADVICE = (_at_seal("can_modify_vma_madv"), _at_seal("madvise_vma_behavior"))
_AT_SEAL: dict[str, tuple[Hook, ...]] = {
    "mprotect": (_PROTECTION,),
    "pkey_mprotect": (_PROTECTION,),
    # check_prep_vma() in mm/mremap.c checks the source since "mm/mremap: put VMA check and prep
    # logic into helper function", in 6.17; before, the call's function did, the next hook. What the
    # move replaces is unmapped.
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
        *_call(operation, "fexit_call"),
        _exit(operation),
        _RAW_EXIT,
    )


def _around(function: str, *also: Hook) -> Hook:
    return Hook("fexit", function, f"fexit_{function}", also=also, sees_compat=True)


# mm/memory.c: /proc/PID/mem and ptrace write by this function.
_REMOTE = _around("access_remote_vm")
_FILLING = _around("mfill_atomic_copy", _around("mfill_atomic_zeropage"))
# move_pages() in mm/userfaultfd.c; where the compiler put it into its caller in fs/userfaultfd.c,
# that one.
_MOVING = (_around("move_pages"), _around("userfaultfd_ioctl"))
_FAULTS = Hook(*("raw_tracepoint", "signal_generate", "signal_generate"), only=True, arguments=5)
# Processes that end in a handler of a fault.
_ENDINGS = Hook("raw_tracepoint", "sched_process_exit", "sched_process_exit", only=True)
# The arguments in include/trace/events/io_uring.h are (ctx, req, cqe) since "io_uring: clean up cqe
# trace points", before (ctx, req, user_data, res, ...): there is a program for each.
_IO_URING = ("raw_tracepoint", "io_uring_complete")
PROBES: tuple[Probe, ...] = (
    *(Probe(op.name, _hooks(op.name)) for op in OPERATIONS if op.number is not None),
    Probe("other", comes_with=(_UNMAPPING,)),
    Probe(
        "mseal",
        (
            *_call("mseal"),
            _exit("mseal"),
            _RAW_EXIT,
        ),
    ),
    # Named after where faults were seen before: dashboards know it by that.
    Probe(
        "signal_deliver",
        (_FAULTS._replace(also=(_ENDINGS,)), _FAULTS),
    ),
    Probe(
        "io_uring_madvise",
        (
            Hook("fexit", "io_madvise", "fexit_io_madvise"),
            *(
                Hook(*_IO_URING, program, switch="watch.io_uring", only=True, arguments=count)
                for program, count in (("io_uring_complete", 4), ("io_uring_complete_cqe", 3))
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
                arguments=2,
            ),
        ),
        (_RAW_EXIT,),
    ),
    # Bypasses.
    Probe("ptrace_poke", (_REMOTE, _exit("ptrace"), _RAW_EXIT), optional=True),
    Probe("proc_mem_write", (_REMOTE,), optional=True),
    Probe("userfaultfd_copy", (_FILLING,), optional=True),
    Probe("userfaultfd_move", _MOVING, optional=True),
    *(
        Probe(method, (), (*_ADVICE, _exit("madvise"), _RAW_EXIT), "madvise", optional=True)
        for method in ("madvise_discard", "guard_remove")
    ),
)


# Functions in which the refusal itself proves that a seal is its cause.
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
    """Which programs report which operations: a bit for each, as in bpf/abi.h's `struct config`."""

    functions: int
    raw: int
    compat: int


def reporters(attached: Iterable[tuple[str, str]]) -> Reporters:
    """The reporters when these probes are attached to these targets: one for each operation."""
    functions = raw = compat = 0
    for probe, target in attached:
        if probe not in _INDEX:
            continue
        bit, hook = 1 << _INDEX[probe], find(probe, target)
        functions |= bit if hook.at_seal else 0
        raw |= bit if hook.target == _RAW_EXIT.target else 0
        compat |= bit if hook.target == _RAW_EXIT.target or not hook.sees_compat else 0
    return Reporters(functions, raw, compat)
