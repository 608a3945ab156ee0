"""In every mode the programs can watch only one cgroup, as `exec` asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Harness, new_cgroup

from monitor.kernel.abi import Kind


@pytest.fixture(autouse=True)
def own_cgroup_again(harness: Harness) -> Iterator[None]:
    yield
    harness.see_own_cgroup()


def seen(harness: Harness, watched: Path) -> list[str]:
    """Kinds of the records of a denial, a fault and a bypass, made in the harness's cgroup."""
    descriptor = os.open(watched, os.O_RDONLY | os.O_DIRECTORY)
    harness.settle()
    try:
        harness.state.watch_cgroup(descriptor)
        harness.forget()
        made = [harness.provoke(name) for name in ("munmap", "prot_none", "madvise_relro")]
        assert {sum(each.counted.values()) > 0 for each in made} == {bool(made[0].records)}
        return [Kind(record.kind).label for each in made for record in each.records]
    finally:
        harness.config.one_cgroup = 0
        os.close(descriptor)


@pytest.mark.parametrize("is_above", [False, True])
def test_those_in_it_and_below_are_seen(harness: Harness, is_above: bool) -> None:
    watched = harness.cgroup.parent if is_above else harness.cgroup
    assert seen(harness, watched) == ["seal", "denial", "fault", "seal", "bypass"]


@pytest.mark.host_wide
def test_others_are_not(harness: Harness) -> None:
    with new_cgroup(f"{harness.attach}-other") as other:
        assert seen(harness, other) == []
    # And all are, once it is over.
    assert harness.provoke("munmap").denials() == [("munmap", "sealed", "none")]
