"""The table of probes and the hooks that each attach mode allows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitor import probes
from monitor.operations import OPERATIONS
from monitor.probes import MODES, PROBES, Hook, Probe, candidates

BPF = Path(probes.__file__).parent.parent / "bpf"
BY_NAME = {probe.name: probe for probe in PROBES}


def test_every_operation_has_a_probe_of_its_name() -> None:
    names = [probe.name for probe in PROBES]
    assert {operation.name for operation in OPERATIONS} <= set(names)
    assert set(names) - {operation.name for operation in OPERATIONS} == {
        "mseal",
        "signal_deliver",
        "compat",
    }
    assert len(names) == len(set(names))


def test_every_mode_is_known() -> None:
    assert {hook.mode for probe in PROBES for hook in probe.hooks} <= set(MODES)


def test_every_program_exists() -> None:
    text = "".join(path.read_text("utf-8") for path in BPF.glob("*.c"))
    programs = set(re.findall(r"^int (\w+)\(", text, re.MULTILINE))
    programs |= {f"exit_{name}" for name in re.findall(r"^EXIT_PROGRAM\((\w+),", text, re.M)}
    assert {hook.program for probe in PROBES for hook in probe.hooks} <= programs


def test_exit_programs_are_told_apart() -> None:
    """Each system call's program is compiled for its own operation."""
    text = (BPF / "denials.c").read_text("utf-8")
    rows = dict(re.findall(r"^EXIT_PROGRAM\((\w+), (OP_\w+)\)$", text, re.MULTILINE))
    assert rows == {op.name: op.constant for op in OPERATIONS if op.number is not None}


TRACEPOINT = Hook("tracepoint", "syscalls:sys_exit_munmap", "exit_munmap")
RAW = Hook("raw_tracepoint", "sys_exit", "raw_exit")
SIGNAL = Hook("raw_tracepoint", "signal_deliver", "signal_deliver")


@pytest.mark.parametrize(
    ("probe", "attach", "expected"),
    [
        ("munmap", "auto", (TRACEPOINT, RAW)),
        ("munmap", "tracepoint", (TRACEPOINT,)),
        ("munmap", "raw_tracepoint", (RAW,)),
        # The only kind of hook there is serves in every mode.
        *(("signal_deliver", attach, (SIGNAL,)) for attach in ("auto", *MODES)),
    ],
)
def test_candidates(probe: str, attach: str, expected: tuple[Hook, ...]) -> None:
    assert candidates(BY_NAME[probe], attach) == expected


def test_mode_without_a_hook() -> None:
    probe = Probe("munmap", (TRACEPOINT, RAW))
    assert candidates(probe, "fexit") == ()


def test_what_costs_every_call_has_a_switch() -> None:
    switched = {probe.name: probe.switch for probe in PROBES if probe.switch}
    assert switched == {"io_uring_madvise": "watch.io_uring", "compat": "watch.compat"}
    assert BY_NAME["compat"].free_with == RAW
