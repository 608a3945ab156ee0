"""What goes to the service manager, on a socket in its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.keep.store import Store


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        yield manager


def store(tmp_path: Path, parent: int = 1, owner: int | None = None) -> Store:
    address = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    return Store(address, parent, os.getuid() if owner is None else owner)


def test_descriptors_go_in_order_and_are_not_polled(manager: socket.socket, tmp_path: Path) -> None:
    with open(tmp_path / "a", "w+b") as one, open(tmp_path / "b", "w+b") as two:
        store(tmp_path).keep([("map", [one.fileno(), two.fileno()]), ("record", [one.fileno()])])
        for name, count in (("map", 2), ("record", 1)):
            message, descriptors, _, _ = socket.recv_fds(manager, 256, 8)
            assert message == f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()
            assert len(descriptors) == count
            found = os.fstat(descriptors[0])
            assert found.st_ino == os.fstat(one.fileno()).st_ino
            for each in descriptors:
                os.close(each)


def test_all_of_a_name_are_forgotten(manager: socket.socket, tmp_path: Path) -> None:
    store(tmp_path).forget(["map"])
    assert manager.recv(256) == b"FDSTOREREMOVE=1\nFDNAME=map"


def test_only_the_manager_gets_them(manager: socket.socket, tmp_path: Path) -> None:
    """Whoever has them could stop the monitor."""
    assert store(tmp_path).is_there
    assert not store(tmp_path, parent=os.getpid()).is_there  # a wrapper, or somebody's terminal
    assert not store(tmp_path, owner=os.getuid() + 1).is_there
    assert not Store({}, 1).is_there
    assert not Store({"NOTIFY_SOCKET": "@abstract"}, 1).is_there
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "notify")
    assert not Store({"NOTIFY_SOCKET": str(link)}, 1, os.getuid()).is_there
    file = tmp_path / "file"
    file.touch()
    assert not Store({"NOTIFY_SOCKET": str(file)}, 1, os.getuid()).is_there


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        store(tmp_path).forget(["map"])
