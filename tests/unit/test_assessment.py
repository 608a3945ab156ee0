from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from monitor.evidence.assessment import (
    BYPASSES,
    DENIALS,
    FAULTS,
    REASONING,
    BypassFacts,
    DenialFacts,
    FaultFacts,
    caller_of,
    first_denial,
    first_fit,
    worst_denial,
)
from monitor.evidence.events import File, Mapping, Sealed
from monitor.evidence.libraries import Role
from monitor.kernel import abi
from monitor.kernel.operations import OPERATIONS
from monitor.untrusted.printable import printable

CODE, DATA, GUARD = "r-xp", "r--p", "---p"
WRITABLE = "rw-p"
SOMEWHERE = Mapping("0x1000", "0x2000", "rw-p", False, None, None)
ATTACK, OTHERWISE = "critical", "warning"


def denial(
    operation: str,
    had: str = DATA,
    caller: Any = "program",
    is_destination: bool = False,
    name: str | None = None,
    **arguments: Any,
) -> DenialFacts:
    sealed = Sealed("0x1000", "0x2000", had, None, name)
    return DenialFacts(operation, arguments, sealed, is_destination, caller)


# Every row of the table, in its order: (facts that it fits first), row, likely.
DENIAL_CASES = [
    (denial("munmap", CODE, name="[vdso]"), "system_mapping", "handled"),
    (denial("munmap", CODE, "no_file", name="[vdso]"), "system_mapping", "handled"),
    (denial("mremap", DATA, name="[vvar]", flags=["MREMAP_FIXED"]), "system_mapping", "handled"),
    (denial("mprotect", prot="rwx"), "writable_code", "attack"),
    (denial("mprotect", CODE, prot="rwx"), "writable_code", "attack"),
    (denial("mprotect", CODE, prot="rw-"), "patched_code", "attack"),
    (denial("mprotect", CODE, "loader", prot="rw-"), "patched_code", "attack"),
    (denial("mprotect", DATA, prot="r-x"), "executable_data", "attack"),
    (denial("mprotect", DATA, "no_file", prot="rw-"), "code_in_no_file", "attack"),
    (denial("munmap", DATA, "no_file"), "code_in_no_file", "attack"),
    (denial("mprotect", GUARD, prot="rw-"), "guard_opened", "attack"),
    (denial("mprotect", GUARD, prot="r--"), "guard_opened", "attack"),
    (denial("mprotect", DATA, "loader", prot="rw-"), "relocation", "bug"),
    (denial("mprotect", DATA, "libc", prot="rw-"), "relocation", "bug"),
    (denial("mprotect", DATA, "allocator", prot="rw-"), "read_only_data", "attack"),
    (denial("mprotect", DATA, "unknown", prot="rw-+growsdown"), "read_only_data", "attack"),
    (denial("pkey_mprotect", WRITABLE, prot="rw-", pkey=2), "key_changed", "attack"),
    (denial("pkey_mprotect", WRITABLE, prot="rw-", pkey=-1), "permissions_changed", "bug"),
    (denial("mprotect", WRITABLE, prot="---"), "permissions_changed", "bug"),
    (denial("mprotect", CODE, prot="r--"), "permissions_changed", "bug"),
    (denial("munmap", DATA, "loader"), "library_unloaded", "leak"),
    (denial("munmap", WRITABLE, "allocator"), "freed", "leak"),
    (denial("munmap", WRITABLE, "libc"), "freed", "leak"),
    (denial("munmap", DATA), "unmapped", "leak"),
    (denial("munmap", DATA, "unknown"), "unmapped", "leak"),
    (denial("mmap", DATA, "loader", prot="r-x"), "mapped_by_loader", "bug"),
    (denial("mremap", flags=["MREMAP_MAYMOVE", "MREMAP_FIXED"]), "moved", "attack"),
    (denial("mremap", flags=["MREMAP_MAYMOVE"]), "resized", "bug"),
    (denial("mremap", is_destination=True, flags=["MREMAP_FIXED"]), "replaced", "attack"),
    (denial("mmap", prot="rwx", flags=["MAP_FIXED"]), "replaced", "attack"),
    (denial("shmat"), "replaced", "attack"),
    (denial("remap_file_pages", prot="---"), "replaced", "attack"),
    (denial("madvise", DATA, "allocator", advice="MADV_DONTNEED"), "given_back", "bug"),
    (denial("madvise", DATA, "libc", advice="MADV_DONTNEED"), "given_back", "bug"),
    (denial("madvise", advice="MADV_DONTNEED"), "discarded", "attack"),
    (denial("process_madvise", advice="MADV_DONTNEED"), "discarded", "attack"),
    (denial("io_uring_madvise", advice="MADV_FREE"), "discarded", "attack"),
    (denial("brk"), "heap_shrunk", "leak"),
    (denial("shmdt"), "detached", "leak"),
]


@pytest.mark.parametrize(("facts", "name", "likely"), DENIAL_CASES)
def test_denials(facts: DenialFacts, name: str, likely: str) -> None:
    row = first_fit(DENIALS, facts)
    assert row is not None
    assert (row.name, row.likely) == (name, likely)
    assert row.severity == (ATTACK if likely == "attack" else OTHERWISE)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("mmap", {"prot": "r-x", "flags": ["MAP_FIXED"]}),
        ("mremap", {"is_destination": True, "flags": ["MREMAP_FIXED"]}),
        ("mprotect", {"prot": "rwx"}),
        ("mprotect", {"prot": "rw-"}),
    ],
)
def test_other_content_in_a_system_mapping(operation: str, arguments: Any) -> None:
    row = first_denial(denial(operation, CODE, name="[vdso]", **arguments))
    assert row is not None
    assert (row.likely, row.severity) == ("attack", "critical")


@pytest.mark.parametrize(
    "sealed",
    [
        Sealed("0x1000", "0x2000", CODE, File("/tmp/[vdso]", "8:1", 7, 0), None),
        Sealed("0x1000", "0x2000", CODE, File("/memfd:[vdso] (deleted)", "0:1", 7, 0), None),
        Sealed("0x1000", "0x2000", CODE, None, "vdso"),
    ],
)
def test_what_is_only_called_like_a_system_mapping(sealed: Sealed) -> None:
    row = first_denial(DenialFacts("munmap", {}, sealed, False, "program"))
    assert row is not None
    assert row.name == "unmapped"


def test_facts_that_no_row_fits() -> None:
    assert first_fit(DENIALS, denial("other", system_call=9)) is None
    assert first_fit(FAULTS, FaultFacts("other", "read", None, False)) is None


def test_permissions_are_unknown_without_the_mapping() -> None:
    facts = DenialFacts("munmap", {}, None, False, "program")
    row = first_fit(DENIALS, facts)
    assert row is not None
    assert row.name == "unmapped"


FAULT_CASES = [
    (("sealed", "execute", False), "sealed_executed", "attack", "critical"),
    (("sealed", "write", False), "sealed_written", "attack", "critical"),
    (("sealed", "read", False), "sealed_read", "bug", "critical"),
    (("sealed", "execute", True), "sealed_executed", "attack", "critical"),
    (("sealed", "write", True), "sealed_written", "attack", "critical"),
    (("sealed", "read", True), "sealed_read", "bug", "critical"),
    (("guard_region", "write", True), "handled", "unknown", "warning"),
    (("stack_guard", "write", True), "handled", "unknown", "warning"),
    (("pkey", "read", True), "handled", "unknown", "warning"),
    (("guard_region", "read", False), "overrun", "bug", "warning"),
    (("stack_guard", "write", False), "stack_overflow", "bug", "warning"),
    (("prot_none", "execute", False), "jump", "attack", "warning"),
    (("other", "execute", False), "jump", "attack", "warning"),
    (("prot_none", "execute", True), "jump", "attack", "warning"),
    (("prot_none", "write", False), "reserved", "bug", "warning"),
    (("pkey", "write", False), "locked", "bug", "warning"),
]


@pytest.mark.parametrize(("facts", "name", "likely", "severity"), FAULT_CASES)
def test_faults(facts: tuple[str, str, bool], name: str, likely: str, severity: str) -> None:
    cause, access, is_handled = facts
    row = first_fit(FAULTS, FaultFacts(cause, access, SOMEWHERE, is_handled))
    assert row is not None
    assert (row.name, row.likely, row.severity) == (name, likely, severity)


DEBUGGER = None  # who did it, in place of whether it did so to itself

BYPASS_CASES = [
    (("madvise_discard", DATA, True), "copy_discarded", "attack", "critical"),
    (("guard_remove", DATA, True), "guard_removed", "attack", "critical"),
    (("proc_mem_write", CODE, True), "code_patched_by_itself", "attack", "critical"),
    (("proc_mem_write", CODE, DEBUGGER), "breakpoint", "handled", "warning"),
    (("ptrace_poke", CODE, DEBUGGER), "breakpoint", "handled", "warning"),
    (("proc_mem_write", CODE, False), "code_injected", "attack", "critical"),
    (("ptrace_poke", CODE, False), "code_injected", "attack", "critical"),
    (("ptrace_poke", DATA, DEBUGGER), "data_written", "attack", "critical"),
    (("ptrace_poke", DATA, False), "data_written", "attack", "critical"),
    (("proc_mem_write", DATA, True), "data_written", "attack", "critical"),
    (("userfaultfd_copy", DATA, True), "page_filled", "attack", "critical"),
    (("userfaultfd_copy", CODE, False), "page_filled", "attack", "critical"),
    (("userfaultfd_move", WRITABLE, True), "pages_moved", "handled", "warning"),
]


@pytest.mark.parametrize(("facts", "name", "likely", "severity"), BYPASS_CASES)
def test_bypasses(
    facts: tuple[str, str, bool | None], name: str, likely: str, severity: str
) -> None:
    method, permissions, is_own = facts
    sealed = Sealed("0x1000", "0x2000", permissions, None, None)
    is_debugger = is_own is DEBUGGER
    row = first_fit(BYPASSES, BypassFacts(method, sealed, bool(is_own), is_debugger))
    assert row is not None
    assert (row.name, row.likely, row.severity) == (name, likely, severity)


def test_every_row_has_a_case_and_words() -> None:
    assert [row.name for row in DENIALS] == list(dict.fromkeys(name for _, name, _ in DENIAL_CASES))
    assert [row.name for row in FAULTS] == list(dict.fromkeys(name for _, name, *_ in FAULT_CASES))
    assert [row.name for row in BYPASSES] == list(
        dict.fromkeys(name for _, name, *_ in BYPASS_CASES)
    )
    words = {row.name: row.words for row in DENIALS} | {row.name: row.words for row in FAULTS}
    words |= {row.name: row.words for row in BYPASSES}
    assert len(words) == len(DENIALS) + len(FAULTS) + len(BYPASSES)
    for name, text in words.items():
        assert re.fullmatch("[a-z_]+", name)
        assert len(text) <= 90
        assert printable(text) == text  # a straight quote would be shown as an escape
        assert REASONING[name].endswith(".")


def stack(*modules: str | None, is_roots: bool = True) -> abi.Stack:
    """Frames at 0x7000, 0x4000 and so on, each of which lies in a module, or in none."""
    made = abi.Stack(depth=len(modules))
    made.addresses[:2] = (0x7000, 0x4000)
    for place, name in enumerate(modules):
        made.modules[place] = abi.NO_MODULE
        if name is not None:
            made.modules[place] = made.module_count
            module = abi.Module(file=name.encode(), is_roots=is_roots, inode=7)
            made.module[made.module_count] = module
            made.module_count += 1
    return made


ROLES: dict[str, Role] = {
    "ld-linux-x86-64.so.2": "loader",
    "ld-musl-x86_64.so.1": "libc",
    "libc.so.6": "allocator",
}


def by_name(module: abi.Module) -> Role | None:
    return ROLES.get(module.file.decode()) if module.is_roots else None


@pytest.mark.parametrize(
    ("module", "caller"),
    [
        ("ld-linux-x86-64.so.2", "loader"),
        ("ld-musl-x86_64.so.1", "libc"),
        ("libc.so.6", "allocator"),
        ("libcairo.so.2", "program"),
        ("nginx", "program"),
        (None, "no_file"),
    ],
)
def test_caller(module: str | None, caller: str) -> None:
    assert caller_of(stack("libc.so.6", module), 0x4000, by_name) == caller
    assert caller_of(stack("libc.so.6", module), 0x5000, by_name) == "unknown"


def test_a_word_on_the_stack_makes_nobody_an_allocator() -> None:
    """The call itself was made by other code than the loader's or the C library's."""
    assert caller_of(stack("exploit", "libc.so.6"), 0x4000, by_name) == "program"
    assert caller_of(stack(None, "libc.so.6"), 0x4000, by_name) == "no_file"
    assert caller_of(abi.Stack(), 0, by_name) == "unknown"


def test_a_name_makes_nobody_an_allocator() -> None:
    assert caller_of(stack("libc.so.6", "libc.so.6", is_roots=False), 0x4000, by_name) == "program"


@pytest.mark.parametrize(("facts", "name", "likely"), DENIAL_CASES)
@pytest.mark.parametrize("caller", ["loader", "allocator", "libc", "unknown", "no_file"])
def test_who_called_lowers_no_severity(
    facts: DenialFacts, name: str, likely: str, caller: Any
) -> None:
    by_program = first_fit(DENIALS, replace(facts, caller="program"))
    row = first_denial(replace(facts, caller=caller))
    assert row is not None
    assert by_program is not None
    assert row.severity in (by_program.severity, "critical")


def test_the_most_that_a_denial_can_be() -> None:
    """As severe as the worst case of its operation; memory that stays is never an attack."""
    harmless = {"munmap", "brk", "shmdt"}
    for operation in OPERATIONS:
        expected = "warning" if operation.name in harmless else "critical"
        assert worst_denial(operation.name) == expected, operation.name
    for facts, *_ in DENIAL_CASES:
        row = first_denial(facts)
        if row is not None and row.severity == "critical" and row.name != "code_in_no_file":
            assert worst_denial(facts.operation) == "critical"
