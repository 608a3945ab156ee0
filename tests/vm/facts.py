"""What a guest's kernel is, as the loaded programs found it: for matrix.py, in every mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from harness import Harness

from monitor.kernel.arch import ARM64, THIS
from monitor.kernel.syscalls import call

Recorder = Callable[[str, object], None]


def test_facts(harness: Harness, record_property: Recorder) -> None:
    probes = harness.loaded.probes
    assert [probe.error for probe in probes if probe.lost] == []
    modes = {probe.probe: probe.mode for probe in probes if probe.attached}
    assert {modes[name] for name in ("mprotect", "munmap")} == {harness.attach}
    facts = {
        "seal_bit": harness.config.sealed_mask.bit_length() - 1,
        "partial": [name for name, changes in harness.findings.partial_updates.items() if changes],
        "probes": dict(Counter(modes.values())),
    }
    record_property("facts", facts)


def test_protection_keys_are_there(harness: Harness) -> None:
    """The emulated CPU has them: what needs one is made here, if nowhere else."""
    if THIS == ARM64:
        pytest.skip("the emulated CPU has no permission overlays")
    assert call("pkey_alloc", 0, 0) >= 0
