"""Who keeps how much: nobody loses anything to somebody who asks for more."""

from __future__ import annotations

import random

import pytest

from monitor.untrusted.shares import keep_fairly, of_the_largest, shares


@pytest.mark.parametrize(
    ("demands", "room", "granted"),
    [
        ({}, 10, {}),
        ({"a": 3, "b": 4}, 10, {"a": 3, "b": 4}),
        ({"a": 3, "b": 1000}, 10, {"a": 3, "b": 7}),
        ({"a": 500, "b": 1000}, 10, {"a": 5, "b": 5}),
        ({"a": 1, "b": 5, "c": 9}, 9, {"a": 1, "b": 4, "c": 4}),
        ({"a": 5}, 0, {"a": 0}),
        ({"a": 5}, -3, {"a": 0}),
    ],
)
def test_shares(demands: dict[str, int], room: int, granted: dict[str, int]) -> None:
    assert shares(demands, room) == granted


def test_whoever_asks_for_more_takes_from_nobody() -> None:
    chance = random.Random(3)
    for _ in range(300):
        demands = {name: chance.randrange(50) for name in "abcdef"}
        room = chance.randrange(200)
        before = shares(demands, room)
        assert sum(before.values()) <= room
        assert sum(before.values()) == min(room, sum(demands.values()))
        after = shares(demands | {"a": demands["a"] + 1000}, room)
        for name in "bcdef":
            assert after[name] >= min(demands[name], room // 6)


def test_many_users_of_one_workload_have_one_share() -> None:
    items = [("his", user) for user in range(600)] + [("sshd", 0)] * 3
    kept = keep_fairly(items, 10, (lambda item: item[0], lambda item: item[1]))
    assert kept.count(("sshd", 0)) == 3
    assert len(kept) == 10


def test_of_each_the_first_that_fit() -> None:
    items = [("a", 3), ("a", 4), ("b", 5), ("a", 5)]
    kept = keep_fairly(items, 12, (lambda item: item[0],), lambda item: item[1])
    assert kept == [("a", 3), ("a", 4), ("b", 5)]


def test_of_the_largest_one_must_go() -> None:
    owners = (lambda item: item[0], lambda item: item[1])

    def largest(*items: tuple[str, int, int]) -> set[tuple[str, int, int]]:
        return set(of_the_largest(items, owners, lambda item: item[2]))

    many = [("his", user, 9) for user in range(5)]
    # His users have one share; of those with as many, whose best is worth the least.
    assert largest(*many, ("sshd", 0, 1), ("sshd", 0, 2)) == {("his", 0, 9)}
    assert largest(("a", 1, 5), ("a", 1, 6), ("a", 2, 9), ("b", 0, 1)) == {("a", 1, 5), ("a", 1, 6)}
    assert largest(("a", 1, 5), ("b", 1, 4), ("c", 1, 6)) == {("b", 1, 4)}
    assert largest(("a", 1, 5)) == {("a", 1, 5)}
