from __future__ import annotations

import errno
from collections.abc import Iterator
from ctypes import c_uint64

import pytest

from monitor.evidence.cgroups import parse_cgroup_path
from monitor.evidence.events import Workload as Facts
from monitor.evidence.workloads import REMOVED_SECONDS, Workloads
from monitor.kernel.abi import Counters, Verdict, Workload

WEB, WEB_AGAIN, BATCH = 11, 12, 13


class Map:
    """The kernel's map from cgroup id to denials."""

    def __init__(self) -> None:
        self.content: dict[int, tuple[int, int, int]] = {}
        self.reads = 0
        self.error: OSError | None = None

    def items(self) -> Iterator[tuple[c_uint64, Workload]]:
        self.reads += 1
        for cgroup_id, denials in self.content.items():
            value = Workload()
            value.denials[:] = denials
            yield c_uint64(cgroup_id), value

    def remove(self, key: c_uint64) -> bool:
        if self.error is not None:
            raise self.error
        return self.content.pop(key.value, None) is not None


class Host:
    """The kernel's map, the cgroups and the clock."""

    def __init__(self) -> None:
        self.workloads = Map()
        self.paths = {
            WEB: "/system.slice/web.service",
            WEB_AGAIN: "/system.slice/web.service",
            BATCH: "/system.slice/batch.service",
        }
        self.existing = set(self.paths)
        self.now = 100.0
        self.counters = Counters()

    def workload(self, cgroup_id: int) -> Facts:
        return parse_cgroup_path(self.paths[cgroup_id]) if cgroup_id in self.paths else NOTHING

    def exists(self, cgroup_id: int) -> bool:
        return cgroup_id in self.existing

    def deny(self, cgroup_id: int, *denials: int) -> None:
        known = self.workloads.content.get(cgroup_id, (0, 0, 0))
        sums = [a + b for a, b in zip(known, denials, strict=True)]
        self.workloads.content[cgroup_id] = (sums[0], sums[1], sums[2])
        self._count(denials)

    def deny_without_place(self, *denials: int) -> None:
        for verdict, count in zip(Verdict, denials, strict=True):
            self.counters.other_workloads[verdict] += count
        self._count(denials)

    def _count(self, denials: tuple[int, ...]) -> None:
        for verdict, count in zip(Verdict, denials, strict=True):
            self.counters.denials[0][verdict] += count


NOTHING = Facts(unit=None, container_id=None, pod_uid=None, cgroup=None)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def workloads(host: Host) -> Workloads:
    return Workloads(host, host, lambda: host.now)  # type: ignore[arg-type]


def test_other_is_always_there(host: Host, workloads: Workloads) -> None:
    assert workloads.denials(host.counters) == {"other": (0, 0, 0)}
    assert workloads.tracked == 0


def test_cgroups_of_one_name_are_one_workload(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 1, 2, 3)
    host.deny(WEB_AGAIN, 10, 20, 30)
    host.deny(BATCH, 100, 0, 0)
    assert workloads.denials(host.counters) == {
        "other": (0, 0, 0),
        "web.service": (11, 22, 33),
        "batch.service": (100, 0, 0),
    }
    assert workloads.tracked == 3


def test_denials_without_a_place_are_others(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 1, 0, 0)
    host.deny_without_place(4, 5, 6)
    found = workloads.denials(host.counters)
    assert found == {"other": (4, 5, 6), "web.service": (1, 0, 0)}


def test_a_cgroup_whose_path_is_unknown(host: Host, workloads: Workloads) -> None:
    host.deny(99, 1, 0, 0)
    assert workloads.denials(host.counters)["cgroup:99"] == (1, 0, 0)


def test_the_map_is_read_only_when_something_changed(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 1, 0, 0)
    for _ in range(5):
        workloads.denials(host.counters)
    assert host.workloads.reads == 1
    host.deny(WEB, 1, 0, 0)
    assert workloads.denials(host.counters)["web.service"] == (2, 0, 0)
    assert host.workloads.reads == 2


def test_a_removed_cgroup_stays_for_an_hour(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 1, 2, 3)
    workloads.denials(host.counters)
    host.existing.remove(WEB)
    workloads.denials(host.counters)
    host.now += REMOVED_SECONDS
    assert workloads.denials(host.counters)["web.service"] == (1, 2, 3)
    host.now += 1
    assert workloads.denials(host.counters) == {"other": (0, 0, 0)}
    assert (workloads.tracked, host.workloads.content) == (0, {})


def test_a_cgroup_that_was_only_not_found_stays(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 1, 0, 0)
    host.existing.remove(WEB)
    workloads.denials(host.counters)
    host.existing.add(WEB)
    host.now += 2 * REMOVED_SECONDS
    assert workloads.denials(host.counters)["web.service"] == (1, 0, 0)
    host.existing.remove(WEB)
    assert workloads.denials(host.counters)["web.service"] == (1, 0, 0)


def test_figures_of_a_name_never_go_down(host: Host, workloads: Workloads) -> None:
    host.deny(WEB, 5, 0, 0)
    workloads.denials(host.counters)
    host.existing.remove(WEB)  # the service starts again, in a new cgroup
    host.deny(WEB_AGAIN, 1, 0, 0)
    assert workloads.denials(host.counters)["web.service"] == (6, 0, 0)
    host.now += REMOVED_SECONDS + 1
    assert workloads.denials(host.counters)["web.service"] == (6, 0, 0)
    assert workloads.tracked == 1
    host.deny(WEB_AGAIN, 1, 0, 0)
    assert workloads.denials(host.counters)["web.service"] == (7, 0, 0)


def test_figures_stay_right_when_a_cgroup_cannot_be_forgotten(
    host: Host, workloads: Workloads
) -> None:
    host.deny(WEB, 5, 0, 0)
    host.deny(WEB_AGAIN, 1, 0, 0)
    host.existing.remove(WEB)
    workloads.denials(host.counters)
    host.now += REMOVED_SECONDS + 1
    host.workloads.error = OSError(errno.ENOMEM, "no memory")
    for _ in range(2):
        with pytest.raises(OSError, match="no memory"):
            workloads.denials(host.counters)
    host.workloads.error = None
    assert workloads.denials(host.counters)["web.service"] == (6, 0, 0)
