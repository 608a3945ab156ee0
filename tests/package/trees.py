"""Trees of Debian's releases with what the package depends on, from the mirror that apt uses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from kernels import KEYRING, apt_settings, cache_directory, mirror

__all__ = ["SUITES", "tree"]

SUITES = ("bookworm", "trixie")
FRESH_DAYS = 14
INCLUDED = ("systemd", "dbus", "init-system-helpers", "iproute2")
TESTED_WITH = (
    "python3-pytest",
    "python3-hypothesis",
    "python3-jsonschema",
    "openssl",
    "gcc",
    "libc6-dev",
)
CONTROL = Path(__file__).parents[2] / "systemd/debian/control"


def _depends() -> list[str]:
    """What the package depends on, without the versions."""
    text = CONTROL.read_text("utf-8")
    match = re.search(r"^Depends:(.*(?:\n .*)*)", text, re.MULTILINE)
    assert match is not None
    names = (each.split()[0] for each in match[1].split(","))
    return [name for name in names if not name.startswith("$")]


def _make(suite: str, included: str, directory: Path) -> None:
    directory.mkdir(parents=True)
    made = directory / "root"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation=private"),  # its mounts end with it
            *("mmdebstrap", "--variant=apt", f"--include={included}", "--skip=check/empty"),
            f"--aptopt={apt_settings(directory)}",
            *(suite, str(made), f"deb [signed-by={KEYRING}] {mirror()} {suite} main"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"no tree of {suite}:\n{done.stderr[-2000:]}")
    (directory / "included").write_text(included)


def tree(suite: str, name: str = "", also: Iterable[str] = ()) -> Path:
    """Its root directory: kept between runs, made again after two weeks. Raises RuntimeError.

    A tree that has packages `also`, beside those of all trees, has a `name` of its own.
    """
    directory = cache_directory().parent / "trees" / (f"{suite}-{name}" if name else suite)
    included = ",".join((*INCLUDED, *_depends(), *TESTED_WITH, *also))
    stamp = directory / "included"
    if not (
        stamp.exists()
        and stamp.read_text() == included
        and time.time() - stamp.stat().st_mtime < FRESH_DAYS * 86_400
    ):
        shutil.rmtree(directory, ignore_errors=True)
        new = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            _make(suite, included, new)
            new.rename(directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return directory / "root"
