"""Maps and programs of the kernel: bpf(2) and perf_event_open(2), through libbpf.

Every function raises OSError when the kernel refuses; most return a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from functools import cache
from pathlib import Path

from monitor.kernel.arch import NUMBERS

__all__ = [
    "ARRAY",
    "ARRAY_OF_MAPS",
    "PROG_ARRAY",
    "RAW_TRACEPOINT",
    "TRACEPOINT",
    "TRACING",
    "LibraryError",
    "attach_fexit",
    "attach_raw_tracepoint",
    "attach_tracepoint",
    "create_map",
    "freeze_map",
    "get_bytes",
    "libbpf",
    "load_program",
    "pin",
    "pinned",
    "remove_element",
    "set_bytes",
    "set_element",
    "verifier_log",
]

# include/uapi/linux/bpf.h: enum bpf_prog_type, bpf_attach_type.
TRACEPOINT, RAW_TRACEPOINT, TRACING = 5, 17, 26
_TRACE_FEXIT, _PERF_EVENT = 25, 41
ARRAY, PROG_ARRAY, ARRAY_OF_MAPS = 2, 3, 12  # enum bpf_map_type
_EVENTS = Path("/sys/kernel/tracing/events")
_PERF_TYPE_TRACEPOINT, _PERF_FLAG_FD_CLOEXEC = 2, 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_LOG_SIZE = 1 << 16
_FULL_LOG_SIZE = 1 << 26  # the log of the longest programs has some MiB
_FULL_LOG_LEVEL = 2  # every instruction with the registers after it, taken or refused
_SIZE_T = ctypes.c_size_t


class LibraryError(Exception):
    """libbpf is missing; the message has the way out."""


class _MapOptions(ctypes.Structure):
    """The start of libbpf's struct bpf_map_create_opts, whose first member is its size."""

    _fields_ = [
        ("sz", _SIZE_T),
        *((name, ctypes.c_uint32) for name in ("btf_fd", "btf_key", "btf_value", "btf_vmlinux")),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    ]


class _LoadOptions(ctypes.Structure):
    """The start of libbpf's struct bpf_prog_load_opts, whose first member is its size."""

    _fields_ = [
        ("sz", _SIZE_T),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    ]


class _PerfEvent(ctypes.Structure):
    """The first 64 bytes of struct perf_event_attr, which every kernel accepts (VER0)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("breakpoint_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
    ]


@cache
def libbpf() -> ctypes.CDLL:
    """libbpf 1.x, which prints nothing. Raises LibraryError."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise LibraryError(f"libbpf is missing ({error}); run: apt-get install libbpf1") from error
    library.libbpf_set_print.argtypes = [ctypes.c_void_p]
    library.libbpf_set_print(None)  # errors are ours to report
    return library


def _checked(descriptor: int) -> int:
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def create_map(
    kind: int, name: str, *, key: int, value: int, entries: int, flags: int, inner: int = 0
) -> int:
    """`key` and `value` are sizes in bytes; a ring buffer's `entries` are its bytes. `inner`: a map
    like those that are in a map of maps.
    """
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=flags, inner_map_fd=inner)
    return _checked(
        libbpf().bpf_map_create(
            kind, name[:15].encode(), key, value, entries, ctypes.byref(options)
        )
    )


def set_element(descriptor: int, key: int, value: int) -> None:
    """Set an element of a map with keys and values of 32 bits."""
    key_, value_ = ctypes.c_uint32(key), ctypes.c_uint32(value)
    _checked(
        libbpf().bpf_map_update_elem(
            descriptor, ctypes.byref(key_), ctypes.byref(value_), ctypes.c_uint64(0)
        )
    )


_FIRST = ctypes.c_uint32(0)  # the key of the only element


def set_bytes(descriptor: int, data: bytes) -> None:
    """Set the only element of an array, whose size is that of the data."""
    value = ctypes.create_string_buffer(data, len(data))
    _checked(
        libbpf().bpf_map_update_elem(descriptor, ctypes.byref(_FIRST), value, ctypes.c_uint64(0))
    )


def get_bytes(descriptor: int, size: int) -> bytes:
    """The only element of an array, whose size this is."""
    value = ctypes.create_string_buffer(size)
    _checked(libbpf().bpf_map_lookup_elem(descriptor, ctypes.byref(_FIRST), value))
    return value.raw


def freeze_map(descriptor: int) -> None:
    """From now on nobody can change it by bpf(2)."""
    _checked(libbpf().bpf_map_freeze(descriptor))


def pin(descriptor: int, path: str) -> None:
    """Have bpffs keep a map, program or link under this name, which nothing has yet."""
    _checked(libbpf().bpf_obj_pin(descriptor, path.encode()))


def pinned(path: str) -> int:
    """What bpffs keeps under this name; it follows symbolic links and never waits."""
    return _checked(libbpf().bpf_obj_get(path.encode()))


def remove_element(descriptor: int, key: int) -> None:
    """The same map has no such element any more, if it had one."""
    key_ = ctypes.c_uint32(key)
    if libbpf().bpf_map_delete_elem(descriptor, ctypes.byref(key_)) < 0:
        number = ctypes.get_errno()
        if number != errno.ENOENT:
            raise OSError(number, os.strerror(number))


def _load(
    kind: int, name: str, instructions: bytes, function: int, *, log_size: int, log_level: int
) -> tuple[int, int, str]:
    """The descriptor or -1, the error's number, and the verifier's log.

    With level 0 only refused programs have a log: libbpf loads them again, with level 1.
    """
    log = ctypes.create_string_buffer(log_size)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions),
        expected_attach_type=_TRACE_FEXIT if function else 0,
        attach_btf_id=function,
        log_level=log_level,
        log_size=log_size,
        log_buf=ctypes.cast(log, ctypes.c_char_p),
    )
    descriptor: int = libbpf().bpf_prog_load(
        kind,
        name[:15].encode(),
        b"GPL",
        instructions,
        _SIZE_T(len(instructions) // 8),
        ctypes.byref(options),
    )
    number = ctypes.get_errno() if descriptor < 0 else 0
    return descriptor, number, log.value.decode(errors="replace")


def load_program(kind: int, name: str, instructions: bytes, function: int = 0) -> int:
    """Verify and load. `function`: BTF id of the function at whose return a fexit program runs.

    The error has the verifier's last line. The verifier runs outside of Python's lock, so several
    threads can load programs at the same time.
    """
    descriptor, number, log = _load(
        kind, name, instructions, function, log_size=_LOG_SIZE, log_level=0
    )
    if descriptor < 0:
        lines = [line for line in log.splitlines() if line.strip()]
        # The very last lines are the verifier's statistics.
        said = next((line for line in reversed(lines) if not line.startswith("processed ")), "")
        raise OSError(number, os.strerror(number) + (f": {said}" if said else ""))
    return descriptor


def verifier_log(
    kind: int, name: str, instructions: bytes, function: int = 0
) -> tuple[str, OSError | None]:
    """All that the verifier prints about a program, and why it refuses it; None: it accepts it.

    The program does not stay loaded.
    """
    descriptor, number, log = _load(
        kind, name, instructions, function, log_size=_FULL_LOG_SIZE, log_level=_FULL_LOG_LEVEL
    )
    if descriptor < 0:
        return log, OSError(number, os.strerror(number))
    os.close(descriptor)
    return log, None


def attach_fexit(program: int) -> int:
    """The descriptor keeps the program attached; so do those of the next two functions."""
    return _checked(libbpf().bpf_raw_tracepoint_open(None, program))


def attach_raw_tracepoint(name: str, program: int) -> int:
    return _checked(libbpf().bpf_raw_tracepoint_open(name.encode(), program))


def attach_tracepoint(name: str, program: int) -> int:
    """`name` is as in tracefs: `category:name`. A link, as the others': the descriptor of an event
    could not be pinned.
    """
    number = int((_EVENTS / name.replace(":", "/") / "id").read_text("ascii"))
    event = _PerfEvent(
        type=_PERF_TYPE_TRACEPOINT,
        size=ctypes.sizeof(_PerfEvent),
        config=number,
        sample_period=1,
        wakeup_events=1,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    any_process, any_cpu, no_group = ctypes.c_long(-1), ctypes.c_long(0), ctypes.c_long(-1)
    source = _checked(
        libc.syscall(
            ctypes.c_long(NUMBERS["perf_event_open"]),
            ctypes.byref(event),
            *(any_process, any_cpu, no_group),
            ctypes.c_long(_PERF_FLAG_FD_CLOEXEC),
        )
    )
    try:
        # The link keeps the event open ("bpf: Implement minimal BPF perf link", b89fbfbb854c, which
        # is older than mseal(2)).
        link = _checked(libbpf().bpf_link_create(program, source, _PERF_EVENT, None))
        try:
            fcntl.ioctl(source, _PERF_EVENT_IOC_ENABLE, 0)
        except OSError:
            os.close(link)
            raise
    finally:
        os.close(source)
    return link
