"""Whatever lies in the ring: each entry becomes a valid event or a counted error, never a crash.

Examples are the same in each run; SEAL_MONITOR_FUZZ_EXAMPLES asks for that many random ones.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_ring import BUSY, DISCARDED, FRAME, LENGTH, PAGE, SIZE, KernelSide

from monitor.configuration.mutes import Mute
from monitor.evidence import events
from monitor.evidence.attribution import Attribution
from monitor.evidence.cgroups import Cgroups
from monitor.evidence.identity import Identities
from monitor.evidence.suppression import Gap
from monitor.evidence.waiting import Waiting
from monitor.incidents.snapshot import Request, Taken, take
from monitor.incidents.snapshot_thread import Snapshots
from monitor.kernel import abi
from monitor.kernel.abi import Bucket, BucketKey, Kind, Record
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.ring import Ring
from monitor.metrics.tally import Tally
from monitor.sinks import outputs as sinks
from monitor.sinks.delivery import Delivery
from monitor.watch.pipeline import Pipeline

EXAMPLES = os.environ.get("SEAL_MONITOR_FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 50),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

HOST = events.Host("web-1", "1b4e28ba-2fa1-4d2e-883f-0016d3cca427", "6.18.44")
SEALED_BIT = 1 << 42
VALIDATOR = jsonschema.Draft202012Validator(events.schema())
NOBODY = 4_194_305  # beyond the largest pid


# ---- Structures of any content -------------------------------------------------------------------

HOSTILE_BYTES = (b"", b"a\nb", b"\x1b]0;x\x07", b"\xff\xfe", "\u202e\u2028".encode(), b"\"\\'{}%s")
_EDGES = (0, 1, 2, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field of this type, more often one at an edge."""
    if issubclass(kind, ctypes.Structure):
        return structures(kind)
    if issubclass(kind, ctypes.Array):
        length = kind._length_
        if kind._type_ is ctypes.c_char:
            hostile = st.sampled_from(HOSTILE_BYTES).map(lambda text: text[:length])
            return hostile | st.binary(max_size=length)
        return st.lists(values_of(kind._type_), max_size=length).map(lambda items: kind(*items))
    bits = 8 * ctypes.sizeof(kind)
    low, high = (-(1 << bits - 1), (1 << bits - 1)) if kind(-1).value < 0 else (0, 1 << bits)
    edges = [edge for edge in _EDGES if edge < high]
    return st.sampled_from(edges) | st.integers(low, high - 1)


def structures(kind: Any, /, **usual: Any) -> st.SearchStrategy[Any]:
    """Structures: some fields hold anything, the others what is `usual`, or 0."""
    anything = {name: values_of(field) for name, field in kind._fields_}
    return st.fixed_dictionaries({}, optional=anything).map(lambda odd: kind(**{**usual, **odd}))


def no_sealer(record: Record) -> Record:
    """A record with this flag makes no event."""
    record.flags &= ~abi.RecordFlag.SEALER
    return record


RECORDS = (
    st.sampled_from(Kind)
    .flatmap(
        lambda kind: structures(
            Record,
            kind=kind,
            pid=NOBODY,
            operation=2,
            mapping=abi.Mapping(start=0x1000, end=0x2000, flags=1 | SEALED_BIT),
            stack=abi.Stack(depth=2),
        )
    )
    .map(no_sealer)
)
RAW_RECORDS = st.binary(min_size=LENGTH, max_size=LENGTH).map(Record.from_buffer_copy)


# ---- The way from a record to the sinks ----------------------------------------------------------


class Outputs:
    """A pipeline that writes JSON lines, a live view and a file; what came out of each."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._json, self._view = os.memfd_create("json"), os.memfd_create("view")
        self._file = folder / "events.jsonl"
        written = (
            sinks.json_lines(self._json),
            sinks.pretty(self._view, colours=False),
            sinks.json_file(self._file),
        )
        self.tally = Tally(sink.name for sink in written)
        self._delivery = Delivery(written, self.tally)
        self._snapshots = Snapshots(self._delivery, self.tally, self._look)
        self._folder = folder
        self.pipeline = Pipeline(
            HOST,
            SEALED_BIT,
            attribution=Attribution(Identities(proc=folder), Cgroups(proc=folder), proc=folder),
            delivery=self._delivery,
            tally=self.tally,
            ask_snapshot=self._snapshots.ask,
            **options,
        )

    def _look(self, request: Request, waiting: Waiting) -> Taken:
        return take(
            request,
            waiting,
            start_offset_ns=0,
            reports_guards=False,
            proc=self._folder,
        )

    def close(self) -> None:
        self._snapshots.finish(10)
        asked = {kind: number for kind, number in self.tally.snapshots.items() if number}
        assert asked in ({}, {"gone": 1})
        self._delivery.close()
        os.close(self._json)
        os.close(self._view)

    def lines(self) -> list[str]:
        """Each event as JSON lines have it."""
        assert self._delivery.wait(10)
        text = _content(self._json)
        assert self._file.read_bytes() == text
        return text.decode().splitlines()

    def view(self) -> str:
        assert self._delivery.wait(10)
        return _content(self._view).decode()

    def results(self) -> dict[tuple[str, str], int]:
        assert self._delivery.wait(10)
        return {key: number for key, number in self.tally.events.items() if number}


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


@contextmanager
def outputs(**options: Any) -> Iterator[Outputs]:
    with tempfile.TemporaryDirectory() as folder:
        made = Outputs(Path(folder), **options)
        try:
            yield made
        finally:
            made.close()


def assert_one_event(out: Outputs, kind: str) -> None:
    """Delivered and valid everywhere, or counted as failed."""
    lines = out.lines()
    if out.tally.decode_errors:
        assert out.tally.decode_errors == 1
        assert out.results() == {(kind, "failed"): 1}
        assert lines == []
        return
    assert out.results() == {(kind, "delivered"): 1}
    (line,) = lines
    event = json.loads(line)
    VALIDATOR.validate(event)
    assert event["kind"] == kind
    assert event["summary"].isprintable()
    assert len(event["summary"]) < 400
    assert all(part.isprintable() for part in out.view().split("\n"))
    assert not any(out.tally.sink_errors.values())


def assert_accounted(record: Record) -> None:
    with outputs() as out:
        out.pipeline.take([no_sealer(record)])
        if record.kind not in set(Kind):
            assert (out.tally.decode_errors, out.results(), out.lines()) == (1, {}, [])
        else:
            assert_one_event(out, Kind(record.kind).label)


@fuzzed
@given(RECORDS)
def test_any_fields_make_an_event_or_a_counted_error(record: Record) -> None:
    assert_accounted(record)


@fuzzed
@given(RAW_RECORDS)
@example(Record.from_buffer_copy(b"\xff" * LENGTH))
@example(Record())
def test_any_bytes_make_an_event_or_a_counted_error(record: Record) -> None:
    assert_accounted(record)


GAPS = st.builds(
    Gap,
    structures(BucketKey, pid=NOBODY),
    structures(Bucket, suppressed=3).filter(lambda bucket: bucket.suppressed),
    st.sampled_from(["info", "warning", "critical"]),
)


@fuzzed
@given(GAPS)
def test_any_bucket_makes_an_event_or_a_counted_error(gap: Gap) -> None:
    with outputs() as out:
        out.pipeline.suppression(gap)
        assert_one_event(out, "suppression")


MUTES = st.builds(
    Mute,
    executable=st.none()
    | st.text(min_size=1, max_size=20)
    | st.sampled_from(["*", "[", "[!", "/*"]),
    operation=st.none() | st.sampled_from([operation.name for operation in OPERATIONS]),
    cause=st.none() | st.sampled_from([cause.label for cause in abi.Cause]),
    owner=st.none() | st.just("root") | st.integers(0, 2**32 - 2),
    user=st.none() | st.just("root") | st.integers(0, 2**32 - 2),
    unit=st.none() | st.sampled_from(["*.service", "[.service", "user@*.service/*.scope"]),
    build_id=st.none() | st.just("00ff"),
    until=st.none() | st.datetimes(timezones=st.timezones()),
    reason=st.just("known"),
)


@fuzzed
@given(RECORDS, st.lists(MUTES, max_size=3))
def test_any_mute_filters_or_not(record: Record, mutes: list[Mute]) -> None:
    with outputs(mutes=mutes) as out:
        out.pipeline.take([record])
        assert sum(out.results().values()) + (record.kind not in set(Kind)) == 1
        assert len(out.lines()) == sum(
            number for (_, result), number in out.results().items() if result == "delivered"
        )


# ---- The ring ------------------------------------------------------------------------------------


@contextmanager
def ring_of(kernel: KernelSide) -> Iterator[Ring]:
    ring = Ring(kernel.descriptor, SIZE)
    try:
        yield ring
    finally:
        ring.close()
        os.close(kernel.descriptor)


def padded(data: bytes) -> bytes:
    return data.ljust(len(data) + 7 & ~7, b"\0")


def entry(length: int, flags: int, content: bytes) -> bytes:
    return struct.pack("<II", length | flags, 0) + padded(content[:length].ljust(length, b"\0"))


LENGTHS = st.sampled_from([LENGTH] * 4 + [0, 1, 8, LENGTH - 8, LENGTH + 8]) | st.integers(0, 4000)
ENTRIES = st.lists(
    st.tuples(
        LENGTHS,
        st.sampled_from([0, 0, 0, 0, DISCARDED, BUSY, BUSY | DISCARDED]),
        st.binary(max_size=64),
    ),
    max_size=12,
)


@fuzzed
@given(ENTRIES, st.integers(0, 1 << 40).map(lambda word: word * 8), st.integers(1, 300))
def test_entries_of_any_length(
    entries: list[tuple[int, int, bytes]], start: int, most: int
) -> None:
    """Up to the first busy entry each record is read in its turn, and every other entry counted."""
    records, corrupt, unread = [], 0, 0
    kernel = KernelSide()
    kernel.seek(start)
    for length, flags, content in entries:
        data = entry(length, flags, content)
        kernel.put(data)
        if unread or flags & BUSY:
            unread += len(data)
        elif not flags & DISCARDED and length == LENGTH:
            records.append(content.ljust(LENGTH, b"\0"))
        elif not flags & DISCARDED:
            corrupt += 1
    with ring_of(kernel) as ring:
        read: list[bytes] = []
        odd = 0
        while True:
            before = ring.used_bytes
            drained = ring.drain(most)
            assert len(drained.records) <= most
            read += map(bytes, drained.records)
            odd += drained.corrupt
            if ring.used_bytes == before:
                break
        assert (read, odd, ring.used_bytes) == (records, corrupt, unread)


POSITIONS = st.integers(0, 2**64 - 1) | st.sampled_from([0, FRAME, SIZE, 2**32, 2**63, 2**64 - 8])


@fuzzed
@given(st.binary(max_size=4 * FRAME), st.booleans(), POSITIONS, POSITIONS, st.integers(1, 300))
@example(b"", True, 0, 2**40, 300)
def test_positions_that_cannot_be(
    data: bytes, full: bool, consumed: int, produced: int, most: int
) -> None:
    """No crash, and nothing but what the ring holds."""
    kernel = KernelSide()
    kernel.put(struct.pack("<II", LENGTH, 0) * (SIZE // 8) if full else padded(data))
    kernel._word(0, consumed)
    kernel._word(PAGE, produced)
    with ring_of(kernel) as ring:
        for _ in range(4):
            drained = ring.drain(most)
            assert len(drained.records) <= min(most, SIZE // FRAME)
            assert drained.corrupt <= 1


@fuzzed
@given(st.binary(max_size=3 * FRAME), st.integers(0, SIZE // 8).map(lambda word: word * 8))
def test_any_bytes_of_the_ring_come_out_as_events_or_counts(data: bytes, start: int) -> None:
    kernel = KernelSide()
    kernel.seek(start)
    kernel.record(NOBODY)
    kernel.put(padded(data))
    with ring_of(kernel) as ring, outputs() as out:
        taken = 0
        while ring.used_bytes:
            before = ring.used_bytes
            for record in ring.drain().records:
                out.pipeline.take([no_sealer(record)])
                taken += 1
            if ring.used_bytes == before:
                break
        lines = out.lines()
        for line in lines:
            VALIDATOR.validate(json.loads(line))
        assert taken >= 1
        assert taken == len(lines) + out.tally.decode_errors
