"""Starts the process that makes provocations; its caller need not import what that process runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess

__all__ = ["command", "environment", "nobody", "run"]

_ROOT = os.path.abspath(f"{__file__}/../../..")


def command(names: Iterable[str], wait: bool = False, parent: int | None = None) -> list[str]:
    """The command line that makes the provocations `names`; to be run with `environment()`.

    With `parent`, the pid of whoever runs it, the child is killed when that thread ends.
    Without site and without the current directory on the module path: the child starts in a third
    of the time, and imports from nowhere else.
    """
    options = ["--wait"] if wait else []
    if parent is not None:
        options.append(f"--parent={parent}")
    return [sys.executable, "-S", "-P", "-m", "monitor.provoke.table", *options, *names]


def environment() -> dict[str, str]:
    """This process's environment without Python's own settings, which change signals and paths."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPATH": _ROOT}


def nobody(_pid: int) -> None:
    """In place of Announcer.process: what this process tries is announced to nobody."""


def run(*names: str, wait: bool = False) -> subprocess.Popen[str]:
    """Start a child that makes the provocations `names`; it prints a line for each, see table.py.

    With `wait` it does nothing until a byte is written to its standard input, or that is closed.
    It ends with the thread that calls this.
    """
    import subprocess  # noqa: PLC0415 - the child needs none of it

    return subprocess.Popen(
        command(names, wait, os.getpid()),
        env=environment(),
        stdin=subprocess.PIPE if wait else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C goes to the caller, not to the child
    )
