"""The spool: what was taken is there after a kill, a full disk and damage; the bound holds."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.sinks.outputs import SinkError
from monitor.sinks.spool import AGAIN, MEMORY, SEGMENT_BYTES, SEGMENT_EVENTS, Batch, Spool

BOUND = 64 << 20


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def opened(place: Path, most: int = BOUND, write: Callable[[int, bytes], int] = os.write) -> Spool:
    return Spool(place, most, write=write)


def batches(spool: Spool) -> Iterator[Batch]:
    """All that waits, taken."""
    while (batch := spool.take(0)) is not None:
        yield batch
        spool.done(batch)


def events(spool: Spool) -> list[bytes]:
    return [event for batch in batches(spool) for event in batch.events]


def files(place: Path) -> list[Path]:
    return sorted(place.iterdir())


def test_the_worst_come_first_of_those_the_oldest(place: Path) -> None:
    spool = opened(place)
    for number, severity in enumerate(("info", "critical", "warning", "critical", "info")):
        spool.add(severity, b"%d" % number)
    assert events(spool) == [b"1", b"3", b"2", b"0", b"4"]
    assert (files(place), spool.used_bytes, spool.oldest_seconds) == ([], 0, 0.0)


def test_what_was_not_acknowledged_is_there_in_the_next_life(place: Path) -> None:
    spool = opened(place)
    spool.add("critical", b"first")
    batch = spool.take(0)
    assert batch is not None
    assert batch.events == [b"first"]
    spool.add("critical", b"second")
    spool.close()
    assert events(opened(place)) == [b"first", b"second"]


def test_what_is_put_back_is_taken_again(place: Path) -> None:
    spool = opened(place)
    spool.add("info", b"small")
    assert spool.take(0)
    spool.put_back()
    spool.add("critical", b"worse")
    assert events(spool) == [b"worse", b"small"]


class Clocks:
    """The time of day in nanoseconds, and since the start in seconds."""

    def __init__(self) -> None:
        self.time, self.since = 1_700_000_000_000_000_000, 100.0

    def spool(self, place: Path, gather: float = 1.0) -> Spool:
        return Spool(
            place, BOUND, gather=gather, clock=lambda: self.time, monotonic=lambda: self.since
        )


def test_a_moment_is_gathered_in_one_request(place: Path) -> None:
    clocks = Clocks()
    spool = clocks.spool(place)
    for number in range(3):
        spool.add("info", b"%d" % number)
    assert spool.take(0) is None
    clocks.since += 1.001
    batch = spool.take(0)
    assert batch is not None
    assert batch.events == [b"0", b"1", b"2"]


YEARS = 20 * 365 * 86400 * 10**9


@pytest.mark.parametrize("step", [-YEARS, YEARS], ids=["back", "ahead"])
def test_a_clock_that_is_set_changes_neither_requests_nor_order(place: Path, step: int) -> None:
    clocks = Clocks()
    spool = clocks.spool(place)
    spool.add("info", b"0")
    clocks.time += step
    spool.add("info", b"1")
    assert spool.take(0) is None
    clocks.since += 1.001
    first = spool.take(0)
    assert first is not None
    for number in (2, 3):
        spool.add("info", b"%d" % number)
    spool.close()
    again = clocks.spool(place)
    assert [batch.events for batch in batches(again)] == [[b"0", b"1"], [b"2", b"3"]]


def test_no_name_of_a_file_makes_later_ones_unknown(place: Path) -> None:
    place.mkdir()
    for number in (10**19 - 1, 9 * 10**18 - 1):
        (place / f"{number}.critical").write_bytes(b"")
    spool = opened(place)
    spool.add("critical", b"1")
    spool.close()
    assert events(opened(place)) == [b"1"]


@pytest.mark.parametrize(
    ("size", "number"), [(1, SEGMENT_EVENTS), (SEGMENT_BYTES // 4, 4)], ids=["events", "bytes"]
)
def test_a_segment_is_bounded(place: Path, size: int, number: int) -> None:
    spool = opened(place)
    for _ in range(2 * number):
        spool.add("info", b"x" * size)
    assert [len(batch.events) for batch in batches(spool)] == [number, number]


def test_the_files_are_for_the_monitor_alone(place: Path) -> None:
    opened(place).add("info", b"x")
    (file,) = files(place)
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert file.read_bytes() == b"8cdc1683 x\n"


# ---- The bound -----------------------------------------------------------------------------------


def test_the_least_severe_go_first_of_those_the_oldest(place: Path) -> None:
    most = 4 * (SEGMENT_BYTES + 4096) + SEGMENT_BYTES // 2
    spool = opened(place, most)
    piece = b"x" * SEGMENT_BYTES
    added = ["warning", "info", "critical", "info"]
    for number, severity in enumerate(added):
        spool.add(severity, b"%d" % number + piece)
    steps: list[object] = []
    for number, severity in enumerate(("warning", "critical", "info", "critical"), 4):
        try:
            spool.add(severity, b"%d" % number + piece)
        except SinkError:
            steps.append("refused")
        steps.append(dict(spool.dropped))
    assert steps == [
        {"info": 1},
        {"info": 2},
        "refused",
        {"info": 3},
        {"info": 3, "warning": 1},
    ]
    assert spool.used_bytes <= most
    assert [event[:1] for event in events(spool)] == [b"2", b"5", b"7", b"4"]


def test_a_lower_bound_holds_from_the_start(place: Path) -> None:
    spool = opened(place)
    for number in range(16):
        spool.add("critical", b"%02d" % number + b"x" * SEGMENT_BYTES)
    spool.close()
    spool = opened(place, most=1 << 20)
    assert spool.dropped == {"critical": 13}
    assert [event[:2] for event in events(spool)] == [b"13", b"14", b"15"]


def test_what_is_being_sent_is_not_dropped(place: Path) -> None:
    spool = opened(place, most=1 << 20)
    spool.add("info", b"sent" + b"x" * SEGMENT_BYTES)
    taken = spool.take(0)
    assert taken is not None
    for _ in range(8):
        spool.add("info", b"x" * SEGMENT_BYTES)
    spool.done(taken)
    assert spool.dropped == {"info": 6}


@pytest.mark.parametrize("size", [1, 4085, 4086, 4087, 100_000])
def test_the_bound_is_that_of_whole_blocks(place: Path, size: int) -> None:
    spool = opened(place, most=1 << 20)
    used = []
    for _ in range(3 * (1 << 20) // max(size, 4096)):
        for severity in ("info", "warning"):
            with contextlib.suppress(SinkError):  # the worse have filled it
                spool.add(severity, b"x" * size)
            used.append(spool.used_bytes)
    assert max(used) <= 1 << 20
    assert spool.used_bytes == sum(-(-file.stat().st_size // 4096) * 4096 for file in files(place))


def test_small_files_count_as_what_they_take(place: Path) -> None:
    for _ in range(3):  # lives
        spool = opened(place)
        spool.add("info", b"x")
        spool.close()
    assert opened(place).used_bytes == 3 * 4096


# ---- A disk that takes nothing -------------------------------------------------------------------


class Disk:
    """Its write(2) fails while `left` is a number, once so many bytes are written."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.left: int | None = None
        self._number = number

    def write(self, descriptor: int, data: bytes) -> int:
        if self.left is None:
            return os.write(descriptor, data)
        if self.left == 0:
            raise OSError(self._number, os.strerror(self._number))
        piece = data[: self.left]
        self.left -= len(piece)
        return os.write(descriptor, piece)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_full_disk_loses_nothing(place: Path, number: int) -> None:
    disk = Disk(number)
    spool = opened(place, write=disk.write)
    spool.add("info", b"before")
    disk.left = 12  # in the middle of a line
    spool.add("info", b"while it is full")
    spool.add("critical", b"another")
    assert [file.read_bytes().count(b"\n") for file in files(place)] == [1]
    assert spool.problem is not None
    assert spool.problem.errno == number
    assert events(spool) == [b"another", b"before", b"while it is full"]
    disk.left = None
    spool.add("info", b"after")
    assert spool.problem is None
    assert events(spool) == [b"after"]
    assert spool.dropped == {}


def test_what_waited_in_memory_is_written_once_there_is_room(place: Path) -> None:
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    spool.add("info", b"1")
    spool.add("warning", b"2")
    disk.left = None
    spool.add("critical", b"3")
    spool.close()
    assert events(opened(place)) == [b"3", b"2", b"1"]


def test_what_waited_in_memory_is_written_while_the_collector_is_away(place: Path) -> None:
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    spool.add("critical", b"1")
    disk.left = None
    assert spool.take(0)
    spool.put_back()
    assert spool.problem is None
    spool.add("critical", b"2")  # and a kill
    assert [file.read_bytes()[9:] for file in files(place)] == [b"1\n", b"2\n"]
    assert events(spool) == [b"1", b"2"]


def test_a_part_that_could_not_be_removed_stands_in_no_way(place: Path) -> None:
    """A disk that goes read-only in the middle of a write, and comes back."""
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    spool.add("critical", b"1")
    (waiting,) = [segment for segment in spool._waiting if segment.lines]
    (place / waiting.name).write_bytes(b"00000000 a par")
    disk.left = None
    spool.add("info", b"2")
    assert spool.problem is None
    spool.close()
    assert events(opened(place)) == [b"1", b"2"]


def test_the_end_writes_what_is_in_memory(place: Path) -> None:
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    spool.add("info", b"1")
    disk.left = None
    assert spool.close() == 0
    assert events(opened(place)) == [b"1"]


def test_what_a_full_disk_does_not_take_at_the_end_is_counted(place: Path) -> None:
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    spool.add("info", b"1")
    spool.add("critical", b"2")
    assert spool.close() == 2
    assert spool.dropped == {"info": 1, "critical": 1}


def test_memory_is_bounded_while_the_disk_is_full(place: Path) -> None:
    disk = Disk()
    spool = opened(place, write=disk.write)
    disk.left = 0
    size = SEGMENT_BYTES // 2
    for _ in range(100):
        spool.add("info", b"x" * size)
    for _ in range(10):
        spool.add("critical", b"y" * size)
    kept = [event[:1] for event in events(spool)]
    assert kept[:10] == [b"y"] * 10
    assert len(kept) * size <= MEMORY + size
    assert len(kept) + spool.dropped["info"] == 110


def test_no_directory_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "missing" / "spool"
    spool = opened(place)
    assert isinstance(spool.problem, FileNotFoundError)
    spool.add("info", b"1")
    place.parent.mkdir()
    spool.add("critical", b"2")
    assert spool.problem is None
    spool.close()
    assert events(opened(place)) == [b"2", b"1"]


def test_a_directory_that_others_may_write_to_is_not_used(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    spool = opened(place)
    assert str(spool.problem) == f"{place}: others may write to it"
    spool.add("info", b"1")
    assert (events(spool), files(place)) == ([b"1"], [])


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    assert opened(tmp_path / "spool").problem is not None


def test_two_do_not_share_it(place: Path) -> None:
    first = opened(place)
    first.add("info", b"1")
    second = opened(place)
    assert str(second.problem) == f"{place}: another seal-monitor uses it"
    second.add("info", b"2")
    assert events(second) == [b"2"]
    assert events(first) == [b"1"]


# ---- Segments that cannot be read now ------------------------------------------------------------


@contextlib.contextmanager
def few_descriptors(number: int) -> Iterator[None]:
    """This process can open so many more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.dup(0) for _ in range(number + 1)]
    for probe in probes:
        os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("is_ending", [False, True])
def test_what_cannot_be_read_now_waits(place: Path, is_ending: bool) -> None:
    clocks = Clocks()
    spool = clocks.spool(place, gather=0.0)
    for severity in ("critical", "warning"):
        spool.add(severity, severity.encode())
    spool.close()
    spool = clocks.spool(place, gather=0.0)
    with few_descriptors(0):
        if is_ending:
            spool.wake(for_the_end=True)
        assert spool.take(0) is None
        assert spool.problem is not None
        assert spool.problem.errno == errno.EMFILE
        spool.add("info", b"memory")
        assert events(spool) == [b"memory"]  # others are not held up
    assert (spool.dropped, len(files(place))) == ({}, 2)
    clocks.since += AGAIN
    assert events(spool) == [b"critical", b"warning"]
    assert (spool.dropped, files(place)) == ({}, [])


def test_a_directory_that_cannot_be_listed_is_tried_again(place: Path) -> None:
    first = opened(place)
    first.add("critical", b"1")
    first.close()
    before = os.listdir("/proc/self/fd")
    with few_descriptors(1):
        spool = opened(place)
        assert spool.problem is not None
        assert spool.used_bytes == 0
    assert len(os.listdir("/proc/self/fd")) == len(before)
    spool.add("info", b"2")
    assert spool.problem is None
    assert events(spool) == [b"1", b"2"]


# ---- Damage --------------------------------------------------------------------------------------


def test_files_of_others_are_left_alone(place: Path) -> None:
    opened(place).close()
    (place / "README").write_text("mine")
    (place / "1700000000000000000.critical").symlink_to("/etc/passwd")
    (place / "1700000000000000001.critical").mkdir()
    spool = opened(place)
    assert (events(spool), spool.used_bytes) == ([], 0)
    assert len(files(place)) == 3


def test_a_removed_segment_is_counted(place: Path) -> None:
    spool = opened(place)
    for number in range(7):
        spool.add("warning", b"%d" % number)
    files(place)[0].unlink()
    assert events(spool) == []
    assert spool.dropped == {"warning": 7}


def test_a_segment_that_was_cut_off_is_counted(place: Path) -> None:
    spool = opened(place)
    for number in range(7):
        spool.add("warning", b"%d" % number)
    os.truncate(files(place)[0], 3 * len(b"12345678 0\n") + 4)
    assert events(spool) == [b"0", b"1", b"2"]
    assert spool.dropped == {"warning": 4}


@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda file: os.symlink("/etc/passwd", file)], ids=["pipe", "link"]
)
def test_what_is_in_place_of_a_segment_holds_nothing(
    place: Path, put: Callable[[Path], None]
) -> None:
    spool = opened(place)
    spool.add("critical", b"1")
    (file,) = files(place)
    file.unlink()
    put(file)
    assert events(spool) == []
    assert spool.dropped == {"critical": 1}


def test_a_file_that_cannot_be_removed_is_not_sent_again(place: Path) -> None:
    spool = opened(place)
    spool.add("critical", b"1")

    batch = spool.take(0)
    assert batch is not None
    (file,) = files(place)
    file.unlink()
    file.mkdir()
    spool.done(batch)
    assert (batch.events, events(spool)) == ([b"1"], [])
    file.rmdir()
    spool.add("critical", b"2")
    assert events(spool) == [b"2"]
    assert files(place) == []


TEXTS = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" "))


def whole(place: Path, texts: list[bytes]) -> Path:
    spool = opened(place)
    for text in texts:
        spool.add("critical", text)
    spool.close()
    (file,) = files(place)
    return file


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.data())
def test_at_any_point_of_a_crash_all_that_was_taken_is_there(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("spool") / "it"
    file = whole(place, texts)
    ends = list(itertools.accumulate(len(text) + 10 for text in texts))
    at = data.draw(st.integers(0, ends[-1]))
    os.truncate(file, at)
    taken = [text for text, end in zip(texts, ends, strict=True) if end <= at]
    spool = opened(place)
    assert events(spool) == taken
    assert spool.dropped == {}


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.data(), st.binary(min_size=1, max_size=30))
def test_of_a_damaged_segment_nothing_else_is_sent(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], data: st.DataObject, bad: bytes
) -> None:
    place = tmp_path_factory.mktemp("spool") / "it"
    file = whole(place, texts)
    at = data.draw(st.integers(0, file.stat().st_size - 1))
    content = bytearray(file.read_bytes())
    content[at : at + len(bad)] = bad
    file.write_bytes(content)
    spool = opened(place)
    found = events(spool)
    left = list(texts)
    for text in found:  # each at most as often as it was added, in order
        while left[0] != text:
            left.pop(0)
        left.pop(0)
    first, last = at, at + len(bad)
    ends = list(itertools.accumulate(len(text) + 10 for text in texts))
    untouched = [
        text
        for text, end in zip(texts, ends, strict=True)
        if end <= first or end - len(text) - 10 > last
    ]
    assert len(found) >= len(untouched)


KILLED = """
import os, sys
from pathlib import Path
from monitor.sinks.spool import Spool
spool = Spool(Path(sys.argv[1]), 64 << 20)
for number in range(100000):
    spool.add(("info", "critical")[number % 2], b"%d " % number + b"x" * 3000)
    os.write(1, b"%d\\n" % number)
"""


def test_a_kill_loses_nothing_that_was_taken(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(1500):
            process.stdout.readline()
        process.kill()
        said = process.stdout.read().splitlines()
    last = int(said[-1]) if said and said[-1] else 1499
    numbers = sorted(int(event.split()[0]) for event in events(opened(place)))
    assert numbers[: last + 1] == list(range(last + 1))
    assert len(numbers) - last <= 2
