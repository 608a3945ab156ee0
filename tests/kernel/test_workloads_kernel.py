"""Denials by cgroup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Harness, new_cgroup

Compiled = Callable[[str], Path]


def storm(harness: Harness, compiled: Compiled, count: int, cgroup: Path) -> None:
    command = [compiled("storm"), "1", str(count), "0", "munmap", "--wait"]
    made = harness.run(command, cgroup=cgroup)
    assert made.line["total"] == count


def test_each_cgroup_is_counted_under_its_id(harness: Harness, compiled: Compiled) -> None:
    with new_cgroup("first") as first, new_cgroup("second") as second:
        storm(harness, compiled, 101, first)
        storm(harness, compiled, 211, second)
        storm(harness, compiled, 2, first)
        found = {key.value: list(value.denials) for key, value in harness.state.workloads.items()}
        assert found[first.stat().st_ino] == [103, 0, 0]
        assert found[second.stat().st_ino] == [211, 0, 0]


def test_a_removed_cgroup_keeps_its_count_until_it_is_taken_out(
    harness: Harness, compiled: Compiled
) -> None:
    with new_cgroup("removed") as cgroup:
        number = cgroup.stat().st_ino
        storm(harness, compiled, 13, cgroup)
    left = {key.value: key for key, value in harness.state.workloads.items()}
    assert number in left
    assert harness.state.workloads.remove(left[number])
    assert not harness.state.workloads.remove(left[number])
    assert number not in {key.value for key, _ in harness.state.workloads.items()}


@pytest.fixture
def two_places(require_bpf: None) -> Iterator[Harness]:
    with new_cgroup("two-places") as cgroup:
        harness = Harness("tracepoint", cgroup, workloads_max=2)
        try:
            yield harness
        finally:
            harness.close()


def test_one_more_than_there_is_room_for(two_places: Harness, compiled: Compiled) -> None:
    harness = two_places
    for key, _ in list(harness.state.workloads.items()):
        harness.state.workloads.remove(key)
    with new_cgroup("1") as first, new_cgroup("2") as second, new_cgroup("3") as third:
        storm(harness, compiled, 11, first)
        storm(harness, compiled, 13, second)
        before = harness.state.counters().other_workloads[0]
        storm(harness, compiled, 17, third)
        assert harness.state.counters().other_workloads[0] == before + 17
        assert harness.workload(first)["sealed"] == 11
        assert harness.workload(second)["sealed"] == 13
        assert harness.workload(third)["sealed"] == 0
        for key, _ in list(harness.state.workloads.items()):
            if key.value == first.stat().st_ino:
                harness.state.workloads.remove(key)
        storm(harness, compiled, 19, third)  # there is room again
        assert harness.workload(third)["sealed"] == 19
        assert harness.state.counters().other_workloads[0] == before + 17
