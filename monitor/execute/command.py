"""The watched command: started as its user, in its cgroup, as if the caller had started it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pwd
import signal
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from monitor.kernel.syscalls import call
from monitor.untrusted.printable import printable

__all__ = [
    "FORWARDED",
    "CannotStart",
    "Command",
    "Signals",
    "Start",
    "User",
    "UserError",
    "environment",
    "user_named",
]

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit codes, as of a shell
FORWARDED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_SIGNAL_INFO = struct.Struct("=IiiI112x")  # signalfd_siginfo: number, errno, code, pid
_MASK_BYTES = 8  # of the kernel's sigset_t


class UserError(OSError):
    """Why the command cannot run as this user."""


class CannotStart(OSError):
    """Why the command could not be started; `code` is the exit code that stands for it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# ---- As whom, with what --------------------------------------------------------------------------


class User(NamedTuple):
    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    home: str


def user_named(name: str) -> User:
    """A user of the user database, with all groups. Raises UserError."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise UserError(f"there is no user {printable(name)}") from None
    groups = os.getgrouplist(name, found.pw_gid)
    return User(name, found.pw_uid, found.pw_gid, groups, found.pw_dir)


def environment(user: User | None, proc: Path = Path("/proc")) -> dict[bytes, bytes]:
    """The caller's environment, from /proc because Python may have set LC_CTYPE since.

    With a user, HOME, USER and LOGNAME are that user's.
    """
    entries = (proc / "self/environ").read_bytes().split(b"\0")
    found = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry[1:])
    if user is not None:
        name = os.fsencode(user.name)
        found |= {b"HOME": os.fsencode(user.home), b"USER": name, b"LOGNAME": name}
    return found


# ---- Signals -------------------------------------------------------------------------------------


class Signals:
    """Blocks the FORWARDED signals in this process, so that they can be read. Make it before any
    thread starts.

    Signals that were not read when it is closed are lost.
    """

    def __init__(self) -> None:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        mask = ctypes.c_uint64(sum(1 << (number - 1) for number in FORWARDED))
        descriptor = call("signalfd4", -1, ctypes.addressof(mask), _MASK_BYTES, _SFD_FLAGS)
        if descriptor < 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
            raise OSError(-descriptor, f"signalfd4: {os.strerror(-descriptor)}")
        self.descriptor = descriptor

    def take(self) -> list[int]:
        """The signals that came since the last call and were sent to this process only.

        A signal of the terminal (Ctrl-C) goes to the whole foreground group: the command has it.
        """
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.descriptor, _SIGNAL_INFO.size)
                number, _, code, _ = _SIGNAL_INFO.unpack(data)
                if code <= 0:  # SI_USER and others that a process sent (sigaction(2))
                    found.append(number)
        return found

    def close(self) -> None:
        self.take()
        os.close(self.descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


# ---- The process ---------------------------------------------------------------------------------


class Start(NamedTuple):
    """`variables` is the environment, `mask` the signals that are blocked in the command."""

    words: list[str]
    variables: Mapping[bytes, bytes]
    user: User | None
    mask: set[int | signal.Signals]


class Command:
    """A child of this process, in the same process group and session, so that the terminal and job
    control work as usual.

    It begins in the cgroup whose `cgroup.procs` is open as `entry`. Raises CannotStart.
    """

    def __init__(
        self,
        start: Start,
        entry: int,
    ) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if not self.pid:
            _become(start, entry, writer)
        os.close(writer)
        with open(reader, "rb") as answer:
            problem = answer.read()  # nothing once the command runs
        if problem:
            os.waitpid(self.pid, 0)
            step, number = json.loads(problem)
            raise _explained(start.words[0], step, number)
        self.descriptor = os.pidfd_open(self.pid)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def wait(self) -> int:
        """How it ended: its exit code, or the number of the signal that ended it, negative."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return status


def _become(
    start: Start,
    entry: int,
    answer: int,
) -> NoReturn:
    """Runs in the child: becomes the command, or writes to `answer` what failed."""
    step = ""
    try:
        step = "enter its cgroup"
        os.write(entry, b"0")
        if (user := start.user) is not None:
            step = f"run as {user.name}"
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        step = "execute"
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *FORWARDED):
            # Python ignores the first two. The command ignores the others if the caller did.
            if number not in FORWARDED or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, start.mask)
        os.execvpe(start.words[0], start.words, start.variables)
    except OSError as error:
        os.write(answer, json.dumps([step, error.errno]).encode())
    finally:
        os._exit(NOT_EXECUTABLE)


def _explained(word: str, step: str, number: int) -> CannotStart:
    name, why = printable(word), os.strerror(number)
    if step != "execute":
        return CannotStart(f"cannot {step}: {why}; run as root", 125)
    if number not in (errno.ENOENT, errno.ENOTDIR):
        return CannotStart(f"cannot execute {name}: {why}", NOT_EXECUTABLE)
    if "/" in word and os.path.exists(word):
        return CannotStart(f"cannot execute {name}: its interpreter is missing", NOT_FOUND)
    return CannotStart(f"{name}: command not found", NOT_FOUND)
