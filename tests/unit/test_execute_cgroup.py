"""A cgroup that cannot be made; real ones are made in tests/kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.execute.cgroup import CgroupError, CommandCgroup


def test_nothing_is_left_of_a_cgroup_that_cannot_be_entered(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/\n")
    root.mkdir()  # no cgroup2: there is no cgroup.procs in what is made
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(CgroupError, match=r"^cannot make a cgroup for the command: .*procs"):
        CommandCgroup(proc, root)
    assert list(root.iterdir()) == []
    assert os.listdir("/proc/self/fd") == descriptors
