"""What a violation probably is, and how much it matters: a table, first row that fits wins.

It guesses for a person, from what the call asked for, what was sealed and who called. The verdict
is proved; this is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Generic, Literal, TypeVar

from monitor.evidence.events import Assessment, Likely, Mapping, Sealed, Severity
from monitor.evidence.libraries import Role
from monitor.kernel import abi
from monitor.kernel.operations import Decoded

__all__ = [
    "BYPASSES",
    "DENIALS",
    "FAULTS",
    "REASONING",
    "BypassFacts",
    "DenialFacts",
    "FaultFacts",
    "Row",
    "caller_of",
    "first_denial",
    "first_fit",
    "worst",
    "worst_denial",
]

Caller = Literal["loader", "allocator", "libc", "no_file", "program", "unknown"]
F = TypeVar("F")

_SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
_PROTECT = ("mprotect", "pkey_mprotect")
_ADVISE = ("madvise", "process_madvise", "io_uring_madvise")
# musl is both in one file, "libc". It never unmaps a library.
_LOADERS, _ALLOCATORS = ("loader", "libc"), ("allocator", "libc")
_REPLACE = ("mmap", "mremap", "shmat", "remap_file_pages")


@dataclass(frozen=True, slots=True)
class DenialFacts:
    """Facts of a denial whose verdict is `sealed`."""

    operation: str
    arguments: dict[str, Decoded]
    sealed: Sealed | None
    is_destination: bool
    caller: Caller

    @property
    def wanted(self) -> set[str]:
        """The permissions that the call asks for; empty when it asks for none."""
        return set(str(self.arguments.get("prot", ""))[:3]) - {"-"}

    @property
    def had(self) -> set[str]:
        return set(self.sealed.permissions[:3]) - {"-"} if self.sealed else set()

    @property
    def is_system(self) -> bool:
        """Whether what is sealed is a mapping that the kernel made, such as `[vdso]`. A name with
        a bracket and no file is the kernel's word: is_valid_name_char() in kernel/sys.c.
        """
        sealed = self.sealed
        return bool(sealed and not sealed.file and sealed.name and sealed.name.startswith("["))

    @property
    def is_protect(self) -> bool:
        return self.operation in _PROTECT

    def gains(self, permission: str) -> bool:
        """Whether the call would have added this permission."""
        return self.is_protect and permission in self.wanted - self.had

    @property
    def moves(self) -> bool:
        flags = self.arguments.get("flags", ())
        return isinstance(flags, list) and "MREMAP_FIXED" in flags


@dataclass(frozen=True, slots=True)
class FaultFacts:
    cause: str
    access: str
    mapping: Mapping | None
    is_handled: bool


@dataclass(frozen=True, slots=True)
class BypassFacts:
    """`is_own`: the process changed its own memory. `is_debugger`: it is one of the host's own."""

    method: str
    sealed: Sealed
    is_own: bool
    is_debugger: bool

    @property
    def is_written(self) -> bool:
        return self.method in ("ptrace_poke", "proc_mem_write")

    @property
    def is_code(self) -> bool:
        return "x" in self.sealed.permissions


_LIKELY: dict[Likely, str] = {
    "attack": "looks like an attack",
    "bug": "probably a bug",
    "leak": "probably a leak",
    "unknown": "not known",
    "handled": "probably on purpose",
}


@dataclass(frozen=True, slots=True)
class Row(Generic[F]):
    """`what` ends the summary; `reasoning` explains it to a person."""

    name: str
    likely: Likely
    severity: Severity
    what: str
    reasoning: str
    fits: Callable[[F], bool]

    @property
    def assessment(self) -> Assessment:
        return Assessment(self.name, self.likely)

    @property
    def words(self) -> str:
        """The words that end a summary."""
        return f"{_LIKELY[self.likely]}: {self.what}"


def first_fit(rows: Sequence[Row[F]], facts: F) -> Row[F] | None:
    return next((row for row in rows if row.fits(facts)), None)


def first_denial(facts: DenialFacts) -> Row[DenialFacts] | None:
    """The row of a denial. Who called is read off a stack that the process may have forged: it
    gives the violation its name, and never a severity below that of the program's own calls.
    """
    row, own = (first_fit(DENIALS, each) for each in (facts, replace(facts, caller="program")))
    if row is None or own is None:
        return row
    return replace(row, severity=max(row.severity, own.severity, key=_SEVERITIES.index))


def worst(*severities: Severity) -> Severity:
    return max(severities, key=_SEVERITIES.index)


@cache
def worst_denial(operation: str) -> Severity:
    """The most that a denial of this operation can be, where nobody knows what it asked for.

    Not of code in no file: it has a rate limit of its own, which is by where the call was made.
    """
    permissions = ("---", "r--", "rw-", "r-x", "rwx")
    callers: tuple[Caller, ...] = ("loader", "allocator", "program")
    flags: tuple[list[str], ...] = ([], ["MREMAP_FIXED"])
    found = (
        first_denial(
            DenialFacts(
                operation,
                {"prot": wanted, "flags": given},
                Sealed("0x0", "0x0", had, None, None),
                is_destination,
                caller,
            )
        )
        for wanted, had, given, is_destination, caller in product(
            permissions, permissions, flags, (False, True), callers
        )
    )
    return worst(*(row.severity if row else "critical" for row in found))


def caller_of(
    stack: abi.Stack, address: int, role_of: Callable[[abi.Module], Role | None]
) -> Caller:
    """Whose code called: that of the frame at `address`, the record's caller.

    That frame is a word on the stack. The innermost one, where the call was made, is the kernel's
    word: a loader or an allocator makes its calls by its own code, or by that of the C library.
    `role_of` says which of both a module's file is on this host.
    """
    modules = [
        stack.module[index] if index < stack.module_count else None
        for index in stack.modules[: stack.depth]
    ]
    if not modules or address not in stack.addresses[: stack.depth]:
        return "unknown"
    innermost, caller = modules[0], modules[list(stack.addresses).index(address)]
    if innermost is None or caller is None:
        return "no_file"
    role = role_of(caller)
    return role if role and role_of(innermost) else "program"


def _denial(
    name: str,
    likely: Likely,
    what: str,
    reasoning: str,
    fits: Callable[[DenialFacts], bool],
) -> Row[DenialFacts]:
    return Row(name, likely, "critical" if likely == "attack" else "warning", what, reasoning, fits)


DENIALS: tuple[Row[DenialFacts], ...] = (
    _denial(
        "system_mapping",
        "handled",
        "a mapping that the kernel made was to be unmapped or moved",
        "Tools do this to the vdso of a process that they set up: CRIU when it restores one, rr, "
        "gVisor, user-mode Linux. Nothing in a program does; any other one that does is worth a "
        "look. A kernel that seals these mappings itself (CONFIG_MSEAL_SYSTEM_MAPPINGS) keeps such "
        "tools from their work.",
        # Before the row for code in no file: these tools make the call by code of their own there.
        lambda f: f.is_system and f.operation in ("munmap", "mremap") and not f.is_destination,
    ),
    _denial(
        "writable_code",
        "attack",
        "memory was to become writable and executable",
        "No sealed memory needs to be writable and executable at once; injected code does.",
        lambda f: f.is_protect and {"w", "x"} <= f.wanted,
    ),
    _denial(
        "patched_code",
        "attack",
        "code was to become writable",
        "Sealed code is complete. A call that makes it writable is there to change what the "
        "program does; debuggers and tracers that patch code from within make it, too.",
        lambda f: f.gains("w") and "x" in f.had,
    ),
    _denial(
        "executable_data",
        "attack",
        "data was to become executable",
        "By this step bytes that an attacker wrote become code.",
        lambda f: f.gains("x"),
    ),
    _denial(
        "code_in_no_file",
        "attack",
        "called by code that is in no file",
        "System calls come from programs and libraries, which are files. Code that was written at "
        "run time belongs to an exploit, or to a JIT compiler that makes the call inline.",
        lambda f: f.caller == "no_file",
    ),
    _denial(
        "guard_opened",
        "attack",
        "a guard page was to become accessible",
        "Memory that was sealed without any permission must never become accessible: it is there "
        "to stop accesses.",
        lambda f: f.is_protect and not f.had and bool(f.wanted),
    ),
    _denial(
        "relocation",
        "bug",
        "the dynamic loader came back to sealed memory",
        "The loader makes data writable to relocate it. Here the seal came first: the library has "
        "text relocations, or was sealed too early.",
        lambda f: f.gains("w") and f.caller in _LOADERS,
    ),
    _denial(
        "read_only_data",
        "attack",
        "read-only data was to become writable",
        "Tables of function addresses and constants are sealed so that nobody can change them; "
        "making them writable is the first step.",
        lambda f: f.gains("w"),
    ),
    _denial(
        "key_changed",
        "attack",
        "the protection key of memory was to change",
        "The memory is protected by its key; another key would open it.",
        # -1 is no key: __arch_override_mprotect_pkey() in arch/x86/mm/pkeys.c, as for mprotect.
        lambda f: f.operation == "pkey_mprotect" and f.arguments.get("pkey") != -1,
    ),
    _denial(
        "permissions_changed",
        "bug",
        "permissions of sealed memory were to change",
        "The process could not have written to the memory or executed it afterwards: most often "
        "this is code that does not know of the seal.",
        lambda f: f.is_protect,
    ),
    _denial(
        "library_unloaded",
        "leak",
        "a sealed library was to be unloaded",
        "dlclose() of a library whose memory was sealed: the loader forgets the library, but its "
        "memory stays.",
        lambda f: f.operation == "munmap" and f.caller == "loader",
    ),
    _denial(
        "freed",
        "leak",
        "sealed memory was to be freed",
        "The C library or an allocator gives back memory that its user has sealed. It stays "
        "mapped until the process ends, and nothing uses it any more.",
        lambda f: f.operation == "munmap" and f.caller in _ALLOCATORS,
    ),
    _denial(
        "unmapped",
        "leak",
        "the process unmaps what it has sealed",
        "The memory stays mapped until the process ends. An attacker who wants to put other "
        "memory in its place begins like this, too: look at what the process did next.",
        lambda f: f.operation == "munmap",
    ),
    _denial(
        "mapped_by_loader",
        "bug",
        "the dynamic loader wants a sealed address",
        "A library or a program with a fixed address was to be mapped over memory that is sealed.",
        lambda f: f.operation == "mmap" and f.caller in _LOADERS,
    ),
    _denial(
        "moved",
        "attack",
        "sealed memory was to be moved to another address",
        "Moving the memory leaves a hole in which other memory can be mapped.",
        lambda f: f.operation == "mremap" and not f.is_destination and f.moves,
    ),
    _denial(
        "resized",
        "bug",
        "sealed memory was to be resized",
        "realloc() does this, called by code that does not know of the seal.",
        lambda f: f.operation == "mremap" and not f.is_destination,
    ),
    _denial(
        "replaced",
        "attack",
        "sealed memory was to be replaced",
        "Code that trusts the memory at this address would find other content there.",
        lambda f: f.operation in _REPLACE,
    ),
    _denial(
        "given_back",
        "bug",
        "sealed memory was to be given back",
        "An allocator returns pages to the kernel because it takes them for free.",
        lambda f: f.operation in _ADVISE and f.caller in (*_ALLOCATORS, "loader"),
    ),
    _denial(
        "discarded",
        "attack",
        "the content of sealed memory was to be discarded",
        "When read-only pages are discarded, they read as zeros: their content changes without a "
        "write.",
        lambda f: f.operation in _ADVISE,
    ),
    _denial(
        "heap_shrunk",
        "leak",
        "the heap cannot shrink over sealed memory",
        "The memory above the new end of the heap stays mapped.",
        lambda f: f.operation == "brk",
    ),
    _denial(
        "detached",
        "leak",
        "sealed shared memory was to be detached",
        "The memory stays attached until the process ends.",
        lambda f: f.operation == "shmdt",
    ),
)


FAULTS: tuple[Row[FaultFacts], ...] = (
    Row(
        "sealed_executed",
        "attack",
        "critical",
        "a jump into sealed data",
        "A program does not jump there on purpose: a function address was corrupted, often by an "
        "attacker.",
        lambda f: f.cause == "sealed" and f.access == "execute",
    ),
    Row(
        "sealed_written",
        "attack",
        "critical",
        "a write to memory that is sealed against writing",
        "It may also be a wild pointer; look at what the function was to write.",
        lambda f: f.cause == "sealed" and f.access == "write",
    ),
    Row(
        "sealed_read",
        "bug",
        "critical",
        "a read of memory that is sealed against reading",
        "Memory is sealed without permissions so that overruns end there.",
        lambda f: f.cause == "sealed",
    ),
    Row(
        "handled",
        "unknown",
        "warning",
        "the handler may have mended it, or reported a crash",
        "What a handler did is not seen. Runtimes place such pages to notice when they are "
        "touched: to grow a stack, to stop threads, to check a bound. Crash reporters (Rust, "
        "sanitizers, faulthandler) print what they know, and then the process ends.",
        lambda f: f.is_handled and f.cause != "other" and f.access != "execute",
    ),
    Row(
        "overrun",
        "bug",
        "warning",
        "an access ran past its buffer or stack",
        "Guard regions lie next to memory that may be used: the pages before or after belong to "
        "the buffer or stack that was overrun.",
        lambda f: f.cause == "guard_region",
    ),
    Row(
        "stack_overflow",
        "bug",
        "warning",
        "stack overflow",
        "The address lies past the end of the stack that sp is in, or has just left: the recursion "
        "has no end, or local variables are larger than the stack.",
        lambda f: f.cause == "stack_guard",
    ),
    Row(
        "jump",
        "attack",
        "warning",
        "a jump to memory that holds no code",
        "A corrupted return or function address leads anywhere; so does one that an attacker chose "
        "badly.",
        lambda f: f.access == "execute" and f.mapping is not None,
    ),
    Row(
        "reserved",
        "bug",
        "warning",
        "use of memory that is only reserved, or was freed",
        "Address ranges without permissions are reserved for later, or were taken out of use.",
        lambda f: f.cause == "prot_none",
    ),
    Row(
        "locked",
        "bug",
        "warning",
        "the protection key of the memory was not held",
        "The code is not meant to reach this memory, or has not opened it; in a sandbox it is an "
        "attempt to get out.",
        lambda f: f.cause == "pkey",
    ),
)

BYPASSES: tuple[Row[BypassFacts], ...] = (
    Row(
        "copy_discarded",
        "attack",
        "critical",
        "what was written before the seal is lost",
        "The bytes of the file come back: addresses that the loader had filled in are again what "
        "the linker wrote.",
        lambda f: f.method == "madvise_discard",
    ),
    Row(
        "guard_removed",
        "attack",
        "critical",
        "where accesses ended at a guard region there is memory now",
        "The seal covers the guard region, too, but does not keep it: whoever overruns what lies "
        "before it now writes on.",
        lambda f: f.method == "guard_remove",
    ),
    Row(
        "code_patched_by_itself",
        "attack",
        "critical",
        "a process patched its own sealed code",
        "The kernel writes through /proc/self/mem whatever the permissions are. Exploits use it; "
        "so do tracers that patch code from within.",
        lambda f: f.is_written and f.is_code and f.is_own,
    ),
    Row(
        "breakpoint",
        "handled",
        "warning",
        "a breakpoint of a debugger",
        "One of the debuggers that are installed on this host did it, as it does for each "
        "breakpoint. It does whatever its user asks for: see who that is.",
        lambda f: f.is_written and f.is_code and f.is_debugger,
    ),
    Row(
        "code_injected",
        "attack",
        "critical",
        "the code of another process was changed",
        "Debuggers do this to set breakpoints, but this program is not known to be one of those "
        "that root has installed on this host. Any other program that does so injects code.",
        lambda f: f.is_written and f.is_code,
    ),
    Row(
        "data_written",
        "attack",
        "critical",
        "read-only data was changed",
        "Tables of function addresses and constants are sealed so that nobody can change them. A "
        "debugger does so only when a person asks for it.",
        lambda f: f.is_written,
    ),
    Row(
        "page_filled",
        "attack",
        "critical",
        "a page of chosen content came into sealed memory",
        "The page was missing when the memory was sealed. Live migration and lazy restore fill "
        "such pages, but before anything is sealed.",
        lambda f: f.method == "userfaultfd_copy",
    ),
    Row(
        "pages_moved",
        "handled",
        "warning",
        "pages came into sealed memory or left it",
        "Garbage collectors do this to compact heaps. The memory was writable: the process could "
        "have changed it anyway, but not moved the mapping.",
        lambda f: f.method == "userfaultfd_move",
    ),
)


REASONING: dict[str, str] = {
    **{row.name: row.reasoning for row in DENIALS},
    **{row.name: row.reasoning for row in FAULTS},
    **{row.name: row.reasoning for row in BYPASSES},
}
