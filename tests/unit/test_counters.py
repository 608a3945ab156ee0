"""What is read of the kernel's counters, on files in place of the maps."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.kernel.abi import (
    Bank,
    Bucket,
    BucketKey,
    Cause,
    Config,
    Counters,
    Disposition,
    Kind,
    SharedBucket,
    Verdict,
)
from monitor.kernel.counters import HashMap, KernelState, missed_runs
from monitor.kernel.loaded import Loaded, possible_cpus


def file_of(size: int) -> int:
    descriptor = os.memfd_create("map")
    os.ftruncate(descriptor, -(-size // 4096) * 4096)
    return descriptor


@pytest.fixture
def maps() -> Iterator[dict[str, int]]:
    maps = {
        "counters": file_of(ctypes.sizeof(Counters) * len(Bank) * possible_cpus()),
        "config": file_of(ctypes.sizeof(Config)),
        "shared_buckets": file_of(ctypes.sizeof(Bucket) * (max(SharedBucket) + 1)),
        "workloads": file_of(0),
        "buckets": file_of(0),
        "watched_cgroup": file_of(0),
    }
    yield maps
    for descriptor in maps.values():
        os.close(descriptor)


@pytest.fixture
def state(maps: dict[str, int]) -> Iterator[KernelState]:
    state = KernelState(Loaded(maps, [], []))
    yield state
    state.close()


def put(maps: dict[str, int], cpu: int, bank: Bank, counters: Counters) -> None:
    offset = (cpu * len(Bank) + bank) * ctypes.sizeof(Counters)
    os.pwrite(maps["counters"], bytes(counters), offset)


def test_all_zero(state: KernelState) -> None:
    assert bytes(state.counters()) == bytes(ctypes.sizeof(Counters))


def test_cpus_are_added_and_banks_kept_apart(maps: dict[str, int], state: KernelState) -> None:
    last = possible_cpus() - 1
    first, second, canary = Counters(), Counters(), Counters()
    first.denials[2][Verdict.SEALED] = 2**33
    first.faults[Cause.PKEY][Disposition.HANDLER] = 1
    second.denials[2][Verdict.SEALED] = 7
    second.seals, second.sealed_bytes = 3, 12288
    canary.denials[2][Verdict.SEALED] = 5
    put(maps, 0, Bank.HOST, first)
    put(maps, last, Bank.CANARY, canary)
    if last:
        put(maps, last, Bank.HOST, second)
    host = state.counters()
    assert host.denials[2][Verdict.SEALED] == 2**33 + (7 if last else 0)
    assert host.faults[Cause.PKEY][Disposition.HANDLER] == 1
    assert (host.seals, host.sealed_bytes) == ((3, 12288) if last else (0, 0))
    assert state.counters(Bank.CANARY).denials[2][Verdict.SEALED] == 5
    assert state.counters(Bank.CANARY).seals == 0


def test_counters_are_a_copy(maps: dict[str, int], state: KernelState) -> None:
    before = state.counters()
    put(maps, 0, Bank.HOST, Counters(seals=9))
    assert before.seals == 0
    assert state.counters().seals == 9


def test_configuration_is_written_through(maps: dict[str, int], state: KernelState) -> None:
    state.config.sealed_mask = 1 << 42
    state.config.emit_causes = 0b101
    there = Config.from_buffer_copy(os.pread(maps["config"], ctypes.sizeof(Config), 0))
    assert (there.sealed_mask, there.emit_causes) == (1 << 42, 0b101)


def test_overflow(maps: dict[str, int], state: KernelState) -> None:
    place = (SharedBucket.OVERFLOW + Kind.FAULT) * ctypes.sizeof(Bucket)
    os.pwrite(maps["shared_buckets"], bytes(Bucket(suppressed=17)), place)
    assert {kind: state.overflow(kind).suppressed for kind in Kind} == {
        Kind.DENIAL: 0,
        Kind.FAULT: 17,
        Kind.SEAL: 0,
        Kind.BYPASS: 0,
    }


class NoBuckets:
    def items(self) -> tuple[()]:
        return ()


def test_every_limit_begins_again(maps: dict[str, int], state: KernelState) -> None:
    """Also the last one, that of the programs that seal."""
    size = ctypes.sizeof(Bucket) * (max(SharedBucket) + 1)
    os.pwrite(maps["shared_buckets"], b"\xff" * size, 0)
    state.buckets = NoBuckets()  # type: ignore[assignment]
    state.reset_limits()
    assert os.pread(maps["shared_buckets"], size, 0) == bytes(size)


def test_close_gives_back_the_memory(maps: dict[str, int]) -> None:
    before = Path("/proc/self/maps").read_text().count("memfd:map")
    KernelState(Loaded(maps, [], [])).close()
    assert Path("/proc/self/maps").read_text().count("memfd:map") == before


def test_a_map_that_is_none_is_an_error(maps: dict[str, int]) -> None:
    hash_map = HashMap(maps["buckets"], BucketKey, Bucket)
    with pytest.raises(OSError, match="Invalid argument") as raised:
        list(hash_map.items())
    assert raised.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="Invalid argument"):
        hash_map.remove(BucketKey())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pos:\t0\nprog_type:\t5\nrecursion_misses:\t12\nverified_insns:\t3\n", 12),
        ("recursion_misses:\t18446744073709551615\n", 2**64 - 1),
    ],
)
def test_missed_runs(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "7").write_text(text)
    assert missed_runs(7, proc=tmp_path) == expected


@pytest.mark.parametrize("text", ["prog_type:\t5\n", ""])
def test_missed_runs_that_the_kernel_does_not_say(tmp_path: Path, text: str) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "7").write_text(text)
    with pytest.raises(OSError, match=r"no recursion_misses of a BPF program: .*/fdinfo/7'$"):
        missed_runs(7, proc=tmp_path)


def test_missed_runs_of_no_descriptor(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        missed_runs(7, proc=tmp_path)


def test_possible_cpus() -> None:
    assert possible_cpus() >= os.sysconf("SC_NPROCESSORS_CONF")
