"""Gaps that the rate limit leaves: each suppressed event is reported once, at the right time."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterator

import pytest

from monitor.evidence.events import Severity
from monitor.evidence.suppression import GAPS_AT_ONCE, IDLE_NS, Gap, Suppressions
from monitor.kernel.abi import Bucket, BucketKey, Counters, Kind, Outcome

SECOND = 1_000_000_000
START = 1000 * SECOND
KEY = BucketKey(start_boot_ns=5, caller=0x401000, pid=42, kind=Kind.DENIAL, what=2)
OTHER = BucketKey(start_boot_ns=5, caller=0x402000, pid=42, kind=Kind.DENIAL, what=2)
MANY = BucketKey(kind=Kind.FAULT)  # those that found no place


class Buckets:
    """The kernel's hash map."""

    def __init__(self) -> None:
        self.content: dict[bytes, Bucket] = {}
        self.reads = 0
        self.error: OSError | None = None

    def items(self) -> Iterator[tuple[BucketKey, Bucket]]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        for key, bucket in self.content.items():
            yield BucketKey.from_buffer_copy(key), Bucket.from_buffer_copy(bucket)

    def remove(self, key: BucketKey) -> bool:
        return self.content.pop(bytes(key), None) is not None


class Kernel:
    """What the programs do to the buckets and counters, as far as the sweep sees it."""

    def __init__(self) -> None:
        self.buckets = Buckets()
        self.overflows = {kind: Bucket() for kind in Kind}
        self._counters = Counters()

    def counters(self) -> Counters:
        return self._counters

    def overflow(self, kind: Kind) -> Bucket:
        return self.overflows[kind]

    def submit(self, key: BucketKey, now: int) -> None:
        self._bucket(key).last_used_ns = now
        self._counters.events[Kind.DENIAL][Outcome.SUBMITTED] += 1

    def suppress(self, key: BucketKey, count: int, first: int, last: int) -> None:
        """Without a pid: the bucket of keys without a place in the map."""
        bucket = self._bucket(key) if key.pid else self.overflows[Kind(key.kind)]
        bucket.first_suppressed_ns = bucket.first_suppressed_ns or first
        bucket.last_suppressed_ns = bucket.last_used_ns = last
        bucket.suppressed += count
        self._counters.events[Kind.DENIAL][Outcome.SUPPRESSED] += count

    def _bucket(self, key: BucketKey) -> Bucket:
        return self.buckets.content.setdefault(bytes(key), Bucket(task_name=b"worker"))


def severity(key: BucketKey) -> Severity:
    """Critical at one caller."""
    return "critical" if key.caller == OTHER.caller else "warning"


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def suppressions(kernel: Kernel) -> Suppressions:
    return Suppressions(kernel, severity=severity)  # type: ignore[arg-type]


def in_seconds(gaps: list[Gap]) -> list[tuple[int, int, int, int]]:
    """Caller, count, and from when to when in seconds after START."""
    return [
        (
            gap.key.caller,
            gap.bucket.suppressed,
            (gap.bucket.first_suppressed_ns - START) // SECOND,
            (gap.bucket.last_suppressed_ns - START) // SECOND,
        )
        for gap in gaps
    ]


def test_nothing_is_read_while_nothing_happens(kernel: Kernel, suppressions: Suppressions) -> None:
    suppressions.sweep(START)
    assert kernel.buckets.reads == 1
    for second in range(1, 10):
        assert suppressions.sweep(START + second * SECOND) == []
    assert kernel.buckets.reads == 1


def test_a_gap_is_reported_once_when_it_has_ended(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(KEY, 7, START, START + 2 * SECOND)
    assert suppressions.sweep(START + 2 * SECOND + 1) == []
    (gap,) = gaps = suppressions.sweep(START + 3 * SECOND)
    assert in_seconds(gaps) == [(0x401000, 7, 0, 2)]
    assert gap.bucket.task_name == b"worker"
    assert bytes(gap.key) == bytes(KEY)
    assert suppressions.sweep(START + 4 * SECOND) == []


def test_a_gap_that_lasts_is_reported_in_parts(kernel: Kernel, suppressions: Suppressions) -> None:
    found = []
    for second in range(25):
        now = START + second * SECOND
        kernel.suppress(KEY, 100, now, now)
        found += in_seconds(suppressions.sweep(now))
    assert found == [(0x401000, 1100, 0, 10), (0x401000, 1000, 10, 20)]
    found += in_seconds(suppressions.sweep(START + 26 * SECOND))
    assert found[2:] == [(0x401000, 400, 20, 24)]


def test_a_later_gap_does_not_begin_with_the_first(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(KEY, 1, START, START)
    suppressions.sweep(START + SECOND)
    for second in range(2, 50):
        suppressions.sweep(START + second * SECOND)
    kernel.suppress(KEY, 3, START + 50 * SECOND, START + 51 * SECOND)
    assert suppressions.sweep(START + 51 * SECOND) == []  # it has only begun
    assert in_seconds(suppressions.sweep(START + 52 * SECOND)) == [(0x401000, 3, 49, 51)]


def test_the_end_reports_every_gap(kernel: Kernel, suppressions: Suppressions) -> None:
    kernel.suppress(KEY, 5, START, START)
    kernel.suppress(OTHER, 6, START, START)
    kernel.suppress(MANY, 7, START, START)
    gaps = suppressions.sweep(START, final=True)
    assert in_seconds(gaps) == [(0, 11, 0, 0), (0, 7, 0, 0)]
    assert [gap.key.pid for gap in gaps] == [42, 0]
    assert suppressions.sweep(START, final=True) == []


def test_the_bucket_that_many_share_is_of_a_kind(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(MANY, 7, START, START)
    kernel.suppress(BucketKey(kind=Kind.DENIAL), 2, START, START)
    gaps = suppressions.sweep(START, final=True)
    assert [(Kind(gap.key.kind), gap.bucket.suppressed) for gap in gaps] == [
        (Kind.DENIAL, 2),
        (Kind.FAULT, 7),
    ]


def test_the_bucket_that_many_share_keeps_nothing_busy(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(MANY, 7, START, START)
    assert in_seconds(suppressions.sweep(START + SECOND)) == [(0, 7, 0, 0)]
    reads = kernel.buckets.reads
    for second in range(2, 10):
        assert suppressions.sweep(START + second * SECOND) == []
    assert kernel.buckets.reads == reads
    kernel.suppress(MANY, 2, START + 10 * SECOND, START + 10 * SECOND)
    assert in_seconds(suppressions.sweep(START + 11 * SECOND)) == [(0, 2, 9, 10)]


def test_idle_buckets_are_removed_and_forgotten(kernel: Kernel, suppressions: Suppressions) -> None:
    kernel.suppress(KEY, 5, START, START)
    kernel.submit(OTHER, START + 30 * SECOND)
    assert in_seconds(suppressions.sweep(START + SECOND)) == [(0x401000, 5, 0, 0)]
    suppressions.sweep(START + IDLE_NS)
    assert len(kernel.buckets.content) == 2
    suppressions.sweep(START + IDLE_NS + 1)
    assert list(kernel.buckets.content) == [bytes(OTHER)]
    suppressions.sweep(START + 2 * IDLE_NS)
    assert kernel.buckets.content == {}
    reads = kernel.buckets.reads
    suppressions.sweep(START + 3 * IDLE_NS)
    assert kernel.buckets.reads == reads
    # The same caller again: a new bucket, which counts from 0.
    later = START + 4 * IDLE_NS
    kernel.suppress(KEY, 3, later, later)
    assert [gap.bucket.suppressed for gap in suppressions.sweep(later + SECOND)] == [3]


def test_how_long_is_idle_is_the_owners_choice(kernel: Kernel) -> None:
    suppressions = Suppressions(kernel, 2 * SECOND, severity=severity)  # type: ignore[arg-type]
    kernel.submit(KEY, START)
    suppressions.sweep(START + 2 * SECOND)
    assert len(kernel.buckets.content) == 1
    suppressions.sweep(START + 2 * SECOND + 1)
    assert kernel.buckets.content == {}


def test_a_bucket_in_debt_stays(kernel: Kernel, suppressions: Suppressions) -> None:
    """A new bucket would allow its process a second burst."""
    kernel.submit(KEY, START)
    kernel.buckets.content[bytes(KEY)].arrival = START + 10 * IDLE_NS
    suppressions.sweep(START + 2 * IDLE_NS)
    assert len(kernel.buckets.content) == 1
    suppressions.sweep(START + 10 * IDLE_NS)
    assert kernel.buckets.content == {}


def test_buckets_that_cannot_be_read_are_reported_later(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(KEY, 5, START, START)
    kernel.buckets.error = OSError(errno.ENOMEM, "no memory")
    with pytest.raises(OSError, match="no memory"):
        suppressions.sweep(START + SECOND)
    kernel.buckets.error = None
    assert in_seconds(suppressions.sweep(START + 2 * SECOND)) == [(0x401000, 5, 0, 0)]


def test_all_suppressed_events_are_reported(kernel: Kernel, suppressions: Suppressions) -> None:
    keys = [MANY, *(BucketKey(pid=pid, caller=pid, kind=Kind.FAULT) for pid in range(1, 20))]
    gaps: list[Gap] = []
    suppressed = 0
    for second in range(400):
        now = START + second * SECOND
        for index, key in enumerate(keys):
            if second % (7 * index + 1) < 3:
                kernel.suppress(key, index + second, now, now)
                suppressed += index + second
        gaps += suppressions.sweep(now)
    gaps += suppressions.sweep(START + 400 * SECOND, final=True)
    assert sum(gap.bucket.suppressed for gap in gaps) == suppressed
    assert all(gap.bucket.first_suppressed_ns <= gap.bucket.last_suppressed_ns for gap in gaps)


def test_buckets_of_callers_that_keep_the_limit_take_no_memory(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    """As many as the map holds: a second of storms of short-lived processes."""
    for pid in range(1, 4097):
        kernel.submit(BucketKey(pid=pid), START)
    kernel.suppress(KEY, 3, START, START)
    suppressions.sweep(START)
    tracemalloc.start()
    try:
        (gap,) = suppressions.sweep(START + 2 * SECOND)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gap.bucket.suppressed == 3
    assert peak < 64 * 1024
    suppressions.sweep(START + IDLE_NS + 2 * SECOND)
    assert kernel.buckets.content == {}


def test_the_callers_of_a_process_are_one_gap(kernel: Kernel, suppressions: Suppressions) -> None:
    for caller in range(1, 4097):
        what = caller % 2
        key = BucketKey(start_boot_ns=5, pid=42, caller=caller, kind=Kind.DENIAL, what=what)
        kernel.suppress(key, 3, START + caller, START + SECOND + caller)
    first, second = suppressions.sweep(START, final=True)
    assert (first.key.pid, first.key.start_boot_ns, first.key.caller) == (42, 5, 0)
    assert (first.key.what, second.key.what) == (1, 0)
    assert first.bucket.suppressed == second.bucket.suppressed == 2048 * 3
    assert first.bucket.first_suppressed_ns == START + 1
    assert second.bucket.last_suppressed_ns == START + SECOND + 4096
    assert suppressions.sweep(START, final=True) == []


def test_many_processes_are_few_gaps_and_each_subtree_has_its_own(kernel: Kernel) -> None:
    flood, victim = 100, 7
    suppressions = Suppressions(
        kernel,  # type: ignore[arg-type]
        subtree=lambda cgroup: cgroup // 100,
        severity=severity,
    )
    for pid in range(1, 2001):
        for kind in (Kind.DENIAL, Kind.FAULT):
            key = BucketKey(pid=pid, caller=9, kind=kind)
            kernel.suppress(key, 2, START, START)
            kernel.buckets.content[bytes(key)].cgroup_id = flood + pid % 50
    last = BucketKey(pid=9999, caller=9, kind=Kind.DENIAL)
    kernel.suppress(last, 5, START, START)
    kernel.buckets.content[bytes(last)].cgroup_id = victim
    kernel.suppress(MANY, 1000, START, START)
    gaps = suppressions.sweep(START, final=True)
    assert len(gaps) == GAPS_AT_ONCE + 2
    assert sum(gap.bucket.suppressed for gap in gaps) == 2000 * 2 * 2 + 5 + 1000
    assert [gap.bucket.suppressed for gap in gaps if gap.key.pid == 9999] == [5]
    rest = {Kind(gap.key.kind): gap.bucket.suppressed for gap in gaps if not gap.key.pid}
    assert set(rest) == {Kind.DENIAL, Kind.FAULT}
    assert rest[Kind.FAULT] > 1000


def test_a_gap_of_several_callers_has_the_worst_severity(
    kernel: Kernel, suppressions: Suppressions
) -> None:
    kernel.suppress(KEY, 3, START, START)
    (leak,) = suppressions.sweep(START + 2 * SECOND)
    for key in (KEY, OTHER, KEY):
        kernel.suppress(key, 3, START + 3 * SECOND, START + 3 * SECOND)
    (both,) = suppressions.sweep(START + 5 * SECOND)
    assert (leak.severity, both.severity, both.key.caller) == ("warning", "critical", 0)
