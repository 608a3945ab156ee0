"""Finds a process's executable, command line, user and group by its pid.

The kernel's record names a process by pid and start time. /proc adds the rest while it still has
it. The process or its owner chose all of that, so it is bounded and escaped here and never
interpreted.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import math
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from monitor.evidence.events import Program
from monitor.evidence.image import (
    UNKNOWN,
    Files,
    Image,
    Place,
    ProgramFile,
    build_id,
    is_run,
    place_of,
    program_file,
)
from monitor.evidence.loaded import Loaded, loaded
from monitor.evidence.memory_map import DELETED
from monitor.evidence.names import GROUP, PASSWD, Names
from monitor.evidence.waiting import TooLong, Waiting, user_group
from monitor.untrusted.printable import printable
from monitor.untrusted.process_directory import Found, find, stat_of
from monitor.untrusted.recent import SharedRecent
from monitor.untrusted.redact import CommandLine, redact

__all__ = [
    "Identities",
    "Identity",
    "Lookup",
    "is_image",
    "state_of",
]

Lookup = Literal["complete", "partial", "gone", "reused"]
EXECUTED = "it has executed another program since"
NOT_PERMITTED = "not permitted"
# do_proc_readlink() in fs/proc/base.c has a page for it.
PATH_TOO_LONG = "its path is longer than the kernel shows"

TEXT_LIMIT = 512
ARGUMENTS_READ = 4096
ARGUMENTS_SHOWN = 32
# An exec keeps pid and start time. The kernel's base name shows most execs at once. The others, and
# a command line that the program rewrote, show after this time.
FRESH_SECONDS = 1.0

# What /proc/PID/stat counts in: USER_HZ, as nsec_to_clock_t() does (kernel/time/time.c).
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Identity:
    """What /proc and the user database add to the kernel's facts.

    `result` is `complete`; `partial`: something could not be read, or the process has since
    executed another program; `gone`: it has exited; `reused`: the pid now belongs to another one.
    `owner` is the uid of the owner of its file. `is_deleted`: the kernel has put DELETED after the
    path, as of a program that was upgraded while it runs; else it is a part of its name. `program`:
    what a dynamic loader runs.
    """

    executable: str | None
    command_line: str | None
    user_name: str | None
    result: Lookup
    group_name: str | None = None
    reason: str = ""
    files: Files | None = None
    owner: int | None = None
    owner_name: str | None = None
    build_id: str | None = None
    is_deleted: bool = False
    program: Program | None = None


_NOTHING_KNOWN = Identity(None, None, None, "gone")


@dataclass(frozen=True, slots=True)
class _Facts:
    executable: str | None
    command_line: str | None
    result: Lookup
    reason: str = ""
    place: Place = UNKNOWN
    build_id: str | None = None
    image: Image | None = None
    base_name: bytes = b""
    expires: float = 0.0
    uid: int | None = None
    is_deleted: bool = False
    program: Program | None = None

    def are_of(self, image: Image | None, base_name: bytes) -> bool:
        if image and self.image:
            return image == self.image
        return is_image(self.base_name, base_name)


def is_image(own: bytes, base_name: bytes) -> bool:
    """Whether `own` is the program whose base name the kernel recorded, which it may have cut.

    True where one of them is unknown.
    """
    return not (own and base_name) or any(
        name[: len(base_name)] == base_name and (len(base_name) >= 63 or name == base_name)
        for name in (own, own.removesuffix(DELETED.encode()))
    )


def _is_deleted(own: bytes, base_name: bytes) -> bool:
    """Whether the name of a file in /proc is the one that the kernel recorded, and DELETED."""
    return own == base_name + DELETED.encode() and base_name != b""


def state_of(directory: int, pid: int, start_boot_ns: int) -> Lookup:
    """Whether the process in `directory` started then, by field 22 of its stat (ticks since boot).

    `directory` is one that process_directory.find() found. In a time namespace with an offset the
    times never agree: the answer is `reused`. Raises OSError.
    """
    return _standing(directory, pid, start_boot_ns, None)[0]


def _standing(
    directory: int, pid: int, start_boot_ns: int, image: Image | None
) -> tuple[Lookup, str]:
    """What state_of() says, and `partial` with the reason where it no longer runs that program."""
    try:
        stat = stat_of(directory, pid)
    except ValueError:
        return "reused", ""
    if stat.start_ticks != start_boot_ns // TICK_NS:
        return "reused", ""
    if not stat.has_memory:
        return "gone", ""
    try:
        is_same = image is None or is_run(directory, stat, image)
    except PermissionError:
        return "partial", NOT_PERMITTED
    return ("complete", "") if is_same else ("partial", EXECUTED)


def _executable(directory: int) -> tuple[bytes, str]:
    """The path of the program, or why there is none."""
    try:
        # Bytes in, bytes out: a path need not be UTF-8.
        return os.readlink(b"exe", dir_fd=directory), ""
    except PermissionError:
        return b"", NOT_PERMITTED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return b"", PATH_TOO_LONG


class Identities:
    """Look-ups in /proc and the user database, with bounded caches."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        command_line: CommandLine = "redacted",
        clock: Callable[[], float] = time.monotonic,
        waiting: Waiting | None = None,
    ) -> None:
        self._proc = proc
        self._command_line = command_line
        self._clock = clock
        self.waiting = waiting or Waiting()
        self._processes: SharedRecent[tuple[int, int], _Facts] = SharedRecent()
        self._users = Names(PASSWD, lambda uid: pwd.getpwuid(uid).pw_name, self.waiting, clock)
        self._groups = Names(GROUP, lambda gid: grp.getgrgid(gid).gr_name, self.waiting, clock)

    def reconfigure(self, command_line: CommandLine) -> None:
        """Set how command lines are shown from now on, and forget those shown in the old way."""
        if command_line != self._command_line:
            self._command_line = command_line
            self._processes = SharedRecent()

    def lookup(
        self,
        pid: int,
        start_boot_ns: int,
        uid: int | None = None,
        base_name: bytes = b"",
        gid: int | None = None,
        *,
        image: Image | None = None,
    ) -> Identity:
        """The process with this pid that started then (task_struct.start_boottime, ns).

        `image` is the program that it ran at the time of the record, and `base_name` the kernel's
        name of that. Facts of a program that it has executed since are not returned.
        """
        key = (pid, start_boot_ns)
        known = self._processes.get(key)
        if known is None or self._clock() >= known.expires or not known.are_of(image, base_name):
            facts = replace(self._process(pid, start_boot_ns, uid or 0, image), uid=uid)
            if known is None or facts.result not in ("gone", "reused"):
                self._processes.put(key, facts, user_group(uid))
                known = facts
            elif not known.are_of(image, base_name):
                known = facts
        elif known.uid != uid:
            known = replace(known, uid=uid)
            self._processes.put(key, known, user_group(uid))
        if not known.is_deleted and _is_deleted(known.base_name, base_name):
            known = replace(known, is_deleted=True)
            self._processes.put(key, known, user_group(uid))
        group = None if gid is None else self._groups.get(gid, uid or 0)
        if not known.are_of(image, base_name):
            return Identity(None, None, self._user(uid), "partial", group, EXECUTED)
        return replace(self._identity(known), group_name=group)

    def known(self, pid: int, start_boot_ns: int) -> tuple[Identity, int | None]:
        """What the last record of a process had found, without its group, and the process's uid.
        Looks nowhere but in the user database.
        """
        facts = self._processes.get((pid, start_boot_ns))
        return (_NOTHING_KNOWN, None) if facts is None else (self._identity(facts), facts.uid)

    def _identity(self, facts: _Facts) -> Identity:
        return Identity(
            facts.executable,
            facts.command_line,
            self._user(facts.uid),
            facts.result,
            None,
            facts.reason,
            facts.place.files,
            facts.place.owner,
            self._user(facts.place.owner),
            facts.build_id,
            facts.is_deleted,
            facts.program,
        )

    def _user(self, number: int | None) -> str | None:
        """On that user's own behalf: nobody else can use up the time for it."""
        return None if number is None else self._users.get(number, number)

    def runs(self, pid: int, start_boot_ns: int, image: Image | None) -> bool:
        """Whether the process runs that program now. Waits for nobody. Raises OSError."""
        directory = find(self._proc, pid).descriptor
        try:
            return _standing(directory, pid, start_boot_ns, image)[0] == "complete"
        finally:
            os.close(directory)

    def executable(
        self, pid: int, start_boot_ns: int, image: Image | None, user: int
    ) -> tuple[str | None, Files | None]:
        """The path of the program, while the process runs it, and whose path it is. `user`: on
        whose behalf a file system may have to be waited for. Raises OSError.
        """
        try:
            directory, number = find(self._proc, pid)
        except (FileNotFoundError, ProcessLookupError):
            return None, None
        try:
            if _standing(directory, pid, start_boot_ns, image)[0] != "complete":
                return None, None
            path, program = _executable(directory)[0], program_file(directory)
            is_same = _standing(directory, pid, start_boot_ns, image)[0] == "complete"
        except (FileNotFoundError, ProcessLookupError):
            return None, None
        finally:
            os.close(directory)
        if not (is_same and path):
            return None, None
        try:
            process = self._proc / str(number)
            place = self.waiting.run(user, lambda: place_of(self._proc, process, path, program))
        except TooLong:
            place = UNKNOWN
        return printable(path, TEXT_LIMIT), place.files

    def _process(self, pid: int, start_boot_ns: int, uid: int, image: Image | None) -> _Facts:
        facts = self._thread(pid, start_boot_ns, uid, image)
        if facts.result == "gone":  # that thread, while it was looked at: there may be another
            facts = self._thread(pid, start_boot_ns, uid, image)
        return facts

    def _thread(self, pid: int, start_boot_ns: int, uid: int, image: Image | None) -> _Facts:
        gone = _Facts(None, None, "gone", image=image, expires=self._clock() + FRESH_SECONDS)
        try:
            found = find(self._proc, pid)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        try:
            result, reason = _standing(found.descriptor, pid, start_boot_ns, image)
            if result != "complete":
                return replace(gone, result=result, reason=reason)
            facts = self._look(found, uid, gone)
            result, reason = _standing(found.descriptor, pid, start_boot_ns, image)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        finally:
            os.close(found.descriptor)
        return facts if result == "complete" else replace(gone, result=result, reason=reason)

    def _look(self, found: Found, uid: int, facts: _Facts) -> _Facts:
        """What /proc has of the process now."""
        directory, number = found
        executable, reason = _executable(directory)
        raw, place, found_id, expires = b"", UNKNOWN, None, facts.expires
        runs: Loaded | None = None
        program = None
        if reason != NOT_PERMITTED:
            with contextlib.suppress(OSError):  # whether it has ended is seen after
                program = program_file(directory)
        try:
            # By its path, as it may go on when `directory` is closed; whose it was is seen after.
            raw, (place, found_id), runs = self.waiting.run(
                uid,
                lambda: (
                    self._read_command_line(number),
                    self._file(number, executable, program),
                    loaded(self._proc, number, executable, program) if program else None,
                ),
            )
        except PermissionError:
            reason = NOT_PERMITTED
        except TooLong as error:
            # It is not looked at again: the next time would cost as much.
            reason, expires = str(error), math.inf
        shown = self._shown(raw) if raw else b""
        return replace(
            facts,
            executable=printable(executable, TEXT_LIMIT) if executable else None,
            command_line=printable(shown, TEXT_LIMIT) if shown else None,
            result="partial" if reason else "complete",
            reason=reason,
            place=place,
            build_id=found_id,
            base_name=os.path.basename(executable),
            is_deleted=place.is_deleted,
            program=Program(printable(runs.path, TEXT_LIMIT), runs.files) if runs else None,
            expires=expires,
        )

    def _read_command_line(self, pid: int) -> bytes:
        if self._command_line == "off":
            return b""
        path = self._proc / str(pid) / "cmdline"
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, ARGUMENTS_READ)
        finally:
            os.close(file)

    def _file(
        self, pid: int, executable: bytes, program: ProgramFile | None
    ) -> tuple[Place, str | None]:
        """Of the program's file its place and its build id."""
        if program is None:
            return UNKNOWN, None
        process = self._proc / str(pid)
        found_id = build_id(process / "exe", program)
        place = place_of(self._proc, process, executable, program) if executable else UNKNOWN
        return place, found_id

    def _shown(self, raw: bytes) -> bytes:
        argv = os.fsdecode(raw.removesuffix(b"\0")).split("\0")
        more = len(argv) > ARGUMENTS_SHOWN or len(raw) == ARGUMENTS_READ
        argv = argv[:ARGUMENTS_SHOWN]
        if self._command_line == "redacted":
            argv = redact(argv)
        return os.fsencode(" ".join([*argv, "..."] if more else argv))
