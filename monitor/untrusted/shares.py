"""Who keeps how much of what is bounded: max-min fairness, as pure functions.

Whoever asks for little gets all of it; what the others want is cut to the same share. So nobody
loses anything to somebody who asks for more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["keep_fairly", "of_the_largest", "shares"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def shares(demands: Mapping[K, int], room: int) -> dict[K, int]:
    """How much of `room` each gets of what it demands."""
    granted: dict[K, int] = {}
    for number, key in enumerate(sorted(demands, key=lambda key: demands[key])):
        granted[key] = min(demands[key], max(room, 0) // (len(demands) - number))
        room -= granted[key]
    return granted


def keep_fairly(
    items: Sequence[T],
    room: int,
    owners: Sequence[Callable[[T], Hashable]],
    weight: Callable[[T], int] = lambda _: 1,
) -> list[T]:
    """The items that fit into `room`; of each owner the first ones.

    Owners are asked in order: the room is shared by the first, the share of each of those by the
    second. With a workload before a user, many users in one workload have one share.
    """
    if not owners:
        kept = []
        for item in items:
            room -= weight(item)
            if room < 0:
                break
            kept.append(item)
        return kept
    groups = _grouped(items, owners[0])
    granted = shares({owner: sum(map(weight, own)) for owner, own in groups.items()}, room)
    return [
        item
        for owner, own in groups.items()
        for item in keep_fairly(own, granted[owner], owners[1:], weight)
    ]


def of_the_largest(
    items: Sequence[T], owners: Sequence[Callable[[T], Hashable]], worth: Callable[[T], Any]
) -> Sequence[T]:
    """The items of the one owner who has the most, of whom one must go where there is one too many.

    Owners are asked in order, as in keep_fairly(). Of several who have as many, it is the one whose
    most valuable item is worth the least.
    """
    for owner in owners:
        groups = _grouped(items, owner).values()
        if len(groups) > 1:
            items = min(groups, key=lambda own: (-len(own), max(map(worth, own))))
    return items


def _grouped(items: Sequence[T], owner: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(owner(item), []).append(item)
    return groups
