"""Capabilities of another process. What needs which one: test_privileges_kernel.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.host import doctor
from monitor.kernel import privileges
from monitor.kernel.privileges import LOST, VITAL, Capability

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root")

# What the process and a program that it executes have in each set, after some calls.
CODE = """
import json, subprocess, sys
from monitor.kernel import privileges
from monitor.kernel.privileges import Capability
def sets(text):
    fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    return {name: int(fields[name], 16) for name in names}
exec(sys.argv[1])
with open("/proc/self/status") as own:
    mine = own.read()
child = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True)
print(json.dumps([sets(mine), sets(child.stdout)]))
"""


def after(calls: str, *prefix: str) -> list[dict[str, int]]:
    command = [*prefix, sys.executable, "-c", CODE, calls]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


def mask(*capabilities: Capability) -> int:
    return sum(1 << each for each in capabilities)


@as_root
def test_root_keeps_what_it_says_and_its_children_nothing() -> None:
    own, child = after("privileges.keep({Capability.CAP_SYS_PTRACE})")
    kept = mask(Capability.CAP_SYS_PTRACE)
    none = dict.fromkeys(("CapInh", "CapBnd", "CapAmb"), 0)
    assert own == {**none, "CapPrm": kept, "CapEff": kept, "NoNewPrivs": 1}
    assert child == {**none, "CapPrm": 0, "CapEff": 0, "NoNewPrivs": 1}


@as_root
def test_disinherit_leaves_the_process_what_it_has() -> None:
    (before, _), (own, child) = after(""), after("privileges.disinherit()")
    assert own["CapEff"] == before["CapEff"] == own["CapPrm"] != 0
    assert (child["CapEff"], child["CapPrm"], child["CapBnd"]) == (0, 0, 0)


@as_root
def test_what_is_given_up_does_not_come_back() -> None:
    own, _ = after("privileges.keep({Capability.CAP_BPF}); privileges.keep(frozenset(Capability))")
    assert own["CapEff"] == mask(Capability.CAP_BPF)


@as_root
def test_ambient_capabilities_of_a_service_end_with_it() -> None:
    as_nobody = (
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=-all,+bpf,+sys_ptrace", "--ambient-caps=-all,+bpf,+sys_ptrace"),
        *("--bounding-set=-all,+bpf,+sys_ptrace", "--"),
    )
    both = mask(Capability.CAP_BPF, Capability.CAP_SYS_PTRACE)
    (before, child_before) = after("", *as_nobody)
    assert before["CapEff"] == child_before["CapEff"] == both
    own, child = after("privileges.keep(privileges.IDENTITY)", *as_nobody)
    assert own["CapEff"] == own["CapPrm"] == mask(Capability.CAP_SYS_PTRACE)
    assert own["CapAmb"] == own["CapInh"] == child["CapEff"] == child["CapPrm"] == 0


@as_root
def test_what_is_held_and_what_loads() -> None:
    code = "print(sorted(each.name for each in privileges.held())); "
    code += "print(sorted(each.name for each in privileges.for_loading()))"
    limited = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+sys_admin,+bpf", "--"]
    done = subprocess.run(
        [*limited, sys.executable, "-c", f"from monitor.kernel import privileges; {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "['CAP_BPF', 'CAP_SYS_ADMIN']",
        "['CAP_BPF', 'CAP_DAC_READ_SEARCH', 'CAP_PERFMON', 'CAP_SYS_ADMIN']",
    ]


@as_root
@pytest.mark.parametrize(("value", "is_kept"), [("2", False), ("3", True), (None, False)])
def test_tracepoints_that_only_an_administrator_may_use(
    tmp_path: Path, value: str | None, is_kept: bool
) -> None:
    sysctl = tmp_path / "perf_event_paranoid"
    if value is not None:
        sysctl.write_text(f"{value}\n")
    kept = privileges.for_loading(sysctl)
    assert (privileges.Capability.CAP_SYS_ADMIN in kept) is is_kept
    assert kept >= privileges.LOADING


@as_root
def test_a_program_that_only_its_owner_may_read(build_directory: Path) -> None:
    """Where root runs a checkout in somebody's home, its children must be able to read it."""
    home = build_directory / "home"
    home.mkdir(mode=0o700)
    (home / "monitor").symlink_to(Path(privileges.__file__).parent)
    os.chown(home, 65534, 65534)
    calls = f"""
privileges.__file__ = {str(home / "monitor" / "privileges.py")!r}
privileges.keep(privileges.IDENTITY)
"""
    _, child = after(calls)
    assert child["CapEff"] == mask(Capability.CAP_DAC_READ_SEARCH)


# ---- The doctor's rows ---------------------------------------------------------------------------


def test_every_capability_there() -> None:
    rows = doctor.privilege_rows(frozenset(LOST))
    assert [(row.check, row.status, row.finding) for row in rows] == [
        ("CAP_BPF", "ok", "there"),
        ("CAP_PERFMON", "ok", "there"),
        ("CAP_DAC_READ_SEARCH", "ok", "there"),
        ("CAP_SYS_PTRACE", "ok", "there"),
    ]


@pytest.mark.parametrize("capability", LOST)
def test_what_is_lost_without_each(capability: Capability) -> None:
    rows = doctor.privilege_rows(LOST.keys() - {capability})
    (row,) = [row for row in rows if row.status != "ok"]
    assert row.check == capability.name
    assert row.status == ("failed" if capability in VITAL else "degraded")
    assert row.finding == f"lost without it: {LOST[capability]}"
    assert row.remedy == f"run it as root, or grant {capability.name}"


def test_administrators_of_old() -> None:
    rows = doctor.privilege_rows({*LOST.keys() - VITAL, Capability.CAP_SYS_ADMIN})
    assert {row.status for row in rows} == {"ok"}
