"""Whose events, snapshots and values an incident keeps: pure functions.

What makes violations the same is said by those who make them, so anybody may add to an incident of
somebody else's. Its places are shared by workload, and in it by user: nobody loses what he needs to
somebody who has more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monitor.evidence.owner import NOBODY, Owner
from monitor.untrusted.shares import of_the_largest

__all__ = ["Row", "Value", "has_more", "row_to_remove", "value_to_remove"]


class Row(NamedTuple):
    """An event or a snapshot; a later one has a greater `seq`."""

    seq: int
    workload: str
    user: str
    rank: int


class Value(NamedTuple):
    """A value of a facet, and who has its place."""

    workload: str
    user: str
    seen: int  # so many times
    is_kept: bool  # False: it asks for a place
    value: str


_ROW_OWNERS = (lambda row: row.workload, lambda row: row.user)
_VALUE_OWNERS = (lambda value: value.workload, lambda value: value.user)


def row_to_remove(rows: Sequence[Row], kept: int) -> int | None:
    """The `seq` of the row that is too many, None where there is room for all.

    Of whoever has the most the oldest goes, but his worst one is the last that does. Where nobody
    has two, it is the least bad, then the oldest; so the worst of all stays.
    """
    if len(rows) <= kept:
        return None
    own = sorted(of_the_largest(rows, _ROW_OWNERS, _badness))
    worst = max(own, key=_badness)
    return next((row for row in own if row is not worst), worst).seq


def _badness(row: Row) -> tuple[int, int]:
    return row.rank, row.seq


def value_to_remove(values: Sequence[Value]) -> Value:
    """The one that gives its place up, where there is one too many: of whoever has the most, the
    one that was seen the least often; of those that are equal, the one that asks.
    """
    own = of_the_largest(values, _VALUE_OWNERS, _frequency)
    return min(own, key=_frequency)


def _frequency(value: Value) -> tuple[int, bool]:
    return value.seen, value.is_kept


def has_more(one: Owner, other: Owner, places: dict[Owner, int]) -> bool:
    """Whether `one` would still have no less than `other` if he gave him a place."""
    if NOBODY in (one, other):
        return one == NOBODY != other
    if one.workload == other.workload:
        return places.get(one, 0) > places.get(other, 0) + 1
    mine, theirs = (
        sum(number for owner, number in places.items() if owner.workload == each.workload)
        for each in (one, other)
    )
    return mine > theirs + 1
