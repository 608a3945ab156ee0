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


def test_a_user_has_a_quarter_of_the_names_and_leaves_the_last() -> None:
    host = Host()
    for number in range(40):
        user = 1000 + number % 3
        host.paths[number] = f"/user.slice/user-{user}.slice/user@{user}.service/{number}.scope"
    host.paths[50] = "/system.slice/nginx.service"
    host.paths[51] = None
    severities = made(host, maximum=16)
    for number in range(40):
        severities.add(number, "denial", "critical")
    severities.add(50, "denial", "critical")
    severities.add(51, "denial", "critical")
    counts = severities.counts()
    of_users = [name for name, *_ in counts if name.startswith("user@")]
    assert len(of_users) == 12
    assert {sum(f"user@{user}." in name for name in of_users) for user in (1000, 1001, 1002)} == {4}
    assert counts["other", "denial", "critical"] == 28
    assert counts["nginx.service", "denial", "critical"] == 1
    assert counts["cgroup:51", "denial", "critical"] == 1


def test_a_removed_cgroup_gives_its_place_back_after_an_hour() -> None:
    host = Host()
    host.paths = {number: f"/user.slice/user-1000.slice/{number}.scope" for number in range(9)}
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
        ("1.scope", "denial", "warning"): 2,
        ("4.scope", "denial", "warning"): 1,
        ("other", "denial", "warning"): 2,
        ("other", "denial", "info"): 3,  # what is past calls nobody, and the sum stays
    }


def test_a_flood_of_names_searches_once_a_minute() -> None:
    host = Host()
    host.paths = {number: f"/user.slice/user-1000.slice/{number}.scope" for number in range(500)}
    severities = made(host, maximum=8)
    severities.add(0, "denial", "critical")
    severities.add(1, "denial", "critical")
    host.now = 4000.0
    for number in range(2, 500):
        severities.add(number, "denial", "critical")
    assert host.searches == 2
    assert severities.counts()["other", "denial", "critical"] == 498
