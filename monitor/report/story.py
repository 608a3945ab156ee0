"""A violation in words: what an event means to a person who has never heard of mseal.

Pure functions of an event as it is stored. The event may have a kind or fields that this version
does not know, or come from another host; missing fields are left out. The sentences have no
straight quotes: these would be escaped like those of a process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from monitor.evidence.assessment import BYPASSES, DENIALS, FAULTS, Row
from monitor.kernel.arch import PAGE_SIZE
from monitor.kernel.operations import OPERATIONS
from monitor.sizes import rounded

__all__ = [
    "ANONYMOUS",
    "Extent",
    "address",
    "asked",
    "assessment",
    "call",
    "changed",
    "ending",
    "extent",
    "found_at",
    "hit",
    "method",
    "place",
    "proof",
    "result",
    "value",
    "what",
    "would",
]

ANONYMOUS = "anonymous memory"
_HIGHEST = 1 << 64

Event = Mapping[str, Any]


class Extent(NamedTuple):
    """A range of addresses, without `end`."""

    start: int
    end: int


# ---- Reading an event that nobody has checked ----------------------------------------------------


def value(event: object, *path: str) -> Any:
    """The value at the path; None if there is none."""
    for name in path:
        if not isinstance(event, Mapping):
            return None
        event = event.get(name)
    return event


def address(text: object) -> int | None:
    """The address in a text "0x..." of an event; None for anything else."""
    if not isinstance(text, str) or not re.fullmatch("0x[0-9a-f]{1,17}", text):
        return None
    number = int(text, 16)
    return number if number <= _HIGHEST else None


def extent(part: object) -> Extent | None:
    """The range of an object with `start` and `end`; None if it is empty or not such an object."""
    start, end = address(value(part, "start")), address(value(part, "end"))
    return Extent(start, end) if start is not None and end is not None and start < end else None


def _whole(number: object) -> int | None:
    return number if isinstance(number, int) and not isinstance(number, bool) else None


# ---- Where ---------------------------------------------------------------------------------------

_OPERATIONS = {operation.name: operation for operation in OPERATIONS}
_MREMAP = {"source": ("old_address", "old_size"), "destination": ("new_address", "new_size")}


def _range(event: Event) -> tuple[str, ...]:
    """Names of the arguments that are the range: address and length, or only the address."""
    name = str(event.get("operation"))
    if name == "mremap":
        return _MREMAP.get(str(event.get("role")), ())
    return _OPERATIONS[name].range if name in _OPERATIONS else ()


def asked(event: Event) -> Extent | None:
    """The range of the call, in whole pages as the kernel rounds it; None if it is not known."""
    if event.get("kind") == "seal":
        start, length = address(event.get("start")), _whole(event.get("length"))
    else:
        names = _range(event)
        if len(names) != 2:
            return extent(event.get("range"))
        start = address(value(event, "arguments", names[0]))
        length = _whole(value(event, "arguments", names[1]))
    if start is None or length is None or length <= 0:
        return None
    end = min(start + length, _HIGHEST)
    return Extent(start, min(-(-end // PAGE_SIZE) * PAGE_SIZE, _HIGHEST)) if start < end else None


def found_at(event: Event) -> int | None:
    """The address of a fault, or of a call without a length."""
    if event.get("kind") == "fault":
        return address(event.get("address"))
    names = _range(event)
    return address(value(event, "arguments", *names)) if len(names) == 1 else None


def place(mapping: object) -> str:
    """The mapping's file, its name, or that it is anonymous."""
    path, name = value(mapping, "file", "path"), value(mapping, "name")
    if isinstance(path, str):
        return path
    return name if isinstance(name, str) and name else ANONYMOUS


def changed(event: Event) -> Extent | None:
    """The range that a call had changed before it was refused, or that a bypass changed."""
    return extent(event.get("changed" if event.get("kind") == "bypass" else "partial_update"))


# ---- What the process wanted ---------------------------------------------------------------------

_PROTECTIONS = (("r", "PROT_READ"), ("w", "PROT_WRITE"), ("x", "PROT_EXEC"))
_PROTECTION_WORDS = (("r", "readable"), ("w", "writable"), ("x", "executable"))
_EXTRA = {"growsdown": "PROT_GROWSDOWN", "growsup": "PROT_GROWSUP", "sem": "PROT_SEM"}


def _prot(text: str) -> str:
    base, *extra = text.split("+")
    names = [name for letter, name in _PROTECTIONS if letter in base]
    return " | ".join([*(names or ["PROT_NONE"]), *(_EXTRA.get(word, word) for word in extra)])


def _protection(text: object) -> str:
    base = text.partition("+")[0] if isinstance(text, str) else ""
    words = [word for letter, word in _PROTECTION_WORDS if letter in base]
    if len(words) > 1:
        return f"{', '.join(words[:-1])} and {words[-1]}"
    return "read-only" if words == ["readable"] else "".join(words) or "inaccessible"


def _argument(name: str, given: object) -> str:
    if name == "prot" and isinstance(given, str):
        return _prot(given)
    if isinstance(given, list):
        return " | ".join(map(str, given)) or "0"
    return str(given)


def call(event: Event) -> str:
    """The system call as a program would write it, with its arguments named as in the man page."""
    operation, arguments = str(event.get("operation")), event.get("arguments")
    if operation == "other":
        return f"system call {value(arguments, 'system_call')}"
    named = (
        [f"{name} = {_argument(str(name), given)}" for name, given in arguments.items()]
        if isinstance(arguments, Mapping)
        else ["…"]
    )
    return f"{operation}({', '.join(named)})"


def result(event: Event) -> str:
    """What the call returned to its caller."""
    operation = event.get("operation")
    if event.get("hidden"):
        return {
            "brk": "the old break, as if nothing had been asked: the refusal is hidden",
            "shmdt": "0, as if it had been done: the refusal is hidden",
            "process_madvise": "the number of bytes done before: the refusal is hidden",
        }.get(str(operation), "nothing of the refusal: it is hidden from the caller")
    if operation == "io_uring_madvise":
        return "-EPERM (operation not permitted) in the completion queue"
    return "-1, errno EPERM (operation not permitted)"


_ADVICE = {
    "MADV_DONTNEED": "thrown away the contents of {it}: anonymous memory would read as zeros",
    "MADV_DONTNEED_LOCKED": "thrown away the contents of {it}: it would read as zeros",
    "MADV_FREE": "let the kernel throw away the contents of {it} when it needs memory",
    "MADV_REMOVE": "removed the pages of {it}, and what lies behind them in the file",
    "MADV_DONTFORK": "kept {it} out of processes forked from this one",
    "MADV_WIPEONFORK": "given zeros in place of {it} to processes forked from this one",
    "MADV_GUARD_INSTALL": "thrown away the contents of {it} and made every access a SIGSEGV",
}


def _of_madvise(event: Event) -> str:
    advice = str(value(event, "arguments", "advice"))
    return _ADVICE.get(advice, "applied the advice to {it}")


def _of_mprotect(event: Event) -> str:
    return f"made {{it}} {_protection(value(event, 'arguments', 'prot'))}"


def _of_mremap(event: Event) -> str:
    is_destination = event.get("role") == "destination"
    return "put other memory in place of {it}" if is_destination else "moved or resized {it}"


# What a call would have done, if that depends on its arguments.
_WOULD: Mapping[str, Callable[[Event], str]] = {
    "mprotect": _of_mprotect,
    "pkey_mprotect": _of_mprotect,
    "mremap": _of_mremap,
    "madvise": _of_madvise,
    "process_madvise": _of_madvise,
    "io_uring_madvise": _of_madvise,
}
_ABOUT = {"brk": "the end of the heap", "shmdt": "the shared memory"}


def would(event: Event) -> str | None:
    """A sentence: what the call would have done without the seal."""
    operation = str(event.get("operation"))
    row = _OPERATIONS.get(operation)
    done = _WOULD[operation](event) if operation in _WOULD else row.would if row else ""
    if not done or event.get("kind") != "denial":
        return None
    about = asked(event)
    it = _ABOUT.get(operation, "the memory")
    if about:
        it = f"{rounded(about.end - about.start)} at {about.start:#x}"
    elif (point := found_at(event)) is not None:
        it += f" at {point:#x}"
    return f"It would have {done.replace('{it}', it)}."


# ---- What happened -------------------------------------------------------------------------------

_CAUSES = {
    "guard_region": "A guard region: pages that were made to catch an access which runs too far.",
    "prot_none": "Memory without any permission (PROT_NONE): reserved, or a guard made the old "
    "way.",
    "stack_guard": "Memory past the end of a stack: its guard, or what lies beyond.",
    "sealed": "Sealed memory, which does not permit this access and never will.",
    "pkey": "Memory under a protection key that this thread had not opened.",
    "other": "Memory that is not mapped, or does not permit this access.",
}


def what(event: Event) -> str | None:
    """A sentence: what a fault hit."""
    if event.get("kind") != "fault":
        return None
    return _CAUSES.get(str(event.get("cause")))


_PROVED = (
    "Proved in the kernel: this seal alone makes it refuse the call, and nothing known could have "
    "refused it earlier."
)
_REASONS = {
    "range_too_long": "Not proved: no seal among the first 65,536 mappings of the range; the rest "
    "was not looked at.",
    "seccomp": "Not proved: a seal is there, and so is a seccomp filter that may refuse this call.",
    "unknown_length": "Not proved: what the call was about could not be read back.",
    "other_process": "Not proved: the call was about the memory of another process.",
    "changed_meanwhile": "Not proved: the mappings kept changing while they were read.",
    "other_cause": "Not proved: a seal is there, and so is an earlier reason to refuse.",
    "late_seccomp": "Not proved: a seal is there, and so is a seccomp filter that may refuse this "
    "call. The program put it there after it had sealed.",
    "traced": "Not proved: a seal is there, but a tracer answers the calls of the process, and the "
    "kernel may never have run this one.",
}


def proof(event: Event) -> str | None:
    """How it is known that a seal refused the call, or that it is not."""
    verdict = event.get("verdict")
    if verdict == "sealed":
        return _PROVED
    if verdict == "not_sealed":
        return "Refused, but not by a seal."
    if verdict == "unverified":
        return _REASONS.get(str(event.get("reason")), "Not proved.")
    if event.get("kind") == "fault":
        if event.get("inferred"):
            return (
                "Inferred from what was mapped as the signal was delivered: another explanation "
                "cannot be excluded."
            )
        return "Read from the mappings of the process as the signal was delivered."
    return None


_DISPOSITIONS = {
    "default": "Killed by SIGSEGV: it had no handler.",
    "handler": "Not killed by this: a SIGSEGV handler of its own was called. What the handler did "
    "is not known.",
    "handler_ended": "Ended by its own handler of SIGSEGV, as crash handlers do.",
    "handler_failed": "Killed by SIGSEGV: it has a handler, but that could not run, most often "
    "because there was no room on the stack.",
}


def ending(event: Event, later: Sequence[Event] = ()) -> str | None:
    """What became of the process; `later` are its events after this one."""
    if event.get("kind") == "fault":
        return _DISPOSITIONS.get(str(event.get("disposition")))
    if event.get("kind") != "denial":
        return None
    for other in later:
        if other.get("kind") == "fault" and other.get("disposition") in (
            "default",
            "handler_failed",
        ):
            return (
                f"A refusal ends no process; this one was killed by SIGSEGV later, at {hit(other)}."
            )
    return "A refusal ends no process: it went on, with whatever it makes of an error."


_HIT = {
    "guard_region": "a guard region",
    "prot_none": "memory without any permission",
    "stack_guard": "memory past the end of its stack",
    "sealed": "sealed memory",
    "pkey": "memory under a protection key",
}


def hit(event: Event) -> str:
    """What a fault hit, in a few words."""
    return _HIT.get(str(event.get("cause")), "memory that does not permit it")


_METHODS = {
    "madvise_discard": "by madvise, which dropped its own copy of the pages: the bytes of the file "
    "came back",
    "ptrace_poke": "as a debugger does it, by ptrace",
    "proc_mem_write": "through /proc/PID/mem",
    "userfaultfd_copy": "through userfaultfd, which filled a missing page",
    "userfaultfd_move": "through userfaultfd, which moved pages",
    "guard_remove": "by madvise, which took guard regions away: their pages are fresh memory",
}


def method(event: Event) -> str:
    """The way around a seal."""
    return _METHODS.get(str(event.get("method")), f"by {event.get('method')}")


# ---- What it probably is -------------------------------------------------------------------------

_ROWS: Mapping[str, Row[Any]] = {
    **{row.name: row for row in DENIALS},
    **{row.name: row for row in FAULTS},
    **{row.name: row for row in BYPASSES},
}
_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"  # a straight one would be escaped


def assessment(event: Event) -> tuple[str, str] | None:
    """What the event probably is, and why; None if it has no assessment that this version knows."""
    row = _ROWS.get(str(value(event, "assessment", "name")))
    if row is None:
        return None
    words = f"{row.words[:1].upper()}{row.words[1:]}."
    return words.replace("'", _APOSTROPHE), row.reasoning.replace("'", _APOSTROPHE)
