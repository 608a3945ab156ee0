"""A real systemd-journald for a test: it listens and stores in a directory of the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Journald", "journald"]

PROGRAM = Path("/lib/systemd/systemd-journald")
# Nothing of the host's: neither its kernel's messages nor its audit.
CONFIGURATION = """\
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
RateLimitIntervalSec=0
"""
# In a new mount namespace, where the directory is /run.
IN_NAMESPACE = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /run && exec "$@"')
START_SECONDS = 10.0


class Journald:
    """`socket` is where it listens while it runs."""

    def __init__(self, run: Path) -> None:
        self.socket = run / "systemd/journal/socket"
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        folder = run / "systemd/journald.conf.d"
        folder.mkdir(parents=True)
        (folder / "test.conf").write_text(CONFIGURATION)

    def command(self, *words: object) -> list[str]:
        """The command in a namespace where this journald has the place of the host's."""
        return [*IN_NAMESPACE, str(self._run), *map(str, words)]

    def start(self) -> None:
        self._process = subprocess.Popen(self.command(PROGRAM), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, "systemd-journald has ended"
            assert time.monotonic() < deadline, "systemd-journald does not start"
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        # It binds its socket a moment before it makes its directory.
        return any(self._run.glob("log/journal/*"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What it has stored, oldest first; bytes that are no plain text as journalctl has them."""
        output = self.shown("--output=json", "--all", "--quiet", *matches)
        return [json.loads(line) for line in output.splitlines()]

    def shown(self, *words: str) -> bytes:
        """What journalctl says of it."""
        (folder,) = (self._run / "log/journal").iterdir()
        command = ["journalctl", "--directory", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def wait_for(self, count: int, *matches: str) -> list[dict[str, Any]]:
        """The entries, once there are so many."""
        deadline = time.monotonic() + 10
        while len(found := self.entries(*matches)) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        assert len(found) == count
        return found


@contextmanager
def journald() -> Iterator[Journald]:
    """A running journald. Skips the test where it cannot run."""
    if not PROGRAM.exists() or not shutil.which("journalctl"):
        pytest.skip("systemd-journald is not installed")
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("not allowed to make a mount namespace")
    # Not pytest's: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="seal-monitor-journal-") as name:
        own = Journald(Path(name))
        own.start()
        try:
            yield own
        finally:
            own.stop()
