"""Who called, by what the files of C libraries are: the same program with two of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ASSETS
from harness import Harness

from monitor.evidence import events
from monitor.evidence.classify import classify
from monitor.evidence.libraries import Libraries
from monitor.kernel.abi import Kind

HOST = events.Host("h", "b", "r")


@pytest.mark.parametrize("library", ["glibc", "musl"])
def test_what_a_c_library_frees(
    harness: Harness, compiled: Callable[[str], Path], build_directory: Path, library: str
) -> None:
    program = compiled("free_sealed")
    if library == "musl":
        if not shutil.which("musl-gcc"):
            pytest.skip("musl-gcc is not installed")
        program = build_directory / "free_sealed_musl"
        source = ASSETS / "free_sealed.c"
        command = ["musl-gcc", "-O2", "-fno-omit-frame-pointer", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
    made = harness.run([program, "--wait"])
    assert made.exits == [0]
    (record,) = made.of_kind(Kind.DENIAL)
    origin = events.Origin("i", "t", 0, HOST, None, None)
    event = classify(
        record, origin, sealed_mask=harness.config.sealed_mask, role_of=Libraries().role
    )
    assert isinstance(event, events.Denial)
    assert event.summary.endswith("; probably a leak: sealed memory was to be freed")
    assert event.assessment == events.Assessment("freed", "leak")
