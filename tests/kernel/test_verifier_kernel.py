"""The full log of a program that the verifier takes, and of one that it refuses."""

from __future__ import annotations

import errno
import re

import pytest

from monitor.kernel import bpf, verifier

_EXIT = bytes.fromhex("9500000000000000")  # r0 was never written
_RETURN_ZERO = bytes.fromhex("b700000000000000") + _EXIT


def test_log_of_one_program(require_bpf: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert verifier.main(["exit_munmap"]) == 0
    log = capsys.readouterr().out
    assert re.search(r"^0: R1=ctx", log, re.MULTILINE)
    assert re.search(r"^processed \d+ insns", log, re.MULTILINE)


def test_log_of_a_refused_program(require_bpf: None) -> None:
    log, refused = bpf.verifier_log(bpf.RAW_TRACEPOINT, "refused", _EXIT)
    assert "R0 !read_ok" in log.splitlines()
    assert refused is not None
    assert refused.errno == errno.EACCES
    log, refused = bpf.verifier_log(bpf.RAW_TRACEPOINT, "taken", _RETURN_ZERO)
    assert (refused, "processed 2 insns" in log) == (None, True)


def test_a_name_that_no_program_has(require_bpf: None) -> None:
    with pytest.raises(SystemExit) as ended:
        verifier.main(["nothing"])
    assert ended.value.code == ("no program nothing; python -m monitor.kernel.verifier lists them")
