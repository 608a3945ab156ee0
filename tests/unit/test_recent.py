from __future__ import annotations

import random
from collections import Counter

from monitor.untrusted.recent import Recent, SharedRecent


def test_what_was_asked_for_last_stays() -> None:
    recent: Recent[int, str] = Recent(limit=2)
    recent.put(1, "one")
    recent.put(2, "two")
    assert recent.get(1) == "one"
    recent.put(3, "three")
    assert [recent.get(key) for key in (1, 2, 3)] == ["one", None, "three"]


def test_a_value_put_again_replaces_the_first() -> None:
    recent: Recent[int, str] = Recent(limit=2)
    recent.put(1, "one")
    recent.put(2, "two")
    recent.put(1, "first")
    recent.put(3, "three")
    assert [recent.get(key) for key in (1, 2, 3)] == ["first", None, "three"]


def test_nobody_pushes_out_what_another_has() -> None:
    cache: SharedRecent[int, str] = SharedRecent(10)
    for number in range(3):
        cache.put(number, "hers", "her")
    for number in range(100, 1100):
        cache.put(number, "his", "him")
    assert [cache.get(number) for number in range(3)] == ["hers"] * 3
    assert [cache.get(number) for number in range(1093, 1100)] == ["his"] * 7
    assert (cache.get(1092), len(cache)) == (None, 10)
    # Whoever comes next gets a place of the one who has the most; his own are the last used.
    assert cache.get(1093) == "his"
    cache.put(5000, "third", "it")
    assert (cache.get(1094), cache.get(1093), cache.get(5000)) == (None, "his", "third")


def test_an_entry_may_get_another_owner() -> None:
    cache: SharedRecent[int, str] = SharedRecent(2)
    cache.put(1, "a", 1000)
    cache.put(1, "b", 0)
    assert (cache.get(1), len(cache)) == ("b", 1)
    cache.put(2, "c", 1000)
    cache.put(3, "d", 1000)
    assert [cache.get(number) for number in (1, 2, 3)] == ["b", None, "d"]


def test_any_order_keeps_the_bound_and_the_shares() -> None:
    chance = random.Random(4)
    cache: SharedRecent[int, int] = SharedRecent(30)

    def owner(key: int) -> str:
        return "her" if key % 20 == 0 else "him"

    for number in range(5000):
        key = chance.randrange(500)
        cache.put(key, number, owner(key))
        assert cache.get(key) == number
        assert len(cache) <= 30
    assert Counter(owner(key) for key in range(500) if cache.get(key)) == {"her": 15, "him": 15}
