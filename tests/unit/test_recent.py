from __future__ import annotations

from monitor.untrusted.recent import Recent


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
