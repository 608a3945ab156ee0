"""Whose password is checked next, with checks that end when the test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from monitor.web.checks import FORGET_SECONDS, LAST_SECONDS, WAITING, Checks


class Clients:
    """Each waits for its turn in a thread; `began` lists those who had one, in order."""

    def __init__(self, wait_seconds: float = 20.0) -> None:
        self.checks = Checks(wait_seconds)
        self.began: list[str] = []
        self.turned_away: list[str] = []
        self.leave = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []

    def come(self, source: str, credential: str) -> None:
        """Returns once the client waits, has its turn or was turned away."""
        before = self._seen()
        thread = threading.Thread(target=self._one, args=(source, credential))
        self.threads.append(thread)
        thread.start()
        until(lambda: self._seen() > before or bool(self.turned_away))

    def _seen(self) -> int:
        return len(self.checks._waiting) + len(self.began) + len(self.turned_away)

    def _one(self, source: str, credential: str) -> None:
        try:
            with self.checks.turn(source, credential.encode()):
                self.began.append(credential)
                self.leave.acquire(timeout=20)
        except TimeoutError:
            self.turned_away.append(credential)

    def end(self) -> None:
        for _ in self.threads:
            self.leave.release()
        for thread in self.threads:
            thread.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.end()


def test_one_at_a_time_in_the_order_in_which_they_came(clients: Clients) -> None:
    for name in "abc":
        clients.come("source", name)
    assert clients.began == ["a"]
    clients.end()
    assert clients.began == ["a", "b", "c"]


def test_a_source_without_failures_goes_first(clients: Clients) -> None:
    clients.checks.failed("guesser")
    clients.come("first", "a")
    clients.come("guesser", "guess 1")
    clients.come("guesser", "guess 2")
    clients.come("scraper", "b")
    clients.end()
    assert clients.began == ["a", "b", "guess 1", "guess 2"]


def test_who_was_turned_away_goes_first_when_it_comes_again(clients: Clients) -> None:
    clients.come("same", "running")
    for guess in range(WAITING):
        clients.come("same", f"guess {guess}")
    clients.come("same", "right")
    until(lambda: clients.turned_away == ["right"])
    for guess in range(WAITING):  # others took the places meanwhile
        clients.leave.release()
        until(lambda guess=guess: len(clients.began) == guess + 2)  # type: ignore[misc]
    for guess in range(WAITING):
        clients.come("same", f"other guess {guess}")
    clients.come("same", "right")
    until(lambda: len(clients.turned_away) == 2)
    assert clients.turned_away[1] == f"other guess {WAITING - 1}"
    clients.leave.release()
    until(lambda: len(clients.began) == WAITING + 2)
    assert clients.began[-1] == "right"


def test_who_waits_too_long_is_turned_away() -> None:
    clients = Clients(wait_seconds=0.05)
    clients.come("a", "running")
    clients.come("a", "late")
    until(lambda: clients.turned_away == ["late"])
    clients.end()


def test_the_pause_after_a_failure_grows_and_is_forgotten() -> None:
    now = 100.0
    checks = Checks(1.0, lambda: now)
    assert checks.held_back("guesser") == 0
    pauses = []
    for _ in range(8):
        checks.failed("guesser")
        pauses.append(round(checks.held_back("guesser"), 3))
    assert pauses == [0.1, 0.2, *[LAST_SECONDS] * 6]
    assert checks.held_back("other") == 0
    now += LAST_SECONDS
    assert checks.held_back("guesser") == 0
    now += FORGET_SECONDS
    checks.failed("guesser")
    assert round(checks.held_back("guesser"), 3) == 0.1


def test_a_source_waits_for_its_pause(clients: Clients) -> None:
    clients.checks.failed("guesser")
    began = time.monotonic()
    clients.come("guesser", "guess")
    until(lambda: clients.began == ["guess"])
    assert time.monotonic() - began > 0.05


def test_any_number_of_sources_takes_bounded_memory() -> None:
    checks = Checks(1.0)
    for number in range(5000):
        checks.failed(str(number))
        with checks.turn("clean", str(number).encode()):
            pass
    assert len(checks._failures._entries) == len(checks._came._entries) == 2048
