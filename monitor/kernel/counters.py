"""Reads the kernel's counters and writes its configuration, without bcc.

A scrape reads mapped memory. It makes no system call, and above all no bpf(2), during which kernels
with preemption skip runs of tracepoint programs. Only the two hash maps need bpf(2), through
libbpf; they are read only when the counters say that something in them has changed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from monitor.kernel.abi import (
    SHARES_OF_KIND,
    WORKLOAD_QUOTAS,
    Bank,
    Bucket,
    BucketKey,
    Config,
    Counters,
    Kind,
    SharedBucket,
    Workload,
    WorkloadQuota,
)
from monitor.kernel.loaded import Loaded, possible_cpus
from monitor.kernel.syscalls import grace_period
from monitor.untrusted.process_stat import parse_stat

__all__ = ["HashMap", "KernelState", "mark_canary", "missed_runs"]

_Key = TypeVar("_Key", bound="ctypes._CDataType")
_Value = TypeVar("_Value", bound="ctypes._CDataType")
_BATCH = 256


def _element(array: ctypes.Array[Any], of: type[_Value], index: int) -> _Value:
    # A copy needs a third of the memory of an object that refers to the array.
    return cast("_Value", of.from_buffer_copy(array, index * ctypes.sizeof(of)))


def mark_canary(config: Config, pid: int) -> None:
    """Have the kernel count this process's violations separately; 0: no process's.

    Raises OSError.
    """
    config.canary_pid = 0
    if pid:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        config.canary_start_ticks = parse_stat(stat).start_ticks
        config.canary_pid = pid


class HashMap(Generic[_Key, _Value]):
    """A BPF hash map by its descriptor. Needs no capability once the descriptor is held."""

    def __init__(self, descriptor: int, key: type[_Key], value: type[_Value]) -> None:
        self._descriptor = descriptor
        self._key = key
        self._value = value
        self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)

    def items(self) -> Iterator[tuple[_Key, _Value]]:
        """Every element, read in batches. It may miss elements that are added or removed meanwhile.

        Raises OSError.
        """
        size = max(ctypes.sizeof(self._key), 8)
        position, further = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
        first, wanted = True, _BATCH
        while True:
            keys, values = (self._key * wanted)(), (self._value * wanted)()
            count = ctypes.c_uint32(wanted)
            result = self._lib.bpf_map_lookup_batch(
                self._descriptor,
                None if first else position,
                further,
                keys,
                values,
                ctypes.byref(count),
                None,
            )
            if result == -errno.ENOSPC:  # one hash chain is longer than the batch
                wanted *= 2
                continue
            if result not in (0, -errno.ENOENT):
                raise OSError(-result, os.strerror(-result))
            # Not keys[index]: an array of plain numbers gives Python's int, not a C type.
            for index in range(count.value):
                yield _element(keys, self._key, index), _element(values, self._value, index)
            if result:
                return
            position.raw, first = further.raw, False

    def remove(self, key: _Key) -> bool:
        """Remove an element; whether it was there. Raises OSError."""
        result = self._lib.bpf_map_delete_elem(self._descriptor, ctypes.byref(key))
        if result not in (0, -errno.ENOENT):
            raise OSError(-result, os.strerror(-result))
        return bool(result == 0)


def _mapped(descriptor: int, element: type[ctypes.Structure], count: int) -> mmap.mmap:
    return mmap.mmap(descriptor, ctypes.sizeof(element) * count)


class KernelState:
    """The maps that the programs and the daemon share."""

    def __init__(self, loaded: Loaded, wait: Callable[[], object] = grace_period) -> None:
        """`wait` returns when runs of programs that have begun are over."""
        maps = loaded.maps
        self._wait = wait
        self._cpus = possible_cpus()
        self._counters = _mapped(maps["counters"], Counters, self._cpus * len(Bank))
        self._words = memoryview(self._counters).cast("Q")
        self._config = _mapped(maps["config"], Config, 1)
        self._shared = _mapped(maps["shared_buckets"], Bucket, max(SharedBucket) + 1)
        self._shares = mmap.mmap(maps["shares"], len(Kind) * SHARES_OF_KIND * 8)
        self._quotas = _mapped(maps["workload_quotas"], WorkloadQuota, WORKLOAD_QUOTAS)
        self.config = Config.from_buffer(self._config)
        self.workloads = HashMap(maps["workloads"], ctypes.c_uint64, Workload)
        self._watched_cgroup = maps["watched_cgroup"]
        self.buckets = HashMap(maps["buckets"], BucketKey, Bucket)

    def counters(self, bank: Bank = Bank.HOST) -> Counters:
        """The sums over all CPUs, exact for every run of a probe that has ended."""
        size = ctypes.sizeof(Counters)
        words, nothing = size // 8, bytes(size)
        total = (ctypes.c_uint64 * words)()
        for cpu in range(self._cpus):
            start = (cpu * len(Bank) + bank) * words
            # At once: most CPUs have counted nothing in most banks, and each scrape reads all.
            if self._counters[start * 8 : start * 8 + size] == nothing:
                continue
            for index, value in enumerate(self._words[start : start + words]):
                if value:
                    total[index] += value
        return Counters.from_buffer_copy(total)

    def watch_cgroup(self, descriptor: int) -> None:
        """From now on watch only this cgroup2 directory and those below, and count from 0.

        It must not have processes yet. The ring may still hold records of others. Raises OSError.
        """
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        key, value = ctypes.c_uint32(0), ctypes.c_uint32(descriptor)
        result = library.bpf_map_update_elem(
            self._watched_cgroup, ctypes.byref(key), ctypes.byref(value), ctypes.c_uint64(0)
        )
        if result:
            raise OSError(-result, os.strerror(-result))
        self.config.one_cgroup = 1
        self._wait()  # a run that began before may still count
        self._counters[:] = bytes(len(self._counters))
        self.reset_limits()

    def reset_limits(self) -> None:
        """Forget what was suppressed, and let every limit begin with a full burst."""
        self._shared[:] = bytes(len(self._shared))
        self._shares[:] = bytes(len(self._shares))
        for bucket, _ in list(self.buckets.items()):
            self.buckets.remove(bucket)

    def remove_workload(self, cgroup_id: int, quota: int) -> None:
        """Give its place back, to the quota that it was taken from. Raises OSError."""
        if self.workloads.remove(ctypes.c_uint64(cgroup_id)):
            for place in {0, quota}:  # of all, and of its subtree
                WorkloadQuota.from_buffer(
                    self._quotas, place * ctypes.sizeof(WorkloadQuota)
                ).given_back += 1

    def overflow(self, kind: Kind) -> Bucket:
        """The bucket that callers of this kind share when there is no room for more buckets."""
        index, size = SharedBucket.OVERFLOW + kind, ctypes.sizeof(Bucket)
        return Bucket.from_buffer_copy(self._shared[index * size : (index + 1) * size])

    def close(self) -> None:
        """Unmap the maps; that of `config` is unmapped with the last reference to it."""
        self._words.release()
        self._counters.close()
        self._shared.close()
        self._shares.close()
        self._quotas.close()


def missed_runs(program: int, proc: Path = Path("/proc/self")) -> int:
    """Runs of a program that the kernel skipped (bpf_prog_info.recursion_misses).

    From fdinfo and not from bpf(2), during which the kernel may skip more. Raises OSError, also
    where the kernel does not show it: unknown is not 0.
    """
    path = proc / "fdinfo" / str(program)
    for line in path.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "recursion_misses":
            return int(value)
    raise OSError(errno.ENODATA, "no recursion_misses of a BPF program", str(path))
