"""The text of /proc/PID/smaps, read in a thread that is given up when the process lets it wait.

A user can hold the lock of his own processes' mappings for as long as he likes. He then costs a
look at all processes READ_SECONDS for each of the reads, AT_ONCE_SECONDS and a fifth of its time
in all, and its threads one.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO, cast

from monitor.evidence.waiting import Held, Reads, Waiting

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["READ_SECONDS", "opened", "patience"]

READ_SECONDS = 2.0
AT_ONCE_SECONDS = 30.0
_READ_BYTES = 1 << 15  # 50 mappings, a millisecond


def patience(seconds: float = READ_SECONDS) -> Waiting:
    """What a look at processes may wait for: `seconds` for one read."""
    return Waiting(seconds=seconds, at_once=AT_ONCE_SECONDS)


def opened(directory: Held, reads: Reads) -> BinaryIO:
    """The file in this directory, which is a process's in /proc.

    Opening and reading raise OSError: TooLong where the process lets them wait.
    """
    return cast(BinaryIO, io.BufferedReader(_Smaps(directory, reads), _READ_BYTES))


class _Smaps(io.RawIOBase):
    """Each read by another thread costs 0.15 ms: the first is with the open, none is at the end."""

    def __init__(self, directory: Held, reads: Reads) -> None:
        # An exec can hold up the open as well (proc_mem_open() takes exec_update_lock).
        self._reads = reads
        self._file, self._left = reads.run(lambda: _begin(directory))
        self._has_ended = len(self._left) < _READ_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._left and not self._has_ended:
            file = self._file
            self._left = self._reads.run(lambda: _read(file))
            self._has_ended = len(self._left) < _READ_BYTES
        view = memoryview(buffer)
        data = self._left[: len(view)]
        self._left = self._left[len(data) :]
        view[: len(data)] = data
        return len(data)


def _begin(directory: Held) -> tuple[Held, bytes]:
    file = Held(os.open("smaps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.descriptor))
    return file, _read(file)


def _read(file: Held) -> bytes:
    """_READ_BYTES, or as many as there are: the kernel gives a page at a time."""
    found = bytearray()
    while data := os.read(file.descriptor, _READ_BYTES - len(found)):
        found += data
    return bytes(found)
