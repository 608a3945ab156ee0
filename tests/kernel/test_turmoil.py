"""The look-up under a storm of threads that change the mappings it walks.

The address of a violation says what it must be, so every record is checked by itself; the
program's own counts say how many there must be. SEAL_MONITOR_STORM_SECONDS says how long it takes
(5), SEAL_MONITOR_STORM_SEED what it does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import RING_SIZE, Cell, Harness, started, tally, wait_until_reading

from monitor.kernel.abi import (
    Access,
    Cause,
    Disposition,
    Kind,
    Mapping,
    Reason,
    Record,
    RecordFlag,
    Verdict,
)
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.syscalls import PAGE

SECONDS = float(os.environ.get("SEAL_MONITOR_STORM_SECONDS", "5"))
SEED = int(os.environ.get("SEAL_MONITOR_STORM_SEED", "1"))
THREADS = 8
NICE = 10  # the reader of the ring comes first
UNVERIFIED_MOST = 0.001
PATIENCE = 120.0  # seconds without a record
WRONG_SHOWN = 20

VM_WRITE = 2
VM_ANY = 7
MAP_LOCKED = 0x2000
MAP_ANONYMOUS = 0x20
MREMAP_FIXED = 2
MADV_HWPOISON = 100

KMSG = Path("/dev/kmsg")
# Not "general protection fault ip:": that is a process's own.
_WARNING = re.compile(
    r"WARNING:|BUG:|Oops|general protection fault,|Call Trace|Bad page|refcount_t:|detected stall"
)


# ---- What the addresses say ----------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where the program's cells are, and what their pages are."""

    arena: int
    threads: int
    cell_pages: int
    violators: list[int]
    seals: list[list[int]]
    guard: int
    prot_none: int

    def place(self, address: int) -> tuple[int, int]:
        """Number of the cell and of the page in it."""
        return divmod((address - self.arena) // PAGE, self.cell_pages)

    def _is_violators(self, cell: int) -> bool:
        return cell >= 0 and cell % self.threads in self.violators

    def seal_at(self, address: int) -> tuple[int, int] | None:
        """Start and end of the memory around this address that was sealed in one call."""
        cell, page = self.place(address)
        if self._is_violators(cell):
            for first, end in self.seals:
                if first <= page < end:
                    base = self.arena + cell * self.cell_pages * PAGE
                    return base + first * PAGE, base + end * PAGE
        return None

    def first_seal(self, start: int, end: int) -> int | None:
        """The first sealed address of a range."""
        return next((a for a in range(start, end, PAGE) if self.seal_at(a)), None)

    def is_of_file(self, address: int) -> bool:
        """Whether the seal here is one of a file: the second one of every other cell."""
        cell, page = self.place(address)
        return page >= self.seals[1][0] and cell // self.threads % 2 == 1

    def cause(self, record: Record) -> Cause:
        cell, page = self.place(record.address)
        assert self._is_violators(cell), f"a fault in the cell of thread {cell % self.threads}"
        if page == self.guard:
            return Cause.GUARD_REGION
        if page == self.prot_none:
            return Cause.PROT_NONE
        return Cause.SEALED if self.seal_at(record.address) else Cause.OTHER


def target(record: Record) -> tuple[int, int]:
    """The range of a refused call, by its arguments."""
    first, second, third, flags, fifth, _ = record.arguments
    if OPERATIONS[record.operation].name == "mremap" and flags & MREMAP_FIXED:
        return fifth, fifth + third
    return first, first + second


def is_refused_otherwise(record: Record) -> bool:
    """Whether something else refused the call before the kernel came to a seal."""
    first, _, third, flags, fifth, _ = record.arguments
    match OPERATIONS[record.operation].name:
        case "mmap":
            return first == 0 or bool(flags & MAP_LOCKED) or not flags & MAP_ANONYMOUS
        case "mremap":
            return bool(flags & MREMAP_FIXED) and fifth == 0
        case "madvise":
            return bool(third == MADV_HWPOISON)
    return False


def truth(layout: Layout, record: Record) -> str:
    """Why a call was refused, in the program's words."""
    if not is_refused_otherwise(record):
        return "sealed"
    over = layout.first_seal(*target(record)) is not None
    is_mmap = OPERATIONS[record.operation].name == "mmap"
    return "other_cause" if over and is_mmap else "not_sealed"


EXPECTED = {
    "sealed": (Verdict.SEALED, Reason.NONE),
    "not_sealed": (Verdict.NOT_SEALED, Reason.NONE),
    "other_cause": (Verdict.UNVERIFIED, Reason.OTHER_CAUSE),
}
CHANGED = (Verdict.UNVERIFIED, Reason.CHANGED_MEANWHILE)


def covers(mapping: Mapping, address: int) -> bool:
    return bool(mapping.start <= address < mapping.end)


@dataclass
class Judge:
    """Compares each record with the truth; `wrong` says where they differ."""

    layout: Layout
    sealed_mask: int
    partial: frozenset[str]  # operations whose refusal leaves changed what lies before the seal
    wrong: list[str] = field(default_factory=list)
    denials: Counter[tuple[str, str]] = field(default_factory=Counter)  # operation, truth
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)  # unverified among them
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)  # cause, disposition
    fileless: int = 0  # without a file: the mapping had changed when the record was made
    inferred: int = 0
    seals: int = 0
    counted: Counter[Cell] = field(default_factory=Counter)  # what the counters must say
    others: Counter[Cell] = field(default_factory=Counter)

    def take(self, records: list[Record]) -> None:
        own = [record for record in records if record.executable == b"turmoil"]
        if len(own) < len(records):
            self.others += tally(r for r in records if r.executable != b"turmoil")
        self.counted += tally(own)
        for record in own:
            for complaint in _COMPLAINTS[Kind(record.kind)](self, record):
                self.wrong.append(f"{complaint}: {_shown(record)}")

    def _denial(self, record: Record) -> Iterator[str]:
        why = truth(self.layout, record)
        operation = OPERATIONS[record.operation].name
        found = (Verdict(record.verdict), Reason(record.reason))
        self.denials[operation, why] += 1
        if found == CHANGED:
            self.changed[operation, why] += 1
            return
        if found != EXPECTED[why]:
            yield f"{why}, recorded as {found}"
        start, end = target(record)
        if found[0] is Verdict.NOT_SEALED:
            return
        mapping = record.mapping
        if (record.address, record.length) != (start, end - start):
            yield "another range"
        yield from self._sealed(mapping, start, end)
        changes = operation in self.partial and why == "sealed" and start < mapping.start
        changed = (record.partial_start, record.partial_end)
        nothing_before = operation == "madvise" and changed == (0, 0)  # only holes
        if changed != ((start, mapping.start) if changes else (0, 0)) and not nothing_before:
            yield "another partial update"

    def _sealed(self, mapping: Mapping, start: int, end: int) -> Iterator[str]:
        """What is wrong with the mapping that a record gives as the reason of a refusal."""
        inside = max(mapping.start, start)
        seal = self.layout.seal_at(inside)
        first = self.layout.first_seal(start, end)
        if not mapping.flags & self.sealed_mask:
            yield "the mapping has no seal"
        if seal is None or not (seal[0] <= mapping.start < mapping.end <= seal[1]):
            yield "the mapping is none that was sealed"
        elif not start < mapping.end or not mapping.start < end:
            yield "the mapping is not in the range"
        elif self._is_one_cell(start, end) and not covers(mapping, first or 0):
            yield "not the first seal"
        elif mapping.inode and not self.layout.is_of_file(inside):
            yield "another file"
        elif not mapping.inode and self.layout.is_of_file(inside):
            self.fileless += 1

    def _is_one_cell(self, start: int, end: int) -> bool:
        """Other threads' cells may have got their seals just now."""
        return self.layout.place(start)[0] == self.layout.place(end - 1)[0]

    def _fault(self, record: Record) -> Iterator[str]:
        cause = self.layout.cause(record)
        mapping, flags = record.mapping, record.mapping.flags
        self.faults[cause.label, Disposition(record.disposition).label] += 1
        self.inferred += bool(record.flags & RecordFlag.INFERRED)
        if record.cause != cause:
            yield f"{cause.label}, recorded as {Cause(record.cause).label}"
        if record.access != (Access.WRITE if record.address & 1 else Access.READ):
            yield "another access"
        if mapping.end and not covers(mapping, record.address):
            yield "the mapping does not cover the address"
        fits = {
            Cause.GUARD_REGION: flags & VM_WRITE,
            Cause.PROT_NONE: mapping.end and not flags & VM_ANY,
            Cause.SEALED: flags & self.sealed_mask and not flags & VM_WRITE,
            Cause.OTHER: not flags & (self.sealed_mask | VM_WRITE),
        }
        if not fits[cause]:
            yield "another mapping"

    def _seal(self, record: Record) -> Iterator[str]:
        self.seals += 1
        seal = self.layout.seal_at(record.address)
        if seal != (record.address, record.address + record.length):
            yield "nothing that is sealed"
        if not covers(record.mapping, record.address):
            yield "the mapping does not cover the address"

    def _bypass(self, _record: Record) -> Iterator[str]:
        yield "nothing here goes around a seal"


_COMPLAINTS: dict[Kind, Callable[[Judge, Record], Iterator[str]]] = {
    Kind.DENIAL: Judge._denial,
    Kind.FAULT: Judge._fault,
    Kind.SEAL: Judge._seal,
    Kind.BYPASS: Judge._bypass,
}


def _shown(record: Record) -> str:
    arguments = [hex(value) for value in record.arguments]
    if record.kind == Kind.DENIAL:
        what = f"{OPERATIONS[record.operation].name} {arguments}"
    else:
        what = f"{Kind(record.kind).label} at 0x{record.address:x}"
    mapping = record.mapping
    return f"{what}, mapping 0x{mapping.start:x}-0x{mapping.end:x} flags 0x{mapping.flags:x}"


# ---- The kernel's log ----------------------------------------------------------------------------


class KernelLog:
    """What the kernel says from now on; `why_not` where it cannot be read."""

    def __init__(self) -> None:
        self.why_not = ""
        self._descriptor = -1
        try:
            self._descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            self.why_not = f"{KMSG}: {error.strerror}"

    def warnings(self) -> list[str]:
        return [line for line in self._lines() if _WARNING.search(line)]

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                yield os.read(self._descriptor, 8192).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:  # overwritten before it was read; the next one is there
                continue

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


# ---- The storm -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Storm:
    """What came of one run: `made` and `doubtful` by the program, the rest by the monitor."""

    judge: Judge
    processes: int
    calls: int
    made: dict[str, Any]
    doubtful: dict[str, Any]  # under way when their process was ended: made, or not
    counted: Counter[Cell]
    workload: dict[str, int]
    missed: int
    warnings: list[str]
    why_no_log: str


class Brake:
    """Stops the storm while the ring is filling up: no rate is assumed, and nothing is dropped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._stopped = False

    def apply(self, used: int) -> None:
        if not self._stopped and used > RING_SIZE // 4:
            self._send(signal.SIGSTOP)
        elif self._stopped and used < RING_SIZE // 16:
            self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        self._stopped = number is signal.SIGSTOP
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def follow(harness: Harness, process: subprocess.Popen[str], judge: Judge) -> None:
    """Judge the records until the process ends."""
    brake = Brake(process)
    patient_until = time.monotonic() + PATIENCE
    while process.poll() is None:
        drained = harness.ring.drain()
        assert drained.corrupt == 0
        judge.take(drained.records)
        brake.apply(harness.ring.used_bytes)
        if drained.records:
            patient_until = time.monotonic() + PATIENCE
        elif time.monotonic() > patient_until:
            raise TimeoutError("the storm has stopped")
        else:
            time.sleep(0.01)


@contextmanager
def begun(command: list[object]) -> Iterator[subprocess.Popen[str]]:
    """The program at its start, in a process group of its own that is ended with the block."""
    with started([command], process_group=0) as (process,):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def partial_operations(harness: Harness) -> frozenset[str]:
    found = harness.findings.partial_updates
    kinds = {"mprotect": "mprotect", "pkey_mprotect": "mprotect", "madvise": "madvise"}
    return frozenset(operation for operation, kind in kinds.items() if found[kind])


def raise_storm(harness: Harness, program: Path) -> Storm:
    log = KernelLog()
    harness.settle()
    missed, workload = harness.missed(), harness.workload()
    try:
        with begun([program, SECONDS, THREADS, SEED, "--wait"]) as process:
            assert process.stdin
            assert process.stdout
            judge = Judge(
                Layout(**json.loads(process.stdout.readline())),
                harness.config.sealed_mask,
                partial_operations(harness),
            )
            wait_until_reading(process)
            (harness.cgroup / "cgroup.procs").write_text(str(process.pid))
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
            process.stdin.write("x")
            process.stdin.close()
            follow(harness, process, judge)
            assert process.returncode == 0
            line = json.loads(process.stdout.readline())
        records, counted = harness.settle()
        judge.take(records)
        counted.subtract(judge.others)
        return Storm(
            judge,
            **line,
            counted=Counter({cell: number for cell, number in counted.items() if number}),
            workload={
                verdict: number - workload[verdict]
                for verdict, number in harness.workload().items()
            },
            missed=harness.missed() - missed,
            warnings=log.warnings() if not log.why_not else [],
            why_no_log=log.why_not,
        )
    finally:
        log.close()


@pytest.fixture(scope="module")
def storm(harness: Harness, compiled: Callable[[str], Path]) -> Storm:
    return raise_storm(harness, compiled("turmoil"))


def assert_between(found: int, made: int, doubtful: int, missed: int) -> None:
    """Exact, except for calls cut off by the end of a process and runs that the kernel skipped."""
    assert made - missed <= found <= made + doubtful


def test_no_label_is_wrong(storm: Storm) -> None:
    assert storm.judge.wrong[:WRONG_SHOWN] == []


def test_hardly_any_is_unverified(storm: Storm) -> None:
    made = sum(number for (_, why), number in storm.judge.denials.items() if why == "sealed")
    assert made > 1000
    assert sum(storm.judge.changed.values()) <= UNVERIFIED_MOST * made
    assert storm.judge.fileless <= UNVERIFIED_MOST * made


def test_denials_are_those_that_were_made(harness: Harness, storm: Storm) -> None:
    made, doubtful = storm.made["denials"], storm.doubtful["denials"]
    for operation, by_truth in made.items():
        assert by_truth["sealed"] > 0
        for why, number in by_truth.items():
            found = storm.judge.denials[operation, why]
            if why != "sealed" and harness.at_seal(operation):
                assert found == 0  # refused before the kernel came to a seal
            else:
                assert_between(found, number, doubtful[operation][why], storm.missed)


def test_faults_are_those_that_were_made(harness: Harness, storm: Storm) -> None:
    made, doubtful = storm.made["faults"], storm.doubtful["faults"]
    for cause, by_disposition in made.items():
        for disposition, number in by_disposition.items():
            found = storm.judge.faults[cause, disposition]
            assert_between(found, number, doubtful[cause][disposition], storm.missed)
    assert (made["guard_region"]["handler"] > 0) == harness.findings.guard_regions
    assert made["sealed"]["handler"] > 0
    assert sum(by_disposition["default"] for by_disposition in made.values()) > 0


def test_seals_are_those_that_were_made(storm: Storm) -> None:
    made, doubtful = storm.made["seals"], storm.doubtful["seals"]
    assert_between(storm.judge.seals, made, doubtful, storm.missed)


def test_counters_agree_with_the_records(storm: Storm) -> None:
    assert storm.counted == storm.judge.counted


def test_workload_has_all_of_it(storm: Storm) -> None:
    by_verdict = {
        verdict.label: sum(
            number
            for cell, number in storm.judge.counted.items()
            if cell[0] == "denial" and cell[2] == verdict.label
        )
        for verdict in Verdict
    }
    assert storm.workload == by_verdict


def test_the_kernel_does_not_complain(storm: Storm) -> None:
    if storm.why_no_log:
        pytest.skip(storm.why_no_log)
    assert storm.warnings == []


def test_the_storm_was_one(storm: Storm) -> None:
    """Without it nothing here would mean much: several processes, and most calls succeed."""
    assert storm.processes >= 3
    violations = sum(storm.judge.denials.values()) + sum(storm.judge.faults.values())
    assert storm.calls > 2 * violations > 0
