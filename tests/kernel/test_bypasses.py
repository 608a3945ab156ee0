"""Ways around a seal: what the record and the counters say of each."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Made

from monitor import provoke
from monitor.abi import Kind, Method, Record

BYPASSES = [p.name for p in provoke.PROVOCATIONS if p.kind == "bypass"]


def told(record: Record) -> dict[str, object]:
    """The record in the terms of a provocation's facts."""
    return {
        "method": Method(record.bypass.method).label,
        "address": record.address,
        "length": record.length,
        "sealed_start": record.mapping.start,
        "sealed_end": record.mapping.end,
        "target": record.bypass.pid,
    }


def is_seen(harness: Harness, facts: dict[str, Any]) -> bool:
    probe = next((p for p in harness.loaded.probes if p.probe == facts["method"]), None)
    return probe is not None and probe.attached


def counted(made: Made) -> dict[tuple[str, ...], int]:
    return {
        cell: number
        for cell, number in made.counted.items()
        if cell[0] in ("bypass", "denial") or cell[:2] == ("event", "bypass")
    }


@pytest.mark.parametrize("name", BYPASSES)
def test_bypass(harness: Harness, name: str) -> None:
    made = harness.provoke(name)
    facts = made.line
    if not is_seen(harness, facts):
        assert counted(made) == {}
        return
    (record,) = made.of_kind(Kind.BYPASS)
    assert told(record) == {key: facts[key] for key in told(record)}
    assert record.mapping.flags & harness.config.sealed_mask
    assert counted(made) == {
        ("bypass", facts["method"]): 1,
        ("event", "bypass", "submitted"): 1,
    }
    assert (record.bypass.start_boot_ns == record.start_boot_ns) == (record.pid == facts["target"])


def test_discards_that_change_nothing(harness: Harness) -> None:
    """Code that nobody has written to, sealed writable memory, and what is not sealed."""
    made = harness.python(
        """
file = os.memfd_create("seal-monitor")
os.write(file, b"x" * 4096)
RW = PROT_READ | PROT_WRITE
clean = need("mmap", 0, 4096, PROT_READ, MAP_PRIVATE, file, 0)
ctypes.string_at(clean, 1)
writable = need("mmap", 0, 4096, RW, MAP_PRIVATE, file, 0)
shared = need("mmap", 0, 4096, PROT_READ, MAP_SHARED, file, 0)
unsealed = need("mmap", 0, 4096, RW, MAP_PRIVATE, file, 0)
ctypes.memset(writable, 1, 4096)
ctypes.memset(unsealed, 1, 4096)
need("mprotect", unsealed, 4096, PROT_READ)
for address in (clean, writable, shared):
    seal(address, 4096)
for address in (clean, writable, shared, unsealed, lay("W").start):
    need("madvise", address, 4096, 4)
print(json.dumps({}))
"""
    )
    assert made.of_kind(Kind.BYPASS) == []
    assert counted(made) == {}
