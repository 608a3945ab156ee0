from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from monitor.web.places import (
    BUSY,
    FAIR_SECONDS,
    PATIENT_SECONDS,
    Client,
    Queue,
    pick_slow,
    source_of,
)

Come = Callable[..., Client]


@pytest.fixture
def come() -> Iterator[Come]:
    """A client of a source, which has sent something or not."""
    opened: list[socket.socket] = []

    def come(source: str, *, sent: bool = False, since: float = 0.0) -> Client:
        ours, theirs = socket.socketpair()
        opened.extend((ours, theirs))
        if sent:
            theirs.send(b"G")
        return Client(ours, source, since)

    yield come
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_source(address: str, source: str) -> None:
    assert source_of(address) == source


def test_next_is_one_that_sent_something_of_the_source_with_the_fewest_places(come: Come) -> None:
    queue = Queue(10, lambda source: source == "known")
    served = [come("a"), come("a"), come("b"), *(come("known") for _ in range(9))]
    waiting = [
        *(come("c"), come("a", sent=True), come("b", sent=True), come("a", sent=True)),
        *(come("d", sent=True), come("d", sent=True), come("known", sent=True), come("known")),
    ]
    for client in waiting:
        assert queue.add(client) is None
    order = []
    while taken := queue.take(served):
        order.append(waiting.index(taken))
        served.append(taken)
    assert order == [6, 4, 2, 5, 1, 3, 7, 0]


def test_a_full_queue_loses_one_of_the_source_that_has_the_most(come: Come) -> None:
    queue = Queue(4, lambda _: False)
    idle, scraper = come("a"), come("b")
    for client in (come("a", sent=True), idle, come("a", sent=True), scraper):
        assert queue.add(client) is None
    newest = come("a", sent=True)
    assert queue.add(newest) is idle
    last = come("a", sent=True)
    assert queue.add(last) is last
    other = come("c")
    assert queue.add(other) is newest
    assert len(queue) == 4


def test_who_has_waited_too_long_goes(come: Come) -> None:
    queue = Queue(4, lambda _: False)
    early, late = come("a", since=1.0), come("a", since=2.0)
    queue.add(early)
    queue.add(late)
    assert queue.overdue(2.0) == [early]
    assert queue.clear() == [late]
    assert queue.take([]) is None


def test_one_source_cannot_fill_the_queue(come: Come) -> None:
    queue = Queue(8, lambda _: False)
    for _ in range(20):
        queue.add(come("flood", sent=True))
    scraper = come("scraper", sent=True)
    lost = queue.add(scraper)
    assert lost is not None
    assert lost.source == "flood"
    assert len(queue) == 8
    assert queue.take([come("flood")]) is scraper


def test_who_gives_way(come: Come) -> None:
    hogs = [come("hog", since=second) for second in (0.0, 1.0, 2.0)]
    other = come("other", since=-9.0)
    served = [other, *hogs]
    assert pick_slow(served, "new", FAIR_SECONDS) is hogs[0]
    assert pick_slow(served, "hog", 0.0) is None  # the other source has fewer: it keeps its place
    hogs[0].awaits = 0
    assert pick_slow(served, "hog", 9.0) is hogs[1]
    hogs[1].gives_way = True
    assert pick_slow(served, "hog", 9.0) is hogs[2]
    assert pick_slow([come("x", since=0.0)], "y", FAIR_SECONDS - 0.01) is None
    same = [come("x", since=0.0), come("y", since=99.0)]
    assert pick_slow(same, "y", PATIENT_SECONDS - 0.01) is None
    assert pick_slow(same, "y", PATIENT_SECONDS) is same[0]
    busy = [come("x", sent=True, since=0.0)]  # it is not the client that is slow
    assert pick_slow(busy, "y", FAIR_SECONDS * BUSY - 0.01) is None
    assert pick_slow(busy, "y", FAIR_SECONDS * BUSY) is busy[0]
    busy[0].connection.close()
    assert pick_slow(busy, "y", FAIR_SECONDS) is None
