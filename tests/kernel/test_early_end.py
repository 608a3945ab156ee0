"""A daemon that is to end before it is ready: nothing is said, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
# Interrupted while it starts, Python says so itself: nothing of ours has run yet.
INTERPRETER = b"Fatal Python error: init_import_site: "
WORDS = ("--output", "json", "--web.listen-address", "127.0.0.1:0")


def is_group_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 10
    while is_group_there(group):
        assert time.monotonic() < deadline, "a process was left"
        time.sleep(0.01)


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_ended_is_silent(
    require_bpf: None, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    """Sent to the daemon, and to all that it has started, as systemd and a terminal do."""
    for seconds in SECONDS:
        with subprocess.Popen(
            [sys.executable, "-m", "monitor", "run", *WORDS],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as daemon:
            time.sleep(seconds)
            send(daemon.pid, number)
            _, errors = daemon.communicate(timeout=30)
        wait_until_gone(daemon.pid)
        if not errors.startswith(INTERPRETER):
            assert (errors, daemon.returncode in (0, -number)) == (b"", True)
