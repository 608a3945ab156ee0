"""Pure functions: facts from the kernel -> an event that a person understands.

What a monitored process chose (names, paths) passes through `printable` before it goes anywhere.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

from monitor import abi
from monitor.abi import Access, Cause, Disposition, Kind, Reason, RecordFlag, Role, Verdict
from monitor.events import (
    AddressRange,
    Denial,
    Fault,
    File,
    Frame,
    Mapping,
    Origin,
    Process,
    Seal,
    Sealed,
    Severity,
    Suppression,
    timestamp,
)
from monitor.operations import OPERATIONS, Operation, decode_arguments

__all__ = ["ClassifyError", "classify", "printable", "suppression"]

PAGE_SIZE = 4096
NAME_LIMIT = 256
PATH_LIMIT = 4096
SUMMARY_NAME_LIMIT = 28  # two names and two ranges in a summary of about 200 characters
SEGV_PKUERR = 4  # include/uapi/asm-generic/siginfo.h; only then is si_pkey set

_E = TypeVar("_E", bound=IntEnum)

_DENIAL_SEVERITY: dict[Verdict, Severity] = {
    Verdict.SEALED: "critical",
    Verdict.NOT_SEALED: "info",
    Verdict.UNVERIFIED: "warning",
}
# By cause: when the process dies of it, and when a handler of its own is invoked.
_FAULT_SEVERITY: dict[Cause, tuple[Severity, Severity]] = {
    Cause.GUARD_REGION: ("warning", "info"),
    Cause.PROT_NONE: ("warning", "info"),
    Cause.STACK_GUARD: ("warning", "info"),
    Cause.SEALED: ("critical", "warning"),
    Cause.PKEY: ("warning", "info"),
    Cause.OTHER: ("info", "info"),
}
_SUPPRESSION_SEVERITY: dict[Kind, Severity] = {
    Kind.DENIAL: "warning",
    Kind.FAULT: "warning",
    Kind.SEAL: "info",
}

# What the process wanted, in front of the range; {fields} are decoded arguments.
_WANTED = {
    "mprotect": "asked for {prot} on",
    "pkey_mprotect": "asked for {prot} with key {pkey} on",
    "munmap": "tried to unmap",
    "mremap": "tried to move or resize",
    "mmap": "tried to map over",
    "madvise": "advised {advice} on",
    "process_madvise": "advised {advice} on",
    "shmat": "tried to attach shared memory over",
    "shmdt": "tried to detach shared memory at",
    "brk": "tried to give back heap memory at",
    "remap_file_pages": "tried to remap pages of",
    "io_uring_madvise": "advised {advice} on",
}
_WANTED_AT_DESTINATION = {"mremap": "tried to move memory over"}

_REASON_TEXT = {
    Reason.RANGE_TOO_LONG: "too many mappings in the range",
    Reason.SECCOMP: "or by a seccomp filter",
    Reason.UNKNOWN_LENGTH: "its length is unknown",
    Reason.OTHER_PROCESS: "in another process",
    Reason.CHANGED_MEANWHILE: "the mappings kept changing",
    Reason.OTHER_CAUSE: "or for another reason",
}
_ACCESS_TEXT = {
    Access.READ: "read of",
    Access.WRITE: "write to",
    Access.EXECUTE: "execution of",
}
_CAUSE_TEXT = {
    Cause.GUARD_REGION: "a guard region",
    Cause.PROT_NONE: "PROT_NONE memory",
    Cause.STACK_GUARD: "the stack guard",
    Cause.SEALED: "sealed memory",
    Cause.PKEY: "memory under a protection key",
    Cause.OTHER: "invalid memory",
}
_DISPOSITION_TEXT = {
    Disposition.DEFAULT: "died of SIGSEGV",
    Disposition.HANDLER: "got SIGSEGV in a handler of its own",
    Disposition.HANDLER_FAILED: "died of SIGSEGV, its handler could not run",
}


class ClassifyError(ValueError):
    """A record that no BPF program of this version writes."""


def printable(raw: bytes | str, limit: int = NAME_LIMIT) -> str:
    r"""`raw` as at most `limit` characters that are safe on a terminal, in JSON and in a log.

    Quotes and what is not printable (control, format and bidi characters, odd spaces) become \xNN,
    \uNNNN or \UNNNNNNNN, bytes that are not UTF-8 \xNN; an ellipsis ends what was cut. Applied
    twice it changes nothing, so a backslash stays as it is.
    """
    # Four bytes make a character at most: what is cut off here is beyond the limit anyway.
    start = raw[: 4 * (limit + 1)]
    text = start.decode("utf-8", "surrogateescape") if isinstance(start, bytes) else start
    if len(text) <= limit and text.isprintable() and '"' not in text and "'" not in text:
        return text
    pieces = [_escaped(character) for character in text[: limit + 1]]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    kept = 0
    length = 1  # the ellipsis
    while length + len(pieces[kept]) <= limit:
        length += len(pieces[kept])
        kept += 1
    return "".join(pieces[:kept]) + "\N{HORIZONTAL ELLIPSIS}"


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\"'":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape keeps it
        code -= 0xDC00
        return f"\\x{code:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _member(enumeration: type[_E], value: int) -> _E:
    try:
        return enumeration(value)
    except ValueError as error:
        raise ClassifyError(
            f"corrupt record: {value} is no {enumeration.__name__.lower()}"
        ) from error


def _operation(index: int) -> Operation:
    if index >= len(OPERATIONS):
        raise ClassifyError(f"corrupt record: {index} is no operation")
    return OPERATIONS[index]


def _address(value: int) -> str:
    return f"0x{value:x}"


def _range(start: int, length: int) -> str:
    return f"0x{start:x}-0x{start + length:x}" if length else f"0x{start:x}"


def _size(length: int) -> str:
    """Exact, in the largest unit that needs no fraction."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if length and not length & ((1 << shift) - 1):
            return f"{length >> shift} {unit}"
    return f"{length} bytes"


def _permissions(flags: int) -> str:
    """From vm_flags, whose bits 0 to 3 are VM_READ, VM_WRITE, VM_EXEC and VM_SHARED."""
    text = "".join(letter if flags & 1 << bit else "-" for bit, letter in enumerate("rwx"))
    return text + ("s" if flags & 8 else "p")


def _file(mapping: abi.Mapping, file_path: str | None) -> File | None:
    if not (mapping.file or mapping.inode or mapping.device):
        return None
    return File(
        path=printable(file_path or mapping.file, PATH_LIMIT),
        device=f"{mapping.device >> 20}:{mapping.device & 0xFFFFF}",
        inode=mapping.inode,
        offset=mapping.page_offset * PAGE_SIZE,
    )


def _mapping(mapping: abi.Mapping, sealed_mask: int, file_path: str | None) -> Mapping | None:
    if not mapping.end:
        return None
    return Mapping(
        start=_address(mapping.start),
        end=_address(mapping.end),
        permissions=_permissions(mapping.flags),
        sealed=bool(mapping.flags & sealed_mask),
        file=_file(mapping, file_path),
        name=printable(mapping.name) or None,
    )


def _sealed(mapping: Mapping | None, verdict: Verdict) -> Sealed | None:
    """The seal that explains the refusal, or may explain it; none for not_sealed."""
    if mapping is None or verdict is Verdict.NOT_SEALED:
        return None
    if verdict is Verdict.UNVERIFIED and not mapping.sealed:
        return None
    return Sealed(mapping.start, mapping.end, mapping.permissions, mapping.file, mapping.name)


def _stack(record: abi.Record) -> tuple[Frame, ...]:
    """The frames of a struct bpf_stack_build_id array (include/uapi/linux/bpf.h)."""
    if record.stack_size > abi.STACK_FRAMES * abi.STACK_FRAME_SIZE:
        raise ClassifyError(f"corrupt record: a stack of {record.stack_size} bytes")
    used = record.stack_size - record.stack_size % abi.STACK_FRAME_SIZE
    frames = []
    for status, build_id, value in struct.iter_unpack("<i20sQ", bytes(record.stack)[:used]):
        if status == 1:  # BPF_STACK_BUILD_ID_VALID: the offset takes the address's place
            frames.append(Frame(None, None, build_id.hex(), value, None))
        elif status == 2:  # BPF_STACK_BUILD_ID_IP
            frames.append(Frame(_address(value), None, None, None, None))
        else:
            break
    return tuple(frames)


def _who(record: abi.Record) -> str:
    name = printable(record.executable or record.task_name, SUMMARY_NAME_LIMIT)
    return f"{name} (pid {record.pid})"


def _what(mapping: Mapping | Sealed | None, prefix: str = "") -> str:
    """The mapping in a few words, in parentheses after the range; empty without one."""
    if mapping is None:
        return ""
    if mapping.file is not None:
        label = printable(os.path.basename(mapping.file.path), SUMMARY_NAME_LIMIT)
    else:
        label = printable(mapping.name or "anonymous", SUMMARY_NAME_LIMIT)
    return f" ({prefix}{mapping.permissions}, {label})"


def _values(record: abi.Record, operation: Operation) -> list[int]:
    """The arguments as the kernel read them: 32 bits for a 32-bit call, mmap2 counts in pages."""
    values = list(record.arguments)
    if record.flags & RecordFlag.COMPAT:
        values = [value & 0xFFFFFFFF for value in values]
        if operation.name == "mmap":
            values[5] *= PAGE_SIZE
    return values


def _refused(operation: Operation, verdict: Verdict, reason: Reason, hidden: bool) -> str:
    told = ", unknown to the caller" if hidden else ""
    if verdict is Verdict.SEALED:
        return f"{operation.name} of sealed memory refused{told}"
    if verdict is Verdict.NOT_SEALED:
        return f"{operation.name} refused, not by a seal{told}"
    why = f" ({_REASON_TEXT[reason]})" if reason is not Reason.NONE else ""
    return f"{operation.name} refused{told}, perhaps by a seal{why}"


def _denial(record: abi.Record, origin: Origin, sealed_mask: int, path: str | None) -> Denial:
    operation = _operation(record.operation)
    verdict = _member(Verdict, record.verdict)
    reason = _member(Reason, record.reason)
    role = _member(Role, record.role)
    hidden = bool(record.flags & RecordFlag.HIDDEN)
    arguments = decode_arguments(operation, _values(record, operation))
    sealed = _sealed(_mapping(record.mapping, sealed_mask, path), verdict)
    stack = _stack(record)

    wanted = _WANTED[operation.name]
    if role is Role.DESTINATION:
        wanted = _WANTED_AT_DESTINATION.get(operation.name, wanted)
    summary = (
        f"{_refused(operation, verdict, reason, hidden)}: {_who(record)} "
        f"{wanted.format_map(arguments)} {_range(record.address, record.length)}"
        f"{_what(sealed, 'sealed ')}"
    )
    partial = None
    if record.partial_end > record.partial_start:
        partial = AddressRange(_address(record.partial_start), _address(record.partial_end))
        changed = _size(record.partial_end - record.partial_start)
        summary += f"; the {changed} before it were changed"
    return Denial(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=_DENIAL_SEVERITY[verdict],
        summary=summary,
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        operation=operation.name,
        arguments=arguments,
        verdict=verdict.label,
        reason=reason.label if reason is not Reason.NONE else None,
        role=role.label,
        sealed=sealed,
        partial_update=partial,
        hidden=hidden,
        compat=bool(record.flags & RecordFlag.COMPAT),
        instruction_pointer=_address(record.instruction_pointer),
        caller=_address(record.caller),
        stack=stack,
        stack_complete=0 < len(stack) < abi.STACK_FRAMES,
    )


def _fault(record: abi.Record, origin: Origin, sealed_mask: int, path: str | None) -> Fault:
    cause = _member(Cause, record.cause)
    disposition = _member(Disposition, record.disposition)
    access = _member(Access, record.access)
    inferred = bool(record.flags & RecordFlag.INFERRED)
    mapping = _mapping(record.mapping, sealed_mask, path)
    pkey = record.pkey if record.signal_code == SEGV_PKUERR else None
    dies, handled = _FAULT_SEVERITY[cause]

    what = _CAUSE_TEXT[cause] if pkey is None else f"memory under protection key {pkey}"
    return Fault(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=handled if disposition is Disposition.HANDLER else dies,
        summary=(
            f"{_ACCESS_TEXT[access]} {what}{' (inferred)' if inferred else ''} at "
            f"{_address(record.address)}{_what(mapping)}: "
            f"{_who(record)} {_DISPOSITION_TEXT[disposition]}"
        ),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        cause=cause.label,
        inferred=inferred,
        access=access.label,
        address=_address(record.address),
        mapping=mapping,
        disposition=disposition.label,
        instruction_pointer=_address(record.instruction_pointer),
        pkey=pkey,
        signal_code=record.signal_code,
        stack=_stack(record),
    )


def _seal(record: abi.Record, origin: Origin, sealed_mask: int, path: str | None) -> Seal:
    mapping = _mapping(record.mapping, sealed_mask, path)
    return Seal(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity="info",
        summary=(
            f"{_who(record)} sealed {_size(record.length)} at "
            f"{_range(record.address, record.length)}{_what(mapping)}"
        ),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        start=_address(record.address),
        length=record.length,
        mapping=mapping,
    )


_CLASSIFIERS: dict[Kind, Callable[[abi.Record, Origin, int, str | None], Denial | Fault | Seal]] = {
    Kind.DENIAL: _denial,
    Kind.FAULT: _fault,
    Kind.SEAL: _seal,
}


def classify(
    record: abi.Record, origin: Origin, *, sealed_mask: int, file_path: str | None = None
) -> Denial | Fault | Seal:
    """The event of one record, with its severity and summary.

    `sealed_mask` is VM_SEALED of the running kernel; `file_path` the path of the mapped file where
    more than its base name is known. Raises ClassifyError for a record that is corrupt.
    """
    return _CLASSIFIERS[_member(Kind, record.kind)](record, origin, sealed_mask, file_path)


def suppression(
    key: abi.BucketKey, bucket: abi.Bucket, origin: Origin, *, offset_ns: int
) -> Suppression:
    """The event that tells of `bucket.suppressed` events that the rate limit held back.

    The process comes from the bucket, not from `origin`; pid 0 is the bucket shared by all that
    found no place of their own. `offset_ns` is the real-time clock less the boot clock. Raises
    ClassifyError for a key that is corrupt.
    """
    kind = _member(Kind, key.kind)
    process = operation = cause = None
    who = what = ""
    if key.pid:
        name = printable(bucket.task_name)
        process = Process(
            key.pid, None, None, None, name, None, None, None, None, None, None
        )  # the bucket knows no more
        who = f" of {printable(bucket.task_name, SUMMARY_NAME_LIMIT)} (pid {key.pid})"
        if kind is Kind.DENIAL:
            operation = what = _operation(key.what).name
        elif kind is Kind.FAULT:
            cause = what = _member(Cause, key.what).label
    plural = "s" if bucket.suppressed != 1 else ""
    seconds = (bucket.last_suppressed_ns - bucket.first_suppressed_ns) / 1e9
    return Suppression(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=_SUPPRESSION_SEVERITY[kind],
        summary=(
            f"{bucket.suppressed} more {what}{' ' if what else ''}{kind.label}{plural}{who} "
            f"in {seconds:.1f} s, counted but not told one by one"
        ),
        host=origin.host,
        process=process,
        workload=origin.workload,
        of=kind.label,
        operation=operation,
        cause=cause,
        caller=_address(key.caller) if key.pid else None,
        count=bucket.suppressed,
        first=timestamp(bucket.first_suppressed_ns, offset_ns),
        last=timestamp(bucket.last_suppressed_ns, offset_ns),
    )
