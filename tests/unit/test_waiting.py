"""Reads that others can delay: what they cost those who wait, and who gets no more of them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from clocks import at_most

from monitor.evidence import waiting
from monitor.evidence.waiting import Held, Reads, TooLong, Waiting

USER, OTHER, SYSTEM = 1000, 1001, 33


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lock() -> Iterator[threading.Event]:
    """Whoever waits for it waits until the test ends."""
    held = threading.Event()
    yield held
    held.set()


def blocked(lock: threading.Event) -> Callable[[], str]:
    def read() -> str:
        lock.wait(60)
        return "late"

    return read


def test_what_is_there_is_returned() -> None:
    patient = Waiting()
    assert [patient.run(USER, number.__int__) for number in range(100)] == [*range(100)]


def test_threads_end_with_it() -> None:
    patient = Waiting()
    thread = patient.run(USER, threading.current_thread)
    assert thread is not threading.current_thread()
    del patient
    thread.join(10.0)
    assert not thread.is_alive()


def test_an_error_is_raised() -> None:
    def read() -> str:
        raise PermissionError("hidden")

    patient = Waiting()
    with pytest.raises(PermissionError, match="hidden"):
        patient.run(USER, read)


def test_one_that_waits_is_given_up_and_others_go_on(lock: threading.Event) -> None:
    patient = Waiting()
    within = at_most(1.0, "it is given up after 50 ms")
    with within, pytest.raises(TooLong, match="longer than 50 ms"):
        patient.run(USER, blocked(lock))
    assert patient.run(OTHER, lambda: "there") == "there"


def test_one_that_wants_a_processor_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host where all are busy, as the test's own may be."""
    monkeypatch.setattr(waiting, "LONGEST", 60.0)

    def read() -> str:
        while time.thread_time() < 0.15:
            hashlib.sha256(bytes(1 << 20))  # without the lock of the interpreter
        return "there"

    assert Waiting().run(USER, read) == "there"


def test_one_that_never_gets_enough_is_given_up() -> None:
    ends = threading.Event()

    def read() -> None:
        while not ends.is_set():
            hashlib.sha256(bytes(1 << 20))

    patient = Waiting()
    try:
        with at_most(3.0, "it is given up after half a second"), pytest.raises(TooLong):
            patient.run(USER, read)
    finally:
        ends.set()


def test_a_user_who_holds_a_thread_gets_no_other(lock: threading.Event) -> None:
    patient = Waiting()
    with pytest.raises(TooLong):
        patient.run(USER, blocked(lock))
    with pytest.raises(TooLong, match="another look-up of this user's still waits"):
        patient.run(USER, lambda: "there")
    lock.set()
    while patient._stuck:
        try:
            assert patient.run(USER, lambda: "there") == "there"
        except TooLong:
            continue


def test_the_last_thread_is_for_system_users(lock: threading.Event) -> None:
    patient = Waiting()
    for user in range(USER, USER + waiting.THREADS - 1):
        with pytest.raises(TooLong, match="50 ms"):
            patient.run(user, blocked(lock))
    with pytest.raises(TooLong, match="look-ups of other users still wait"):
        patient.run(USER + 9, lambda: "there")
    assert patient.run(SYSTEM, lambda: "there") == "there"
    assert patient.run(0, lambda: "there") == "there"


def looks(patient: Waiting, user: int, clock: Clock) -> bool:
    """Whether the user gets a look, which takes 40 ms."""

    def read() -> None:
        clock.now += 0.04

    try:
        patient.run(user, read)
    except TooLong:
        return False
    return True


def test_slow_ones_use_up_a_users_share() -> None:
    clock = Clock()
    patient = Waiting(clock)
    # 0.25 s at once, and 0.2 s a second.
    assert [looks(patient, USER, clock) for _ in range(10)] == [*[True] * 8, False, False]
    assert patient.run(OTHER, lambda: "there") == "there"
    clock.now += 1.0
    assert patient.run(USER, lambda: "there") == "there"


def test_many_users_share_what_two_of_them_have() -> None:
    """A person may have many numbers. System users have their own share."""
    clock = Clock()
    patient = Waiting(clock)
    # 0.5 s at once, and 0.4 s a second.
    found = [looks(patient, user, clock) for user in range(USER, USER + 25)]
    assert found == [*[True] * 21, *[False] * 4]
    assert patient.run(SYSTEM, lambda: "there") == "there"


def test_users_are_forgotten() -> None:
    patient = Waiting()
    for user in range(3 * waiting.USERS):
        patient.run(0 if user % 2 else user, lambda: "there")
    assert len(patient._shares) <= waiting.USERS


def test_work_is_no_waiting() -> None:
    """What only takes time of the processor uses up nobody's share."""
    clock = Clock()

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.05:
            pass
        clock.now += 0.05

    patient = Waiting(clock, seconds=60.0, at_once=0.1)
    for _ in range(8):
        patient.run(USER, work)
    assert patient.cpu_seconds >= 0.4


def test_places_have_shares_of_their_own(lock: threading.Event) -> None:
    patient = Waiting(seconds=0.02)
    first, second = 100_000, 165_535  # two of one person's sub-users
    with pytest.raises(TooLong, match="longer than 20 ms"):
        patient.run(0, blocked(lock), "container/a")
    assert patient.run(0, lambda: "there", "ssh.service") == "there"
    with pytest.raises(TooLong, match="longer than 20 ms"):
        patient.run(first, blocked(lock), "user-1000.slice")
    with pytest.raises(TooLong, match="another look-up of this user's"):
        patient.run(second, lambda: "there", "user-1000.slice")
    reads = Reads(patient, second, "user-1001.slice")
    assert reads.run(lambda: "there") == "there"


def test_rest_ends_the_threads_that_are_free(lock: threading.Event) -> None:
    before = threading.active_count()
    patient = Waiting()
    with pytest.raises(TooLong):
        patient.run(USER, blocked(lock))
    patient.run(OTHER, lambda: "there")
    patient.rest()
    with at_most(10.0, "it would wait for ever"):
        while threading.active_count() > before + 1:
            time.sleep(0.001)
    assert patient.run(OTHER, lambda: "there") == "there"
    lock.set()
    with at_most(10.0, "it would wait for ever"):
        while threading.active_count() > before:
            patient.rest()
            time.sleep(0.001)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patient = Waiting()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TooLong, match="it gets no thread: can't start new thread"):
            patient.run(USER, lambda: "there")
    assert patient.run(USER, lambda: "there") == "there"


def looking(lock: threading.Event) -> tuple[int, Callable[[], object]]:
    """A descriptor that only the work has, which waits."""
    held = Held(os.open("/", os.O_PATH | os.O_CLOEXEC))
    return held.descriptor, lambda: (lock.wait(60), os.fstat(held.descriptor))


def test_what_is_held_is_closed_after_the_last_use(lock: threading.Event) -> None:
    descriptor, work = looking(lock)
    patient = Waiting()
    with pytest.raises(TooLong):
        patient.run(USER, work)
    del work
    os.fstat(descriptor)
    lock.set()
    with at_most(10.0, "it would wait for ever"):
        while os.path.exists(f"/proc/self/fd/{descriptor}"):
            time.sleep(0.001)


def test_an_error_keeps_nothing_open() -> None:
    def read() -> None:
        held = Held(os.open("/", os.O_PATH | os.O_CLOEXEC))
        opened.append(held.descriptor)
        raise PermissionError("hidden")

    opened: list[int] = []
    patient = Waiting()
    for _ in range(3):
        with pytest.raises(PermissionError):
            patient.run(USER, read)
    assert len(set(opened)) == 1
