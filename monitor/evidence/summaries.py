"""The summary of an event: one line that a person understands at first glance."""

from __future__ import annotations

import os

from monitor.evidence.events import Mapping, Process, Sealed
from monitor.kernel import abi
from monitor.kernel.abi import Access, Cause, Disposition, Kind, Method, Reason, Role, Verdict
from monitor.kernel.operations import Decoded, Operation
from monitor.sizes import exact
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import plural

__all__ = ["bypass", "denial", "fault", "is_own", "seal", "suppression"]

SUMMARY_NAME_LIMIT = 28  # so that two names and two ranges fit into about 200 characters

_CALLED = {"other": "change"}  # all others by their own names
_WANTED_AT_DESTINATION = {"mremap": "tried to move memory over"}

_REASON_TEXT = {
    Reason.RANGE_TOO_LONG: "too many mappings in the range",
    Reason.SECCOMP: "or by a seccomp filter",
    Reason.UNKNOWN_LENGTH: "its length is unknown",
    Reason.OTHER_PROCESS: "in another process",
    Reason.CHANGED_MEANWHILE: "the mappings kept changing",
    Reason.OTHER_CAUSE: "or for another reason",
    Reason.LATE_SECCOMP: "or by a seccomp filter of its own",
    Reason.TRACED: "or by a tracer",
}
_ACCESS_TEXT = {
    Access.READ: "read of",
    Access.WRITE: "write to",
    Access.EXECUTE: "execution of",
}
_CAUSE_TEXT = {
    Cause.GUARD_REGION: "a guard region",
    Cause.PROT_NONE: "PROT_NONE memory",
    Cause.STACK_GUARD: "memory past the end of a stack",
    Cause.SEALED: "sealed memory",
    Cause.PKEY: "memory under a protection key",
    Cause.OTHER: "invalid memory",
}
_DISPOSITION_TEXT = {
    Disposition.DEFAULT: "died of SIGSEGV",
    Disposition.HANDLER: "got SIGSEGV, a handler was called",
    Disposition.HANDLER_FAILED: "died of SIGSEGV, its handler could not run",
    Disposition.HANDLER_ENDED: "ended in its handler of SIGSEGV",
}


def _range(start: int, length: int) -> str:
    return f"0x{start:x}-0x{start + length:x}" if length else f"0x{start:x}"


def _who(record: abi.Record, process: Process | None) -> str:
    name = printable(record.executable or record.task_name, SUMMARY_NAME_LIMIT)
    if process and process.program:  # by a dynamic loader
        name += f" running {printable(os.path.basename(process.program.path), SUMMARY_NAME_LIMIT)}"
    return f"{name} (pid {record.pid})"


def _what(mapping: Mapping | Sealed | None, prefix: str = "") -> str:
    """The mapping in a few words and in parentheses, to follow the range; empty without one."""
    if mapping is None:
        return ""
    if mapping.file is not None:
        label = printable(os.path.basename(mapping.file.path), SUMMARY_NAME_LIMIT)
        if label.startswith("["):  # only the kernel's own mappings are shown by such a name
            label = f"file {label}"
    else:
        label = printable(mapping.name or "anonymous", SUMMARY_NAME_LIMIT)
    return f" ({prefix}{mapping.permissions}, {label})"


def _refused(operation: Operation, verdict: Verdict, reason: Reason, hidden: bool) -> str:
    unseen = ", unknown to the caller" if hidden else ""
    call = _CALLED.get(operation.name, operation.name)
    if verdict is Verdict.SEALED:
        return f"{call} of sealed memory refused{unseen}"
    if verdict is Verdict.NOT_SEALED:
        return f"{call} refused, not by a seal{unseen}"
    why = f" ({_REASON_TEXT[reason]})" if reason is not Reason.NONE else ""
    return f"{call} refused{unseen}, perhaps by a seal{why}"


def _with(text: str, probably: str) -> str:
    return f"{text}; {probably}" if probably else text


def denial(
    record: abi.Record,
    process: Process | None,
    operation: Operation,
    arguments: dict[str, Decoded],
    sealed: Sealed | None,
    *,
    verdict: Verdict,
    reason: Reason,
    role: Role,
    hidden: bool,
    by_kernel: bool,
    probably: str,
) -> str:
    """`by_kernel`: it was the kernel that sealed the memory."""
    wanted = operation.wanted
    if role is Role.DESTINATION:
        wanted = _WANTED_AT_DESTINATION.get(operation.name, wanted)
    text = (
        f"{_refused(operation, verdict, reason, hidden)}: {_who(record, process)} "
        f"{wanted.format_map(arguments)} {_range(record.address, record.length)}"
        f"{_what(sealed, 'sealed by the kernel, ' if by_kernel else 'sealed ')}"
    )
    if record.partial_end > record.partial_start:
        text += (
            f"; the {exact(record.partial_end - record.partial_start)} before the seal were changed"
        )
    return _with(text, probably)


# include/uapi/asm-generic/siginfo.h, SEGV_*: what no page was the reason for.
_CODE_TEXT = {
    8: "memory that has another tag (MTE, noticed later)",
    9: "memory that has another tag (MTE)",
    10: "a shadow stack that differs",  # x86: CET, arm64: GCS
}


def fault(
    record: abi.Record,
    process: Process | None,
    mapping: Mapping | None,
    *,
    cause: Cause,
    access: Access,
    disposition: Disposition,
    inferred: bool,
    pkey: int | None,
    probably: str,
) -> str:
    what = _CODE_TEXT.get(record.signal_code, _CAUSE_TEXT[cause])
    if pkey is not None:
        what = f"memory under protection key {pkey}"
    who, fate = _who(record, process), _DISPOSITION_TEXT[disposition]
    text = (
        f"{_ACCESS_TEXT[access]} {what}{' (inferred)' if inferred else ''} at "
        f"0x{record.address:x}{_what(mapping)}: {who} {fate}"
    )
    return _with(text, probably)


def seal(record: abi.Record, process: Process | None, mapping: Mapping | None) -> str:
    return (
        f"{_who(record, process)} sealed {exact(record.length)} at "
        f"{_range(record.address, record.length)}{_what(mapping)}"
    )


_CHANGED = {
    Method.MADVISE_DISCARD: ("discard of sealed memory", "dropped the copy of"),
    Method.PTRACE_POKE: ("write to sealed memory by ptrace", "wrote to"),
    Method.PROC_MEM_WRITE: ("write to sealed memory through /proc/PID/mem", "wrote to"),
    Method.USERFAULTFD_COPY: ("sealed memory filled by userfaultfd", "gave the content of"),
    Method.GUARD_REMOVE: ("guard taken out of sealed memory", "opened"),
    Method.USERFAULTFD_MOVE: ("pages moved around a seal by userfaultfd", "moved"),
}


def is_own(record: abi.Record) -> bool:
    """Whether the process changed its own memory."""
    target = record.bypass
    return (target.pid, target.start_boot_ns) == (record.pid, record.start_boot_ns)


def bypass(
    record: abi.Record, process: Process | None, sealed: Sealed, method: Method, probably: str
) -> str:
    """`probably`: the words of its assessment."""
    what, did = _CHANGED[method]
    target = record.bypass
    whose = ""
    if target.pid and not is_own(record):
        name = printable(target.executable or target.task_name, SUMMARY_NAME_LIMIT)
        whose = f" of {name} (pid {target.pid})"
    return (
        f"{what}: {_who(record, process)} {did} {_range(record.address, record.length)}{whose}"
        f"{_what(sealed, 'sealed ')}{f'; {probably}' if probably else ''}"
    )


def suppression(process: Process | None, bucket: abi.Bucket, kind: Kind, what: str) -> str:
    """`what` is the operation, cause or method; it is empty, and there is no process, for the
    bucket that many callers share.
    """
    who = ""
    if process is not None:
        who = f" of {printable(process.name, SUMMARY_NAME_LIMIT)} (pid {process.pid})"
    kinds = kind.label if bucket.suppressed == 1 else plural(kind.label)
    seconds = (bucket.last_suppressed_ns - bucket.first_suppressed_ns) / 1e9
    when = f"in {seconds:.1f} s" if seconds >= 0.05 else "at once"
    return (
        f"{bucket.suppressed:,} more {what}{' ' if what else ''}{kinds}{who} "
        f"{when}, counted but not reported singly"
    )
