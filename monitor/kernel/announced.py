"""Marks what was announced to the daemon, so that the kernel counts its violations in a bank of
their own (bpf/describe.h, bank_of()).
"""

from __future__ import annotations

import ctypes
import os

from monitor.kernel.abi import ANNOUNCED_CGROUPS, ANNOUNCED_PROCESSES, Config

__all__ = ["Marks", "NoRoomError"]


class NoRoomError(Exception):
    """As many are marked as there is room for."""


class Marks:
    """Places for processes and for cgroups. A place is a number, which frees it again.

    What a place has is written before the kernel looks at it. Needs no capability: the maps are
    open.
    """

    def __init__(self, config: Config, cgroups: int) -> None:
        """`cgroups`: descriptor of the map `announced_cgroups`."""
        self._config = config
        self._cgroups = cgroups

    def _place(self, first: int, places: int) -> int:
        for place in range(first, first + places):
            if not self._config.announced >> place & 1:
                return place
        raise NoRoomError

    def process(self, pid: int, start_ticks: int) -> int:
        """Mark a process with the children that it forks. Raises NoRoomError."""
        place = self._place(0, ANNOUNCED_PROCESSES)
        row = self._config.announced_processes[place]
        row.pid = 0
        row.start_ticks = start_ticks
        row.pid = pid
        self._config.announced |= 1 << place
        return place

    def cgroup(self, descriptor: int) -> int:
        """Mark all processes in a cgroup2 directory and below it. Raises NoRoomError, and OSError
        where it is none.
        """
        place = self._place(ANNOUNCED_PROCESSES, ANNOUNCED_CGROUPS)
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        key = ctypes.c_uint32(place - ANNOUNCED_PROCESSES)
        value = ctypes.c_uint32(descriptor)
        result = library.bpf_map_update_elem(
            self._cgroups, ctypes.byref(key), ctypes.byref(value), ctypes.c_uint64(0)
        )
        if result:
            raise OSError(-result, os.strerror(-result))
        self._config.announced |= 1 << place
        return place

    def free(self, place: int) -> None:
        """Whatever has this place is no longer marked."""
        self._config.announced &= ~(1 << place)
        if place < ANNOUNCED_PROCESSES:
            self._config.announced_processes[place].pid = 0
            return
        # Otherwise the map would keep the cgroup in memory after it was removed.
        key = ctypes.c_uint32(place - ANNOUNCED_PROCESSES)
        ctypes.CDLL("libbpf.so.1").bpf_map_delete_elem(self._cgroups, ctypes.byref(key))
