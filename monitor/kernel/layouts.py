"""The table of marks: what the BPF programs must know and what differs between kernels.

The programs are compiled once, with a mark in place of each value (bpf/kernel.h); `values()` reads
the values of the running kernel from its BTF. Nothing asks for a kernel's version: a member that it
does not have has no value. `HAS(<struct>__<member>)` checks that in C; a program that needs the
value and does not check is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from monitor.kernel.arch import PAGE_SIZE, THIS, Processor
from monitor.kernel.btf import KIND_FUNC, KIND_STRUCT, Btf, LayoutError
from monitor.kernel.operations import OPERATIONS

__all__ = [
    "FUNCTIONS",
    "MARKS",
    "OPERATION",
    "PAGE_SHIFT",
    "c_definitions",
    "describe",
    "functions",
    "marks",
    "values",
]


class Member(NamedTuple):
    struct: str
    path: str
    required: bool = True


def _members(struct: str, *paths: str, required: bool = True) -> list[Member]:
    return [Member(struct, path, required) for path in paths]


def _members_of(processor: Processor) -> tuple[Member, ...]:
    return (
        *_members(
            "task_struct",
            "mm",
            "group_leader",
            "tgid",
            "self_exec_id",
            "real_parent",
            "start_boottime",
            "comm",
            "thread_pid",
            "pid_links",
            "signal",
            "files",
            "nsproxy",
            "flags",
            "cred",
            "sighand",
            "blocked",
            "sas_ss_sp",
            "sas_ss_size",
            "seccomp.mode",
            "seccomp.filter",
            *processor.task_members,
        ),
        *_members("cred", "user_ns", "uid"),
        *_members("user_namespace", "level", "parent", "owner"),
        # 5.10 on, CONFIG_SECCOMP.
        Member("task_struct", "seccomp.filter_count", required=False),
        *_members("mm_struct", "mm_mt.ma_root", "exe_file", "start_brk", "start_data", "end_data"),
        *_members("mm_struct", "start_code", "start_stack"),
        # 98d2b4308197 ("add unique mount ID"), in 6.8.
        *_members("mount", "mnt", "mnt_id_unique", required=False),
        # CONFIG_PER_VMA_LOCK. A seqcount_t, which begins with its number, since eb449bd96954 ("mm:
        # convert mm_lock_seq to a proper seqcount"), in 6.14.
        Member("mm_struct", "mm_lock_seq", required=False),
        # CONFIG_MEMCG
        Member("mm_struct", "owner", required=False),
        *_members("mm_struct", *processor.optional_mm_members, required=False),
        *_members("task_struct", *processor.optional_task_members, required=False),
        *_members(
            "vm_area_struct", "vm_start", "vm_end", "vm_mm", "vm_flags", "vm_pgoff", "vm_file"
        ),
        *_members("vm_area_struct", "vm_ops", "vm_private_data", "anon_vma"),
        Member("vm_operations_struct", "name"),
        Member("vm_special_mapping", "name"),
        # CONFIG_ANON_VMA_NAME
        Member("vm_area_struct", "anon_name", required=False),
        Member("anon_vma_name", "name", required=False),
        *_members("maple_range_64", "pivot", "slot"),
        Member("maple_arange_64", "slot"),
        *_members("file", "f_inode", "f_path.dentry", "f_path.mnt", "private_data"),
        Member("dentry", "d_name.name"),
        Member("vfsmount", "mnt_flags"),
        *_members("inode", "i_ino", "i_sb", "i_private", "i_uid.val"),
        # A timespec64 before 3aa63a569c64 ("fs: switch timespec64 fields in inode to discrete
        # integers"), in 6.11.
        *_members("inode", "i_ctime_sec", "i_ctime_nsec", required=False),
        *_members("super_block", "s_dev", "s_magic", "s_iflags", "s_blocksize"),
        *_members("shmem_inode_info", "vfs_inode", "seals", required=False),
        *_members("hugetlbfs_inode_info", "vfs_inode", "seals", required=False),
        *_members("pid", "level", "numbers", "tasks"),
        *_members("upid", "nr", "ns"),
        *_members("pid_namespace", "ns.inum", "idr.idr_rt.xa_head"),
        *_members("signal_struct", "rlim", "pids", "group_exit_code"),
        Member("rlimit", "rlim_cur"),
        Member("files_struct", "fdt"),
        *_members("fdtable", "max_fds", "fd"),
        Member("nsproxy", "ipc_ns"),
        Member("ipc_namespace", "ids"),
        Member("ipc_ids", "ipcs_idr.idr_rt.xa_head"),
        *_members("xa_node", "shift", "slots"),
        *_members("shmid_kernel", "shm_perm.id", "shm_segsz", required=False),
        # CONFIG_SECCOMP_FILTER, and the cache of 5.11 on: seccomp_cache_prepare() in
        # kernel/seccomp.c.
        *_members("seccomp_filter", "cache.allow_native", "cache.allow_compat", required=False),
        *_members(
            "kernel_siginfo",
            "si_code",
            "_sifields._sigfault._addr",
            "_sifields._sigfault._addr_pkey._pkey",
        ),
        Member("k_sigaction", "sa.sa_handler"),
        Member("sighand_struct", "action"),
        *_members("io_madvise", "addr", "len", "advice", required=False),
        *_members("io_kiocb", "opcode", "cqe.res", required=False),
        Member("io_uring_cqe", "res", required=False),
        Member("userfaultfd_ctx", "mm", required=False),
        # Arguments of the functions in which a seal refuses. munmap has its struct since "mm/vma:
        # introduce vma_munmap_struct for use in munmap operations", in 6.12; mremap since
        # "mm/mremap: introduce and use vma_remap_struct threaded state", in 6.15; madvise since
        # 946fc11af061 ("mm/madvise: thread all madvise state through madv_behavior"), in 6.17.
        *_members("vma_munmap_struct", "vmi", "vma", "start", "end", required=False),
        Member("vma_iterator", "mas.index", required=False),
        Member("vma_remap_struct", "vma", required=False),
        *_members(
            "madvise_behavior", "vma", "behavior", "range.start", "range.end", required=False
        ),
    )


# Functions that fexit programs attach to, with the parameters that the programs read. Where a
# kernel's function lacks one of them, no program is attached to it.
def _functions_of(processor: Processor) -> dict[str, tuple[str, ...]]:
    return {
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
        **{
            function(call): ()
            for call in ("mseal", *(each.name for each in OPERATIONS if each.number is not None))
            for function in (processor.native_function, processor.compat_function)
        },
    }


SIZES = ("upid", "rlimit", "ipc_ids", "k_sigaction")
# The iterator: 6018e1f407cc ("bpf: implement numbers iterator"), in 6.4. The last two: fc7566ad0a82
# ("bpf: Introduce bpf_preempt_[disable,enable] kfuncs"), in 6.10, the first kernel with mseal.
KFUNCS = (
    *("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy", "bpf_rdonly_cast"),
    *("bpf_preempt_disable", "bpf_preempt_enable"),
)


def _constant(member: Member) -> str:
    return f"{member.struct}__{member.path.replace('.', '_')}"


OPERATION = "OPERATION"  # not a kernel's value: the call that a program is loaded for
PAGE_SHIFT = "PAGE_SHIFT"  # where kernels of a processor are built for several sizes of pages
_TYPED = "maple_range_64"  # the type that kernel_words() in bpf/kernel.h reads memory as
_FIRST_PIVOT = 8


def marks(processor: Processor) -> tuple[str, ...]:
    """The name of every mark; its place here is the number that the mark has in the programs."""
    functions = _functions_of(processor)
    return (
        *map(_constant, _members_of(processor)),
        *(f"SIZE_{name}" for name in SIZES),
        f"TYPE_{_TYPED}",
        *(f"KFUNC_{name}" for name in KFUNCS),
        *(f"RETURN_{function}" for function in functions),
        *(f"ARG_{function}__{name}" for function, names in functions.items() for name in names),
        OPERATION,
        *((PAGE_SHIFT,) if len(processor.page_sizes) > 1 else ()),
    )


_MEMBERS = {_constant(member): member for member in _members_of(THIS)}
FUNCTIONS = _functions_of(THIS)
MARKS = marks(THIS)


def describe(mark: str) -> str:
    """What a mark stands for, for a person: `mm_struct.owner`, `io_madvise()`, else its name."""
    if mark in _MEMBERS:
        return f"{_MEMBERS[mark].struct}.{_MEMBERS[mark].path}"
    for function, parameters in FUNCTIONS.items():
        if mark in (f"RETURN_{function}", *(f"ARG_{function}__{name}" for name in parameters)):
            return f"{function}()"
    return mark


def c_definitions(processor: Processor = THIS) -> str:
    """The `#define`s of all marks: the same on every kernel of a processor."""
    members = set(map(_constant, _members_of(processor)))
    lines = []
    for number, name in enumerate(marks(processor)):
        lines.append(f"#define MARK_{name} {number}")
        if name in members:
            lines.append(f"#define OFF_{name} MARKED_VALUE(MARK_{name})")
        elif name.startswith("KFUNC_"):
            lines.append(f"#define {name} MARK_{name}")
        elif name.startswith(("SIZE_", "TYPE_")):
            lines.append(f"#define {name} MARKED_VALUE(MARK_{name})")
    return "\n".join(lines) + "\n"


def functions(btf: Btf) -> dict[str, int]:
    """BTF ids of those FUNCTIONS that this kernel has with the parameters named there."""
    found = {}
    for name, wanted in FUNCTIONS.items():
        function = btf.find(name, KIND_FUNC)
        if function is not None and btf.parameters(function).keys() >= set(wanted):
            found[name] = function
    return found


def _offsets(btf: Btf) -> Iterator[tuple[str, int]]:
    for name, member in _MEMBERS.items():
        struct = btf.find(member.struct, KIND_STRUCT)
        found = btf.member(struct, member.path) if struct is not None else None
        if found is not None:
            yield name, found[0]
        elif member.required:
            raise LayoutError(f"this kernel's BTF has no {describe(name)}")


def _words(btf: Btf) -> Iterator[tuple[str, int]]:
    """Marks and values: where fexit programs find what they read in their context, in bytes."""
    for name, function in functions(btf).items():
        words = btf.parameters(function)
        yield f"RETURN_{name}", words[""] * 8
        for parameter in FUNCTIONS[name]:
            yield f"ARG_{name}__{parameter}", words[parameter] * 8


def _struct(btf: Btf, name: str) -> int:
    struct = btf.find(name, KIND_STRUCT)
    if struct is None:
        raise LayoutError(f"this kernel's BTF has no struct {name}")
    return struct


def _kfunc(btf: Btf, name: str) -> int:
    function = btf.find(name, KIND_FUNC)
    if function is None:
        raise LayoutError(f"this kernel has no {name}; boot Linux 6.10 or later, which has it")
    return function


def values(btf: Btf) -> list[int | None]:
    """For each of MARKS the running kernel's value; None where it has none.

    Offsets and sizes are in bytes; the value of a type or a kfunc is its BTF id. Raises
    LayoutError, which names what this kernel lacks, where nothing can work without it.
    """
    offsets = dict(_offsets(btf))
    if offsets[f"{_TYPED}__pivot"] != _FIRST_PIVOT:
        raise LayoutError(
            f"this kernel's {_TYPED}.pivot is at {offsets[f'{_TYPED}__pivot']}, not {_FIRST_PIVOT}"
        )
    found = {
        **offsets,
        **{f"SIZE_{name}": btf.size(_struct(btf, name)) for name in SIZES},
        f"TYPE_{_TYPED}": _struct(btf, _TYPED),
        **{f"KFUNC_{name}": _kfunc(btf, name) for name in KFUNCS},
        **dict(_words(btf)),
        PAGE_SHIFT: PAGE_SIZE.bit_length() - 1,
    }
    return [found.get(mark) for mark in MARKS]
