"""Denials by cgroup."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attackers import by_nobody_in_cgroup, delegated, in_cgroup
from harness import Harness, cgroup_root, new_cgroup, remove_cgroup

from monitor.attach.attached import limit_workloads
from monitor.kernel.abi import WORKLOADS_MAX

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


def forget_workloads(harness: Harness, only: Path | None = None) -> None:
    for key, workload in list(harness.state.workloads.items()):
        if only is None or key.value == only.stat().st_ino:
            harness.state.remove_workload(key.value, workload.quota)


def test_one_more_than_there_is_room_for(two_places: Harness, compiled: Compiled) -> None:
    harness = two_places
    forget_workloads(harness)
    with new_cgroup("1") as first, new_cgroup("2") as second, new_cgroup("3") as third:
        storm(harness, compiled, 11, first)
        storm(harness, compiled, 13, second)
        before = harness.state.counters().other_workloads[0]
        storm(harness, compiled, 17, third)
        assert harness.state.counters().other_workloads[0] == before + 17
        assert harness.workload(first)["sealed"] == 11
        assert harness.workload(second)["sealed"] == 13
        assert harness.workload(third)["sealed"] == 0
        forget_workloads(harness, first)
        storm(harness, compiled, 19, third)  # there is room again
        assert harness.workload(third)["sealed"] == 19
        assert harness.state.counters().other_workloads[0] == before + 17


# ---- A delegated cgroup --------------------------------------------------------------------------

SCOPES = 1100
QUOTA = 256  # a quarter of the 1,024 places


@pytest.fixture
def subtrees() -> Iterator[tuple[Path, Path]]:
    """Two cgroups at depth 2; the first is delegated to an ordinary user."""
    root = cgroup_root()
    if root is None or root.stat().st_ino != 1:
        pytest.skip("the root of the cgroup2 hierarchy is not mounted")
    base = root / f"seal-monitor-test-{os.getpid()}-subtrees"
    base.mkdir()
    try:
        with delegated(base) as cgroups:
            yield cgroups
    finally:
        remove_cgroup(base)


@pytest.fixture
def whole(require_bpf: None) -> Iterator[Harness]:
    """Programs that see the whole host, with room for 1,024 workloads."""
    with new_cgroup("whole") as cgroup:
        harness = Harness("tracepoint", cgroup)
        harness.config.one_cgroup = 0
        try:
            yield harness
        finally:
            harness.close()


def test_delegated_cgroups_leave_room_for_services(
    whole: Harness, compiled: Compiled, subtrees: tuple[Path, Path]
) -> None:
    user, service = subtrees
    command = by_nobody_in_cgroup(user, [compiled("flood"), "scopes", SCOPES, user])
    before = whole.state.counters().other_workloads[0]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert int(made.stdout) == SCOPES
    held = {key.value: workload for key, workload in whole.state.workloads.items()}
    own = [held[each.stat().st_ino] for each in user.glob("*/") if each.stat().st_ino in held]
    assert len(own) == QUOTA
    assert {workload.denials[0] for workload in own} == {1}
    # Other tests may run meanwhile, but have cgroups of their own.
    assert whole.state.counters().other_workloads[0] - before >= SCOPES - QUOTA
    storm_in(service, compiled, 17)
    assert whole.workload(service)["sealed"] == 17


def test_places_are_made_as_fast_as_workloads_come(
    whole: Harness, compiled: Compiled, subtrees: tuple[Path, Path]
) -> None:
    """A quarter of the most that can be configured is more than they are."""
    limit_workloads(whole.config, WORKLOADS_MAX)
    _, service = subtrees
    command = in_cgroup(service, [compiled("flood"), "scopes", SCOPES, service])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    held = {key.value: list(value.denials) for key, value in whole.state.workloads.items()}
    found = [held.get(each.stat().st_ino) for each in service.glob("*/")]
    assert found == [[1, 0, 0]] * SCOPES


def storm_in(cgroup: Path, compiled: Compiled, count: int) -> None:
    command = in_cgroup(cgroup, [compiled("storm"), 1, count, 0, "munmap"])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_the_last_places_are_for_services(
    whole: Harness, compiled: Compiled, subtrees: tuple[Path, Path]
) -> None:
    other, service = subtrees
    whole.config.ordinary_workloads = 0
    storm_in(service, compiled, 3)
    assert whole.workload(service)["sealed"] == 0
    whole.config.system_slice = service.parent.stat().st_ino  # both are services now
    storm_in(service, compiled, 5)
    storm_in(other, compiled, 7)
    assert (whole.workload(service)["sealed"], whole.workload(other)["sealed"]) == (5, 7)
    for number in range(5):
        further = service / str(number)
        further.mkdir()
        storm_in(further, compiled, 11)
        # Four of a service; the first of them is its own.
        assert whole.workload(further)["sealed"] == (11 if number < 3 else 0)
