"""Pure functions that make an event, which a person understands, from the kernel's facts.

What a monitored process chose (names, paths) passes through `printable` first.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

from monitor.evidence import stacks, summaries
from monitor.evidence.assessment import (
    BYPASSES,
    FAULTS,
    BypassFacts,
    DenialFacts,
    FaultFacts,
    caller_of,
    first_denial,
    first_fit,
)
from monitor.evidence.debuggers import is_debugger
from monitor.evidence.events import (
    AddressRange,
    Bypass,
    Denial,
    Fault,
    File,
    Frame,
    Mapping,
    Origin,
    Seal,
    Sealed,
    Severity,
    Suppression,
    Target,
    timestamp,
)
from monitor.evidence.libraries import Role as LibraryRole
from monitor.kernel import abi
from monitor.kernel.abi import (
    Access,
    Cause,
    Disposition,
    Kind,
    Method,
    Reason,
    RecordFlag,
    Role,
    Verdict,
)
from monitor.kernel.arch import PAGE_SIZE
from monitor.kernel.operations import OPERATIONS, Operation, decode_arguments
from monitor.untrusted.printable import printable

__all__ = ["PATH_LIMIT", "ClassifyError", "classify", "suppression"]

PATH_LIMIT = 4096
SEGV_PKUERR = 4  # include/uapi/asm-generic/siginfo.h; only then is si_pkey set

_E = TypeVar("_E", bound=IntEnum)

# All else that keeps a refusal from being proved a process can bring about itself, so that such a
# refusal weighs no less than a proved one.
_NOT_ITS_OWN = (Reason.OTHER_PROCESS,)

# Where no row of the table fits.
_DENIAL_SEVERITY: dict[Verdict, Severity] = {
    Verdict.SEALED: "critical",
    Verdict.NOT_SEALED: "info",
    Verdict.UNVERIFIED: "warning",
}


class ClassifyError(ValueError):
    """A record that no BPF program of this version writes."""


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
    try:
        return stacks.frames(record.stack)
    except ValueError as error:
        raise ClassifyError(f"corrupt record: {error}") from error


def _values(record: abi.Record, operation: Operation) -> list[int]:
    """The arguments as the kernel read them: 32 bits for a 32-bit call; mmap2 counts in pages."""
    values = list(record.arguments)
    if record.flags & RecordFlag.COMPAT:
        values = [value & 0xFFFFFFFF for value in values]
        if operation.name == "mmap":
            values[5] *= PAGE_SIZE
    return values


def _denial(
    record: abi.Record,
    origin: Origin,
    sealed_mask: int,
    path: str | None,
    *,
    role_of: Callable[[abi.Module], LibraryRole | None],
    kernel_seals: bool,
) -> Denial:
    operation = _operation(record.operation)
    verdict = _member(Verdict, record.verdict)
    reason = _member(Reason, record.reason)
    role = _member(Role, record.role)
    hidden = bool(record.flags & RecordFlag.HIDDEN)
    arguments = decode_arguments(operation, _values(record, operation))
    sealed = _sealed(_mapping(record.mapping, sealed_mask, path), verdict)
    stack, caller = _stack(record), _address(record.caller)
    if verdict is Verdict.UNVERIFIED and reason not in _NOT_ITS_OWN:
        weight = Verdict.SEALED
    else:
        weight = verdict
    facts = DenialFacts(
        operation.name,
        arguments,
        sealed,
        role is Role.DESTINATION,
        caller_of(record.stack, record.caller, role_of),
    )
    row = first_denial(facts) if weight is Verdict.SEALED else None
    # Without the mapping it would be a guess from half of the facts.
    named = row if sealed else None

    summary = summaries.denial(
        record,
        origin.process,
        operation,
        arguments,
        sealed,
        verdict=verdict,
        reason=reason,
        role=role,
        hidden=hidden,
        by_kernel=kernel_seals and facts.is_system,
        probably=named.words if named else "",
    )
    partial = None
    if record.partial_end > record.partial_start:
        partial = AddressRange(_address(record.partial_start), _address(record.partial_end))
    return Denial(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=row.severity if row else _DENIAL_SEVERITY[weight],
        summary=summary,
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        operation=operation.name,
        arguments=arguments,
        verdict=verdict.label,
        reason=reason.label if reason is not Reason.NONE else None,
        assessment=named.assessment if named else None,
        role=role.label,
        sealed=sealed,
        partial_update=partial,
        hidden=hidden,
        compat=bool(record.flags & RecordFlag.COMPAT),
        instruction_pointer=_address(record.instruction_pointer),
        caller=caller,
        stack=stack,
        stack_complete=bool(record.stack.complete),
    )


def _fault(record: abi.Record, origin: Origin, sealed_mask: int, path: str | None) -> Fault:
    cause = _member(Cause, record.cause)
    disposition = _member(Disposition, record.disposition)
    access = _member(Access, record.access)
    inferred = bool(record.flags & RecordFlag.INFERRED)
    mapping = _mapping(record.mapping, sealed_mask, path)
    pkey = record.pkey if record.signal_code == SEGV_PKUERR else None
    is_handled = disposition is Disposition.HANDLER
    row = first_fit(FAULTS, FaultFacts(cause.label, access.label, mapping, is_handled))

    return Fault(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=row.severity if row else "info",
        summary=summaries.fault(
            record,
            origin.process,
            mapping,
            cause=cause,
            access=access,
            disposition=disposition,
            inferred=inferred,
            pkey=pkey,
            probably=row.words if row else "",
        ),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        cause=cause.label,
        inferred=inferred,
        assessment=row.assessment if row else None,
        access=access.label,
        address=_address(record.address),
        mapping=mapping,
        disposition=disposition.label,
        instruction_pointer=_address(record.instruction_pointer),
        pkey=pkey,
        signal_code=record.signal_code,
        stack=_stack(record),
        stack_complete=bool(record.stack.complete),
    )


def _seal(record: abi.Record, origin: Origin, sealed_mask: int, path: str | None) -> Seal:
    mapping = _mapping(record.mapping, sealed_mask, path)
    return Seal(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity="info",
        summary=summaries.seal(record, origin.process, mapping),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        start=_address(record.address),
        length=record.length,
        mapping=mapping,
        caller=_address(record.caller),
        stack=_stack(record),
        stack_complete=bool(record.stack.complete),
    )


def _bypass(
    record: abi.Record, origin: Origin, sealed_mask: int, path: str | None, target: Target | None
) -> Bypass:
    method = _member(Method, record.bypass.method)
    mapping = _mapping(record.mapping, sealed_mask, path)
    if mapping is None:
        raise ClassifyError("corrupt record: a bypass without a mapping")
    sealed = Sealed(mapping.start, mapping.end, mapping.permissions, mapping.file, mapping.name)
    facts = BypassFacts(method.label, sealed, summaries.is_own(record), is_debugger(origin.process))
    row = first_fit(BYPASSES, facts)
    end = record.address + record.length
    if end >> 64:
        raise ClassifyError("corrupt record: a range that has no end")
    return Bypass(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=row.severity if row else "critical",
        summary=summaries.bypass(record, origin.process, sealed, method, row.words if row else ""),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        method=method.label,
        assessment=row.assessment if row else None,
        target=target,
        changed=AddressRange(_address(record.address), _address(end)),
        sealed=sealed,
        compat=bool(record.flags & RecordFlag.COMPAT),
        instruction_pointer=_address(record.instruction_pointer),
        caller=_address(record.caller),
        stack=_stack(record),
        stack_complete=bool(record.stack.complete),
    )


_CLASSIFIERS: dict[Kind, Callable[[abi.Record, Origin, int, str | None], Fault | Seal]] = {
    Kind.FAULT: _fault,
    Kind.SEAL: _seal,
}


def classify(
    record: abi.Record,
    origin: Origin,
    *,
    sealed_mask: int,
    file_path: str | None = None,
    target: Target | None = None,
    role_of: Callable[[abi.Module], LibraryRole | None] = lambda _: None,
    kernel_seals: bool = False,
) -> Denial | Fault | Seal | Bypass:
    """The event of one record, with its severity and summary.

    `sealed_mask` is VM_SEALED of the running kernel; `file_path` the full path of the mapped file,
    where it is known; `target` the process whose memory a bypass changed; `role_of` says whether a
    module is the host's own loader or allocator; `kernel_seals`: this kernel seals the mappings
    that it makes itself, such as the vdso. Raises ClassifyError for a corrupt record.
    """
    kind = _member(Kind, record.kind)
    if kind is Kind.BYPASS:
        return _bypass(record, origin, sealed_mask, file_path, target)
    if kind is Kind.DENIAL:
        return _denial(
            record,
            origin,
            sealed_mask,
            file_path,
            role_of=role_of,
            kernel_seals=kernel_seals,
        )
    return _CLASSIFIERS[kind](record, origin, sealed_mask, file_path)


def suppression(
    key: abi.BucketKey,
    bucket: abi.Bucket,
    origin: Origin,
    *,
    severity: Severity,
    offset_ns: int,
) -> Suppression:
    """The event that reports the `bucket.suppressed` events that the rate limit suppressed.

    `severity` is theirs. Pid 0 means many processes of a kind, and `origin` has none; caller 0
    several callers of a process. `offset_ns` is the real-time clock minus the boot clock.
    Raises ClassifyError for a corrupt key.
    """
    kind = _member(Kind, key.kind)
    operation = cause = method = None
    what = ""
    if key.pid:
        if kind is Kind.DENIAL:
            operation = what = _operation(key.what).name
        elif kind is Kind.FAULT:
            cause = what = _member(Cause, key.what).label
        elif kind is Kind.BYPASS:
            method = what = _member(Method, key.what).label
    return Suppression(
        id=origin.id,
        time=origin.time,
        time_boot_ns=origin.time_boot_ns,
        severity=severity,
        summary=summaries.suppression(origin.process, bucket, kind, what),
        host=origin.host,
        process=origin.process,
        workload=origin.workload,
        of=kind.label,
        operation=operation,
        cause=cause,
        method=method,
        caller=_address(key.caller) if key.caller else None,
        count=bucket.suppressed,
        first=timestamp(bucket.first_suppressed_ns, offset_ns),
        last=timestamp(bucket.last_suppressed_ns, offset_ns),
    )
