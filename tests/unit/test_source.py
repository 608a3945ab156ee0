"""What a scrape is answered, from a kernel's side and a disk of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monitor.kernel.abi import Counters
from monitor.kernel.loader import AttachedProbe, Loaded
from monitor.metrics.reading import ProbeState
from monitor.metrics.source import KernelSource, store_bytes


class Kernel:
    """In place of the state, the ring, the workloads and the severities."""

    used_bytes = 4096
    tracked = 3
    maximum = 1024

    def __init__(self) -> None:
        self.now = Counters()

    def counters(self) -> Counters:
        return self.now

    def denials(self, counters: Counters) -> dict[str, tuple[int, int, int]]:
        return {"nginx.service": (counters.seals, 0, 0)}

    def counts(self) -> dict[tuple[str, str, str], int]:
        return {("nginx.service", "denial", "warning"): 3}


def source(
    kernel: Kernel, probes: list[AttachedProbe], store: Path | None, proc: Path = Path("/none")
) -> KernelSource:
    loaded = Loaded({}, probes, [])
    every: Any = kernel
    return KernelSource(
        *(every, loaded, every, every, store),
        blind_spots=lambda: {"ptrace": True},
        severities=every,
        proc=proc,
    )


def test_each_question_is_answered_by_whom_it_is_for() -> None:
    kernel = Kernel()
    asked = source(kernel, [], None)
    kernel.now = Counters(seals=7)
    assert asked.counters().seals == 7
    assert asked.workload_denials() == {"nginx.service": (7, 0, 0)}
    assert asked.violations() == {("nginx.service", "denial", "warning"): 3}
    assert asked.ring_used_bytes() == 4096
    assert asked.workloads_tracked() == 3
    assert asked.workloads_maximum() == 1024
    assert asked.probes() == []
    assert asked.blind_spots() == {"ptrace": True}


def test_the_runs_that_a_probe_missed(tmp_path: Path) -> None:
    """Those of all its programs; not known where the kernel does not say of each."""
    (tmp_path / "fdinfo").mkdir()
    for program, line in ((21, "recursion_misses:\t5"), (22, "recursion_misses:\t6"), (23, "")):
        (tmp_path / "fdinfo" / str(program)).write_text(f"prog_type:\t5\n{line}\n")
    probes = [
        AttachedProbe("mremap", "fexit", "a", "", 21, also=(22,)),
        AttachedProbe("munmap", "tracepoint", "b", "", 23),
        AttachedProbe("brk", "tracepoint", "c", "", 21, also=(24,)),
        AttachedProbe("shmat", "raw_tracepoint", "d", "refused", -1),
        AttachedProbe("proc_mem_write", "fexit", "e", "refused", -1),  # a blind spot, not lost
    ]
    assert source(Kernel(), probes, None, tmp_path).probes() == [
        ProbeState("mremap", "fexit", True, 11),
        ProbeState("munmap", "tracepoint", True, None),
        ProbeState("brk", "tracepoint", True, None),
        ProbeState("shmat", "raw_tracepoint", False, 0),
    ]


def test_a_store_is_as_large_as_its_files(tmp_path: Path) -> None:
    database = tmp_path / "incidents.sqlite"
    asked = source(Kernel(), [], database)
    assert asked.incident_store_bytes() == 0
    database.write_bytes(bytes(8192))
    assert asked.incident_store_bytes() == store_bytes(database) == 8192
    (tmp_path / "incidents.sqlite-wal").write_bytes(bytes(1000))
    (tmp_path / "incidents.sqlite-shm").write_bytes(bytes(1))
    (tmp_path / "incidents.sqlite.old").write_bytes(bytes(5))
    assert asked.incident_store_bytes() == store_bytes(database) == 9193
    database.unlink()
    assert store_bytes(database) == 1001


def test_no_store_has_no_bytes() -> None:
    assert source(Kernel(), [], None).incident_store_bytes() == 0
