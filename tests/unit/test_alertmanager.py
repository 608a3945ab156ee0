"""Who gets which message: a real Alertmanager as in the example, with shorter waits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alertmanager import EXAMPLE, Message, Receiver, alertmanager, post, receiver
from prometheus import program

WAIT = 1.0  # group_wait of critical alerts
INTERVAL = 3.0  # group_interval
SECONDS = 30.0
PHONE, BY_DAY = "/phone", "/by-day"


class Setting:
    def __init__(self, url: str, to: Receiver) -> None:
        self._url, self.to = url, to

    def fire(self, *alerts: dict[str, str]) -> None:
        post(self._url, list(alerts))

    def resolve(self, *alerts: dict[str, str]) -> None:
        post(self._url, list(alerts), firing=False)

    def messages(self, path: str, number: int) -> list[Message]:
        """Wait for so many, and then as long as a group waits before it sends: more is a fault."""
        deadline = time.monotonic() + SECONDS
        while len(self.to.to(path)) < number:
            assert time.monotonic() < deadline, self.to.messages
            time.sleep(0.02)
        time.sleep(1.5 * WAIT)
        found = self.to.to(path)
        assert len(found) == number, [(one.name, one.group, len(one.alerts)) for one in found]
        return found


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with receiver() as to, alertmanager(tmp_path, to) as url:
        yield Setting(url, to)


def alert(name: str, host: int = 0, severity: str = "critical", **labels: str) -> dict[str, str]:
    of_host = {"job": "seal-monitor", "instance": f"web-{host:04}.example:10462"}
    return {"alertname": name, "severity": severity, **of_host, **labels}


def test_a_release_that_breaks_a_thousand_hosts_is_one_page(setting: Setting) -> None:
    broken = [
        alert(name, host, workload="web.service")
        for host in range(1000)
        for name in ("SealDenialNewWorkload", "SealDenial")
    ]
    setting.fire(*broken)
    (page,) = setting.messages(PHONE, 1)
    assert page.group == {"alertname": "SealDenialNewWorkload", "workload": "web.service"}
    assert (len(page.alerts), page.truncated) == (20, 980)
    setting.fire(*broken)  # as Prometheus does every minute
    time.sleep(2 * INTERVAL)
    setting.messages(PHONE, 1)
    assert setting.to.to(BY_DAY) == []


def test_an_attack_under_a_fleet_wide_alert_is_a_page_of_its_own(setting: Setting) -> None:
    """By its severity, its workload, or by how it is made."""
    leak = [alert("SealDenial", host, "warning", workload="web.service") for host in range(1000)]
    setting.fire(*leak)
    setting.fire(alert("SealDenial", 7, workload="web.service"))
    setting.fire(*(alert("SealDenial", host, workload="cron.service") for host in range(200)))
    setting.fire(alert("SealDenial", 7, workload="db.service"))
    setting.fire(alert("SealBypass", 7, workload="cron.service"))
    pages = setting.messages(PHONE, 4)
    assert {
        (one.name, one.group["workload"], len(one.alerts) + one.truncated) for one in pages
    } == {
        ("SealDenial", "web.service", 1),
        ("SealDenial", "cron.service", 200),
        ("SealDenial", "db.service", 1),
        ("SealBypass", "cron.service", 1),
    }
    (by_day,) = setting.messages(BY_DAY, 1)
    assert (by_day.name, len(by_day.alerts) + by_day.truncated) == ("SealDenial", 1000)


def test_one_host_more_is_reported_with_the_group(setting: Setting) -> None:
    setting.fire(*(alert("SealDenial", host, workload="web.service") for host in range(3)))
    setting.messages(PHONE, 1)
    setting.fire(alert("SealDenial", 3, workload="web.service"))
    pages = setting.messages(PHONE, 2)
    assert [len(page.alerts) for page in pages] == [3, 4]


def test_the_first_denials_are_one_message_of_each_severity(setting: Setting) -> None:
    """A first leak does not hide an attack on the same workload."""
    setting.fire(
        alert("SealDenialNewWorkload", 1, "warning", workload="web.service"),
        alert("SealDenial", 1, "warning", workload="web.service"),
        alert("SealDenial", 1, workload="web.service"),
        alert("SealDenial", 2, workload="db.service"),
        alert("SealDenialNewWorkload", 3, workload="db.service"),
    )
    pages = setting.messages(PHONE, 3)
    assert sorted((one.name, one.group["workload"]) for one in pages) == [
        ("SealDenial", "db.service"),
        ("SealDenial", "web.service"),
        ("SealDenialNewWorkload", "db.service"),
    ]
    (by_day,) = setting.messages(BY_DAY, 1)
    assert by_day.name == "SealDenialNewWorkload"


def test_a_host_that_is_down_has_one_message(setting: Setting) -> None:
    of_host = [
        alert("SealMonitorCanaryOverdue"),
        alert("SealMonitorProbeLost", probe="munmap"),
        alert("SealMonitorSinkErrors", 0, "warning", sink="file"),
        alert("SealEventMissing"),
    ]
    setting.fire(alert("SealMonitorDown"), *of_host)
    setting.fire(alert("SealMonitorDown", 1), alert("SealDenial", 2, workload="web.service"))
    pages = setting.messages(PHONE, 2)
    assert sorted((one.name, len(one.alerts)) for one in pages) == [
        ("SealDenial", 1),
        ("SealMonitorDown", 2),
    ]
    assert setting.to.to(BY_DAY) == []
    setting.resolve(alert("SealMonitorDown"))
    answering = setting.messages(PHONE, 6)[2:]
    assert sorted(one.name for one in answering) == [
        "SealEventMissing",
        "SealMonitorCanaryOverdue",
        "SealMonitorDown",
        "SealMonitorProbeLost",
    ]


def test_amtool_accepts_the_example() -> None:
    checked = subprocess.run(
        [program("amtool"), "check-config", EXAMPLE], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert " - 2 inhibit rules\n - 2 receivers\n" in checked.stdout
