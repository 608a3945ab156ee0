from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import why_no_fexit

from monitor.configuration import config
from monitor.host import doctor
from monitor.host import facts as host
from monitor.kernel import attacher, loader
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import PROBES
from monitor.kernel.syscalls import call
from monitor.provoke import table as provoke

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs takes root"),
    pytest.mark.skipif(
        call("mseal", 0, 0, 2**64 - 1) == -errno.ENOSYS, reason="this kernel has no mseal"
    ),
]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitor", "doctor", *flags]
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )


def examine(*flags: str) -> dict[str, Any]:
    shown = run("--json", *flags)
    assert (shown.stderr, shown.returncode) == ("", 0)
    document: dict[str, Any] = json.loads(shown.stdout)
    return document


def by_check(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {row["check"]: row for row in document["rows"]}


ONLY_FEXIT = {
    *("other", "compat", "io_uring_madvise"),
    *("proc_mem_write", "userfaultfd_copy", "userfaultfd_move"),
}


@pytest.mark.parametrize("attach", ["auto", "fexit", "tracepoint", "raw_tracepoint"])
def test_every_probe_is_attached(require_bpf: None, attach: str) -> None:
    mode = attach
    if attach in ("auto", "fexit") and (reason := why_no_fexit()):
        if attach == "fexit":
            pytest.skip(reason)
        mode = "tracepoint"
    document = examine("--attach", attach)
    rows = {row["check"]: row for row in document["rows"] if row["section"] == "Probes"}
    by_fallback = {"fexit"} if mode != attach == "auto" and mode == "tracepoint" else set()
    optional = {"fexit": ONLY_FEXIT, "raw_tracepoint": {"compat"}}.get(mode, set())
    without = ONLY_FEXIT - optional
    assert set(rows) - optional == {probe.name for probe in PROBES} - ONLY_FEXIT | by_fallback
    assert not without & set(rows)
    for operation in OPERATIONS:
        if operation.number is not None:
            assert rows[operation.name]["finding"].startswith(f"{mode} ")
    assert rows["signal_deliver"]["finding"] == "raw_tracepoint signal_generate"
    seen = by_check(document)["32-bit callers"]["status"]
    assert seen == ("blind" if mode == "tracepoint" else "ok")


def test_switches_close_their_blind_spots(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[watch]\ncompat = true\nio_uring = true\n")
    found = by_check(examine("--config", str(path)))
    assert (found["32-bit callers"]["status"], found["io_uring"]["status"]) == ("ok", "ok")


def test_every_system_call_of_this_kernel_is_reviewed() -> None:
    row = by_check(examine())["system calls"]
    assert (row["status"], row["remedy"]) == ("ok", "")
    assert row["finding"] == f"{len(host.system_calls())} reviewed"


def test_what_doctor_says_of_the_kernel_is_true() -> None:
    found = by_check(examine())
    child = provoke.run("mprotect_partial")
    facts = json.loads(child.communicate()[0].splitlines()[-1])
    changes = facts["partial_start"] < facts["partial_end"]
    said = found["partial mprotect"]["finding"]
    assert said.startswith("what precedes the seal is changed" if changes else "a refused call")
    assert re.fullmatch(r"bit \d+ of vm_flags", found["seal bit"]["finding"])
    assert found["kernel"]["finding"] == os.uname().release


def test_the_table_fits_on_80_columns() -> None:
    shown = run()
    assert (shown.stderr, shown.returncode) == ("", 0)
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in shown.stdout
    assert lines[-1].startswith("This host can be monitored, ")


def test_a_host_that_cannot_be_monitored_fails() -> None:
    without = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    command = [*without, sys.executable, "-m", "monitor", "doctor"]
    shown = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (shown.stderr, shown.returncode) == ("", 3)
    text = " ".join(shown.stdout.split())
    assert "failed privileges this process lacks CAP_BPF and CAP_PERFMON remedy: run it as" in text
    assert text.endswith("This host cannot be monitored: 3 of 14 checks failed.")


def _descriptors() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except OSError:  # the directory's own
            continue
    return sorted(name for name in found if name.startswith("anon_inode:"))


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.mark.parametrize("attach", ["auto", "fexit"])
def test_nothing_stays_attached(attach: str) -> None:
    before = (_descriptors(), _children())
    assert doctor.rows(config.load(None, {"attach": attach}, default=Path("/nonexistent")))
    assert (_descriptors(), _children()) == before


def test_programs_that_cannot_be_loaded_are_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise loader.LoadError("cannot load the BPF programs: no memory")

    monkeypatch.setattr(attacher, "load_and_attach", refuse)
    rows = doctor.rows(config.load(None, {}, default=Path("/nonexistent")))
    failed = [row for row in rows if row.status == "failed"]
    assert [(row.check, row.finding) for row in failed] == [
        ("attach", "cannot load the BPF programs: no memory")
    ]
