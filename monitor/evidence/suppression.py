"""Closes the gaps that the rate limit leaves: what was suppressed, of whom, from when to when.

The counts of suppressed events are the kernel's and exact; the gaps told here are evidence, read
from the rate limit's buckets, which the daemon never writes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from monitor.kernel.abi import Bucket, BucketKey, Kind, Outcome
from monitor.kernel.counters import KernelState

__all__ = ["IDLE_NS", "Gap", "Suppressions"]

_SECOND = 1_000_000_000
QUIET_NS = _SECOND  # a gap has ended when nothing more was suppressed for so long
INTERVAL_NS = 10 * _SECOND  # a gap that does not end is told in parts
IDLE_NS = 60 * _SECOND


class Gap(NamedTuple):
    """`bucket` holds what this gap adds; `key.pid` is 0 where many of a kind share it."""

    key: BucketKey
    bucket: Bucket


class _Told(NamedTuple):
    suppressed: int
    at_ns: int  # nothing suppressed up to then is untold


class Suppressions:
    """Looks at the buckets only while there is something in them. One thread."""

    def __init__(self, state: KernelState, idle_ns: int = IDLE_NS) -> None:
        """A bucket unused for `idle_ns` is given back."""
        self._state = state
        self._idle_ns = idle_ns
        self._told: dict[bytes, _Told] = {}
        self._activity = -1
        self._quiet_ns = 0  # up to then nothing was suppressed since all was told
        self._buckets = 0
        self._open = False

    def sweep(self, now_ns: int, final: bool = False) -> list[Gap]:
        """Gaps that have ended, or lasted for another interval; with `final` every one.

        `now_ns` is of the boot clock. Buckets long idle are removed on the way. Raises OSError
        when the buckets cannot be read; what is untold then stays for the next time.
        """
        activity = sum(
            outcomes[Outcome.SUBMITTED] + outcomes[Outcome.SUPPRESSED]
            for outcomes in self._state.counters().events
        )
        if activity == self._activity and not self._open and not self._buckets:
            self._quiet_ns = now_ns
            return []
        count, buckets = 0, []
        for key, bucket in self._all():
            count += bool(key.pid)
            # Most are of callers that kept the limit: there may be thousands, and no more to do.
            if bucket.suppressed or self._is_unused(bucket, now_ns):
                buckets.append((key, bucket))
        self._open = False
        gaps = []
        for key, bucket in buckets:
            gap = self._gap(key, bucket, now_ns, final)
            if gap is not None:
                gaps.append(gap)
        self._buckets = count
        self._activity = activity
        for key, bucket in buckets:
            if key.pid and self._is_idle(key, bucket, now_ns):
                self._told.pop(bytes(key), None)
                self._buckets -= 1
                self._state.buckets.remove(key)
        return gaps

    def _is_unused(self, bucket: Bucket, now_ns: int) -> bool:
        return bool(now_ns - bucket.last_used_ns > self._idle_ns)

    def _is_idle(self, key: BucketKey, bucket: Bucket, now_ns: int) -> bool:
        """Whether all is told and a new bucket would allow no more than this one does."""
        told = self._told.get(bytes(key))
        return bool(
            self._is_unused(bucket, now_ns)
            and bucket.arrival <= now_ns
            and bucket.suppressed == (told.suppressed if told else 0)
        )

    def _all(self) -> Iterator[tuple[BucketKey, Bucket]]:
        yield from self._state.buckets.items()
        for kind in Kind:
            overflow = self._state.overflow(kind)
            if overflow.suppressed:
                yield BucketKey(kind=kind), overflow

    def _gap(self, key: BucketKey, bucket: Bucket, now_ns: int, final: bool) -> Gap | None:
        told = self._told.get(bytes(key), _Told(0, 0))
        more = bucket.suppressed - told.suppressed
        if not more:
            if told.suppressed:
                self._told[bytes(key)] = told._replace(at_ns=now_ns)
            return None
        # The kernel keeps the first time of all; of a later gap only the earliest possible time is
        # known, a sweep's interval before the true one at most.
        first_ns = bucket.first_suppressed_ns
        if told.suppressed:
            first_ns = min(max(told.at_ns, self._quiet_ns), bucket.last_suppressed_ns)
        has_ended = now_ns - bucket.last_suppressed_ns >= QUIET_NS
        if not (final or has_ended or now_ns - first_ns >= INTERVAL_NS):
            self._open = True
            return None
        self._told[bytes(key)] = _Told(bucket.suppressed, now_ns)
        part = Bucket.from_buffer_copy(bucket)
        part.suppressed = more
        part.first_suppressed_ns = first_ns
        return Gap(key, part)
