"""The table of probes and the hooks that each attach mode allows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitor.kernel import probes
from monitor.kernel.abi import Method
from monitor.kernel.arch import THIS
from monitor.kernel.layouts import FUNCTIONS
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import AT_SEAL, MODES, OPTIONAL, PROBES, candidates, find, reporters

BPF = Path(probes.__file__).parents[2] / "bpf"
BY_NAME = {probe.name: probe for probe in PROBES}
HOOKS = {hook for probe in PROBES for hook in probe.hooks}
SWITCHES = ("watch.compat", "watch.io_uring")


def test_every_operation_has_a_probe_of_its_name() -> None:
    names = [probe.name for probe in PROBES]
    assert {operation.name for operation in OPERATIONS} <= set(names)
    assert set(names) - {operation.name for operation in OPERATIONS} == {
        "mseal",
        "signal_deliver",
        "compat",
        *OPTIONAL,
    }
    assert {method.label for method in Method} == OPTIONAL
    assert len(names) == len(set(names))


def test_every_mode_is_known() -> None:
    assert {hook.mode for probe in PROBES for hook in probe.hooks} <= set(MODES)


def test_every_program_exists() -> None:
    text = "".join(path.read_text("utf-8") for path in BPF.glob("*.c"))
    programs = set(re.findall(r"^int (\w+)\(", text, re.MULTILINE))
    header = (BPF / THIS.c_header).read_text("utf-8")
    programs |= {f"fexit_{name}" for name in re.findall(r"MSEAL_PROGRAM\((\w+),", header)}
    parts = {part for hook in HOOKS for part in (hook, *hook.also)}
    assert {part.template or part.program for part in parts} <= programs


def test_every_function_is_known_to_the_layouts() -> None:
    parts = {part for hook in HOOKS for part in (hook, *hook.also)}
    targets = {part.target for part in parts if part.mode == "fexit"}
    assert targets == set(FUNCTIONS)


def test_programs_of_a_call_are_loaded_for_its_operation() -> None:
    """One program serves for the exits of all calls, and one for their functions."""
    for index, operation in enumerate(OPERATIONS):
        hooks = {hook.program: hook for hook in BY_NAME[operation.name].hooks}
        parts = hooks | {part.program: part for hook in hooks.values() for part in hook.also}
        of_templates = {
            name: (part.template, part.operation) for name, part in parts.items() if part.template
        }
        expected = {
            f"exit_{operation.name}": ("exit_call", index),
            f"fexit___x64_sys_{operation.name}": ("fexit_call", index),
            f"fexit___ia32_sys_{operation.name}": ("fexit_call", index),
        }
        assert of_templates == (expected if operation.number is not None else {})


@pytest.mark.parametrize(
    ("probe", "attach", "expected"),
    [
        (
            "munmap",
            "auto",
            [
                "vms_gather_munmap_vmas",
                "__ia32_sys_munmap",
                "__x64_sys_munmap",
                "syscalls:sys_exit_munmap",
                "sys_exit",
            ],
        ),
        ("munmap", "fexit", ["vms_gather_munmap_vmas", "__ia32_sys_munmap", "__x64_sys_munmap"]),
        ("munmap", "tracepoint", ["syscalls:sys_exit_munmap"]),
        ("munmap", "raw_tracepoint", ["sys_exit"]),
        # The only kind of hook there is serves in every mode.
        *(("signal_deliver", attach, ["signal_generate"] * 2) for attach in ("auto", *MODES)),
        ("other", "auto", []),
    ],
)
def test_candidates(probe: str, attach: str, expected: list[str]) -> None:
    assert [hook.target for hook in candidates(BY_NAME[probe], attach)] == expected


def test_what_costs_every_call_has_a_switch() -> None:
    switched = {probe.name: {hook.switch for hook in probe.hooks} for probe in PROBES}
    assert {name for name, switches in switched.items() if switches - {""}} == {
        "io_uring_madvise",
        "compat",
    }
    for attach in MODES:
        assert candidates(BY_NAME["compat"], attach) == ()
        assert len(candidates(BY_NAME["compat"], attach, SWITCHES)) == 1
    assert [hook.target for hook in candidates(BY_NAME["io_uring_madvise"], "auto")] == [
        "io_madvise"
    ]
    assert len(candidates(BY_NAME["io_uring_madvise"], "tracepoint", SWITCHES)) == 2


def test_a_move_needs_both_functions() -> None:
    """mremap is refused at its source or where it unmaps."""
    hook = BY_NAME["mremap"].hooks[0]
    assert (hook.target, [part.target for part in hook.also]) == (
        "check_prep_vma",
        ["vms_gather_munmap_vmas"],
    )


def test_functions_in_which_a_seal_refuses() -> None:
    assert {
        "vms_gather_munmap_vmas",
        "mprotect_fixup",
        "check_prep_vma",
        "can_modify_vma_madv",
        "madvise_vma_behavior",
    } == AT_SEAL


def bits(*names: str) -> int:
    every = [operation.name for operation in OPERATIONS]
    return sum(1 << every.index(name) for name in names)


def test_every_operation_has_one_reporter() -> None:
    attached = [
        ("mprotect", "mprotect_fixup"),
        ("munmap", "vms_gather_munmap_vmas"),
        ("other", "vms_gather_munmap_vmas"),
        ("mremap", "__ia32_sys_mremap"),
        ("madvise", "__x64_sys_madvise"),
        ("brk", "syscalls:sys_exit_brk"),
        ("shmdt", "sys_exit"),
        ("mseal", "sys_exit"),
        ("signal_deliver", "signal_generate"),
        ("compat", "sys_exit"),
    ]
    found = reporters(attached)
    assert found.functions == bits("mprotect", "munmap", "other")
    assert found.raw == bits("shmdt")
    # What the other hooks are blind to.
    assert found.compat == bits("madvise", "brk", "shmdt")


def test_a_hook_that_is_none() -> None:
    with pytest.raises(KeyError, match=r"munmap has no hook mprotect_fixup"):
        find("munmap", "mprotect_fixup")
