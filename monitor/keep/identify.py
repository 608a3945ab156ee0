"""What a descriptor is, by the kernel's word: its numbers are unique among all that live."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from pathlib import Path

from monitor.kernel.bpf import libbpf

__all__ = [
    "IdentityError",
    "describe_link",
    "describe_map",
    "describe_program",
    "link_id",
    "map_fields",
    "map_id",
    "program_id",
    "program_in",
]

_IDS_MAX = 64
_NAME_SIZE = 64
_MAP_FIELDS = {"map_type", "value_size", "max_entries", "map_flags", "frozen"}
_RAW_TRACEPOINT, _TRACING, _PERF_EVENT = 1, 2, 7  # enum bpf_link_type


class IdentityError(Exception):
    """A descriptor is not what its name says."""


class _MapInfo(ctypes.Structure):
    """The start of struct bpf_map_info."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("type", "id", "key_size", "value_size")),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class _ProgramInfo(ctypes.Structure):
    """The start of struct bpf_prog_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    ]


class _RawTracepoint(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint64), ("length", ctypes.c_uint32)]


class _Tracing(ctypes.Structure):
    _fields_ = [
        ("attach_type", ctypes.c_uint32),
        ("object_id", ctypes.c_uint32),
        ("btf_id", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    """Of a tracepoint. `kind`: enum bpf_perf_event_type."""

    _fields_ = [("kind", ctypes.c_uint32), ("tracepoint", _RawTracepoint)]


class _Target(ctypes.Union):
    _fields_ = [("raw", _RawTracepoint), ("tracing", _Tracing), ("event", _Event)]


class _LinkInfo(ctypes.Structure):
    """The start of struct bpf_link_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("target", _Target),
    ]


def _require(descriptor: int, *kinds: str) -> str:
    """The kind of an anonymous file; a call for another kind would be answered for that one."""
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        raise IdentityError(f"a descriptor cannot be looked at ({error.strerror})") from error
    for kind in kinds:
        if path == f"anon_inode:{kind}":
            return kind
    raise IdentityError(f"a {kinds[0]} is something else")


def _fill(descriptor: int, info: ctypes.Structure) -> None:
    length = ctypes.c_uint32(ctypes.sizeof(info))
    if libbpf().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise IdentityError(f"the kernel does not say what it is ({os.strerror(number)})")


def map_fields(descriptor: int) -> dict[str, int]:
    """What /proc has of a map: its type, sizes, flags, and whether it is frozen.

    Raises OSError, and IdentityError when it is no map.
    """
    _require(descriptor, "bpf-map")
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines()
    pairs = (line.partition(":\t") for line in lines)
    return {name: int(value, 0) for name, _, value in pairs if name in _MAP_FIELDS}


def map_id(descriptor: int) -> int:
    """Raises IdentityError, as those that follow do."""
    return int(_map(descriptor).id)


def _map(descriptor: int) -> _MapInfo:
    _require(descriptor, "bpf-map")
    info = _MapInfo()
    _fill(descriptor, info)
    return info


def describe_map(descriptor: int) -> str:
    info = _map(descriptor)
    name = info.name.decode("ascii", "replace")
    return (
        f"map {info.id} {name}: type {info.type}, {info.max_entries} of {info.key_size} and "
        f"{info.value_size} bytes, flags {info.map_flags:#x}"
    )


def _program(descriptor: int) -> tuple[_ProgramInfo, list[int]]:
    _require(descriptor, "bpf-prog")
    ids = (ctypes.c_uint32 * _IDS_MAX)()
    info = _ProgramInfo(nr_map_ids=_IDS_MAX, map_ids=ctypes.addressof(ids))
    _fill(descriptor, info)
    return info, sorted(ids[: min(info.nr_map_ids, _IDS_MAX)])


def describe_program(descriptor: int) -> str:
    info, maps = _program(descriptor)
    name = info.name.decode("ascii", "replace")
    return (
        f"program {info.id} {name}: type {info.type}, tag {bytes(info.tag).hex()}, "
        f"by {info.created_by_uid}, maps {maps}"
    )


def program_id(descriptor: int) -> int:
    return int(_program(descriptor)[0].id)


def program_in(array: int) -> int:
    """Id of the first program of a program array; 0 when there is none."""
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(0)
    if libbpf().bpf_map_lookup_elem(array, ctypes.byref(key), ctypes.byref(value)) < 0:
        return 0
    return value.value


def link_id(descriptor: int) -> int:
    _require(descriptor, "bpf_link", "bpf-link")
    info = _LinkInfo()
    _fill(descriptor, info)
    return int(info.id)


def describe_link(descriptor: int, programs: Collection[int]) -> str:
    """`programs`: ids of ours."""
    _require(descriptor, "bpf_link", "bpf-link")
    info = _LinkInfo()
    _fill(descriptor, info)
    target = ""
    if info.type == _TRACING:
        found = info.target.tracing
        target = f"{found.attach_type}, {found.object_id}, {found.btf_id}"
    elif info.type in (_RAW_TRACEPOINT, _PERF_EVENT):
        target = _tracepoint(descriptor, is_event=info.type == _PERF_EVENT)
    if info.prog_id not in programs:
        raise IdentityError("a link is of a program that is not ours")
    return f"link {info.id}: type {info.type}, program {info.prog_id} at {target}"


def _tracepoint(descriptor: int, *, is_event: bool) -> str:
    """The name of the one that a link is at."""
    name = ctypes.create_string_buffer(_NAME_SIZE)
    info = _LinkInfo()
    place = info.target.event.tracepoint if is_event else info.target.raw
    place.name, place.length = ctypes.addressof(name), _NAME_SIZE
    _fill(descriptor, info)
    kind = f"{info.target.event.kind} " if is_event else ""
    return kind + name.value.decode("ascii", "replace")
