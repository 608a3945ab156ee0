"""Descriptors that the service manager hands over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.keep.handed import take

ROOT = Path(__file__).parents[2]


def opened(count: int) -> int:
    """The first of so many descriptors in a row that a child would inherit."""
    first = 700
    for number in range(first, first + count):
        read, write = os.pipe()
        os.dup2(read, number)
        os.close(read)
        os.close(write)
    return first


def environment(count: object, names: str, pid: object = None) -> dict[str, str]:
    who = os.getpid() if pid is None else pid
    return {
        "LISTEN_PID": str(who),
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": names,
        "PATH": "/bin",
    }


def test_descriptors_come_by_name_and_no_child_inherits_them() -> None:
    first, given = opened(3), environment(3, "map:record:map")
    handed = take(given, first)
    assert handed.descriptors == {"map": [700, 702], "record": [701]}
    assert not any(os.get_inheritable(number) for number in range(700, 703))
    assert given == {"PATH": "/bin"}
    handed.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(700)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, ""),
        (environment(1, "map", pid=1), ""),  # another process's
        (environment("many", "map"), "LISTEN_FDS is no number of descriptors"),
        (environment("-1", "map"), "LISTEN_FDS is no number of descriptors"),
        (environment(10**9, "map"), "LISTEN_FDS is no number of descriptors"),
        (environment(2, "a:b"), "descriptor 900 of 2 is not open"),
        (environment(0, ""), ""),
    ],
)
def test_what_is_not_ours_is_left_alone(given: dict[str, str], problem: str) -> None:
    given = dict(given)
    assert take(given, 900) == ({}, problem)
    assert not any(name.startswith("LISTEN") for name in given)


def test_names_that_do_not_match_are_unknown() -> None:
    handed = take(environment(2, "map"), opened(2))
    assert handed.descriptors == {"unknown": [700, 701]}
    handed.close()


def test_a_run_hands_none_of_it_to_its_children() -> None:
    code = """
import os, subprocess, sys
from monitor.keep.handed import take
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "map"}
os.dup2(0, 3)
take()
subprocess.run([sys.executable, "-c",
    "import os; print([n for n in os.environ if 'LISTEN' in n], os.listdir('/proc/self/fd'))"],
    close_fds=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[] ['0', '1', '2', '3']\n"  # 3 is the listing's own
