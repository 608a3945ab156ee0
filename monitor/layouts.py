"""Offsets in the running kernel's structures, from its BTF, as C definitions.

This takes the place of kernel headers. A member that a kernel does not have is no version check
but a missing definition: `HAS_<struct>__<member>` in C, or an error here where nothing can be
done without it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint32, c_void_p
from typing import NamedTuple

from monitor.operations import OPERATIONS

__all__ = ["Btf", "LayoutError", "c_definitions", "functions"]

KIND_STRUCT, KIND_UNION, KIND_FUNC = 4, 5, 12
# const, volatile, restrict, typedef, type tag: a reference that leads to the type itself.
_REFERENCES = frozenset((8, 9, 10, 11, 18))


class Member(NamedTuple):
    struct: str
    path: str
    required: bool = True


def _members(struct: str, *paths: str, required: bool = True) -> list[Member]:
    return [Member(struct, path, required) for path in paths]


MEMBERS: tuple[Member, ...] = (
    *_members(
        "task_struct",
        "mm",
        "group_leader",
        "real_parent",
        "start_boottime",
        "comm",
        "thread_pid",
        "pid_links",
        "signal",
        "files",
        "nsproxy",
        "flags",
        "seccomp.mode",
        "seccomp.filter",
        "thread_info.status",
        "thread.cr2",
        "thread.error_code",
        "thread.trap_nr",
    ),
    *_members("mm_struct", "mm_mt.ma_root", "exe_file", "start_brk", "start_data", "end_data"),
    # CONFIG_MEMCG
    Member("mm_struct", "owner", required=False),
    # Linear address masking, 6.4 on and only where it is configured.
    Member("mm_struct", "context.untag_mask", required=False),
    *_members("vm_area_struct", "vm_start", "vm_end", "vm_mm", "vm_flags", "vm_pgoff", "vm_file"),
    *_members("vm_area_struct", "vm_ops", "anon_vma"),
    # CONFIG_ANON_VMA_NAME
    Member("vm_area_struct", "anon_name", required=False),
    Member("anon_vma_name", "name", required=False),
    *_members("maple_range_64", "pivot", "slot"),
    Member("maple_arange_64", "slot"),
    *_members("file", "f_inode", "f_path.dentry", "f_path.mnt", "private_data"),
    Member("dentry", "d_name.name"),
    Member("vfsmount", "mnt_flags"),
    *_members("inode", "i_ino", "i_sb", "i_private"),
    *_members("super_block", "s_dev", "s_magic", "s_iflags", "s_blocksize"),
    *_members("shmem_inode_info", "vfs_inode", "seals", required=False),
    *_members("hugetlbfs_inode_info", "vfs_inode", "seals", required=False),
    *_members("pid", "level", "numbers", "tasks"),
    *_members("upid", "nr", "ns"),
    *_members("pid_namespace", "ns.inum", "idr.idr_rt.xa_head"),
    *_members("signal_struct", "rlim", "pids"),
    Member("rlimit", "rlim_cur"),
    Member("files_struct", "fdt"),
    *_members("fdtable", "max_fds", "fd"),
    Member("nsproxy", "ipc_ns"),
    Member("ipc_namespace", "ids"),
    Member("ipc_ids", "ipcs_idr.idr_rt.xa_head"),
    *_members("xa_node", "shift", "slots"),
    *_members("shmid_kernel", "shm_perm.id", "shm_segsz", required=False),
    # CONFIG_SECCOMP_FILTER, and the cache of 5.11 on.
    *_members("seccomp_filter", "cache.allow_native", "cache.allow_compat", required=False),
    *_members(
        "kernel_siginfo",
        "si_code",
        "_sifields._sigfault._addr",
        "_sifields._sigfault._addr_pkey._pkey",
    ),
    Member("k_sigaction", "sa.sa_handler"),
    *_members("io_madvise", "addr", "len", "advice", required=False),
    *_members("io_kiocb", "opcode", "cqe.res", required=False),
    Member("io_uring_cqe", "res", required=False),
    Member("userfaultfd_ctx", "mm", required=False),
    # What the functions in which a seal refuses are given.
    *_members("vma_munmap_struct", "vmi", "vma", "start", "end", required=False),
    Member("vma_iterator", "mas.index", required=False),
    Member("vma_remap_struct", "vma", required=False),
    *_members("madvise_behavior", "vma", "behavior", "range.start", "range.end", required=False),
)
# Functions that fexit programs attach to, with the parameters that those read. Of a function that
# has others, as on some kernels, nothing is known.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "vms_gather_munmap_vmas": ("vms",),
    "mprotect_fixup": ("vma",),
    "check_prep_vma": ("vrm",),
    "can_modify_vma_madv": ("vma", "behavior"),
    "madvise_vma_behavior": ("madv_behavior",),
    "io_madvise": ("req",),
    "access_remote_vm": ("mm", "addr", "gup_flags"),
    "mfill_atomic_copy": ("ctx", "dst_start"),
    "mfill_atomic_zeropage": ("ctx", "start"),
    "move_pages": ("ctx", "dst_start", "src_start"),
    "userfaultfd_ioctl": ("file", "cmd", "arg"),
    "__x64_sys_mseal": (),
    **{
        f"__{kind}_sys_{operation.name}": ()
        for operation in OPERATIONS
        if operation.number
        for kind in ("x64", "ia32")
    },
}
SIZES = ("upid", "rlimit", "ipc_ids")
KFUNCS = (
    *("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy", "bpf_rdonly_cast"),
    *("bpf_preempt_disable", "bpf_preempt_enable"),
)


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
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise LayoutError(f"libbpf is missing ({error}); run: apt-get install libbpf1") from error
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
    library.libbpf_set_print.argtypes = [c_void_p]
    library.libbpf_set_print(None)  # errors are ours to tell
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
        found: int = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return found if found > 0 else None

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
        """Words that come before each parameter of a function, and before its result (""), in the
        context of a fexit program.
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


def _constant(member: Member) -> str:
    return f"{member.struct}__{member.path.replace('.', '_')}"


def functions(btf: Btf) -> dict[str, int]:
    """BTF ids of those of FUNCTIONS that this kernel has with the parameters named there."""
    found = {}
    for name, wanted in FUNCTIONS.items():
        function = btf.find(name, KIND_FUNC)
        if function is not None and btf.parameters(function).keys() >= set(wanted):
            found[name] = function
    return found


def _function_lines(btf: Btf) -> Iterator[str]:
    """Where fexit programs find what they read."""
    for name, function in functions(btf).items():
        words = btf.parameters(function)
        yield f"#define HAS_FUNCTION_{name} 1"
        yield f"#define RETURN_{name} {words['']}"
        for parameter in FUNCTIONS[name]:
            yield f"#define ARG_{name}__{parameter} {words[parameter]}"


def c_definitions(btf: Btf) -> str:
    """`#define`s of every offset, size, function and kfunc id that bpf/ uses.

    Raises LayoutError naming what this kernel lacks.
    """
    lines = []
    for member in MEMBERS:
        struct = btf.find(member.struct, KIND_STRUCT)
        found = btf.member(struct, member.path) if struct is not None else None
        if found is not None:
            lines.append(f"#define OFF_{_constant(member)} {found[0]}")
            lines.append(f"#define HAS_{_constant(member)} 1")
        elif member.required:
            raise LayoutError(f"this kernel's BTF has no {member.struct}.{member.path}")
    for name in SIZES:
        struct = btf.find(name, KIND_STRUCT)
        if struct is None:
            raise LayoutError(f"this kernel's BTF has no struct {name}")
        lines.append(f"#define SIZE_{name} {btf.size(struct)}")
    for name in KFUNCS:
        function = btf.find(name, KIND_FUNC)
        if function is None:
            raise LayoutError(f"this kernel has no {name}; Linux 6.4 or later has")
        lines.append(f"#define KFUNC_{name} {function}")
    lines += _function_lines(btf)
    lines.append(f"#define TYPE_maple_range_64 {btf.find('maple_range_64', KIND_STRUCT)}")
    return "\n".join(lines) + "\n"
