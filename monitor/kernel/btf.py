"""The running kernel's type information, through libbpf's btf__*() functions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint32, c_void_p

from monitor.kernel.bpf import LibraryError, libbpf

__all__ = ["KIND_FUNC", "KIND_STRUCT", "Btf", "LayoutError"]

KIND_STRUCT, KIND_UNION, KIND_FUNC = 4, 5, 12
# const, volatile, restrict, typedef, type tag: a reference that leads to the type itself.
_REFERENCES = frozenset((8, 9, 10, 11, 18))


class LayoutError(Exception):
    """The kernel's BTF is missing or lacks what the BPF programs need."""


class _Type(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("info", c_uint32), ("size_or_type", c_uint32)]


class _BtfMember(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("type", c_uint32), ("offset", c_uint32)]


class _BtfParameter(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("type", c_uint32)]


def _library() -> ctypes.CDLL:
    try:
        library = libbpf()
    except LibraryError as error:
        raise LayoutError(str(error)) from error
    library.btf__load_vmlinux_btf.restype = c_void_p
    library.btf__find_by_name_kind.argtypes = [c_void_p, c_char_p, c_uint32]
    library.btf__find_by_name_kind.restype = c_int
    library.btf__type_by_id.argtypes = [c_void_p, c_uint32]
    library.btf__type_by_id.restype = POINTER(_Type)
    library.btf__name_by_offset.argtypes = [c_void_p, c_uint32]
    library.btf__name_by_offset.restype = c_char_p
    library.btf__resolve_size.argtypes = [c_void_p, c_uint32]
    library.btf__resolve_size.restype = c_int64
    library.btf__free.argtypes = [c_void_p]
    return library


class Btf:
    """The running kernel's BTF, through libbpf. Close it: it holds some 10 MiB."""

    def __init__(self) -> None:
        self._lib = _library()
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf:
            raise LayoutError(
                "this kernel offers no BTF at /sys/kernel/btf/vmlinux; "
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        self._found: dict[tuple[str, int], int] = {}  # libbpf searches all types each time

    def close(self) -> None:
        if self._btf:
            self._lib.btf__free(self._btf)
            self._btf = None

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, name: str, kind: int) -> int | None:
        """The id of a named type, or None."""
        key = (name, kind)
        if key not in self._found:
            self._found[key] = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return self._found[key] if self._found[key] > 0 else None

    def size(self, type_id: int) -> int:
        """Size in bytes."""
        size: int = self._lib.btf__resolve_size(self._btf, type_id)
        return size

    def member(self, type_id: int, path: str) -> tuple[int, int] | None:
        """(byte offset, type id) of a dotted member path, through anonymous members, or None."""
        bits = 0
        for name in path.split("."):
            found = self._member(type_id, name.encode())
            if found is None:
                return None
            bits += found[0]
            type_id = found[1]
        return bits // 8, type_id

    def parameters(self, function: int) -> dict[str, int]:
        """Where a fexit program finds each parameter of a function, and its result (""): the number
        of words before it in the context.
        """
        declared = self._lib.btf__type_by_id(self._btf, function).contents.size_or_type
        pointer = self._lib.btf__type_by_id(self._btf, declared)
        first = ctypes.addressof(pointer.contents) + ctypes.sizeof(_Type)
        count = pointer.contents.info & 0xFFFF
        found, words = {}, 0
        for parameter in ctypes.cast(first, POINTER(_BtfParameter * count)).contents:
            text = self._lib.btf__name_by_offset(self._btf, parameter.name_off) or b""
            found[text.decode()] = words
            words += -(-self.size(parameter.type) // 8)
        return found | {"": words}

    def _strip(self, type_id: int) -> tuple[int, ctypes._Pointer[_Type]]:
        while True:
            pointer = self._lib.btf__type_by_id(self._btf, type_id)
            kind = pointer.contents.info >> 24 & 31
            if kind not in _REFERENCES:
                return kind, pointer
            type_id = pointer.contents.size_or_type

    def _fields(self, type_id: int) -> Iterator[tuple[bytes, int, int]]:
        kind, pointer = self._strip(type_id)
        if kind not in (KIND_STRUCT, KIND_UNION):
            return
        count = pointer.contents.info & 0xFFFF
        is_bitfield_encoded = pointer.contents.info >> 31
        first = ctypes.addressof(pointer.contents) + ctypes.sizeof(_Type)
        for member in ctypes.cast(first, POINTER(_BtfMember * count)).contents:
            offset = member.offset & 0xFFFFFF if is_bitfield_encoded else member.offset
            name = self._lib.btf__name_by_offset(self._btf, member.name_off) or b""
            yield name, offset, member.type

    def _member(self, type_id: int, name: bytes) -> tuple[int, int] | None:
        nested = []
        for field, offset, field_type in self._fields(type_id):
            if field == name:
                return offset, field_type
            if not field:
                nested.append((offset, field_type))
        for offset, field_type in nested:
            found = self._member(field_type, name)
            if found is not None:
                return offset + found[0], found[1]
        return None
