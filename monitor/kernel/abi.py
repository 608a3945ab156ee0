"""Python mirror of bpf/abi.h; nothing else knows an offset. A test compares the two sides."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_char, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

from monitor.kernel.operations import OPERATIONS

__all__ = [
    "ABI_VERSION",
    "ANNOUNCED_CGROUPS",
    "ANNOUNCED_PROCESSES",
    "COUNTED_AGAIN",
    "SHARES_OF_KIND",
    "WORKLOADS_MAX",
    "WORKLOAD_QUOTAS",
    "Access",
    "AnnouncedProcess",
    "Bank",
    "Bucket",
    "BucketKey",
    "Bypass",
    "Cause",
    "Config",
    "Counters",
    "Disposition",
    "Kind",
    "Mapping",
    "Method",
    "Module",
    "Outcome",
    "Reason",
    "Record",
    "RecordFlag",
    "Role",
    "SharedBucket",
    "Stack",
    "Verdict",
    "Workload",
    "WorkloadQuota",
    "description",
]

ABI_VERSION = 1

TASK_NAME_SIZE = 16
FILE_NAME_SIZE = 64
MAPPING_NAME_SIZE = 48
STACK_FRAMES = 16
STACK_MODULES = 8
NO_MODULE = 0xFF
BUILD_ID_SIZE = 20
PROCESS_SHARES = 512
OWNER_SHARES = 1024
SHARES_OF_KIND = PROCESS_SHARES + OWNER_SHARES
WORKLOADS_MAX = 65536
WORKLOAD_QUOTAS = 4 * 1024
MODULE_FILE_SIZE = 30
ANNOUNCED_PROCESSES = 8
ANNOUNCED_CGROUPS = 8


class Label(IntEnum):
    """An enumerator; events and metrics show its name in lower case."""

    @property
    def label(self) -> str:
        return self.name.lower()


class Kind(Label):
    DENIAL = 0
    FAULT = 1
    SEAL = 2
    BYPASS = 3


class Verdict(Label):
    SEALED = 0
    NOT_SEALED = 1
    UNVERIFIED = 2


class Reason(Label):
    NONE = 0
    RANGE_TOO_LONG = 1
    SECCOMP = 2
    UNKNOWN_LENGTH = 3
    OTHER_PROCESS = 4
    CHANGED_MEANWHILE = 5
    OTHER_CAUSE = 6
    LATE_SECCOMP = 7
    TRACED = 8


class Role(Label):
    RANGE = 0
    SOURCE = 1
    DESTINATION = 2


class Cause(Label):
    GUARD_REGION = 0
    PROT_NONE = 1
    STACK_GUARD = 2
    SEALED = 3
    PKEY = 4
    OTHER = 5


class Disposition(Label):
    DEFAULT = 0
    HANDLER = 1
    HANDLER_FAILED = 2
    HANDLER_ENDED = 3


# A fault with one of these was counted with HANDLER before.
COUNTED_AGAIN = (Disposition.HANDLER_FAILED, Disposition.HANDLER_ENDED)


class Access(Label):
    READ = 0
    WRITE = 1
    EXECUTE = 2


class Method(Label):
    MADVISE_DISCARD = 0
    PTRACE_POKE = 1
    PROC_MEM_WRITE = 2
    USERFAULTFD_COPY = 3
    USERFAULTFD_MOVE = 4
    GUARD_REMOVE = 5


class Outcome(Label):
    SUBMITTED = 0
    SUPPRESSED = 1
    FILTERED = 2
    DROPPED = 3


class Bank(Label):
    HOST = 0
    CANARY = 1
    ANNOUNCED = 2


class SharedBucket(Label):
    """Places in `shared_buckets`. HOST and OVERFLOW are the first of several: one for each kind."""

    HOST = 0
    OVERFLOW = HOST + len(Kind)
    EMPTY = OVERFLOW + len(Kind)
    SEALERS = EMPTY + 1


class RecordFlag(IntFlag):
    CANARY = 1
    COMPAT = 2
    HIDDEN = 4
    INFERRED = 8
    SEALER = 16


class Mapping(ctypes.Structure):
    _fields_ = [
        ("start", c_uint64),
        ("end", c_uint64),
        ("flags", c_uint64),
        ("page_offset", c_uint64),
        ("inode", c_uint64),
        ("device", c_uint32),
        ("reserved", c_uint32),
        ("file", c_char * FILE_NAME_SIZE),
        ("name", c_char * MAPPING_NAME_SIZE),
    ]


class Module(ctypes.Structure):
    _fields_ = [
        ("base", c_uint64),
        ("inode", c_uint64),
        ("device", c_uint32),
        ("build_id_size", c_uint8),
        ("build_id", c_uint8 * BUILD_ID_SIZE),
        ("is_roots", c_uint8),
        ("file", c_char * MODULE_FILE_SIZE),
    ]


class Stack(ctypes.Structure):
    _fields_ = [
        ("addresses", c_uint64 * STACK_FRAMES),
        ("modules", c_uint8 * STACK_FRAMES),
        ("depth", c_uint8),
        ("module_count", c_uint8),
        ("complete", c_uint8),
        ("reserved", c_uint8 * 5),
        ("module", Module * STACK_MODULES),
    ]


class Image(ctypes.Structure):
    _fields_ = [
        ("inode", c_uint64),
        ("mount", c_uint64),
        ("start_code", c_uint64),
        ("start_stack", c_uint64),
    ]


class Bypass(ctypes.Structure):
    _fields_ = [
        ("start_boot_ns", c_uint64),
        ("image", Image),
        ("pid", c_uint32),
        ("method", c_uint8),
        ("reserved", c_uint8 * 3),
        ("task_name", c_char * TASK_NAME_SIZE),
        ("executable", c_char * FILE_NAME_SIZE),
    ]


class Record(ctypes.Structure):
    _fields_ = [
        ("time_boot_ns", c_uint64),
        ("start_boot_ns", c_uint64),
        ("cgroup_id", c_uint64),
        ("image", Image),
        ("pid", c_uint32),
        ("tid", c_uint32),
        ("parent_pid", c_uint32),
        ("vpid", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("flags", c_uint32),
        ("kind", c_uint8),
        ("operation", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("role", c_uint8),
        ("cause", c_uint8),
        ("disposition", c_uint8),
        ("access", c_uint8),
        ("error_code", c_uint32),
        ("signal_code", c_int32),
        ("pkey", c_uint32),
        ("result", c_int64),
        ("arguments", c_uint64 * 6),
        ("instruction_pointer", c_uint64),
        ("stack_pointer", c_uint64),
        ("caller", c_uint64),
        ("address", c_uint64),
        ("length", c_uint64),
        ("partial_start", c_uint64),
        ("partial_end", c_uint64),
        ("mapping", Mapping),
        ("task_name", c_char * TASK_NAME_SIZE),
        ("executable", c_char * FILE_NAME_SIZE),
        ("bypass", Bypass),
        ("stack", Stack),
    ]


class Counters(ctypes.Structure):
    _fields_ = [
        ("denials", c_uint64 * len(Verdict) * len(OPERATIONS)),
        ("partial_updates", c_uint64 * len(OPERATIONS)),
        ("faults", c_uint64 * len(Disposition) * len(Cause)),
        ("bypasses", c_uint64 * len(Method)),
        ("seals", c_uint64),
        ("sealed_bytes", c_uint64),
        ("events", c_uint64 * len(Outcome) * len(Kind)),
        ("unverified", c_uint64 * len(Reason)),
        ("other_workloads", c_uint64 * len(Verdict)),
    ]


class Workload(ctypes.Structure):
    _fields_ = [("denials", c_uint64 * len(Verdict)), ("quota", c_uint64)]


class WorkloadQuota(ctypes.Structure):
    _fields_ = [("taken", c_uint64), ("given_back", c_uint64)]


class BucketKey(ctypes.Structure):
    _fields_ = [
        ("start_boot_ns", c_uint64),
        ("caller", c_uint64),
        ("pid", c_uint32),
        ("kind", c_uint8),
        ("what", c_uint8),
        ("reserved", c_uint16),
    ]


class Bucket(ctypes.Structure):
    _fields_ = [
        ("arrival", c_uint64),
        ("suppressed", c_uint64),
        ("first_suppressed_ns", c_uint64),
        ("last_suppressed_ns", c_uint64),
        ("last_used_ns", c_uint64),
        ("cgroup_id", c_uint64),
        ("task_name", c_char * TASK_NAME_SIZE),
    ]


class AnnouncedProcess(ctypes.Structure):
    _fields_ = [
        ("start_ticks", c_uint64),
        ("pid", c_uint32),
        ("reserved", c_uint32),
    ]


class Config(ctypes.Structure):
    _fields_ = [
        ("canary_start_ticks", c_uint64),
        ("canary_pid", c_uint32),
        ("announced", c_uint32),
        ("announced_processes", AnnouncedProcess * ANNOUNCED_PROCESSES),
        ("pid_namespace", c_uint32),
        ("workloads_max", c_uint32),
        ("sealed_mask", c_uint64),
        ("maybe_guard_mask", c_uint64),
        ("mmap_min_addr", c_uint64),
        ("event_interval_ns", c_uint64),
        ("event_burst_ns", c_uint64),
        ("host_interval_ns", c_uint64),
        ("host_burst_ns", c_uint64),
        ("ordinary_ring", c_uint64),
        ("hash_seed", c_uint64),
        ("system_slice", c_uint64),
        ("subtree_workloads", c_uint32),
        ("ordinary_workloads", c_uint32),
        ("emit_verdicts", c_uint32),
        ("emit_causes", c_uint16),
        ("emit_handled", c_uint16),
        ("emit_seals", c_uint8),
        ("partial_mprotect", c_uint8),
        ("partial_madvise", c_uint8),
        ("partial_mremap", c_uint8),
        ("anonymous_by_ops", c_uint8),
        ("raw_pokes", c_uint8),
        ("compat_pokes", c_uint8),
        ("guard_files", c_uint8),
        ("raw_operations", c_uint32),
        ("compat_operations", c_uint32),
        ("function_operations", c_uint32),
        ("raw_mseal", c_uint32),
        ("compat_mseal", c_uint32),
        ("one_cgroup", c_uint32),
    ]


def description() -> Iterator[str]:
    """Every structure with its members, and every enumeration, which an object must agree with."""
    for name, kind in sorted(globals().items()):
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            members = [
                f"{each} {field.offset} {field.size}"
                for each, *_ in kind._fields_
                for field in (getattr(kind, each),)
            ]
            yield f"{name} {ctypes.sizeof(kind)}: {', '.join(members)}"
        elif isinstance(kind, type) and issubclass(kind, IntEnum | IntFlag):
            yield f"{name}: {', '.join(f'{each.name} {each.value}' for each in kind)}"
