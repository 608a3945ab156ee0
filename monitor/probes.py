"""The table of probes: each a row with its candidate hooks, tried in order.

A probe that cannot be attached by one hook falls back to its next one, alone. A new way to attach
is another hook in a row.
"""

from __future__ import annotations

from typing import NamedTuple

from monitor.operations import OPERATIONS

__all__ = ["MODES", "PROBES", "Hook", "Probe", "candidates"]

MODES = ("fexit", "tracepoint", "raw_tracepoint")


class Hook(NamedTuple):
    mode: str
    target: str
    program: str


class Probe(NamedTuple):
    """`switch` names the configuration key that turns the probe on; empty: it is always on.

    Where the hook `free_with` is attached already, the probe comes with it, switch or not.
    """

    name: str
    hooks: tuple[Hook, ...]
    switch: str = ""
    free_with: Hook | None = None


# One hook for every call: it is attached once, however many probes come to share it.
_RAW_EXIT = Hook("raw_tracepoint", "sys_exit", "raw_exit")


def _exit_hooks(name: str) -> tuple[Hook, ...]:
    return (Hook("tracepoint", f"syscalls:sys_exit_{name}", f"exit_{name}"), _RAW_EXIT)


PROBES: tuple[Probe, ...] = (
    *(Probe(op.name, _exit_hooks(op.name)) for op in OPERATIONS if op.number is not None),
    Probe("mseal", _exit_hooks("mseal")),
    Probe("signal_deliver", (Hook("raw_tracepoint", "signal_deliver", "signal_deliver"),)),
    Probe(
        "io_uring_madvise",
        (
            Hook("raw_tracepoint", "io_uring_complete", "io_uring_complete"),
            Hook("raw_tracepoint", "io_uring_complete", "io_uring_complete_cqe"),
        ),
        "watch.io_uring",
    ),
    Probe(
        "compat",
        (Hook("raw_tracepoint", "sys_exit", "raw_exit_compat"),),
        "watch.compat",
        _RAW_EXIT,
    ),
)


def candidates(probe: Probe, attach: str) -> tuple[Hook, ...]:
    """The probe's hooks that the attach mode allows, in the order to try them.

    A probe that has only one kind of hook keeps it in every mode.
    """
    if attach == "auto" or len({hook.mode for hook in probe.hooks}) == 1:
        return probe.hooks
    return tuple(hook for hook in probe.hooks if hook.mode == attach)
