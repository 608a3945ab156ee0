"""What the service reports to systemd, on a socket in its place."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import at_most

from monitor.kernel.loader import LOAD_SECONDS
from monitor.life.service import STATUS_LIMIT, Service, notify


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        yield manager


@pytest.mark.parametrize("kind", ["path", "path with @", "abstract"])
def test_notify(
    kind: str, manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"seal-monitor-test-{os.getpid()}"
    address = {
        "path": str(tmp_path / "notify"),
        "path with @": str(tmp_path / "user@1000"),
        "abstract": f"@{name}",
    }[kind]
    manager.bind(f"\0{name}" if kind == "abstract" else address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    assert manager.recv(64) == b"READY=1"


def test_notify_without_a_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/gone")
    notify("READY=1")
    assert capfd.readouterr().err == (
        f"seal-monitor: cannot notify the service manager of READY=1: {tmp_path}/gone: "
        "[Errno 2] No such file or directory\n"
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Managed:
    """A service with a manager that listens: its messages, each a list of lines."""

    def __init__(self, manager: socket.socket, folder: Path, **environment: str) -> None:
        manager.bind(str(folder / "notify"))
        self._manager = manager
        self.clock = Clock()
        self.service = Service({"NOTIFY_SOCKET": str(folder / "notify"), **environment}, self.clock)

    def messages(self) -> list[list[str]]:
        found = []
        self._manager.setblocking(False)
        while True:
            try:
                found.append(self._manager.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found

    def turn(self, seconds: float, is_alive: bool = True, status: str = "well") -> list[list[str]]:
        self.clock.now += seconds
        self.service.turned(is_alive, lambda: status)
        return self.messages()


def test_the_watchdog_is_fed_four_times_in_its_time(manager: socket.socket, tmp_path: Path) -> None:
    managed = Managed(manager, tmp_path, WATCHDOG_USEC="8000000", WATCHDOG_PID=str(os.getpid()))
    fed = [["WATCHDOG=1"] in managed.turn(0.5) for _ in range(16)]
    assert fed == [True, False, False, False] * 4


def test_a_pipeline_that_does_not_turn_starves_the_watchdog(
    manager: socket.socket, tmp_path: Path
) -> None:
    managed = Managed(manager, tmp_path, WATCHDOG_USEC="8000000")
    assert ["WATCHDOG=1"] in managed.turn(0)
    assert [["WATCHDOG=1"] in managed.turn(3, is_alive=False) for _ in range(5)] == [False] * 5
    assert ["WATCHDOG=1"] in managed.turn(0.1)


def test_a_manager_that_reads_no_more_holds_up_nothing(
    manager: socket.socket, tmp_path: Path
) -> None:
    managed = Managed(manager, tmp_path, WATCHDOG_USEC="4000000")
    assert managed.service.feeding_seconds == 1.0
    with at_most(30, "nobody ever reads the socket"):
        for _ in range(2000):  # more than the queue of a socket holds
            managed.clock.now += 10
            managed.service.turned(True, lambda: "well")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog(environment: dict[str, str], manager: socket.socket, tmp_path: Path) -> None:
    managed = Managed(manager, tmp_path, **environment)
    assert managed.turn(0) == [["STATUS=well"]]


def test_status_is_one_short_line_every_five_seconds(
    manager: socket.socket, tmp_path: Path
) -> None:
    managed = Managed(manager, tmp_path)
    said = [managed.turn(1, status=f"turn {number}\nREADY=1") for number in range(6)]
    assert said == [[["STATUS=turn 0 READY=1"]], [], [], [], [], [["STATUS=turn 5 READY=1"]]]
    assert managed.turn(5, status="x" * 500) == [["STATUS=" + "x" * STATUS_LIMIT]]


def test_ready_reload_stop(manager: socket.socket, tmp_path: Path) -> None:
    managed = Managed(manager, tmp_path)
    with managed.service.reloading():
        pass
    assert managed.messages() == []  # it would call a service ready that is not
    assert managed.turn(0) == [["STATUS=well"]]
    managed.service.ready()
    assert managed.turn(0) == [["READY=1"], ["STATUS=well"]]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with managed.service.reloading():
        ((first, second),) = managed.messages()
    assert first == "RELOADING=1"
    name, _, moment = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(moment) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    managed.service.stopping()
    assert managed.messages() == [["READY=1"], ["STOPPING=1"]]


def test_a_reload_that_fails_ends_all_the_same(manager: socket.socket, tmp_path: Path) -> None:
    managed = Managed(manager, tmp_path)
    managed.service.ready()
    with pytest.raises(RuntimeError), managed.service.reloading():
        raise RuntimeError
    assert [message[0] for message in managed.messages()] == ["READY=1", "RELOADING=1", "READY=1"]


def test_without_a_manager_nothing_is_asked_for() -> None:
    service = Service({"WATCHDOG_USEC": "8000000"})
    service.ready()
    service.turned(True, lambda: pytest.fail("nobody reads the status"))


def test_a_slow_start_ends_by_its_own_error() -> None:
    unit = (Path(__file__).parents[2] / "systemd/seal-monitor.service").read_text("utf-8")
    (seconds,) = re.findall(r"^TimeoutStartSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) >= LOAD_SECONDS + 60
