"""Programs that see nothing outside of one cgroup. Tests that use them can run side by side.

apart.py run ...    seal-monitor that sees only the cgroup it runs in, and those below it
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from monitor.attach.attached import Attached, Beginning

__all__ = ["cgroup_root", "own_cgroup", "see_own_cgroup_alone"]


def cgroup_root() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return None


def own_cgroup() -> Path | None:
    """The directory of this process's cgroup; None where no cgroup2 is mounted."""
    root = cgroup_root()
    if root is None:
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            path = root / line.removeprefix("0::").lstrip("/")
            return path if path.is_dir() else root
    return root


def see_own_cgroup_alone() -> None:
    """Programs that this process loads from now on see only the cgroup it is in at the load."""
    finish = Attached._finish

    def finish_and_watch(self: Attached, beginning: Beginning) -> None:
        finish(self, beginning)
        cgroup = own_cgroup()
        if cgroup is not None:
            descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
            self.state.watch_cgroup(descriptor)
            os.close(descriptor)

    Attached._finish = finish_and_watch  # type: ignore[method-assign]


if __name__ == "__main__":
    from monitor import cli

    see_own_cgroup_alone()
    sys.exit(cli.main())
