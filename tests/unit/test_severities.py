"""How many violations of which severity each workload had, and whose names find a place."""

from __future__ import annotations

from monitor.evidence.events import Workload
from monitor.evidence.severities import Severities


class Host:
    """Cgroups by id, and a clock."""

    def __init__(self) -> None:
        self.paths: dict[int, str | None] = {}
        self.gone: set[int] = set()
        self.now = 0.0
        self.searches = 0

    def workload(self, cgroup_id: int) -> Workload:
        return Workload(None, None, None, self.paths.get(cgroup_id))

    def exists(self, cgroup_id: int) -> bool:
        self.searches += 1
        return cgroup_id not in self.gone


def made(host: Host, maximum: int = 1024) -> Severities:
    return Severities(host, maximum, lambda: host.now)  # type: ignore[arg-type]


def test_by_workload_kind_and_severity() -> None:
    host = Host()
    host.paths = {1: "/system.slice/nginx.service", 2: "/system.slice/nginx.service/worker"}
    severities = made(host)
    severities.add(1, "denial", "warning")
    severities.add(2, "denial", "warning", 101)
    severities.add(1, "denial", "critical")
    severities.add(3, "bypass", "critical", 2)
    severities.add(None, "fault", "critical", 7)
    severities.add(1, "seal", "info")
    assert severities.counts() == {
        ("nginx.service", "denial", "warning"): 102,
        ("nginx.service", "denial", "critical"): 1,
        ("cgroup:3", "bypass", "critical"): 2,
        ("other", "fault", "critical"): 7,
    }


def test_a_user_is_one_workload_whatever_he_makes() -> None:
    """Nor is anybody else taken for him by the name of a cgroup."""
    host = Host()
    slice_ = "/user.slice/user-1000.slice"
    for number in range(500):
        host.paths[number] = f"{slice_}/user@1000.service/app.slice/made-{number}.scope"
    host.paths[500] = f"{slice_}/session-7.scope"
    host.paths[501] = "/system.slice/web.service/user.slice/user-1000.slice"
    severities = made(host)
    for number in host.paths:
        severities.add(number, "denial", "critical")
    assert severities.counts() == {
        ("user-1000.slice", "denial", "critical"): 501,
        ("web.service", "denial", "critical"): 1,
    }


def test_an_owner_has_a_quarter_of_the_names_and_leaves_the_last() -> None:
    host = Host()
    for number in range(40):
        host.paths[number] = f"/lxc/{'abc'[number % 3]}/made-{number}"
    host.paths[50] = "/system.slice/nginx.service"
    host.paths[51] = None
    severities = made(host, maximum=16)
    for number in range(40):
        severities.add(number, "denial", "critical")
    severities.add(50, "denial", "critical")
    severities.add(51, "denial", "critical")
    counts = severities.counts()
    made_by = [name[:6] for name, *_ in counts if name.startswith("/lxc/")]
    assert {owner: made_by.count(owner) for owner in made_by} == {
        "/lxc/a": 4,
        "/lxc/b": 4,
        "/lxc/c": 4,
    }
    assert counts["other", "denial", "critical"] == 28
    assert counts["nginx.service", "denial", "critical"] == 1
    assert counts["cgroup:51", "denial", "critical"] == 1


def test_a_removed_cgroup_gives_its_place_back_after_an_hour() -> None:
    host = Host()
    host.paths = {number: f"/lxc/a/{number}" for number in range(9)}
    severities = made(host, maximum=8)
    severities.add(0, "denial", "critical", 3)
    severities.add(1, "denial", "warning")
    severities.add(2, "denial", "warning")  # no place
    host.gone = {0}
    host.now = 3600.0
    severities.add(1, "denial", "warning")
    severities.add(3, "denial", "warning")  # 0 has had none for an hour, but no longer
    host.now = 3661.0
    severities.add(4, "denial", "warning")
    assert severities.counts() == {
        ("/lxc/a/1", "denial", "warning"): 2,
        ("/lxc/a/4", "denial", "warning"): 1,
        ("other", "denial", "warning"): 2,
        ("other", "denial", "info"): 3,  # what is past calls nobody, and the sum stays
    }
    assert {name for name, *_ in severities.programs()} == {"/lxc/a/1", "/lxc/a/4", "other"}


def test_a_flood_of_names_searches_once_a_minute() -> None:
    host = Host()
    host.paths = {number: f"/lxc/a/{number}" for number in range(500)}
    severities = made(host, maximum=8)
    severities.add(0, "denial", "critical")
    severities.add(1, "denial", "critical")
    host.now = 4000.0
    for number in range(2, 500):
        severities.add(number, "denial", "critical")
    assert host.searches == 2
    assert severities.counts()["other", "denial", "critical"] == 498
