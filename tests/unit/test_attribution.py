"""Whose a record is, from /proc where it still knows, else from the record."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from monitor.evidence.attribution import Attribution
from monitor.evidence.cgroups import NO_WORKLOAD, Cgroups
from monitor.evidence.identity import TICK_NS, Identities
from monitor.kernel import abi
from monitor.kernel.abi import Kind, Method, Record

START = 0x7F0000001000
DEAD = 4_194_305  # beyond the largest pid


def record(**values: Any) -> Record:
    facts: dict[str, Any] = {
        "kind": Kind.DENIAL,
        "start_boot_ns": 5_000_000_000,
        "pid": DEAD,
        "tid": DEAD,
        "parent_pid": 1,
        "vpid": 7,
        "task_name": b"worker",
        "executable": b"python3",
    }
    return Record(**{**facts, **values})


def ourselves(**values: Any) -> Record:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    own = {"pid": os.getpid(), "start_boot_ns": ticks * TICK_NS, "executable": b""}
    return record(**{**own, **values})


def attribution(proc: Path, identities: Identities | None = None) -> Attribution:
    found = identities or Identities(proc=proc)
    return Attribution(found, Cgroups(proc=proc), proc=proc, start_offset=0)


def test_a_dead_process_is_as_the_record_says(tmp_path: Path) -> None:
    owner = attribution(tmp_path).owner(record(uid=0, gid=5))
    assert asdict(owner.process) == {
        "pid": DEAD,
        "tid": DEAD,
        "parent_pid": 1,
        "vpid": 7,
        "name": "worker",
        "executable": "python3",
        "command_line": None,
        "start": "1970-01-01T00:00:05.000000000Z",
        "uid": 0,
        "gid": 5,
        "user_name": "root",
        "group_name": "tty",
        "identity": {"result": "gone", "reason": None},
        "files": None,
        "executable_owner": None,
        "executable_build_id": None,
        "program": None,
    }
    assert (owner.identity.result, owner.file_path, owner.target) == ("gone", None, None)
    assert owner.workload == NO_WORKLOAD


def test_proc_adds_to_a_living_process() -> None:
    owner = attribution(Path("/proc")).owner(ourselves())
    assert owner.process.executable == os.readlink("/proc/self/exe")
    assert owner.process.command_line
    assert owner.identity.result == "complete"


class _Hidden(Identities):
    def lookup(self, *_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "hidden")


class _Unmounted(Cgroups):
    def workload(self, *_: object, **__: object) -> Any:
        raise OSError(errno.ENODEV, "unmounted")


def test_what_is_refused_is_missing(tmp_path: Path) -> None:
    refused = Attribution(_Hidden(), _Unmounted(), proc=tmp_path)
    owner = refused.owner(record())
    assert (owner.process.executable, owner.identity.result) == ("python3", "partial")
    assert owner.workload == NO_WORKLOAD
    assert refused.known(DEAD, 5_000_000_000)[0].executable is None
    refused.learn(record())


@pytest.mark.parametrize(
    ("name", "path"), [(b"libfoo.so", "/usr/lib/libfoo.so"), (b"libbar.so", None), (b"", None)]
)
def test_path_of_a_mapped_file_while_it_is_the_same(
    tmp_path: Path, name: bytes, path: str | None
) -> None:
    folder = tmp_path / str(DEAD) / "map_files"
    folder.mkdir(parents=True)
    (folder / f"{START:x}-{START + 0x1000:x}").symlink_to("/usr/lib/libfoo.so")
    mapping = abi.Mapping(start=START, end=START + 0x1000, file=name)
    assert attribution(tmp_path).owner(record(mapping=mapping)).file_path == path


def bypass(pid: int, start_boot_ns: int) -> Record:
    target = abi.Bypass(
        pid=pid,
        start_boot_ns=start_boot_ns,
        method=Method.PTRACE_POKE,
        task_name=b"victim",
        executable=b"sshd",
    )
    return record(kind=Kind.BYPASS, bypass=target)


def test_the_target_of_a_bypass() -> None:
    own = ourselves()
    target = attribution(Path("/proc")).owner(bypass(own.pid, own.start_boot_ns)).target
    assert target
    assert (target.pid, target.name) == (os.getpid(), "victim")
    assert (target.executable, target.files) == (os.readlink("/proc/self/exe"), "host")


def test_a_dead_target_is_as_the_record_says(tmp_path: Path) -> None:
    target = attribution(tmp_path).owner(bypass(DEAD, 5_000_000_000)).target
    assert target
    assert asdict(target) == {
        "pid": DEAD,
        "start": "1970-01-01T00:00:05.000000000Z",
        "name": "victim",
        "executable": "sshd",
        "files": None,
    }


def test_a_mapped_file_of_a_bypass_is_the_targets(tmp_path: Path) -> None:
    folder = tmp_path / "7" / "map_files"
    folder.mkdir(parents=True)
    (folder / f"{START:x}-{START + 0x1000:x}").symlink_to("/usr/lib/libfoo.so")
    change = bypass(7, 5_000_000_000)
    change.mapping = abi.Mapping(start=START, end=START + 0x1000, file=b"libfoo.so")
    assert attribution(tmp_path).owner(change).file_path == "/usr/lib/libfoo.so"
