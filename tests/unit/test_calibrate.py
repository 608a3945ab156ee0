"""Calibration without the programs: what the trying process does, and how its end is judged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.attach import calibrate
from monitor.attach.calibrate import CalibrationError
from monitor.kernel.abi import Config, Kind, Mapping, Record, RecordFlag
from monitor.kernel.counters import mark_canary
from monitor.kernel.ring import Drained, Ring
from monitor.kernel.syscalls import call
from monitor.provoke.child import nobody

needs_mseal = pytest.mark.skipif(
    call("mseal", 0, 0, 0) == -errno.ENOSYS, reason="this kernel has no mseal"
)


@pytest.fixture
def empty_ring() -> Iterator[Ring]:
    descriptor = os.memfd_create("ring")
    os.ftruncate(descriptor, 4 * 4096)
    ring = Ring(descriptor, 4096)
    yield ring
    ring.close()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("before", "after", "bit"),
    [
        (0b0001, 0b0101, 0b0100),
        (0, 1 << 63, 1 << 63),
        (5, 5, 0),
        (0b0000, 0b0110, 0),  # two: nothing says which one it is
        (0b0100, 0b0000, 0),  # it went: no seal does that
        (0b0100, 0b0010, 0),
    ],
)
def test_single_bit(before: int, after: int, bit: int) -> None:
    assert calibrate._single_bit(before, after) == bit


def test_mark_names_a_process_by_pid_and_start() -> None:
    config = Config()
    mark_canary(config, os.getpid())
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert (config.canary_pid, config.canary_start_ticks) == (os.getpid(), ticks)
    mark_canary(config, 0)
    assert config.canary_pid == 0


def test_mark_of_no_process() -> None:
    config = Config(canary_pid=7)
    with pytest.raises(FileNotFoundError):
        mark_canary(config, 2**22 + 1)
    assert config.canary_pid == 0


@needs_mseal
def test_the_process_tries_everything() -> None:
    with calibrate.start() as process:
        output, _ = process.communicate("x", timeout=20)
    found = json.loads(output)
    assert process.returncode == 0
    assert found.pop("mseal") == 0
    partial = found.pop("partial_updates")
    assert list(partial) == ["mprotect", "madvise", "mremap"]
    found |= partial
    assert set(found) == {*partial, "guard_regions", "anonymous_by_ops", "guard_files"}
    assert all(isinstance(value, bool) for value in found.values())


def test_the_process_waits_for_its_start() -> None:
    with calibrate.start() as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.kill()


def fake(found: dict[str, Any]) -> subprocess.Popen[str]:
    code = f"input(); print({json.dumps(json.dumps(found))})"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kernel_without_mseal(empty_ring: Ring) -> None:
    config = Config()
    with (
        fake({"mseal": -errno.ENOSYS}) as process,
        pytest.raises(CalibrationError, match=r"^mseal failed in the calibrating process: .*-38"),
    ):
        calibrate.calibrate(process, config, empty_ring, nobody)
    assert (config.canary_pid, config.sealed_mask) == (0, 0)
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('input(); print(\'{"mseal": 0, "gua\')', "^its process ended early: "),
        ("input(); raise SystemExit(1)", "^mseal failed in the calibrating process: {}"),
        ("import time; time.sleep(60)", "^its process did not end within 0.5 s$"),
    ],
)
def test_process_that_goes_wrong(
    code: str, message: str, empty_ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_TIMEOUT", 0.5)
    config = Config()
    with (
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        pytest.raises(CalibrationError, match=message),
    ):
        calibrate.calibrate(process, config, empty_ring, nobody)
    assert (config.canary_pid, config.sealed_mask) == (0, 0)
    assert process.returncode is not None


class Drains:
    """A ring with these records."""

    def __init__(self, *records: Record) -> None:
        self._records = list(records)

    def drain(self) -> Drained:
        records, self._records = self._records, []
        return Drained(records, 0)


def seal(flags: int, marked: int = RecordFlag.CANARY, kind: Kind = Kind.SEAL) -> Record:
    return Record(kind=kind, flags=marked, mapping=Mapping(flags=flags))


def test_seals_of_others_are_not_taken_for_the_calibrations() -> None:
    found = {
        "partial_updates": {"mprotect": True, "madvise": True, "mremap": True},
        **{"mseal": 0, "guard_regions": True, "anonymous_by_ops": False, "guard_files": False},
    }
    ring = Drains(
        seal(0x1234, marked=0),
        seal(0x1),
        seal(0x801),
        seal(0x8000, marked=0),
        seal(0x4000, kind=Kind.DENIAL),
        seal(0x1),
        seal(1 << 42 | 0x1),
    )
    config = Config()
    with fake(found) as process:
        findings = calibrate.calibrate(process, config, ring, nobody)  # type: ignore[arg-type]
    assert (config.sealed_mask, config.maybe_guard_mask) == (1 << 42, 0x800)
    assert findings.partial_updates == {"mprotect": True, "madvise": True, "mremap": True}


def test_probe_that_sees_nothing(empty_ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_TIMEOUT", 0.5)
    config = Config()
    with (
        fake({"mseal": 0}) as process,
        pytest.raises(CalibrationError, match=r"^the probe on mseal saw 0 of 4 calls$"),
    ):
        calibrate.calibrate(process, config, empty_ring, nobody)
    assert (config.canary_pid, config.sealed_mask) == (0, 0)
