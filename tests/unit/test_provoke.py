"""Every provocation on the running kernel: its own report is what the kernel did."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from monitor.kernel.syscalls import PAGE, call
from monitor.provoke import table as provoke
from monitor.provoke.provocation import Unsupported, lay, mappings, need

Line = dict[str, Any]
PROCESS_LIMIT = 30.0

pytestmark = pytest.mark.skipif(
    call("mseal", 0, 0, 0) == -errno.ENOSYS, reason="this kernel has no mseal"
)


class Expected(NamedTuple):
    """Of a refused call. Sealed and partial ranges in pages from the start of its range."""

    name: str
    operation: str
    sealed: tuple[int, int] | None = (0, 1)
    partial: tuple[int, int] | None = None
    pages: int = 1
    verdict: str = "sealed"
    reason: str = "none"
    role: str = "range"
    error: int = errno.EPERM
    hidden: bool = False


def _other(name: str, operation: str, sealed: bool = False, reason: str = "none") -> Expected:
    verdict = "not_sealed" if reason == "none" else "unverified"
    return Expected(name, operation, (0, 1) if sealed else None, verdict=verdict, reason=reason)


REFUSED = (
    Expected("mprotect", "mprotect"),
    Expected("mprotect_partial", "mprotect", (2, 3), (0, 2), pages=3),
    Expected("pkey_mprotect", "pkey_mprotect"),
    Expected("pkey_mprotect_partial", "pkey_mprotect", (2, 3), (0, 2), pages=3),
    Expected("munmap", "munmap"),
    Expected("munmap_partial_range", "munmap", (1, 2), pages=2),
    Expected("munmap_long_range", "munmap", (300, 301), pages=301),
    Expected("mremap_source", "mremap", role="source"),
    Expected("mremap_source_shrink", "mremap", (0, 2), pages=2, role="source"),
    Expected("mremap_source_move", "mremap", role="source"),
    Expected("mremap_destination", "mremap", role="destination"),
    Expected("mremap_shrink_into", "mremap", (1, 2), pages=2, role="source"),
    Expected("mremap_move_partial", "mremap", (1, 2), (0, 1), pages=2, role="source"),
    Expected("mmap_fixed", "mmap"),
    Expected("mmap_fixed_partial_range", "mmap", (1, 2), pages=2),
    Expected("madvise", "madvise"),
    Expected("madvise_partial", "madvise", (2, 3), (0, 2), pages=3),
    Expected("madvise_second", "madvise", (1, 2), (0, 1), pages=2),
    Expected("madvise_dontneed_locked", "madvise"),
    Expected("madvise_dontfork", "madvise"),
    Expected("madvise_free", "madvise"),
    Expected("madvise_wipeonfork", "madvise"),
    Expected("madvise_remove", "madvise"),
    Expected("madvise_guard_install", "madvise"),
    Expected("process_madvise_self", "process_madvise"),
    Expected("process_madvise_hidden", "process_madvise", (0, 1), (-1, 0), error=0, hidden=True),
    Expected("shmat_remap", "shmat"),
    Expected("shmdt", "shmdt", error=0, hidden=True),
    Expected("brk", "brk", error=0, hidden=True),
    Expected("remap_file_pages", "remap_file_pages"),
    Expected("io_uring_madvise", "io_uring_madvise"),
    Expected("aio_ring", "other", error=0, hidden=True),
    Expected("int80_mprotect", "mprotect"),
    Expected("seccomp_elsewhere", "munmap"),
    _other("seccomp", "mprotect"),
    _other("seccomp_sealed", "mprotect", sealed=True, reason="late_seccomp"),
    _other("memfd_seal", "mmap"),
    _other("memfd_seal_fixed", "mmap", sealed=True, reason="other_cause"),
    _other("noexec", "mmap"),
    _other("noexec_fixed", "mmap", sealed=True, reason="other_cause"),
    _other("mlock_limit", "mmap"),
    _other("mlock_limit_fixed", "mmap", sealed=True, reason="other_cause"),
    _other("remove_write_sealed", "madvise"),
    _other("below_min_addr", "mmap"),
)

SEGV_MAPERR, SEGV_ACCERR, SEGV_PKUERR, SI_KERNEL, SI_USER, SI_TKILL = 1, 2, 4, 0x80, 0, -6


# Method, and how many bytes are changed.
BYPASSES = {
    "madvise_relro": ("madvise_discard", PAGE),
    "madvise_relro_locked": ("madvise_discard", PAGE),
    "madvise_relro_guard": ("madvise_discard", PAGE),
    "madvise_relro_hole": ("madvise_discard", 2 * PAGE),
    "process_madvise_relro": ("madvise_discard", PAGE),
    "io_uring_relro": ("madvise_discard", PAGE),
    "guard_remove": ("guard_remove", PAGE),
    "guard_remove_writable": ("guard_remove", PAGE),
    "process_madvise_guard_remove": ("guard_remove", PAGE),
    "memory_file": ("proc_mem_write", 6),
    "userfaultfd_copy": ("userfaultfd_copy", PAGE),
    "userfaultfd_move": ("userfaultfd_move", PAGE),
    "ptrace_poke": ("ptrace_poke", 8),
}


class ExpectedFault(NamedTuple):
    """`codes`: si_code of each delivery; `exit`: how the process ends, as subprocess has it."""

    name: str
    cause: str | None
    access: str | None
    codes: list[int]
    disposition: str = "default"
    exit: int = -signal.SIGSEGV


FAULTS = (
    ExpectedFault("guard_region_write", "guard_region", "write", [SEGV_MAPERR]),
    ExpectedFault("guard_region_read", "guard_region", "read", [SEGV_MAPERR]),
    ExpectedFault("guard_region_handled", "guard_region", "write", [SEGV_MAPERR], "handler", 11),
    ExpectedFault("prot_none", "prot_none", "write", [SEGV_ACCERR]),
    ExpectedFault("prot_none_handled", "prot_none", "write", [SEGV_ACCERR], "handler", 11),
    ExpectedFault("stack_overflow", "stack_guard", "write", [SEGV_MAPERR]),
    ExpectedFault(
        "stack_overflow_handler_failed",
        "stack_guard",
        "write",
        [SEGV_MAPERR, SI_KERNEL],
        "handler_failed",
    ),
    ExpectedFault(
        "stack_overflow_altstack_handled", "stack_guard", "write", [SEGV_MAPERR], "handler", 11
    ),
    ExpectedFault("sealed_write", "sealed", "write", [SEGV_ACCERR]),
    ExpectedFault("sealed_exec", "sealed", "execute", [SEGV_ACCERR]),
    ExpectedFault("sealed_prot_none", "sealed", "read", [SEGV_ACCERR]),
    ExpectedFault("pkey", "pkey", "read", [SEGV_PKUERR]),
    ExpectedFault("unmapped", "other", "write", [SEGV_MAPERR]),
    ExpectedFault("null", "other", "read", [SEGV_MAPERR]),
    ExpectedFault("non_canonical", "other", "read", [SI_KERNEL]),
    ExpectedFault("execute_nx", "other", "execute", [SEGV_ACCERR]),
    ExpectedFault("read_only_write", "other", "write", [SEGV_ACCERR]),
    ExpectedFault("raise_sigsegv", None, None, [SI_TKILL]),
    ExpectedFault("kill_sigsegv", None, None, [SI_USER]),
)

# Makes the provocation; prints its facts and what smaps then shows as sealed.
WITH_SMAPS = """
import json, os, sys
from monitor.provoke.provocation import Unsupported
from monitor.provoke.table import PROVOCATIONS
make = next(p.function for p in PROVOCATIONS if p.name == sys.argv[1])
try:
    facts = make()
except Unsupported as problem:
    facts = {"unsupported": str(problem)}
sealed, bounds = [], None
for line in open("/proc/self/smaps"):
    if "-" in line.split(" ", 1)[0]:
        bounds = [int(bound, 16) for bound in line.split(" ", 1)[0].split("-")]
    elif line.startswith("VmFlags:") and " sl" in line:
        sealed.append(bounds)
print(json.dumps(facts | {"smaps": sealed, "pid": os.getpid()}))
"""


def _supported(line: Line) -> Line:
    if "unsupported" in line:
        pytest.skip(line["unsupported"])
    return line


def _run(*names: str) -> tuple[subprocess.Popen[str], list[Line], str]:
    with provoke.run(*names) as process:
        out, err = process.communicate(timeout=PROCESS_LIMIT)
    return process, [json.loads(line) for line in out.splitlines()], err


def test_every_provocation_is_tested() -> None:
    tested = [*(expected.name for expected in (*REFUSED, *FAULTS)), *BYPASSES, "seal"]
    assert sorted(tested) == sorted(provocation.name for provocation in provoke.PROVOCATIONS)


@pytest.mark.parametrize("expected", REFUSED, ids=lambda expected: expected.name)
def test_refused_call(expected: Expected) -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-P", "-c", WITH_SMAPS, expected.name],
        env=provoke.environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT,
        check=True,
    )
    line = _supported(json.loads(result.stdout))

    shown = {
        key: line[key] for key in ("operation", "errno", "verdict", "reason", "role", "hidden")
    }
    assert shown == {
        "operation": expected.operation,
        "errno": expected.error,
        "verdict": expected.verdict,
        "reason": expected.reason,
        "role": expected.role,
        "hidden": expected.hidden,
    }
    start = line["address"]
    assert line["length"] == expected.pages * PAGE
    assert len(line["arguments"]) == 6

    def absolute(pages: tuple[int, int] | None) -> list[int]:
        return [start + page * PAGE for page in pages] if pages else [0, 0]

    assert [line["sealed_start"], line["sealed_end"]] == absolute(expected.sealed)
    assert [line["partial_start"], line["partial_end"]] == absolute(expected.partial)
    if expected.sealed:
        assert absolute(expected.sealed) in line["smaps"]
    else:
        assert not [s for s in line["smaps"] if s[0] < start + line["length"] and s[1] > start]


@pytest.mark.parametrize("name", BYPASSES)
def test_change_around_a_seal(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-P", "-c", WITH_SMAPS, name],
        env=provoke.environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT,
        check=True,
    )
    line = _supported(json.loads(result.stdout))
    method, length = BYPASSES[name]
    assert (line["method"], line["length"]) == (method, length)
    assert line["sealed_start"] <= line["address"]
    assert line["address"] + length <= line["sealed_end"]
    assert [line["sealed_start"], line["sealed_end"]] in line["smaps"]
    assert (line["target"] == line["pid"]) == (method != "ptrace_poke")


def test_what_hides_its_refusal_returns_what_the_manual_says() -> None:
    _, lines, _ = _run("brk", "shmdt", "process_madvise_hidden")
    by_name = {line["name"]: _supported(line) for line in lines}
    assert by_name["brk"]["result"] == by_name["brk"]["sealed_end"]
    assert by_name["shmdt"]["result"] == 0
    assert by_name["process_madvise_hidden"]["result"] == PAGE


def test_int80_is_a_32_bit_call_below_4_gib() -> None:
    _, (line,), _ = _run("int80_mprotect")
    _supported(line)
    assert line["compat"] is True
    assert line["sealed_end"] <= 1 << 32


def test_seal_succeeds() -> None:
    _, (line,), _ = _run("seal")
    shown = {key: line[key] for key in ("kind", "operation", "length", "result", "errno")}
    assert shown == {
        "kind": "seal",
        "operation": "mseal",
        "length": PAGE,
        "result": 0,
        "errno": 0,
    }


PTRACE_CONT, PTRACE_GETSIGINFO, PTRACE_SEIZE = 7, 0x4202, 0x4206


def _traced(process: subprocess.Popen[str]) -> list[tuple[int, int]]:
    """Let a waiting child go on to its end; (si_code, si_addr) of each SIGSEGV on its way."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes, ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
    if ptrace(PTRACE_SEIZE, process.pid, 0, 0):
        pytest.skip(f"ptrace is refused here: {os.strerror(ctypes.get_errno())}")
    assert process.stdin
    process.stdin.close()
    signals: list[tuple[int, int]] = []
    while os.WIFSTOPPED(status := os.waitpid(process.pid, 0)[1]):
        number = os.WSTOPSIG(status)
        if number == signal.SIGSEGV:
            information = ctypes.create_string_buffer(128)
            ptrace(PTRACE_GETSIGINFO, process.pid, 0, ctypes.addressof(information))
            code, address = struct.unpack_from("<8xi4xQ", information)
            signals.append((code, address))
        ptrace(PTRACE_CONT, process.pid, 0, 0 if number == signal.SIGTRAP else number)
    process.returncode = os.waitstatus_to_exitcode(status)
    return signals


@pytest.mark.parametrize("expected", FAULTS, ids=lambda expected: expected.name)
def test_fault(expected: ExpectedFault) -> None:
    process = provoke.run(expected.name, wait=True)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process.stdin, process.stdout, process.stderr:
        try:
            signals = _traced(process)
        finally:
            process.kill()
            process.wait()
        line = _supported(json.loads(process.stdout.read()))

    shown = {key: line[key] for key in ("cause", "access", "disposition", "exit", "pid")}
    assert shown == {
        "cause": expected.cause,
        "access": expected.access,
        "disposition": expected.disposition,
        "exit": expected.exit,
        "pid": process.pid,
    }
    assert process.returncode == expected.exit
    assert [code for code, _ in signals] == expected.codes
    if expected.cause is not None:
        assert signals[0][1] == line["address"]


def test_a_fault_ends_the_process_only_when_it_comes_last() -> None:
    names = (
        "mprotect",
        "guard_region_write",
        "munmap",
        "seccomp",
        "madvise",
        "guard_region_handled",
    )
    process, lines, _ = _run(*names)
    assert [line["name"] for line in lines] == list(names)
    own = [line["name"] for line in lines if line["pid"] == process.pid]
    assert own == ["mprotect", "munmap", "madvise", "guard_region_handled"]
    assert process.returncode == 11


def test_wait_does_nothing_before_a_byte() -> None:
    with provoke.run("munmap", wait=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        out, _ = process.communicate("x", timeout=PROCESS_LIMIT)
    assert json.loads(out)["name"] == "munmap"
    assert process.returncode == 0


def test_wait_ends_with_standard_input() -> None:
    with provoke.run("munmap", wait=True) as process:
        out, _ = process.communicate(timeout=PROCESS_LIMIT)
    assert json.loads(out)["name"] == "munmap"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("munmap", "mumnap"), "unknown provocation 'mumnap'; known: mprotect "),
        ((), "no provocation named; known: mprotect "),
    ],
)
def test_wrong_usage(names: tuple[str, ...], problem: str) -> None:
    process, lines, err = _run(*names)
    assert process.returncode == 2
    assert lines == []
    assert err.startswith(problem)


@pytest.mark.parametrize("layout", ["--addr-compat-layout", "--addr-no-randomize"])
def test_where_the_kernel_puts_memory_does_not_matter(layout: str) -> None:
    """In the older layout fresh memory always lies directly above what is already mapped."""

    def unsupported(*prefix: str) -> dict[str, str]:
        names = [provocation.name for provocation in provoke.PROVOCATIONS]
        done = subprocess.run(
            [*prefix, *provoke.command(names)],
            env=provoke.environment(),
            capture_output=True,
            text=True,
            timeout=PROCESS_LIMIT,
            check=False,
        )
        assert done.stderr == ""
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["name"] for line in lines] == names
        return {line["name"]: line["unsupported"] for line in lines if "unsupported" in line}

    assert unsupported("setarch", layout) == unsupported()


def test_unsupported_names_the_call_and_the_error() -> None:
    with pytest.raises(Unsupported, match=r"^mseal: Invalid argument$"):
        need("mseal", 1, 0, 0)


def test_python_settings_of_the_caller_do_not_reach_the_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    process, (line,), err = _run("guard_region_write")
    assert line["disposition"] == "default"
    assert process.returncode == -signal.SIGSEGV
    assert err == ""


def test_no_shared_segment_is_left() -> None:
    process, lines, _ = _run("shmat_remap", "shmdt")
    for line in lines:
        _supported(line)
    with open("/proc/sysvipc/shm", encoding="utf-8") as segments:
        creators = [int(row.split()[4]) for row in list(segments)[1:]]
    assert process.pid not in creators


def test_import_is_light() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-S",
            "-P",
            "-c",
            "import sys, monitor.provoke.table; print(*sys.modules)",
        ],
        env=provoke.environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT,
        check=True,
    )
    heavy = {"argparse", "dataclasses", "inspect", "logging", "site", "socket", "subprocess"}
    assert heavy & set(result.stdout.split()) == set()


def test_layout_has_the_protections_asked_for() -> None:
    pages = lay("nrw")
    found = {mapping.start: mapping.permissions for mapping in mappings()}
    assert [found.get(pages.start + index * PAGE) for index in (1, 2)] == ["r--p", "rw-p"]
    assert pages.sealed_start == pages.sealed_end
    assert ctypes.string_at(pages.start + PAGE, 2) == b"\xa5\xa5"
