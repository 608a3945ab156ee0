"""Takes announcements of our own trials, by `doctor`, `exec` and `demo` (provoke/announce.py).

Only root can announce: the kernel says who is at the other end of the socket. What is announced is
one process at a time, a child that the announcer has just started, for a minute at most; or the
cgroup that `exec` has made for its command, for as long as exec lives and says so every minute. Its
violations are counted in a bank of their own and make no events; a health event reports who
announced what, and how it ended.

All is done in the daemon's loop, and nothing here waits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monitor.kernel.announced import Marks, NoRoomError
from monitor.provoke.announce import (
    COMMAND_CGROUP,
    LONGEST_SECONDS,
    MESSAGE_BYTES,
    SUFFIX,
    peer_of,
    runtime_directory,
    sockets,
)
from monitor.untrusted.printable import printable
from monitor.untrusted.process_stat import parse_stat

__all__ = ["Announcements", "RuntimeDirectoryError", "listen", "own_directory"]

CONNECTIONS = 16  # the others wait until one is closed
IDLE_SECONDS = 10.0  # a client that has announced nothing, or whose last process has ended
FRESH_SECONDS = 30.0  # a child that was started longer ago is no trial
REFUSAL_SECONDS = 60.0  # from one event of a refused announcement to the next
_BACKLOG = 128
_TICKS = os.sysconf("SC_CLK_TCK")

Report = Callable[[str, str], object]


class RuntimeDirectoryError(OSError):
    """Why there is no socket; without one, our own trials are reported as anybody's."""


class Refused(Exception):
    """Why an announcement is not taken, for whoever made it."""


# ---- The socket ----------------------------------------------------------------------------------


def own_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The daemon's runtime directory: the one that systemd names, else the usual one."""
    named = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(named) if named else runtime_directory(environment)


def _claim(directory: Path) -> None:
    """Raises OSError where others may write to it, or it cannot be made."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(0o755)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it")


def _remove_abandoned(directory: Path) -> None:
    """Remove the sockets of daemons that were killed: nobody listens there."""
    for path in sockets(directory):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(path))
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:  # somebody does listen
                continue


def listen(directory: Path) -> tuple[socket.socket, Path]:
    """A socket of this daemon's own in its runtime directory, and where. Raises
    RuntimeDirectoryError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        _claim(directory)
        _remove_abandoned(directory)
        # Another name in each run: a pid may be that of another daemon in another namespace. It
        # appears once it listens: until then a connection would be refused, as if abandoned.
        path = directory / f"{os.urandom(6).hex()}{SUFFIX}"
        hidden = path.with_suffix(".new")
        listener.bind(str(hidden))
        hidden.chmod(0o600)
        listener.listen(_BACKLOG)
        hidden.rename(path)
    except OSError as error:
        listener.close()
        raise RuntimeDirectoryError(
            "no announcements are taken, and what doctor, exec and demo try is reported as "
            f"anybody's: {directory}: {error.strerror or error}"
        ) from error
    return listener, path


# ---- What is announced ---------------------------------------------------------------------------


class _Wish(NamedTuple):
    """A message that was understood."""

    kind: str  # process or command
    seconds: float
    by: str


def _parse(data: bytes) -> _Wish:
    """Raises Refused."""
    message: Any
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict):
        kinds = [kind for kind in ("process", "command") if kind in message]
        seconds: Any = message.get("".join(kinds))
        by = message.get("by")
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if is_number and 0 < seconds <= LONGEST_SECONDS and isinstance(by, str):
            return _Wish(kinds[0], float(seconds), printable(by, 40))
    raise Refused("it is not understood; are both of one version?")


def _pid_of(pidfd: int, proc: Path) -> int:
    """The process, by pid here, that the descriptor stands for. Raises Refused."""
    text = (proc / "self/fdinfo" / str(pidfd)).read_text("ascii", "replace")
    found = re.search(r"^Pid:\t(-?\d+)$", text, re.MULTILINE)
    if found is None:
        raise Refused("its descriptor is none of a process")
    pid = int(found[1])
    if pid <= 0:
        raise Refused("its process has ended, or is of another pid namespace")
    return pid


def _fresh_child(pidfd: int, announcer: int, proc: Path) -> tuple[int, int]:
    """Pid and start, in ticks, of a process that its parent has just started. Raises Refused."""
    pid = _pid_of(pidfd, proc)
    found = parse_stat((proc / str(pid) / "stat").read_bytes())
    leads = f"\nTgid:\t{pid}\n".encode() in (proc / str(pid) / "status").read_bytes()
    if _pid_of(pidfd, proc) != pid:  # else it was this process all the time
        raise Refused("its process has ended")
    if found.parent != announcer or not leads:
        raise Refused("its process is no child of the announcer")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - found.start_ticks / _TICKS
    if age > FRESH_SECONDS:
        raise Refused(f"its process was started {age:.0f} s ago")
    return pid, found.start_ticks


def _check_cgroup(directory: int, announcer: int, proc: Path) -> str:
    """The name of a cgroup that exec has made for its command; nobody but root can move processes
    there. Raises Refused, OSError.
    """
    name = os.path.basename(os.readlink(proc / "self/fd" / str(directory)))
    if not re.fullmatch(rf"{COMMAND_CGROUP}-[0-9a-f]+-\d+-{announcer}-[0-9a-f]+", name):
        raise Refused("its cgroup was not made by exec for its command")
    for path in (".", "cgroup.procs", "cgroup.threads"):
        status = os.stat(path, dir_fd=directory, follow_symlinks=False)
        if status.st_uid or status.st_mode & 0o022:
            raise Refused("others may write to its cgroup")
    return name


@dataclass
class _Client:
    """A connection: who announces, and what it has announced now."""

    connection: socket.socket
    pid: int
    since: float
    by: str = ""
    kind: str = ""
    place: int = -1  # -1: nothing
    until: float = 0.0
    announced: int = 0  # processes and commands so far
    before: int = 0  # violations of all that was announced, when it began
    waiting: tuple[_Wish, int] | None = None  # for a place; and its descriptor
    cgroup: tuple[int, int] | None = field(default=None)  # device and inode of what has a place


class Announcements:
    """What is announced now. `descriptor` is readable when turn() has something to do."""

    def __init__(
        self,
        listener: socket.socket,
        path: Path,
        marks: Marks,
        counted: Callable[[], int],
        report: Report,
        *,
        clock: Callable[[], float] = time.monotonic,
        proc: Path = Path("/proc"),
    ) -> None:
        """Takes over `listener`, as listen() made it. `counted`: the violations so far of all that
        was announced. `report` makes a health event of a name and a text.
        """
        self._listener = listener
        self._path = path
        self._marks = marks
        self._counted = counted
        self._report = report
        self._clock = clock
        self._proc = proc
        self._clients: dict[int, _Client] = {}
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._is_accepting = True
        self._refused = 0
        self._refusal_at = float("-inf")

    @property
    def descriptor(self) -> int:
        return self._poll.fileno()

    def close(self) -> None:
        """From now on nothing is announced. A second call does nothing."""
        if self._poll.closed:
            return
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()
        self._poll.close()
        for remove in (self._path.unlink, self._path.parent.rmdir):
            with contextlib.suppress(OSError):  # the directory is systemd's, or another's, too
                remove()

    def turn(self) -> None:
        """Take what has come, and end what is over."""
        now = self._clock()
        for number, _ in self._poll.poll(0):
            if number == self._listener.fileno():
                self._accept(now)
            elif client := self._clients.get(number):
                self._read(client, now)
        for client in list(self._clients.values()):
            if client.place >= 0 and now >= client.until:
                self._end(client)
            if client.waiting:
                self._try(client, *client.waiting, now)
            if client.place < 0 and not client.waiting and now >= client.since + IDLE_SECONDS:
                self._drop(client)
        self._accept_more()

    # ---- Connections -----------------------------------------------------------------------------

    def _accept(self, now: float) -> None:
        while len(self._clients) < CONNECTIONS:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none is left; or no descriptor is: then the next turn tries again
                return
            connection.setblocking(False)
            pid, uid = peer_of(connection)
            client = _Client(connection, pid, now)
            if problem := self._is_no_announcer(pid, uid):
                self._refuse(client, problem, now)
                connection.close()
                continue
            self._clients[connection.fileno()] = client
            self._poll.register(connection, select.EPOLLIN)

    def _is_no_announcer(self, pid: int, uid: int) -> str:
        """Why this process may not announce; empty where it may."""
        if uid != 0:
            return f"root alone may announce, and it is of uid {uid}"
        if pid <= 0:
            return "it is outside of the monitor's pid namespace"
        with contextlib.suppress(OSError):  # without CAP_SYS_PTRACE: uid 0 is the host's root
            theirs, own = (
                os.readlink(self._proc / str(each) / "ns/user") for each in (pid, "self")
            )
            if theirs != own:
                return "it is in another user namespace"
        return ""

    def _accept_more(self) -> None:
        """Others wait in the queue of the socket while there are as many as there may be."""
        has_room = len(self._clients) < CONNECTIONS
        if has_room != self._is_accepting:
            self._is_accepting = has_room
            self._poll.modify(self._listener, select.EPOLLIN if has_room else 0)

    def _drop(self, client: _Client) -> None:
        self._end(client)
        if client.waiting:
            os.close(client.waiting[1])
        self._clients.pop(client.connection.fileno())
        self._poll.unregister(client.connection)
        client.connection.close()
        if client.announced:
            number = self._counted() - client.before
            self._report(
                "trials_ended",
                f"{client.by} (pid {client.pid}) has ended; violations of what was announced "
                f"meanwhile: {number:,}, announcements: {client.announced}",
            )

    def _read(self, client: _Client, now: float) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                client.connection, MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, flags = b"", 0
        client.since = now
        if not data:
            self._drop(client)
        elif client.waiting or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            self._refuse(client, "it is too long, or does not wait for its answer", now)
        elif len(descriptors) != 1:
            self._refuse(client, "it has not one descriptor", now)
        else:
            self._take(client, data, descriptors.pop(), now)
        for descriptor in descriptors:
            os.close(descriptor)

    # ---- Announcements ---------------------------------------------------------------------------

    def _take(self, client: _Client, data: bytes, descriptor: int, now: float) -> None:
        try:
            wish = _parse(data)
        except Refused as why:
            os.close(descriptor)
            self._refuse(client, str(why), now)
            return
        self._try(client, wish, descriptor, now)

    def _try(self, client: _Client, wish: _Wish, descriptor: int, now: float) -> None:
        """Mark it; without a place it waits for one. Its former announcement ends."""
        client.waiting = None
        if not client.announced:
            client.before = self._counted()
        try:
            what = self._mark(client, wish, descriptor)
        except NoRoomError:
            client.waiting = wish, descriptor
            return
        except (Refused, OSError, ValueError) as why:
            os.close(descriptor)
            words = os.strerror(why.errno) if isinstance(why, OSError) and why.errno else str(why)
            self._refuse(client, words, now)
            return
        os.close(descriptor)
        client.until = now + wish.seconds
        self._answer(client, {"until": wish.seconds})
        if what:
            self._report_first(client, wish, what)

    def _mark(self, client: _Client, wish: _Wish, descriptor: int) -> str:
        """What was marked, for a person; "" where it was before. Raises what _try() catches."""
        if any(each.place >= 0 and each is not client for each in self._of(client.pid)):
            raise Refused("it has another announcement, by another connection")
        if wish.kind == "process":
            pid, start = _fresh_child(descriptor, client.pid, self._proc)
            self._end(client)
            client.place = self._marks.process(pid, start)
            return f"its child, pid {pid},"
        name = _check_cgroup(descriptor, client.pid, self._proc)
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino
        if client.place >= 0 and client.cgroup == identity:
            return ""
        self._end(client)
        client.place = self._marks.cgroup(descriptor)
        client.cgroup = identity
        return f"its command, in cgroup {printable(name)},"

    def _of(self, pid: int) -> list[_Client]:
        return [client for client in self._clients.values() if client.pid == pid]

    def _end(self, client: _Client) -> None:
        if client.place >= 0:
            self._marks.free(client.place)
            client.place, client.cgroup = -1, None

    def _report_first(self, client: _Client, wish: _Wish, what: str) -> None:
        client.announced += 1
        if client.announced > 1 and client.kind == wish.kind:
            return  # demo makes some fifty, one after the other
        client.by, client.kind = wish.by, wish.kind
        duration = f"{wish.seconds:g} s at most"
        if wish.kind == "command":
            duration = "as long as it watches it"
        self._report(
            "trials_announced",
            f"{wish.by} (pid {client.pid}) announces {what} for {duration}: its violations are "
            "counted separately and make no events",
        )

    def _answer(self, client: _Client, answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has gone, or does not read: what it was for is done
            client.connection.send(json.dumps(answer).encode())

    def _refuse(self, client: _Client, why: str, now: float) -> None:
        self._answer(client, {"refused": why})
        self._refused += 1
        if now < self._refusal_at + REFUSAL_SECONDS:
            return
        self._refusal_at = now
        others = f"; {self._refused - 1} others before it" if self._refused > 1 else ""
        self._refused = 0
        self._report("announcement_refused", f"of pid {client.pid}: {why}{others}")
