"""The verifier's log as it is printed. That the kernel writes one: tests/kernel."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from monitor.kernel import compiler, verifier
from monitor.kernel.probes import find

REFUSED = OSError(errno.EACCES, "Permission denied")
STATISTICS = "processed 5382 insns (limit 1000000) max_states_per_insn 3 total_states 196\n"


@pytest.mark.parametrize(
    ("log", "refused", "expected"),
    [
        (f"0: R1=ctx()\n{STATISTICS}\n", None, "taken, 5382 instructions walked"),
        (f"7: (95) exit\nR0 !read_ok\n{STATISTICS}\n", REFUSED, "refused: R0 !read_ok"),
        ("", REFUSED, "refused: Permission denied"),
    ],
)
def test_a_log_in_one_line(log: str, refused: OSError | None, expected: str) -> None:
    assert verifier.summary(log, refused) == expected


def test_every_hook_is_found_by_its_program() -> None:
    found = verifier.hooks()
    assert found["signal_generate"].target == "signal_generate"
    assert found["sched_process_exit"] in find("signal_deliver", "signal_generate").also
    assert found["exit_munmap"].template == "exit_call"
    # They are attached with another one only.
    assert {"fexit_mfill_atomic_zeropage", "fexit_vms_gather_munmap_vmas"} <= found.keys()


def test_without_compiled_programs_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "OBJECT", tmp_path / "none.object")
    with pytest.raises(SystemExit) as ended:
        verifier.main([])
    assert ended.value.code == f"no compiled programs at {tmp_path}/none.object; run: make setup"


def test_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        verifier.main(["a", "b"])
    assert ended.value.code == verifier.__doc__
