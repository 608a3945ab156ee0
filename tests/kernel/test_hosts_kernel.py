"""The same violations on two hosts: the fingerprints are the same, the ids of the hosts are not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_daemon import Compile, Running, Start, start
from test_names_kernel import denial_of, running

__all__ = ["start"]  # a fixture

Event = dict[str, Any]
IDS = ("0f3c5a9b2d7e4816a1c9e0d4b5f60718", "6a1f0c4be2d94d7ab3572f18c09e64d5")
NAMES = ("web-3", "web-4")
NOBODY = 65534
HERE = 'mount --bind "$1" /etc/machine-id; hostname "$2"; shift 2; exec "$@"'


@pytest.fixture
def hosts(start: Start, tmp_path: Path) -> list[Running]:
    """Two daemons: each has an /etc/machine-id and a host name of its own."""
    if not Path("/etc/machine-id").exists():
        pytest.skip("there is no /etc/machine-id to mount another one on")
    found = []
    for number, name in zip(IDS, NAMES, strict=True):
        file = tmp_path / number
        file.write_text(f"{number}\n")
        unshare = ("unshare", "--mount", "--uts", "sh", "-ec", HERE, "sh", str(file), name)
        found.append(start(prefix=unshare))
    return found


def of_each(hosts: list[Running], kind: str, pid: int) -> list[Event]:
    """The event of that process, from each of them."""
    found = [
        daemon.wait_for(lambda event: event["kind"] == kind and event["process"]["pid"] == pid)
        for daemon in hosts
    ]
    assert [event["host"]["id"] for event in found] == list(IDS)
    assert [event["host"]["name"] for event in found] == list(NAMES)
    return found


def test_each_kind_of_violation(hosts: list[Running], compiled: Compile) -> None:
    """By two processes, which have other addresses and may have ended before they are looked at."""
    fingerprints = set()
    for kind, program, *arguments in (
        ("denial", "command", "unmap"),
        ("bypass", "discards", "turns", "1"),
        ("fault", "command", "guard"),
    ):
        found = []
        for _ in range(2):
            command = [str(compiled(program)), *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                process.communicate()
            found += of_each(hosts, kind, process.pid)
        assert len({event["process"]["pid"] for event in found}) == 2
        assert len({event["id"] for event in found}) == 4
        (fingerprint,) = {event["fingerprint"] for event in found}
        fingerprints.add(fingerprint)
    assert len(fingerprints) == 3


def test_another_user_from_another_place(
    hosts: list[Running], compiled: Compile, tmp_path: Path
) -> None:
    """On one host in its own directory and root's; on the other a user's, in a namespace, under
    another path; and the file is another.
    """
    first = Path(shutil.copy(compiled("leaderless"), tmp_path / "leaderless"))
    hidden = tmp_path / "3f1ec0de" / "leaderless"
    hidden.parent.mkdir()
    shutil.copy(first, hidden)
    place = 'mount -t tmpfs none /mnt; cp "$1" /mnt; shift; exec "$@"'
    apart = ("unshare", "--mount", "sh", "-ec", place, "sh", hidden, "setpriv")
    user = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/mnt/leaderless")
    found: list[Event] = []
    for command in ((first,), (*apart, *user)):
        with running(*command) as process:
            denial_of(hosts[0], process)
            found += of_each(hosts, "denial", process.pid)
    assert [event["process"]["uid"] for event in found] == [0, 0, NOBODY, NOBODY]
    assert [event["process"]["files"] for event in found] == ["host"] * 2 + ["namespace"] * 2
    assert [event["process"]["executable"] for event in found[1:3]] == [
        str(first),
        "/mnt/leaderless",
    ]
    assert os.stat(first).st_ino != os.stat(hidden).st_ino
    assert len({event["fingerprint"] for event in found}) == 1
