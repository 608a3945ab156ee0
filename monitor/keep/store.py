"""Gives descriptors to the service manager, which keeps them for the next life of the service."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence

from monitor.keep import memory

__all__ = ["Store"]

SECONDS = 2.0  # for the manager to take a message
_MANAGER = 1  # its pid
_MOST_AT_ONCE = 250  # SCM_MAX_FD is 253


class Store:
    """systemd's store of descriptors, where there is one: FileDescriptorStoreMax= in the unit.

    Whoever gets these descriptors could stop the monitor: they go to PID 1 alone, which must have
    started this process, through a socket of root's.
    """

    name = "systemd"
    until = "systemd lets them go"
    outlives_stop = True

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        parent: int | None = None,
        owner: int = 0,
    ) -> None:
        """`parent`: the pid of the process that started this one. `owner`: whose the socket is."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._parent = os.getppid() if parent is None else parent
        self._owner = owner

    @property
    def is_there(self) -> bool:
        """Whether the manager can be trusted with them; it may still keep none."""
        if self._parent != _MANAGER or not self._address.startswith("/"):
            return False
        try:
            found = os.stat(self._address, follow_symlinks=False)
        except OSError:
            return False
        return found.st_uid == self._owner and stat.S_ISSOCK(found.st_mode)

    def memory(self, size: int) -> int:
        """A descriptor of memory that it can keep. Raises OSError."""
        return memory.anonymous(size)

    def keep(self, groups: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Have it keep descriptors, by name, in this order. Raises OSError.

        It must not poll them: maps answer that with an error, and it would drop them.
        """
        for name, descriptors in groups:
            for start in range(0, len(descriptors), _MOST_AT_ONCE):
                part = descriptors[start : start + _MOST_AT_ONCE]
                self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", part)

    def forget(self, names: Iterable[str]) -> None:
        """Have it close all descriptors with these names. Raises OSError."""
        for name in names:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def stop(self) -> None:
        """It lets go by itself when the unit stops, and hands all over when that is restarted."""

    def _send(self, message: str, descriptors: Sequence[int] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(SECONDS)
            connection.connect(self._address)
            socket.send_fds(connection, [message.encode()], list(descriptors))
