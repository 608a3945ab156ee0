"""Closes the gaps that the rate limit leaves: what was suppressed, of whom, from when to when.

The counts of suppressed events are the kernel's and exact; the gaps told here are evidence, read
from the rate limit's buckets, which the daemon never writes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from monitor.abi import Bucket, BucketKey, Outcome
from monitor.counters import KernelState

__all__ = ["Gap", "Suppressions"]

_SECOND = 1_000_000_000
QUIET_NS = _SECOND  # a gap has ended when nothing more was suppressed for so long
INTERVAL_NS = 10 * _SECOND  # a gap that does not end is told in parts
IDLE_NS = 60 * _SECOND  # a bucket unused for so long is given back
_SHARED_OVERFLOW = 1


class Gap(NamedTuple):
    """`bucket` holds what this gap adds; `key.pid` is 0 for the bucket that many share."""

    key: BucketKey
    bucket: Bucket


class _Told(NamedTuple):
    suppressed: int
    last_ns: int
    at_ns: int


class Suppressions:
    """Looks at the buckets only while there is something in them. One thread."""

    def __init__(self, state: KernelState) -> None:
        self._state = state
        self._told: dict[bytes, _Told] = {}
        self._activity = -1
        self._buckets = 0
        self._open = False

    def sweep(self, now_ns: int, final: bool = False) -> list[Gap]:
        """Gaps that have ended, or lasted for another interval; with `final` every one.

        `now_ns` is of the boot clock. Buckets long idle are removed on the way.
        """
        activity = sum(
            outcomes[Outcome.SUBMITTED] + outcomes[Outcome.SUPPRESSED]
            for outcomes in self._state.counters().events
        )
        if activity == self._activity and not self._open and not self._buckets:
            return []
        self._activity = activity
        self._open = False
        gaps = []
        self._buckets = 0
        idle = []
        for key, bucket in self._all():
            self._buckets += 1
            gap = self._gap(key, bucket, now_ns, final)
            if gap is not None:
                gaps.append(gap)
            elif key.pid and now_ns - bucket.last_used_ns > IDLE_NS:
                idle.append(key)
        for key in idle:
            self._state.buckets.remove(key)
            self._told.pop(bytes(key), None)
            self._buckets -= 1
        return gaps

    def _all(self) -> Iterator[tuple[BucketKey, Bucket]]:
        yield from self._state.buckets.items()
        overflow = self._state.shared_bucket(_SHARED_OVERFLOW)
        if overflow.suppressed:
            yield BucketKey(), overflow

    def _gap(self, key: BucketKey, bucket: Bucket, now_ns: int, final: bool) -> Gap | None:
        told = self._told.get(bytes(key), _Told(0, 0, bucket.first_suppressed_ns))
        more = bucket.suppressed - told.suppressed
        if not more:
            return None
        has_ended = now_ns - bucket.last_suppressed_ns >= QUIET_NS
        if not (final or has_ended or now_ns - told.at_ns >= INTERVAL_NS):
            self._open = True
            return None
        self._told[bytes(key)] = _Told(bucket.suppressed, bucket.last_suppressed_ns, now_ns)
        part = Bucket.from_buffer_copy(bucket)
        part.suppressed = more
        if told.suppressed:
            part.first_suppressed_ns = told.last_ns
        return Gap(key, part)
