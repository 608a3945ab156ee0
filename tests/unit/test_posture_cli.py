"""What a person sees of what processes have sealed, and a program."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from test_posture import Line, install, program, record, smaps
from test_segments import BUILD_ID

from monitor.commands import posture as posture_cli
from monitor.host import facts as host
from monitor.posture.scan import STATES

# This host's kernel need not have mseal.
pytestmark = pytest.mark.usefixtures("any_kernel")

LIBRARY = "/usr/lib/" + "long-" * 12 + "name/libapp.so.1"
BROKEN = "/opt/\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}x"


@pytest.fixture
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "require_mseal", lambda: None)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Four workers of a service, two of them seal; one that seals all; two that cannot be read."""
    inode = install(tmp_path)
    for pid in (101, 102, 103, 104):
        sealed = pid < 103
        heap: Line = (0x90000, 0x90000 + pid * 4096, "r--p", 0, 0, sealed, "[anon:handlers]")
        record(
            tmp_path,
            pid,
            smaps(*program(inode, "/usr/bin/app", code=pid == 101, relro=sealed), heap),
        )
    whole: Line = (0x10000, 0x10000 + (3 << 30), "r-xp", 0, 5, True, LIBRARY)
    record(
        tmp_path,
        7,
        smaps(whole),
        executable=LIBRARY,
        cgroup="/kubepods.slice/kubepods-pod8a9f0c11_22bb_4c3d_9e4f_5566778899aa.slice",
    )
    record(tmp_path, 8, "", tables_kib=9 << 10, executable="/usr/bin/database")
    record(tmp_path, 9, smaps((0x1000, 0x2000, "rw-p", 0, 0, False, "")), executable=BROKEN)
    return tmp_path


def shown(
    capsys: pytest.CaptureFixture[str],
    proc: Path,
    by: str = "process",
    *,
    everything: bool = False,
    pid: int | None = None,
    as_json: bool = False,
    columns: int | None = None,
) -> str:
    arguments = Namespace(by=by, all=everything, pid=pid, json=as_json)
    assert posture_cli.run(arguments, proc, lambda: columns) == 0
    return capsys.readouterr().out


SUMMARY = """\

3 of 7 processes have sealed memory: 5 ranges, 3 GiB
99% of all processes' executable memory is sealed, and 50% of their RELRO
1 process with more than 4 MiB of page tables was not read; --pid reads one
"""


def test_processes(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    assert shown(capsys, proc, columns=80) == (
        """\
PID  EXECUTABLE             RANGES   SEALED  CODE  RELRO  WORKLOAD
  7  …ong-name/libapp.so.1       1    3 GiB  100%      -  …c3d-9e4f-5566778899aa
101  /usr/bin/app                2  416 KiB  100%   100%  app.service
102  /usr/bin/app                2  412 KiB    0%   100%  app.service
"""
        + SUMMARY
    )


def test_processes_with_room_for_all(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    lines = shown(capsys, proc, everything=True, columns=300).splitlines()
    rows = [line.split() for line in lines[1 : lines.index("")]]
    assert rows == [
        ["7", LIBRARY, "1", "3", "GiB", "100%", "-", "pod/8a9f0c11-22bb-4c3d-9e4f-5566778899aa"],
        ["101", "/usr/bin/app", "2", "416", "KiB", "100%", "100%", "app.service"],
        ["102", "/usr/bin/app", "2", "412", "KiB", "0%", "100%", "app.service"],
        ["8", "/usr/bin/database", "too", "large", "app.service"],
        ["9", "/opt/\\x1b[31m\\u202ex", "0", "none", "-", "-", "app.service"],
        ["103", "/usr/bin/app", "0", "none", "0%", "0%", "app.service"],
        ["104", "/usr/bin/app", "0", "none", "0%", "0%", "app.service"],
    ]


def test_executables_and_workloads(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    assert (
        shown(capsys, proc, "executable", columns=90)
        == """\
EXECUTABLE                                PROCESSES  SEALING  RANGES   SEALED  CODE  RELRO
…ng-long-long-long-long-name/libapp.so.1          1        1       1    3 GiB  100%      -
/usr/bin/app                                      4        2       4  828 KiB   25%    50%
"""
        + SUMMARY
    )
    lines = shown(capsys, proc, "workload", everything=True, columns=80).splitlines()
    assert lines[:3] == [
        "WORKLOAD                        PROCESSES  SEALING  RANGES   SEALED  CODE  RELRO",
        "…1-22bb-4c3d-9e4f-5566778899aa          1        1       1    3 GiB  100%      -",
        "app.service                             6        2       4  828 KiB   25%    50%",
    ]


def test_nothing(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    empty = proc / "files"
    for by in ("process", "executable", "workload"):
        assert shown(capsys, empty, by) == "0 of 0 processes have sealed memory\n"


def test_one_process(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    assert (
        shown(capsys, proc, pid=101, columns=80)
        == f"""\
process 101, app
  executable  /usr/bin/app
  build id    {BUILD_ID.hex()}
  workload    app.service
  sealed      2 ranges, 416 KiB
  code        100% sealed: 8 KiB of 8 KiB
  RELRO       100% sealed: 4 KiB of 4 KiB

SEALED           PERM     SIZE  WHAT
0x11000-0x13000  r-xp    8 KiB  /usr/bin/app+0x1000
0x13000-0x14000  r--p    4 KiB  /usr/bin/app+0x2000
0x90000-0xf5000  r--p  404 KiB  [anon:handlers]
"""
    )


def test_one_process_however_large(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    (proc / "8/smaps").write_text(smaps((0x1000, 0x3000, "rw-p", 0, 0, True, "")))
    assert "  sealed      1 range, 8 KiB\n" in shown(capsys, proc, pid=8)


def test_no_such_process(proc: Path) -> None:
    arguments = Namespace(by="process", all=False, pid=4711, json=False)
    with pytest.raises(ProcessLookupError, match="there is no process 4711 with memory"):
        posture_cli.run(arguments, proc)


def test_not_in_time(
    capsys: pytest.CaptureFixture[str], proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posture_cli, "ONE_SECONDS", 0.1)
    locked = proc / "7/smaps"
    locked.unlink()
    os.mkfifo(locked)
    lines = shown(capsys, proc, everything=True, columns=300).splitlines()
    with pytest.raises(TimeoutError, match="process 7 could not be read within 0 s: something"):
        shown(capsys, proc, pid=7, columns=300)
    os.close(os.open(locked, os.O_WRONLY | os.O_NONBLOCK))
    (row,) = (line.split()[2:4] for line in lines if line.split()[:1] == ["7"])
    assert row == ["timed", "out"]
    assert lines[-1] == (
        "1 process could not be read in time: somebody keeps the lock of their mappings, or of "
        "another process of their owner; --pid waits longer"
    )


def document(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_json(capsys: pytest.CaptureFixture[str], proc: Path) -> None:
    memory = {
        "sealed_ranges": 2,
        "sealed_bytes": 416 * 1024,
        "executable_bytes": 8192,
        "executable_sealed_bytes": 8192,
        "relro_bytes": 4096,
        "relro_sealed_bytes": 4096,
    }
    process = {
        "pid": 101,
        "name": "app",
        "executable": "/usr/bin/app",
        "build_id": BUILD_ID.hex(),
        "workload": "app.service",
        "state": "sealing",
        **memory,
    }
    found = document(shown(capsys, proc, as_json=True))
    assert [row["pid"] for row in found["rows"]] == [7, 101, 102]
    assert (found["by"], found["rows"][1]) == ("process", process)
    assert found["total"] == {
        "processes": dict.fromkeys(STATES, 0) | {"sealing": 3, "not_sealing": 3, "too_large": 1},
        "sealed_ranges": 5,
        "sealed_bytes": (3 << 30) + 828 * 1024,
        "executable_bytes": (3 << 30) + 4 * 8192,
        "executable_sealed_bytes": (3 << 30) + 8192,
        "relro_bytes": 4 * 4096,
        "relro_sealed_bytes": 2 * 4096,
    }
    found = document(shown(capsys, proc, everything=True, as_json=True))
    (large,) = (row for row in found["rows"] if row["pid"] == 8)
    assert (large["state"], large["sealed_bytes"]) == ("too_large", None)
    found = document(shown(capsys, proc, "executable", as_json=True))
    assert [row["executable"] for row in found["rows"]] == [LIBRARY, "/usr/bin/app"]
    assert found["rows"][1]["processes"]["sealing"] == 2
    found = document(shown(capsys, proc, pid=101, as_json=True))
    assert found.pop("sealed") == [
        {
            "start": f"0x{start:x}",
            "end": f"0x{end:x}",
            "permissions": permissions,
            "file": None
            if name
            else {
                "path": "/usr/bin/app",
                "device": "254:0",
                "inode": (proc / "files/usr/bin/app").stat().st_ino,
                "offset": offset,
            },
            "name": name,
        }
        for start, end, permissions, offset, name in (
            (0x11000, 0x13000, "r-xp", 0x1000, None),
            (0x13000, 0x14000, "r--p", 0x2000, None),
            (0x90000, 0xF5000, "r--p", 0, "[anon:handlers]"),
        )
    ]
    assert found == process


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 0, "-"),
        (0, 9, "0%"),
        (1, 1000, "<1%"),
        (10, 1000, "1%"),
        (999, 1000, "99%"),
        (7, 7, "100%"),
    ],
)
def test_shares(part: int, whole: int, expected: str) -> None:
    assert posture_cli._share(part, whole) == expected
