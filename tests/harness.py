"""The loaded programs in the hands of a test: make violations, see counts and records.

The programs see only the session's own cgroup (apart.py): sessions can run side by side. Within it
other processes may make violations while a test runs. Therefore limits are lifted, every violation
has its record, and the counts are compared with the records of all processes. A test then looks at
the records of its own processes.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from apart import cgroup_root, own_cgroup
from warm import Warm, WarmProcess

from monitor.attach.attached import Attached
from monitor.kernel import loader
from monitor.kernel.abi import (
    Bank,
    Cause,
    Counters,
    Disposition,
    Kind,
    Method,
    Outcome,
    Reason,
    Record,
    RecordFlag,
    Verdict,
)
from monitor.kernel.arch import NUMBERS
from monitor.kernel.attacher import why_fexit_refused
from monitor.kernel.btf import Btf
from monitor.kernel.counters import missed_runs
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import AT_SEAL, PROBES
from monitor.kernel.syscalls import call
from monitor.provoke import table as provoke
from monitor.provoke.refusal import as_seen

__all__ = [
    "SECOND_NS",
    "WITHOUT_TRACEFS",
    "WITH_TRACEFS",
    "Cell",
    "Child",
    "Command",
    "Harness",
    "Made",
    "cgroup_path",
    "cgroup_root",
    "counts",
    "entered_cgroup",
    "new_cgroup",
    "own_cgroup",
    "own_programs",
    "program_info",
    "remove_cgroup",
    "started",
    "tally",
    "wait_until_reading",
    "why_no_bpf",
    "why_no_fexit",
]

RING_SIZE = 1 << 25
PROCESS_LIMIT = 60.0
SECOND_NS = 10**9
SWITCHES = frozenset({"watch.io_uring", "watch.compat"})
_SETTLE_LIMIT = 20.0

# Words before a command: it runs in a new mount namespace, with tracefs mounted or not.
_OWN_MOUNTS = ("unshare", "--mount", "--propagation=private", "sh", "-ec")
_UNMOUNT = "while umount --lazy /sys/kernel/tracing 2>/dev/null; do :; done; "
WITHOUT_TRACEFS = (*_OWN_MOUNTS, f'{_UNMOUNT} exec "$@"', "sh")
WITH_TRACEFS = (
    *_OWN_MOUNTS,
    f'{_UNMOUNT} mount -t tracefs none /sys/kernel/tracing; exec "$@"',
    "sh",
)

Cell = tuple[str, ...]
Command = Sequence[object]  # words
Process = subprocess.Popen[str] | WarmProcess
_Process = TypeVar("_Process", subprocess.Popen[str], WarmProcess)


def why_no_bpf() -> str:
    """Why BPF programs can't be loaded on this machine; empty when they can."""
    if os.geteuid():
        return "not root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "this kernel has no BTF"
    if call("mseal", 0, 0, 0) == -errno.ENOSYS:
        return "this kernel has no mseal"
    return ""


def why_no_fexit() -> str:
    """Why fexit programs can't be loaded; empty when they can."""
    with Btf() as btf:
        return why_fexit_refused(btf)


def counts(counters: Counters) -> Counter[Cell]:
    """Every counter that is not 0, by its labels."""
    cells: dict[Cell, int] = {
        ("seals",): counters.seals,
        ("sealed_bytes",): counters.sealed_bytes,
    }
    for operation in OPERATIONS:
        index = OPERATIONS.index(operation)
        cells["partial_update", operation.name] = counters.partial_updates[index]
        for verdict in Verdict:
            cells["denial", operation.name, verdict.label] = counters.denials[index][verdict]
    for verdict in Verdict:
        cells["other_workloads", verdict.label] = counters.other_workloads[verdict]
    for reason in Reason:
        cells["unverified", reason.label] = counters.unverified[reason]
    for cause in Cause:
        for disposition in Disposition:
            cells["fault", cause.label, disposition.label] = counters.faults[cause][disposition]
    for method in Method:
        cells["bypass", method.label] = counters.bypasses[method]
    for kind in Kind:
        for outcome in Outcome:
            cells["event", kind.label, outcome.label] = counters.events[kind][outcome]
    return Counter({cell: number for cell, number in cells.items() if number})


def tally(records: Iterable[Record]) -> Counter[Cell]:
    """What the counters must have gained if these are the records of all that happened."""
    cells: Counter[Cell] = Counter()
    for record in records:
        kind = Kind(record.kind)
        cells["event", kind.label, "submitted"] += 1
        if kind == Kind.DENIAL:
            operation = OPERATIONS[record.operation].name
            cells["denial", operation, Verdict(record.verdict).label] += 1
            if record.verdict == Verdict.UNVERIFIED:
                cells["unverified", Reason(record.reason).label] += 1
            if record.partial_end > record.partial_start:
                cells["partial_update", operation] += 1
        elif kind == Kind.FAULT:
            cells["fault", Cause(record.cause).label, Disposition(record.disposition).label] += 1
        elif kind == Kind.BYPASS:
            cells["bypass", Method(record.bypass.method).label] += 1
        else:
            cells["seals",] += 1
            cells["sealed_bytes",] += record.length
    return cells


def _less(more: Counter[Cell], fewer: Counter[Cell]) -> Counter[Cell]:
    """Difference; also negative ones, which a comparison must show."""
    result = Counter(more)
    result.subtract(fewer)
    return Counter({cell: number for cell, number in result.items() if number})


# ---- Processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Area:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    path: str


@dataclass(frozen=True)
class Child:
    """What /proc said of a child that waited for its start."""

    pid: int
    start_ticks: int
    task_name: str
    executable: str
    areas: list[Area]

    def area(self, address: int) -> Area | None:
        return next((area for area in self.areas if area.start <= address < area.end), None)

    @classmethod
    def of(cls, pid: int) -> Child:
        proc = Path("/proc", str(pid))
        areas = []
        for line in _text(proc / "maps").splitlines():
            bounds, permissions, _, _, _, *path = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            areas.append(Area(start, end, permissions, "".join(path)))
        return cls(
            pid,
            int(_text(proc / "stat").rpartition(")")[2].split()[19]),
            _text(proc / "comm").removesuffix("\n"),
            (proc / "exe").readlink().name,
            areas,
        )


def _text(path: Path) -> str:
    return path.read_text("utf-8", "surrogateescape")


def wait_until_reading(process: Process) -> None:
    """Returns when the process reads its standard input: it has started and waits."""
    deadline = time.monotonic() + PROCESS_LIMIT
    reading = f"{NUMBERS['read']} 0x0 "
    while not Path(f"/proc/{process.pid}/syscall").read_text().startswith(reading):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.args!r} does not come to wait for its start")
        time.sleep(0.001)


def cgroup_path(directory: Path) -> str:
    """The path of a cgroup, as /proc/PID/cgroup has it."""
    return f"/{directory.relative_to(cgroup_root() or '/')}"


def remove_cgroup(path: Path) -> None:
    """Remove it. It is busy until its last process is gone: wait for that."""
    deadline = time.monotonic() + 30
    while path.exists():
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def new_cgroup(name: str) -> Iterator[Path]:
    """A cgroup2 directory, below our own; its inode is its id. Skips where none is mounted."""
    own = own_cgroup()
    if own is None:
        pytest.skip("cgroup2 is not mounted")
    path = own / f"seal-monitor-test-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield path
    finally:
        remove_cgroup(path)


@contextmanager
def entered_cgroup(pid: int) -> Iterator[None]:
    """This process in a new cgroup below the one it was in; `pid` names it.

    At the end it waits for the last process in there, and raises OSError where one stays. Where
    there is no cgroup2, it does nothing.
    """
    before = own_cgroup()
    if before is None:
        yield
        return
    path = before / f"seal-monitor-test-{pid}"
    path.mkdir()
    (path / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text("0")
        remove_cgroup(path)


# ---- Programs ------------------------------------------------------------------------------------


class _ProgramInfo(ctypes.Structure):
    """The start of struct bpf_prog_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_length", ctypes.c_uint32),
        ("xlated_length", ctypes.c_uint32),
        ("jited", ctypes.c_uint64),
        ("xlated", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("between", ctypes.c_uint64 * 16),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_instructions", ctypes.c_uint32),
    ]


def program_info(descriptor: int) -> _ProgramInfo:
    """What bpf(2) says of a program. Raises OSError."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    information = _ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(information))
    if library.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(information), ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return information


def own_programs() -> dict[int, str]:
    """Ids and names of the loaded BPF programs that have a name of this project."""
    names = set(re.findall(r"^int (\w+)\(", _sources(), re.MULTILINE))
    names |= {hook.program for probe in PROBES for hook in probe.hooks}
    names = {name[:15] for name in names}
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        return {}
    found: dict[int, str] = {}
    number = ctypes.c_uint32(0)
    while not library.bpf_prog_get_next_id(number, ctypes.byref(number)):
        descriptor = library.bpf_prog_get_fd_by_id(number)
        if descriptor < 0:
            continue
        name = program_info(descriptor).name.decode(errors="replace")
        os.close(descriptor)
        if name in names:
            found[number.value] = name
    return found


def _sources() -> str:
    root = Path(__file__).parent.parent / "bpf"
    return "".join(path.read_text() for path in sorted(root.glob("*.c")))


# ---- The harness ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What came of some processes' violations: their records, and what the counters gained."""

    lines: list[Any]
    records: list[Record]
    counted: Counter[Cell]
    children: list[Child]
    exits: list[int]

    @property
    def line(self) -> Any:
        (line,) = self.lines
        return line

    @property
    def child(self) -> Child:
        (child,) = self.children
        return child

    def denials(self) -> list[tuple[str, str, str]]:
        """Operation, verdict and reason of each."""
        return [
            (
                OPERATIONS[record.operation].name,
                Verdict(record.verdict).label,
                Reason(record.reason).label,
            )
            for record in self.of_kind(Kind.DENIAL)
        ]

    def of_kind(self, kind: Kind) -> list[Record]:
        return [record for record in self.records if record.kind == kind]


class Harness:
    """Loaded, calibrated programs with limits lifted and every event on."""

    def __init__(self, attach: str, cgroup: Path, **request: Any) -> None:
        self.attach = attach
        self.cgroup = cgroup
        request.setdefault("ring_size", RING_SIZE)
        self._attached = Attached(loader.LoadRequest(attach=attach, switches=SWITCHES, **request))
        self.findings = self._attached.calibrate()
        self.loaded, self.ring = self._attached.loaded, self._attached.ring
        self.state = self._attached.state
        self.config = self.state.config
        self.emit_all()
        self.sealers: list[Record] = []  # records that only say who seals
        self._counted: Counter[Cell] = Counter()
        self._warm = Warm(provoke.environment())
        self.settle()

    def at_seal(self, operation: str) -> bool:
        """Whether this operation's denials are seen in the function in which a seal refuses."""
        return any(p.probe == operation and p.target in AT_SEAL for p in self.loaded.probes)

    def close(self) -> None:
        self._warm.close()
        self.config = None  # type: ignore[assignment]
        self._attached.__exit__()

    def emit_all(self) -> None:
        self.config.emit_verdicts = (1 << len(Verdict)) - 1
        self.config.emit_causes = self.config.emit_handled = (1 << len(Cause)) - 1
        self.config.emit_seals = 1
        self.config.event_interval_ns = self.config.event_burst_ns = 0
        self.config.host_interval_ns = self.config.host_burst_ns = 0

    @contextmanager
    def configured(self, **values: int) -> Iterator[None]:
        """The kernel's configuration with some values changed; limits begin with a full burst."""
        room = self.config.ordinary_ring
        for name, value in values.items():
            setattr(self.config, name, value)
        self.state.reset_limits()
        try:
            yield
        finally:
            self.config.ordinary_ring = room
            self.emit_all()
            self.state.reset_limits()

    def drain(self) -> list[Record]:
        """All records of violations and seals; waits for those that a program still writes."""
        deadline = time.monotonic() + _SETTLE_LIMIT
        records = []
        while self.ring.used_bytes:
            drained = self.ring.drain()
            assert drained.corrupt == 0
            records += drained.records
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.ring.used_bytes} bytes of the ring stay unread")
        self.sealers += [record for record in records if record.flags & RecordFlag.SEALER]
        none = RecordFlag.CANARY | RecordFlag.SEALER  # of these counts
        return [record for record in records if not record.flags & none]

    def settle(self) -> tuple[list[Record], Counter[Cell]]:
        """Records and counts since the last call, taken at the same moment."""
        deadline = time.monotonic() + _SETTLE_LIMIT
        records: list[Record] = []
        while True:
            before = counts(self.state.counters())
            records += self.drain()
            if counts(self.state.counters()) == before:
                break
            if time.monotonic() > deadline:
                raise TimeoutError("the host does not stop making violations")
        gained = _less(before, self._counted)
        self._counted = before
        return records, gained

    def see_own_cgroup(self) -> None:
        """Watch only the session's cgroup again, after a test of another. Counters begin at 0."""
        cgroup = own_cgroup()
        assert cgroup
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        self.state.watch_cgroup(descriptor)
        os.close(descriptor)
        self.drain()
        self.forget()

    def forget(self) -> None:
        """The counters begin at 0 again."""
        self._counted = Counter()

    def workload(self, cgroup: Path | None = None) -> dict[str, int]:
        """Denials counted for a cgroup, by verdict."""
        wanted = (cgroup or self.cgroup).stat().st_ino
        for key, value in self.state.workloads.items():
            if key.value == wanted:
                return {verdict.label: value.denials[verdict] for verdict in Verdict}
        return {verdict.label: 0 for verdict in Verdict}

    def missed(self) -> int:
        """Runs that the kernel skipped, of all programs."""
        programs = {number for probe in self.loaded.probes for number in probe.programs}
        return sum(missed_runs(program) for program in programs)

    def canary_counts(self) -> Counter[Cell]:
        return counts(self.state.counters(Bank.CANARY))

    def run(self, *commands: Command, cgroup: Path | None = None, **popen: Any) -> Made:
        """Run commands at the same time, in the harness's cgroup. Each waits for a byte.

        Their standard output is a JSON object a line.
        """
        return self._follow(started(commands, **popen), cgroup or self.cgroup)

    def _follow(self, starting: AbstractContextManager[Sequence[Process]], cgroup: Path) -> Made:
        self.settle()
        with starting as processes:
            for process in processes:
                wait_until_reading(process)
                (cgroup / "cgroup.procs").write_text(str(process.pid))
            children = [Child.of(process.pid) for process in processes]
            for process in processes:
                assert process.stdin
                process.stdin.write("x")
                process.stdin.close()
            lines, exits = [], []
            for process in processes:
                exits.append(process.wait(PROCESS_LIMIT))
                assert process.stdout
                lines += [json.loads(line) for line in process.stdout.read().splitlines()]
        records, counted = self.settle()
        pids = {child.pid for child in children}
        own = [record for record in records if {record.pid, record.parent_pid} & pids]
        others = [record for record in records if not {record.pid, record.parent_pid} & pids]
        return Made(lines, own, _less(counted, tally(others)), children, exits)

    def provoke(self, name: str) -> Made:
        """Make one provocation. Skips the test where this kernel or CPU cannot make it."""
        code = "from monitor.provoke.table import main\nraise SystemExit(main())"
        made = self._run_warm(code, "--wait", name)
        if "unsupported" in made.line:
            pytest.skip(made.line["unsupported"])
        return made

    def as_seen(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """A provocation's facts as these hooks must report them. None: they see nothing."""
        return as_seen(facts, "operation" in facts and self.at_seal(facts["operation"]))

    def python(self, code: str, *arguments: str) -> Made:
        """Run Python code as provocations run: it waits for the start."""
        imports = "import ctypes, json, os, sys\nfrom monitor.kernel.syscalls import *\n"
        imports += "from monitor.provoke.provocation import *\n"
        return self._run_warm(f"{imports}os.read(0, 1)\n{code}", *arguments)

    def _run_warm(self, code: str, *arguments: str) -> Made:
        starting = (self._warm.start(code, *arguments) for _ in range(1))
        return self._follow(_ended(starting), self.cgroup)


@contextmanager
def _ended(starting: Iterable[_Process]) -> Iterator[list[_Process]]:
    processes: list[_Process] = []
    try:
        processes.extend(starting)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    with suppress(OSError):
                        stream.close()


def started(
    commands: Iterable[Command], **popen: Any
) -> AbstractContextManager[list[subprocess.Popen[str]]]:
    """Processes with pipes, ended when the block is left."""
    return _ended(
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **popen,
        )
        for command in commands
    )
