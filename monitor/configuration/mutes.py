"""Mutes: violations that are known and make no events. They are still counted.

What an entry asks for must all be so, and must be known: a violation of which too little is known
makes an event.
"""

from __future__ import annotations

import datetime
import fnmatch
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Mute", "User", "Violation"]


class User(NamedTuple):
    """A user by number and by name, as far as they are known."""

    number: int | None = None
    name: str | None = None


class Violation(NamedTuple):
    """What is known of one.

    `what`: the operation of a denial, the cause of a fault, the method of a bypass. `executable`
    and `files` are as in an event's process, `build_id` is that of the executable, and `owner` owns
    its file. `program` is what a dynamic loader runs, and `program_files` whose path that is.
    `unit` is a systemd unit, after the name of a user's service manager if it is in one.
    """

    what: str | None
    executable: str | None = None
    files: str | None = None
    build_id: str | None = None
    owner: User = User()
    user: User = User()
    unit: str | None = None
    program: str | None = None
    program_files: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mute:
    executable: str | None = None
    program: str | None = None
    operation: str | None = None
    cause: str | None = None
    method: str | None = None
    owner: int | str | None = None
    user: int | str | None = None
    unit: str | None = None
    build_id: str | None = None
    until: datetime.datetime | None = None
    reason: str

    @property
    def what(self) -> str | None:
        """The operation, cause or method; None for all of an executable."""
        return self.operation or self.cause or self.method

    @property
    def whose(self) -> str:
        """Of whom, in words; empty for everybody."""
        parts = (
            ("", self.executable),
            ("program ", self.program),
            ("build id ", self.build_id),
            ("owner ", self.owner),
            ("user ", self.user),
            ("unit ", self.unit),
        )
        return ", ".join(f"{label}{value}" for label, value in parts if value is not None)

    @property
    def is_for_any_user(self) -> bool:
        """Whether any user can meet it. A name and a build id are in any copy; he can run the file
        itself with a library of his own, and the root of a user namespace can name any file as the
        one that he runs (PR_SET_MM_EXE_FILE).
        """
        return self.user is None and self.unit is None

    def expired(self, now: datetime.datetime) -> bool:
        """Whether `until` has passed. `now` must carry its time zone."""
        return self.until is not None and now > self.until

    def applies(self, violation: Violation, now: datetime.datetime) -> bool:
        """Whether this entry mutes a violation."""
        return (
            not self.expired(now)
            and self.what in (None, violation.what)
            and _is_file(self.executable, violation.executable, violation.files)
            and _is_file(self.program, violation.program, violation.program_files)
            and self.build_id in (None, violation.build_id)
            and (self.owner is None or self.owner in violation.owner)
            and (self.user is None or self.user in violation.user)
            and (self.unit is None or _is_unit(self.unit, violation.unit))
        )


def _is_file(pattern: str | None, path: str | None, files: str | None) -> bool:
    """A pattern without a slash is matched with the base name, so it also mutes a process that
    died before its full path could be read. One with a slash is a path of the host: it mutes
    nothing whose `files` are not known to be the host's.
    """
    if pattern is None:
        return True
    name = path or ""
    if "/" not in pattern:
        name = name.rpartition("/")[2]
    elif files != "host":
        return False
    return fnmatch.fnmatchcase(name, pattern)


def _is_unit(pattern: str, unit: str | None) -> bool:
    """Part by part, so that no pattern for a unit of the system matches one of a user's."""
    if unit is None or pattern.count("/") != unit.count("/"):
        return False
    return all(map(fnmatch.fnmatchcase, unit.split("/"), pattern.split("/")))
