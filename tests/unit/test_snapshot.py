"""Snapshots of recorded processes, and of real ones that do nothing wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most

from monitor.evidence.identity import TICK_NS
from monitor.evidence.waiting import Waiting
from monitor.incidents.snapshot import LIMITS, Limits, Request, Taken, patience, take

START = 1234 * TICK_NS
OFFSET = 1_795_000_000_000_000_000  # ns
CHILD, THREAD = 42, 43
SMAPS = b"""\
400000-401000 r-xp 00001000 fe:00 26723                      /usr/bin/app
Rss:                   4 kB
VmFlags: rd ex mr mw me sl
7f0000000000-7f0000002000 rw-p 00000000 00:00 0                          [anon:a"b]
Rss:                   8 kB
VmFlags: rd wr mr mw me gu
7f0000008000-7f0000009000 r--s 00002000 00:0f 2077                       anon_inode:[x]
Rss:                   0 kB
VmFlags: rd mr mw me
"""
LIMITS_TEXT = """\
Limit                     Soft Limit           Hard Limit           Units     \n\
Max cpu time              unlimited            unlimited            seconds   \n\
Max stack size            8388608              unlimited            bytes     \n\
Max open files            1024                 524288               files     \n\
Max newly invented        1                    1                    bytes     \n"""


def status(seccomp: int = 2, page_tables_kib: int = 60) -> str:
    return (
        f"Name:\tapp\nVmPTE:\t      {page_tables_kib} kB\nNoNewPrivs:\t1\n"
        f"Seccomp:\t{seccomp}\nSeccomp_filters:\t3\n"
    )


def record(proc: Path, pid: int, parent: int, start_ticks: int, name: str = "app") -> Path:
    """A process as /proc shows it."""
    directory = proc / str(pid)
    directory.mkdir()
    fields = ["S", str(parent), *["0"] * 17, str(start_ticks), *["1"] * 30]
    (directory / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    (directory / "exe").symlink_to(f"/usr/bin/{name}")
    return directory


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    directory = record(tmp_path, CHILD, 7, 1234)
    (directory / "smaps").write_bytes(SMAPS)
    headers = [line for line in SMAPS.splitlines(keepends=True) if not line[:1].isupper()]
    (directory / "maps").write_bytes(b"".join(headers))
    (directory / "status").write_text(status())
    (directory / f"task/{THREAD}").mkdir(parents=True)
    (directory / f"task/{THREAD}/status").write_text(status())
    (directory / "limits").write_text(LIMITS_TEXT)
    record(tmp_path, 7, 1, 1000, "sh) x")
    record(tmp_path, 1, 0, 1, "init")
    return tmp_path


def request(pid: int = CHILD, **facts: Any) -> Request:
    asked = Request("e-1", pid, THREAD, START, "2026-11-18T10:00:00Z", b"app", 0x7F0000000000)
    return asked._replace(**facts)


def taken(proc: Path, asked: Request | None = None, limits: Limits = LIMITS) -> Taken:
    return take(
        asked or request(),
        patience(),
        start_offset_ns=OFFSET,
        reports_guards=False,
        proc=proc,
        limits=limits,
    )


def snapshot_of(result: Taken) -> Any:
    return json.loads(result.text)


# ---- A recorded /proc ----------------------------------------------------------------------------


def test_all_of_it(recorded: Path) -> None:
    result = taken(recorded)
    snapshot = snapshot_of(result)
    assert result.result == "taken"
    assert snapshot.pop("duration_ms") > 0
    assert len(snapshot.pop("time")) == len("2026-11-21T17:07:52.580900000Z")
    common = {"file": None, "name": None, "guard": None}
    assert snapshot == {
        "event": "e-1",
        "pid": 42,
        "start": "2026-11-18T10:00:00Z",
        "memory_map": [
            {
                **{"start": "0x400000", "end": "0x401000", "permissions": "r-xp", "sealed": True},
                "file": {
                    **{"path": "/usr/bin/app", "device": "254:0"},
                    **{"inode": 26723, "offset": 4096},
                },
                **{"name": None, "guard": None, "rss_kib": 4},
            },
            common
            | {"start": "0x7f0000000000", "end": "0x7f0000002000", "permissions": "rw-p"}
            | {"sealed": False, "name": r"[anon:a\x22b]", "guard": True, "rss_kib": 8},
            common
            | {"start": "0x7f0000008000", "end": "0x7f0000009000", "permissions": "r--s"}
            | {"sealed": False, "rss_kib": 0}
            | {
                "file": {
                    **{"path": "anon_inode:[x]", "device": "0:15"},
                    **{"inode": 2077, "offset": 8192},
                }
            },
        ],
        "memory_map_complete": True,
        "limits": {
            "cpu": {"soft": None, "hard": None},
            "stack": {"soft": 8388608, "hard": None},
            "nofile": {"soft": 1024, "hard": 524288},
        },
        "seccomp": {"mode": "filter", "filters": 3, "no_new_privileges": True},
        "modules": [{"path": "/usr/bin/app", "build_id": None, "start": "0x400000"}],
        "parents": [
            {
                **{"pid": 7, "name": "sh) x", "executable": "/usr/bin/sh) x"},
                "start": "2026-11-18T11:06:50.000000000Z",
            },
            {
                **{"pid": 1, "name": "init", "executable": "/usr/bin/init"},
                "start": "2026-11-18T11:06:40.010000000Z",
            },
        ],
        "missing": {},
    }


@pytest.mark.parametrize(
    "facts",
    [
        {"pid": 41},
        {"start_boot_ns": START + TICK_NS},
        {"base_name": b"another"},
    ],
)
def test_another_process_is_never_shown(recorded: Path, facts: dict[str, Any]) -> None:
    result = taken(recorded, request(**facts))
    assert (result.result, result.text) == ("gone", b"")


def test_a_process_without_memory_has_ended(recorded: Path) -> None:
    (recorded / "42/smaps").write_bytes(b"")
    assert taken(recorded).result == "gone"


def test_what_is_missing_is_listed(recorded: Path) -> None:
    (recorded / "42/limits").unlink()
    (recorded / "42/limits").mkdir()
    (recorded / f"42/task/{THREAD}/status").write_text("Name:\tapp\n")
    snapshot = snapshot_of(taken(recorded))
    assert snapshot["missing"] == {
        "seccomp": "the kernel does not show it",
        "limits": "Is a directory",
    }
    assert (snapshot["seccomp"], snapshot["limits"]) == (None, None)
    assert len(snapshot["memory_map"]) == 3


def test_what_lets_it_wait_is_missing(recorded: Path) -> None:
    """Not more than that, and it costs the time of one look."""
    (recorded / "42/smaps").unlink()
    os.mkfifo(recorded / "42/smaps")
    with at_most(5.0, "a look is given up after half a second"):
        result = taken(recorded)
    os.close(os.open(recorded / "42/smaps", os.O_WRONLY | os.O_NONBLOCK))
    snapshot = snapshot_of(result)
    assert result.result == "partial"
    assert snapshot["missing"] == {
        "memory_map": "the look-up took longer than 500 ms",
        "modules": "another look-up of this user's still waits",
    }
    assert (snapshot["memory_map"], snapshot["memory_map_complete"]) == (None, False)
    assert (snapshot["limits"]["nofile"]["soft"], len(snapshot["parents"])) == (1024, 2)


def test_parents_end_where_a_pid_is_anothers(recorded: Path) -> None:
    (recorded / "1/stat").unlink()
    (recorded / "1/exe").unlink()
    (recorded / "1").rmdir()
    record(recorded, 1, 0, 1001, "younger")  # than its child
    assert [parent["pid"] for parent in snapshot_of(taken(recorded))["parents"]] == [7]


def test_parents_are_bounded(recorded: Path) -> None:
    for pid in range(100, 200):
        record(recorded, pid, pid + 1, 900)
    (recorded / "7/stat").write_text(f"7 (sh) S 100 {'0 ' * 17}1000 {'1 ' * 10}\n")
    parents = [parent["pid"] for parent in snapshot_of(taken(recorded))["parents"]]
    assert parents == [7, *range(100, 115)]


def many(count: int, path: bytes = b"/usr/lib/x") -> bytes:
    return b"".join(
        b"%x-%x r--p 00000000 fe:00 7    %s\nRss: 4 kB\nVmFlags: rd sl\n"
        % (0x100000 + n * 8192, 0x100000 + n * 8192 + 4096, path)
        for n in range(count)
    )


@pytest.mark.parametrize(
    ("touched", "first", "last", "complete"),
    [
        (0x100000 + 500 * 8192, 491, 510, False),  # ten up to it and ten behind
        (0, 0, 19, False),
        (0x100000 + 3 * 8192, 0, 19, False),
        (1 << 46, 980, 999, False),
    ],
)
def test_the_nearest_mappings(
    recorded: Path, touched: int, first: int, last: int, complete: bool
) -> None:
    (recorded / "42/smaps").write_bytes(many(1000))
    few = LIMITS._replace(mappings=20)
    snapshot = snapshot_of(taken(recorded, request(touched=touched), few))
    starts = [int(mapping["start"], 16) for mapping in snapshot["memory_map"]]
    assert starts == [0x100000 + n * 8192 for n in range(first, last + 1)]
    assert snapshot["memory_map_complete"] is complete
    assert "memory_map" not in snapshot["missing"]


def test_too_much_to_read_leaves_the_seals_out(recorded: Path) -> None:
    (recorded / "42/smaps").write_bytes(many(1000))
    snapshot = snapshot_of(taken(recorded, None, LIMITS._replace(smaps_bytes=20_000)))
    assert snapshot["missing"]["memory_map"] == "seals not read: more than 19 KiB to read"
    assert [mapping["sealed"] for mapping in snapshot["memory_map"]] == [None] * 3
    # What was touched comes soon enough.
    snapshot = snapshot_of(taken(recorded, request(touched=0), LIMITS._replace(smaps_bytes=20_000)))
    assert {mapping["sealed"] for mapping in snapshot["memory_map"]} == {True}
    assert snapshot["memory_map_complete"] is False
    assert "memory_map" not in snapshot["missing"]


def test_large_page_tables_are_not_walked(recorded: Path) -> None:
    (recorded / "42/status").write_text(status(page_tables_kib=2049))
    snapshot = snapshot_of(taken(recorded))
    assert snapshot["missing"]["memory_map"] == (
        "seals not read: 2049 KiB of page tables, more than 2048"
    )
    assert len(snapshot["memory_map"]) == 3
    assert snapshot["memory_map_complete"] is True


def test_the_text_is_bounded(recorded: Path) -> None:
    (recorded / "42/smaps").write_bytes(many(2000, b"/" + "\N{SNOWMAN}".encode() * 600))
    middle = 0x100000 + 400 * 8192
    result = taken(recorded, request(touched=middle))
    assert 100 << 10 < len(result.text) <= 256 << 10
    snapshot = snapshot_of(result)
    assert snapshot["memory_map_complete"] is False
    starts = [int(mapping["start"], 16) for mapping in snapshot["memory_map"]]
    assert starts[0] < middle - 20 * 8192
    assert starts[-1] > middle + 20 * 8192


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"/tmp/\xff\x1b[2J\\012", r"/tmp/\xff\x1b[2J\012"), (b"/a (deleted)", "/a (deleted)")],
)
def test_names_are_escaped(recorded: Path, raw: bytes, shown: str) -> None:
    (recorded / "42/smaps").write_bytes(many(1, raw))
    assert snapshot_of(taken(recorded))["memory_map"][0]["file"]["path"] == shown


# ---- Real processes ------------------------------------------------------------------------------

MAPPER = """
import mmap, sys
kept = []
for n in range(int(sys.argv[1])):
    kept.append(mmap.mmap(-1, 8192, prot=mmap.PROT_READ if n % 2 else mmap.PROT_WRITE))
print(end=".", flush=True)
sys.stdin.read()
"""
Begin = Callable[..., Request]


@pytest.fixture
def begin() -> Iterator[Begin]:
    children: list[subprocess.Popen[bytes]] = []

    def _begin(mappings: int = 0, touched: int = 0) -> Request:
        command = [sys.executable, "-c", MAPPER, str(mappings)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.read(1)
        ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        name = os.path.basename(os.path.realpath(sys.executable)).encode()
        start = int(ticks) * TICK_NS
        return Request("e", child.pid, child.pid, start, "x", name, touched)

    yield _begin
    for child in children:
        child.communicate()


def test_a_real_process(begin: Begin) -> None:
    asked = begin()
    result = take(asked, patience(), start_offset_ns=OFFSET, reports_guards=True)
    snapshot = snapshot_of(result)
    assert (result.result, snapshot["missing"]) == ("taken", {})
    lines = Path(f"/proc/{asked.pid}/maps").read_text().splitlines()
    assert [mapping["start"] for mapping in snapshot["memory_map"]] == [
        f"0x{int(line.partition('-')[0], 16):x}" for line in lines
    ]
    executables = {line.split(maxsplit=5)[5] for line in lines if " r-xp " in line and "/" in line}
    modules = snapshot["modules"]
    assert {module["path"] for module in modules} == executables
    assert all(len(module["build_id"]) == 40 for module in modules)
    assert snapshot["parents"][0]["pid"] == os.getpid()
    assert snapshot["seccomp"]["mode"] in ("disabled", "filter")
    assert snapshot["limits"]["nofile"]["soft"] > 0


def test_many_mappings_cost_little(begin: Begin) -> None:
    """65,000: the kernel's own limit is 65,530."""
    asked = begin(65_000, touched=0x7FFF_FFFF_F000)
    # Bytes are what ends it, however busy the machine.
    limits = LIMITS._replace(read_seconds=60)
    with at_most(5, "65,000 mappings are read in part", time.process_time):
        result = take(
            asked,
            Waiting(seconds=60.0, at_once=60.0),
            start_offset_ns=OFFSET,
            reports_guards=True,
            limits=limits,
        )
    snapshot = snapshot_of(result)
    assert len(result.text) <= LIMITS.text_bytes
    assert len(snapshot["memory_map"]) == LIMITS.mappings
    assert snapshot["memory_map_complete"] is False
    assert snapshot["missing"] == {"memory_map": "seals not read: more than 4,096 KiB to read"}


def test_one_that_has_ended(begin: Begin) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        child.wait()
    asked = Request("e", child.pid, child.pid, int(ticks) * TICK_NS, "x", b"", 0)
    assert take(asked, patience(), start_offset_ns=OFFSET, reports_guards=True).result == "gone"


def test_a_zombie_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        asked = Request("e", child.pid, child.pid, int(ticks) * TICK_NS, "x", b"", 0)
        assert take(asked, patience(), start_offset_ns=OFFSET, reports_guards=True).result == "gone"


def test_without_the_right_to_look(begin: Begin) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to lose it")
    asked = begin()
    os.seteuid(65534)
    try:
        result = take(asked, patience(), start_offset_ns=OFFSET, reports_guards=True)
    finally:
        os.seteuid(0)
    snapshot = snapshot_of(result)
    assert result.result == "partial"
    assert snapshot["missing"] == {
        "memory_map": "Permission denied",
        "modules": "Permission denied",
    }
    assert snapshot["memory_map_complete"] is False
    assert snapshot["limits"]["stack"]
