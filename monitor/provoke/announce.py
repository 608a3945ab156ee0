"""Announces our own trials to the monitors that run on this host, so that they page nobody.

What `doctor`, `exec` and `demo` try are real violations. Before one is made, its process is
announced over a socket in each daemon's runtime directory (life/announcements.py is the other end),
and the kernel counts it separately. Without a daemon nothing happens here.

A message is a JSON object, with one descriptor: {"process": seconds} with a pidfd of a child, or
{"command": seconds} with the cgroup of exec's command; both with "by", who announces. The
answer is {"until": seconds} or {"refused": why}.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

__all__ = [
    "COMMAND_CGROUP",
    "LONGEST_SECONDS",
    "MESSAGE_BYTES",
    "SUFFIX",
    "Announcer",
    "peer_of",
    "runtime_directory",
    "sockets",
]

_DIRECTORY = Path("/run/seal-monitor")
SUFFIX = ".announce"
LONGEST_SECONDS = 60  # of an announcement; exec announces its command again and again
MESSAGE_BYTES = 1024
COMMAND_CGROUP = "seal-monitor-exec"  # how the names of the cgroups of commands begin
_MOST_DAEMONS = 8
_ANSWER_SECONDS = 5.0  # a daemon that starts answers once it is attached
_AGAIN_SECONDS = LONGEST_SECONDS / 4
_UNHEARD = {
    BlockingIOError: "the monitor takes no more announcements now",
    PermissionError: "the monitor takes announcements of root alone",
}
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def runtime_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where daemons have their sockets."""
    return Path(environment.get("SEAL_MONITOR_RUNTIME_DIRECTORY") or _DIRECTORY)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the other end as the kernel has them; the pid is 0 where it has none here."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


def sockets(directory: Path) -> list[Path]:
    """The sockets of daemons; none where others than root and the directory's owner can have put
    them there.
    """
    try:
        status = directory.stat()
        if status.st_mode & 0o022:
            return []
        found = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
        owners = {0, status.st_uid}
        return [path for path in found if path.lstat().st_uid in owners][:_MOST_DAEMONS]
    except OSError:
        return []


def _print(problem: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"seal-monitor: {problem}", file=sys.stderr, flush=True)


class Announcer:
    """One command's announcements, one at a time. Use as a context manager: leaving it ends them.

    A daemon that refuses or does not answer is reported once; the trial is then made all the same,
    and that daemon reports it.
    """

    def __init__(
        self,
        command: str,
        directory: Path | None = None,
        problem: Callable[[str], None] = _print,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        """`command`: what announces, as health events name it. `directory`: None for
        runtime_directory().
        """
        self._command = command
        self._directory = directory or runtime_directory()
        self._problem = problem
        self._answer_seconds = answer_seconds
        self._connections: dict[Path, socket.socket] = {}
        self._silent: set[Path] = set()  # not asked again
        self._unheard: set[Path] = set()  # asked, and their answers were not read
        self._again_at = float("inf")

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._again_at = float("inf")

    def process(self, pid: int) -> None:
        """Announce a child of this process, which must not have begun. Waits for the answers."""
        if not self._targets():
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # it is gone, and violates nothing
        try:
            self._announce("process", descriptor)
        finally:
            os.close(descriptor)

    def cgroup(self, descriptor: int) -> None:
        """Announce the cgroup that exec has made for its command. Waits for the answers."""
        self._again_at = time.monotonic() + _AGAIN_SECONDS
        self._announce("command", descriptor)

    def again(self, descriptor: int) -> None:
        """Call it often: announces the command's cgroup again before the announcement ends. Waits
        for nobody: each answer is read the next time.
        """
        now = time.monotonic()
        if now < self._again_at:
            return
        self._again_at = now + _AGAIN_SECONDS
        for path in self._unheard & self._connections.keys():
            self._hear(path, self._connections[path], now)
        self._unheard = set(self._send("command", descriptor))

    def _targets(self) -> list[Path]:
        return [path for path in sockets(self._directory) if path not in self._silent]

    def _announce(self, kind: str, descriptor: int) -> None:
        asked = self._send(kind, descriptor)
        deadline = time.monotonic() + self._answer_seconds
        for path, connection in asked.items():
            self._hear(path, connection, deadline)

    def _send(self, kind: str, descriptor: int) -> dict[Path, socket.socket]:
        """Those who answer."""
        message = json.dumps({kind: LONGEST_SECONDS, "by": self._command}).encode()
        found = {path: self._sent(path, message, descriptor) for path in self._targets()}
        return {path: connection for path, connection in found.items() if connection}

    def _hear(self, path: Path, connection: socket.socket, deadline: float) -> None:
        if why := _answer(connection, deadline):
            self._silent.add(path)
            self._connections.pop(path).close()
            self._problem(f"{why}: it reports what this command tries as violations ({path})")

    def _sent(self, path: Path, message: bytes, descriptor: int) -> socket.socket | None:
        """The connection by which it was sent; None where no daemon listens."""
        for connection in self._both(path):
            with contextlib.suppress(OSError):
                socket.send_fds(connection, [message], [descriptor])
                self._connections[path] = connection
                return connection
            connection.close()
            self._connections.pop(path, None)
        return None

    def _both(self, path: Path) -> Iterator[socket.socket]:
        """The connection that there is, then a new one: the daemon may have been restarted."""
        if path in self._connections:
            yield self._connections[path]
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if why := _UNHEARD.get(type(error)):  # else nobody listens: the daemon has ended
                self._silent.add(path)
                self._problem(f"{why}: it reports what this command tries as violations ({path})")
            return
        yield connection


def _answer(connection: socket.socket, deadline: float) -> str | None:
    """None where the daemon took the announcement, else why not."""
    silent = "the monitor does not answer an announcement"
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            return silent
        data = connection.recv(MESSAGE_BYTES)
        if not data:
            return None  # it ended: nobody counts
        answer = json.loads(data)
        if "until" in answer:
            return None
        words = "".join(c if c.isprintable() else "?" for c in str(answer["refused"]))
        return f"the monitor refuses an announcement, {words[:200]}"
    except ConnectionResetError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return silent
