"""Memory behind a descriptor, which outlives the process: of fixed size, or for ever unchangeable.

A memfd takes memory only where it was written, but bpffs does not take it. An array map can be
pinned there; the kernel allocates all of it at once.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from monitor.keep.identify import IdentityError, map_fields
from monitor.kernel import bpf

__all__ = ["anonymous", "frozen", "has_fixed_size", "pinnable", "read_frozen"]

_ARRAY = 2  # enum bpf_map_type
_RDONLY_PROG, _MMAPABLE = 1 << 7, 1 << 10  # include/uapi/linux/bpf.h: BPF_F_*

# include/uapi/linux/fcntl.h. Nobody can cut it off while it is mapped, which would end the reader.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1, 2, 4
_SEALS = _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW


def anonymous(size: int) -> int:
    """A descriptor of so many bytes, all 0, to be mapped. Raises OSError."""
    descriptor = os.memfd_create("seal-monitor-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def pinnable(size: int) -> int:
    """The same, which bpffs takes; needs CAP_BPF. Raises OSError."""
    page = mmap.PAGESIZE
    return bpf.create_map(
        _ARRAY, "ledger", key=4, value=page, entries=size // page, flags=_MMAPABLE
    )


def has_fixed_size(descriptor: int, size: int) -> bool:
    """Whether it is memory of this size, as one of those makes it. Raises OSError."""
    try:
        fields = map_fields(descriptor)
    except IdentityError:  # it is no map
        found = os.fstat(descriptor).st_size
        return fcntl.fcntl(descriptor, _F_GET_SEALS) == _SEALS and found == size
    shape = (fields["map_type"], fields["value_size"], fields["map_flags"])
    return (
        shape == (_ARRAY, mmap.PAGESIZE, _MMAPABLE)
        and fields["max_entries"] * mmap.PAGESIZE == size
    )


def frozen(data: bytes) -> int:
    """A descriptor of data that nobody can change any more, nor any program; needs CAP_BPF.

    Raises OSError.
    """
    flags = _RDONLY_PROG
    descriptor = bpf.create_map(_ARRAY, "record", key=4, value=len(data), entries=1, flags=flags)
    try:
        bpf.set_bytes(descriptor, data)
        bpf.freeze_map(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_frozen(descriptor: int, limit: int) -> bytes | None:
    """Those data; None where somebody could change them. Raises OSError, IdentityError."""
    fields = map_fields(descriptor)
    shape = (fields["map_type"], fields["max_entries"], fields["map_flags"], fields["frozen"])
    if shape != (_ARRAY, 1, _RDONLY_PROG, 1) or fields["value_size"] > limit:
        return None
    return bpf.get_bytes(descriptor, fields["value_size"])
