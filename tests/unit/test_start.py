"""The first moments of a daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("closed", [[1], [0, 1], [0, 1, 2], []])
def test_closed_standard_descriptors_are_nobody_elses(closed: list[int], tmp_path: Path) -> None:
    code = f"""
import os
from monitor.start import _occupy_standard_descriptors
for descriptor in {closed}:
    os.close(descriptor)
_occupy_standard_descriptors()
fresh = os.open({str(tmp_path / "result")!r}, os.O_RDWR | os.O_CREAT)
errors = []
for descriptor in (1, 2):
    try:
        os.write(descriptor, b"event")
    except OSError as error:
        errors.append((descriptor, error.errno))
os.write(fresh, repr((fresh, errors)).encode())
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    fresh, errors = eval((tmp_path / "result").read_text())
    assert fresh > 2
    assert errors == [(descriptor, 9) for descriptor in closed if descriptor]
