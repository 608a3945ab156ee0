"""Finds a process's executable, command line, user and group by its pid.

The kernel's record names a process by pid and start time. /proc adds the rest while it still has
it. The process or its owner chose all of that, so it is bounded and escaped here and never
interpreted.
"""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from monitor.evidence.memory_map import DELETED
from monitor.untrusted.printable import printable
from monitor.untrusted.process_stat import parse_stat
from monitor.untrusted.recent import Recent
from monitor.untrusted.redact import CommandLine, redact

__all__ = [
    "Identities",
    "Identity",
    "Lookup",
    "is_image",
    "read_at",
    "state_of",
]

Lookup = Literal["complete", "partial", "gone", "reused"]

TEXT_LIMIT = 512
ARGUMENTS_READ = 4096
ARGUMENTS_SHOWN = 32
# An exec keeps pid and start time. The kernel's base name shows most execs at once. The others, and
# a command line that the program rewrote, show after this time.
FRESH_SECONDS = 1.0
NAME_FRESH_SECONDS = 60.0

# What /proc/PID/stat counts in: USER_HZ, as nsec_to_clock_t() does (kernel/time/time.c).
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Identity:
    """What /proc and the user database add to the kernel's facts.

    `result` is `complete`; `partial`: something could not be read, or the process has since
    executed another program; `gone`: it has exited; `reused`: the pid now belongs to another one.
    """

    executable: str | None
    command_line: str | None
    user_name: str | None
    result: Lookup
    group_name: str | None = None


@dataclass(frozen=True, slots=True)
class _Facts:
    executable: str | None
    command_line: str | None
    result: Lookup
    base_name: bytes = b""
    expires: float = 0.0

    def is_image(self, base_name: bytes) -> bool:
        return is_image(self.base_name, base_name)


def is_image(own: bytes, base_name: bytes) -> bool:
    """Whether `own` is the program whose base name the kernel recorded, which it may have cut.

    True where one of them is unknown.
    """
    return not (own and base_name) or any(
        name[: len(base_name)] == base_name and (len(base_name) >= 63 or name == base_name)
        for name in (own, own.removesuffix(DELETED.encode()))
    )


def read_at(name: str, directory: int, limit: int) -> bytes:
    """At most `limit` bytes of a file in this directory, in one read. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def state_of(directory: int, start_boot_ns: int) -> Lookup:
    """Whether the process in `directory` started then, by field 22 of its stat (ticks since boot).

    `directory` is a descriptor of /proc/PID. It stays that process's, even when another one gets
    the pid. In a time namespace with an offset the times never agree: the answer is `reused`.
    Raises OSError.
    """
    try:
        stat = parse_stat(read_at("stat", directory, 4096))
    except ValueError:
        return "reused"
    if stat.start_ticks != start_boot_ns // TICK_NS:
        return "reused"
    return "gone" if stat.state in (b"Z", b"X") else "complete"


class _Names:
    """Names of users or groups by number, from the user database."""

    def __init__(self, look_up: Callable[[int], str], clock: Callable[[], float]) -> None:
        self._look_up = look_up
        self._clock = clock
        self._known: Recent[int, tuple[str | None, float]] = Recent()

    def get(self, number: int) -> str | None:
        known = self._known.get(number)
        if known is None or self._clock() >= known[1]:
            try:
                name = printable(os.fsencode(self._look_up(number)))
            except KeyError:
                name = None
            known = (name, self._clock() + NAME_FRESH_SECONDS)
            self._known.put(number, known)
        return known[0]


class Identities:
    """Look-ups in /proc and the user database, with bounded caches."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        command_line: CommandLine = "redacted",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._command_line = command_line
        self._clock = clock
        self._processes: Recent[tuple[int, int], _Facts] = Recent()
        self._users = _Names(lambda uid: pwd.getpwuid(uid).pw_name, clock)
        self._groups = _Names(lambda gid: grp.getgrgid(gid).gr_name, clock)

    def reconfigure(self, command_line: CommandLine) -> None:
        """Set how command lines are shown from now on, and forget those shown in the old way."""
        if command_line != self._command_line:
            self._command_line = command_line
            self._processes = Recent()

    def lookup(
        self,
        pid: int,
        start_boot_ns: int,
        uid: int | None = None,
        base_name: bytes = b"",
        gid: int | None = None,
    ) -> Identity:
        """The process with this pid that started then (task_struct.start_boottime, ns).

        `base_name` is the kernel's name of its executable at the time of the record. Facts of a
        program that the process has executed since are not returned.
        """
        key = (pid, start_boot_ns)
        known = self._processes.get(key)
        if known is None or self._clock() >= known.expires or not known.is_image(base_name):
            facts = self._process(pid, start_boot_ns)
            if known is None or facts.result not in ("gone", "reused"):
                self._processes.put(key, facts)
                known = facts
            elif not known.is_image(base_name):
                known = facts
        user = None if uid is None else self._users.get(uid)
        group = None if gid is None else self._groups.get(gid)
        if not known.is_image(base_name):
            return Identity(None, None, user, "partial", group)
        return Identity(known.executable, known.command_line, user, known.result, group)

    def _process(self, pid: int, start_boot_ns: int) -> _Facts:
        gone = _Facts(None, None, "gone", expires=self._clock() + FRESH_SECONDS)
        try:
            directory = os.open(self._proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        try:
            before = state_of(directory, start_boot_ns)
            if before != "complete":
                return _Facts(None, None, before, expires=gone.expires)
            executable, command_line, complete = self._image(directory)
            after = state_of(directory, start_boot_ns)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        finally:
            os.close(directory)
        if after != "complete":
            return _Facts(None, None, after, expires=gone.expires)
        return _Facts(
            None if executable is None else printable(executable, TEXT_LIMIT),
            None if command_line is None else printable(command_line, TEXT_LIMIT),
            "complete" if complete else "partial",
            base_name=os.path.basename(executable or b""),
            expires=gone.expires,
        )

    def _image(self, directory: int) -> tuple[bytes | None, bytes | None, bool]:
        executable = command_line = None
        complete = True
        try:
            # Bytes in, bytes out: a path need not be UTF-8.
            executable = os.readlink(b"exe", dir_fd=directory)
        except PermissionError:
            complete = False
        if self._command_line != "off":
            try:
                raw = read_at("cmdline", directory, ARGUMENTS_READ)
            except PermissionError:
                complete = False
            else:
                command_line = self._shown(raw) or None
        return executable, command_line, complete

    def _shown(self, raw: bytes) -> bytes:
        argv = os.fsdecode(raw.removesuffix(b"\0")).split("\0")
        more = len(argv) > ARGUMENTS_SHOWN or len(raw) == ARGUMENTS_READ
        argv = argv[:ARGUMENTS_SHOWN]
        if self._command_line == "redacted":
            argv = redact(argv)
        return os.fsencode(" ".join([*argv, "..."] if more else argv))
