"""Names of users and groups by number.

Those of the host are in files of root's, which nobody can hold up. Only for the others a server may
have to be asked: in a thread that can be given up, on behalf of that user.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from monitor.evidence.waiting import TooLong, Waiting
from monitor.untrusted.printable import printable
from monitor.untrusted.recent import Recent
from monitor.untrusted.regular import open_regular

__all__ = ["GROUP", "PASSWD", "Names", "name_in"]

PASSWD, GROUP = Path("/etc/passwd"), Path("/etc/group")
FRESH_SECONDS = 60.0
AGAIN_SECONDS = 1.0  # after a look-up that took too long
FILE_LIMIT = 1 << 20  # one with more users is for the C library to read
_NUMBER = 2  # the field, in both files: passwd(5), group(5)


class Names:
    """Used by one thread. At most 1,024 are remembered."""

    def __init__(
        self,
        file: Path,
        look_up: Callable[[int], str],
        waiting: Waiting,
        clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._look_up = look_up
        self._waiting = waiting
        self._clock = clock
        self._known: Recent[int, tuple[str | None, float]] = Recent()

    def get(self, number: int, user: int) -> str | None:
        """None: it has none, or has not been found in time. `user`: on whose behalf a server may
        have to be asked.
        """
        name, expires = self._known.get(number) or (None, 0.0)
        if self._clock() >= expires:
            fresh = FRESH_SECONDS
            try:
                name = self._name(number, user)
            except TooLong:  # the name that it had is better than none
                fresh = AGAIN_SECONDS
            self._known.put(number, (name, self._clock() + fresh))
        return name

    def _name(self, number: int, user: int) -> str | None:
        """Raises TooLong."""
        found = name_in(self._file, number)
        if found is None:
            found = self._waiting.run(user, lambda: self._ask(number))
        return None if found is None else printable(found)

    def _ask(self, number: int) -> bytes | None:
        try:
            return os.fsencode(self._look_up(number))
        except KeyError:
            return None


def name_in(file: Path, number: int) -> bytes | None:
    """The name of the first line with this number in /etc/passwd or /etc/group; None where there is
    none, or the file cannot be read or is larger than FILE_LIMIT.
    """
    wanted = b"%d" % number
    try:
        with open_regular(file, FILE_LIMIT) as lines:
            for line in lines:
                fields = line.rstrip(b"\n").split(b":")
                if len(fields) > _NUMBER and fields[_NUMBER] == wanted:
                    return fields[0] or None
    except OSError:
        return None
    return None
