"""Hosts on one kernel, on one switch: each has its own network, mounts, machine id and name.

Nothing stays behind: the namespaces end with the processes in them, which end with the test.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["CENTRE", "address", "box", "own_network"]

CENTRE = "10.16.255.254"  # of who runs the test
_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NETWORK = 0x4000_0000  # CLONE_NEWNET
_SWITCH = f"""\
link set lo up
link add switch type bridge
address add {CENTRE}/16 dev switch
link set switch up
"""
# Its first process: a cable from here to the network of process $1, then wait for the end of input.
_BOX = """\
mount --bind "$2" /etc/machine-id
hostname "$3"
ip link set lo up
ip link add eth0 type veth peer name "$3" netns "$1"
ip address add "$4/16" dev eth0
ip link set eth0 up
echo
exec cat
"""


def address(number: int) -> str:
    return f"10.16.0.{number + 1}"


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network of its own with a switch. As root."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed; run: make test")
    with open("/proc/thread-self/ns/net", "rb") as before:
        _check(_LIBC.unshare(_NEW_NETWORK))
        try:
            made = subprocess.run(
                ["ip", "-batch", "-"], input=_SWITCH, capture_output=True, text=True, check=False
            )
            if made.returncode:
                pytest.skip(f"no bridge can be made here: {made.stderr.strip()}")
            yield
        finally:
            _check(_LIBC.setns(before.fileno(), _NEW_NETWORK))


@contextmanager
def box(folder: Path, machine_id: str, name: str, number: int) -> Iterator[tuple[str, ...]]:
    """A host on the switch of own_network(), with address(number): words before a command there."""
    if not Path("/etc/machine-id").exists():
        pytest.skip("there is no /etc/machine-id to mount another one on")
    file = folder / "machine-id"
    file.write_text(f"{machine_id}\n")
    given = (str(os.getpid()), str(file), name, address(number))
    with subprocess.Popen(
        ("unshare", "--net", "--mount", "--uts", "sh", "-ec", _BOX, "sh", *given),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"\n", f"{name} did not start"
        subprocess.run(["ip", "link", "set", name, "master", "switch", "up"], check=True)
        yield ("nsenter", f"--target={first.pid}", "--net", "--mount", "--uts", "--")
