"""Reports the gaps that the rate limit leaves: how many events of whom it suppressed, and when.

The counts of suppressed events are the kernel's and exact. The gaps are evidence: they are read
from the rate limit's buckets, which the daemon never writes to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from monitor.evidence.assessment import worst
from monitor.evidence.events import Severity
from monitor.keep.ledger import Ledger
from monitor.kernel.abi import Bucket, BucketKey, Kind, Outcome
from monitor.kernel.counters import KernelState

__all__ = ["GAPS_AT_ONCE", "IDLE_NS", "Gap", "Suppressions"]

_SECOND = 1_000_000_000
QUIET_NS = _SECOND  # a gap has ended when nothing was suppressed for this long
INTERVAL_NS = 10 * _SECOND  # a gap that does not end is reported in parts of this length
IDLE_NS = 60 * _SECOND
GAPS_AT_ONCE = 64  # of a sweep, beside one of each kind for all others: they are read by a person


class Gap(NamedTuple):
    """`bucket` holds what this gap adds; `key.pid` is 0 where many of a kind share it, and
    `key.caller` where several callers of a process do. `severity` is the worst that any has.
    """

    key: BucketKey
    bucket: Bucket
    severity: Severity


class _Reported(NamedTuple):
    """All that a bucket had suppressed up to `at_ns` is reported: `suppressed` events."""

    suppressed: int
    at_ns: int


class Suppressions:
    """Reads the buckets only while there is something in them. Used by one thread."""

    def __init__(
        self,
        state: KernelState,
        idle_ns: int = IDLE_NS,
        subtree: Callable[[int], Hashable] = lambda cgroup_id: None,
        ledger: Ledger | None = None,
        *,
        severity: Callable[[BucketKey], Severity],
    ) -> None:
        """A bucket unused for `idle_ns` is given back. `subtree` says which cgroups have one owner:
        of more gaps than GAPS_AT_ONCE each subtree has as many as any other. `severity`: of the
        events that the bucket of a key holds back. `ledger` has what an earlier life reported.
        """
        self._severity = severity
        self._state = state
        self._subtree = subtree
        self._idle_ns = idle_ns
        ledger = ledger or Ledger()
        self._table, self._gaps = ledger.table("suppressed"), ledger.words("gaps")
        self._reported = {key: _Reported(*each) for key, each in self._table.items()}
        self._activity = -1
        self._quiet_ns = 0  # until then nothing was suppressed that is not reported
        self._buckets = 0
        self._open = False

    def sweep(self, now_ns: int, final: bool = False) -> list[Gap]:
        """Gaps that have ended, or lasted for another interval; with `final` every one. Those of a
        process are one for each operation or cause; beyond GAPS_AT_ONCE, one for each kind.

        `now_ns` is of the boot clock. It also removes buckets that were idle for long. Raises
        OSError when the buckets cannot be read; the next call then reports what this one could not.
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
            # Most are of callers that kept the limit: there may be thousands, with nothing to do.
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
                self._reported.pop(bytes(key), None)
                self._table.pop(bytes(key), None)
                self._buckets -= 1
                self._state.buckets.remove(key)
        return self._bounded(_merged(gaps, _of_process))

    def _bounded(self, gaps: list[Gap]) -> list[Gap]:
        """The same sums in few gaps: a flood of processes must not be one of events, too."""
        if len(gaps) <= GAPS_AT_ONCE:
            return gaps
        named, shared = (
            [gap for gap in gaps if gap.key.pid],
            [gap for gap in gaps if not gap.key.pid],
        )
        by_subtree = defaultdict(list)
        for gap in named:
            by_subtree[self._subtree(gap.bucket.cgroup_id)].append(gap)
        in_turn = filter(None, chain.from_iterable(zip_longest(*by_subtree.values())))
        kept = list(islice(in_turn, GAPS_AT_ONCE))
        return [*kept, *_merged(chain(shared, in_turn), _of_kind)]

    def _is_unused(self, bucket: Bucket, now_ns: int) -> bool:
        return bool(now_ns - bucket.last_used_ns > self._idle_ns)

    def _is_idle(self, key: BucketKey, bucket: Bucket, now_ns: int) -> bool:
        """Whether all is reported, and a new bucket would allow no more than this one does."""
        reported = self._reported.get(bytes(key))
        return bool(
            self._is_unused(bucket, now_ns)
            and bucket.arrival <= now_ns
            and bucket.suppressed == (reported.suppressed if reported else 0)
        )

    def _all(self) -> Iterator[tuple[BucketKey, Bucket]]:
        yield from self._state.buckets.items()
        for kind in Kind:
            overflow = self._state.overflow(kind)
            if overflow.suppressed:
                yield BucketKey(kind=kind), overflow

    def _gap(self, key: BucketKey, bucket: Bucket, now_ns: int, final: bool) -> Gap | None:
        reported = self._reported.get(bytes(key), _Reported(0, 0))
        more = bucket.suppressed - reported.suppressed
        if not more:
            if reported.suppressed:
                self._report(key, reported._replace(at_ns=now_ns))
            return None
        # The kernel keeps the time of the bucket's first suppression. For a later gap only the
        # earliest possible time is known: at most the time between two sweeps before the true one.
        first_ns = bucket.first_suppressed_ns
        if reported.suppressed:
            first_ns = min(max(reported.at_ns, self._quiet_ns), bucket.last_suppressed_ns)
        has_ended = now_ns - bucket.last_suppressed_ns >= QUIET_NS
        if not (final or has_ended or now_ns - first_ns >= INTERVAL_NS):
            self._open = True
            return None
        self._gaps[key.kind] += more
        self._report(key, _Reported(bucket.suppressed, now_ns))
        part = Bucket.from_buffer_copy(bucket)
        part.suppressed = more
        part.first_suppressed_ns = first_ns
        return Gap(key, part, self._severity(key))

    def _report(self, key: BucketKey, reported: _Reported) -> None:
        self._reported[bytes(key)] = reported
        self._table[bytes(key)] = reported


def _of_process(key: BucketKey) -> BucketKey:
    return BucketKey(start_boot_ns=key.start_boot_ns, pid=key.pid, kind=key.kind, what=key.what)


def _of_kind(key: BucketKey) -> BucketKey:
    return BucketKey(kind=key.kind)


def _merged(gaps: Iterable[Gap], group: Callable[[BucketKey], BucketKey]) -> list[Gap]:
    """Those of a group as one, with the key of the group; one alone keeps its own."""
    by_group: dict[bytes, Gap] = {}
    for gap in gaps:
        key = group(gap.key)
        found = by_group.get(bytes(key))
        if found is None:
            by_group[bytes(key)] = gap
            continue
        whole, part = found.bucket, gap.bucket
        whole.suppressed += part.suppressed
        whole.first_suppressed_ns = min(whole.first_suppressed_ns, part.first_suppressed_ns)
        whole.last_suppressed_ns = max(whole.last_suppressed_ns, part.last_suppressed_ns)
        by_group[bytes(key)] = Gap(key, whole, worst(found.severity, gap.severity))
    return list(by_group.values())
