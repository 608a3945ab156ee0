"""How tests attack the monitor: as an ordinary user, who has a cgroup of his own at most.

What he runs are the programs of tests/assets/. Each prints at its end how much it did.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import remove_cgroup

__all__ = [
    "NOBODY",
    "by_nobody",
    "by_nobody_in_cgroup",
    "delegated",
    "http_clients",
    "in_cgroup",
]

NOBODY = 65534
_CLIENTS = Path(__file__).parent / "assets" / "http_clients.py"


def by_nobody(
    words: Sequence[object], user: int = NOBODY, **options: Any
) -> subprocess.Popen[bytes]:
    """The command, started by a user without privileges; its output can be read."""
    options.setdefault("stdout", subprocess.PIPE)
    process: subprocess.Popen[bytes] = subprocess.Popen(
        list(map(str, words)), user=user, group=user, extra_groups=[], **options
    )
    return process


def http_clients(url: str, kinds: str) -> list[str]:
    """Words for clients of a server: the kind, how many, and from which addresses, repeated."""
    scheme, port = url.partition(":")[0], url.split("/")[2].rpartition(":")[2]
    return [sys.executable, "-I", "-c", _CLIENTS.read_text(), scheme, port, *kinds.split()]


def in_cgroup(cgroup: Path, words: Sequence[object]) -> list[str]:
    """Words that root starts: the command is in this cgroup from the start."""
    enter = f'echo 0 >{cgroup}/cgroup.procs; exec "$@"'
    return ["sh", "-ec", enter, "sh", *map(str, words)]


def by_nobody_in_cgroup(cgroup: Path, words: Sequence[object]) -> list[str]:
    """The same for an ordinary user's command, who could not go there from outside by himself."""
    return in_cgroup(cgroup, ["setpriv", "--reuid", NOBODY, "--clear-groups", *words])


@contextmanager
def delegated(base: Path) -> Iterator[tuple[Path, Path]]:
    """Two new cgroups in `base`, user/ and web.service/; the first is an ordinary user's.

    At the end both are removed, with all that was made in them.
    """
    user, service = base / "user", base / "web.service"
    try:
        for each in (user, service):
            each.mkdir()
        for each in (user, user / "cgroup.procs"):
            os.chown(each, NOBODY, NOBODY)
        yield user, service
    finally:
        for each in sorted(base.glob("**/*/"), reverse=True):
            remove_cgroup(each)
