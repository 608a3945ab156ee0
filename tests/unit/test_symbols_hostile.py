"""Files of a hostile process: each is read once, and all together take a small part of the time."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clocks import at_most

from monitor.symbols import budget, resolver
from monitor.symbols.budget import Budget
from monitor.symbols.perf_map import FUNCTIONS_LIMIT, Jit, PerfMaps


def jit(uid: int) -> Jit:
    """Of a process that has ended."""
    return Jit(77, 77, uid, datetime.fromtimestamp(0, UTC), 1)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def named(maps: PerfMaps, host: Path, *addresses: int) -> dict[int, tuple[bytes, int]]:
    return maps.names(jit(os.geteuid()), addresses, host, host / "proc")


def test_a_large_map_is_read_once(host: Path) -> None:
    """It was read again for each event, 20 s each."""
    lines = (b"%x 10 function_%d with blanks\n" % (n * 16, n) for n in range(200_000))
    (host / "tmp/perf-77.map").write_bytes(b"".join(lines))
    maps = PerfMaps()
    assert named(maps, host, 0x20) == {0x20: (b"function_2 with blanks", 0x20)}
    with at_most(5, "300 readings of the map take minutes", time.thread_time):
        for number in range(300):
            assert named(maps, host, number * 16 + 5)[number * 16 + 5][1] == number * 16
    with (host / "tmp/perf-77.map").open("ab") as file:
        file.write(b"20 10 later\n")
    assert named(maps, host, 0x20) == {0x20: (b"later", 0x20)}


def test_of_overlapping_lines_the_last_counts(host: Path) -> None:
    (host / "tmp/perf-77.map").write_bytes(
        b"15 1 new\n10 20 old\n12 8 inner\n10 0 empty\n-1 5 no\n"
    )
    assert named(PerfMaps(), host, 0x11, 0x13, 0x15, 0x30) == {
        0x11: (b"old", 0x10),
        0x13: (b"inner", 0x12),
        0x15: (b"inner", 0x12),
    }


@pytest.mark.parametrize("line", [b"1 1 a\n", b"0 ffffffffffffffff a\n"], ids=["small", "overlap"])
def test_one_with_too_many_functions_is_refused_once(host: Path, line: bytes) -> None:
    (host / "tmp/perf-77.map").write_bytes(line * (FUNCTIONS_LIMIT + 1))
    maps = PerfMaps()
    for _ in range(100):
        with pytest.raises(ValueError, match="more than 524288 functions"):
            named(maps, host, 1)


def test_one_that_overlaps_itself_takes_bounded_time(host: Path) -> None:
    (host / "tmp/perf-77.map").write_bytes(b"0 ffffffffffffffff a\n" * 100_000)
    maps = PerfMaps()
    named(maps, host, 1)
    with at_most(5, "1,024 lines are looked at, not 100,000", time.thread_time):
        for address in range(256):
            assert named(maps, host, address)[address] == (b"a", 0)


def test_a_user_spends_his_own_time() -> None:
    now = cpu = 0.0
    spent = Budget(lambda: now, lambda: cpu)
    with spent.spending(1000):
        cpu += budget.SECONDS
    assert not spent.has_left(1000)
    assert spent.has_left(0)
    now += 100
    assert spent.has_left(1000)
    for uid in range(100_000, 100_010):
        with spent.spending(uid):
            cpu += 10
    assert not spent.has_left(0)
    now += 1000
    assert spent.has_left(0)


def test_a_process_that_lets_it_wait_costs_a_second(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maps need the lock of its mappings, which its user can hold."""
    monkeypatch.setattr(resolver, "READ_SECONDS", 0.1)
    (host / "proc/77").mkdir(parents=True)
    os.mkfifo(host / "proc/77/maps")
    said: list[str] = []
    with resolver.Resolver({}, said.append, root=host, proc=host / "proc") as names:
        with at_most(20, "300 events, each given up, take longer"):
            for number in range(300):
                frame = {"address": "0x1000", "module": f"lib{number}.so", "offset": 1}
                frame["build_id"] = "aabb"
                event = {"stack": [frame], "process": {"pid": 77, "uid": 1000}}
                assert names.resolve(event) == event
        os.close(os.open(host / "proc/77/maps", os.O_WRONLY | os.O_NONBLOCK))
    first = "lib0.so (build id aabb)"
    assert said[:2] == [
        f"{first}: the look-up took longer than 100 ms",
        f"{first}: no file with this build id found",
    ]
    assert said[2].startswith("lib1.so (build id aabb): another look-up of this user")
