from __future__ import annotations

import ctypes
from dataclasses import asdict, replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.evidence import events
from monitor.evidence.classify import ClassifyError, classify, suppression
from monitor.evidence.events import (
    AddressRange,
    Assessment,
    Bypass,
    Denial,
    Fault,
    File,
    Host,
    Mapping,
    Origin,
    Process,
    Seal,
    Sealed,
    Target,
    Workload,
)
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
from monitor.kernel.operations import OPERATIONS

SEALED_BIT = 1 << 42
READ, WRITE, EXEC, SHARED = 1, 2, 4, 8
NAMES = [operation.name for operation in OPERATIONS]
TIME = "2025-01-02T03:04:05.000000006Z"
ORIGIN = Origin(
    id="1b4e28ba-00000000000003e8-00000001",
    time=TIME,
    time_boot_ns=1000,
    host=Host("web-1", "1b4e28ba-2fa1-4d2e-883f-0016d3cca427", "6.18.44"),
    process=Process(4242, 4242, 1, 4242, "python3", None, None, TIME, 0, 0, None, None),
    workload=Workload(None, None, None, "/"),
)
START = 0x7F0000001000
SIZE = ctypes.sizeof(abi.Record)
VALIDATOR = jsonschema.Draft202012Validator(events.schema())

LIBRARY: dict[str, Any] = {
    "start": START,
    "end": START + 0x1000,
    "flags": READ | SEALED_BIT,
    "page_offset": 3,
    "inode": 77,
    "device": 254 << 20 | 1,
    "file": b"libfoo.so",
}
ANONYMOUS: dict[str, Any] = {"start": START, "end": START + 0x1000, "flags": READ | SEALED_BIT}


def record(kind: Kind, mapping: dict[str, Any] | None = None, **values: Any) -> abi.Record:
    arguments = values.pop("arguments", ())
    made = abi.Record(
        kind=kind,
        pid=4242,
        tid=4242,
        task_name=b"worker",
        executable=values.pop("executable", b"python3"),
        mapping=abi.Mapping(**(mapping or {})),
        **values,
    )
    made.arguments[: len(arguments)] = arguments
    return made


def denial(operation: str = "mprotect", **values: Any) -> abi.Record:
    values.setdefault("arguments", (START, 0x1000, 3))
    values.setdefault("mapping", LIBRARY)
    return record(
        Kind.DENIAL,
        operation=NAMES.index(operation),
        **{"address": START, "length": 0x1000, **values},
    )


def fault(cause: Cause, **values: Any) -> abi.Record:
    return record(
        Kind.FAULT,
        cause=cause,
        **{"address": START + 0x10, "access": Access.WRITE, "signal_code": 1, **values},
    )


def classified(made: abi.Record, **options: Any) -> Any:
    event = classify(made, ORIGIN, sealed_mask=SEALED_BIT, **options)
    VALIDATOR.validate(events.to_dict(event))
    return event


def test_a_denial_in_full() -> None:
    event = classified(
        denial(
            arguments=(START - 0x2000, 0x3000, 3),
            address=START - 0x2000,
            length=0x3000,
            partial_start=START - 0x2000,
            partial_end=START,
            instruction_pointer=0x7F0000100000,
            caller=0x401234,
        )
    )
    assert event == Denial(
        **{name: getattr(ORIGIN, name) for name in asdict(ORIGIN)},
        severity="critical",
        summary=(
            "mprotect of sealed memory refused: python3 (pid 4242) asked for rw- on "
            "0x7efffffff000-0x7f0000002000 (sealed r--p, libfoo.so); "
            "the 8 KiB before the seal were changed; "
            "looks like an attack: read-only data was to become writable"
        ),
        operation="mprotect",
        arguments={"addr": "0x7efffffff000", "size": 0x3000, "prot": "rw-"},
        verdict="sealed",
        reason=None,
        assessment=Assessment("read_only_data", "attack"),
        role="range",
        sealed=Sealed(
            "0x7f0000001000",
            "0x7f0000002000",
            "r--p",
            File("libfoo.so", "254:1", 77, 3 * 4096),
            None,
        ),
        partial_update=AddressRange("0x7efffffff000", "0x7f0000001000"),
        hidden=False,
        compat=False,
        instruction_pointer="0x7f0000100000",
        caller="0x401234",
        stack=(),
        stack_complete=False,
    )


def test_a_fault_in_full() -> None:
    event = classified(
        fault(
            Cause.GUARD_REGION,
            flags=RecordFlag.INFERRED,
            mapping={**ANONYMOUS, "flags": READ | WRITE, "name": b"arena"},
            instruction_pointer=0x401000,
        )
    )
    assert event == Fault(
        **{name: getattr(ORIGIN, name) for name in asdict(ORIGIN)},
        severity="warning",
        summary=(
            "write to a guard region (inferred) at 0x7f0000001010 (rw-p, arena): "
            "python3 (pid 4242) died of SIGSEGV; "
            "probably a bug: an access ran past its buffer or stack"
        ),
        cause="guard_region",
        inferred=True,
        assessment=Assessment("overrun", "bug"),
        access="write",
        address="0x7f0000001010",
        mapping=Mapping("0x7f0000001000", "0x7f0000002000", "rw-p", False, None, "arena"),
        disposition="default",
        instruction_pointer="0x401000",
        pkey=None,
        signal_code=1,
        stack=(),
        stack_complete=False,
    )


def test_a_seal_in_full() -> None:
    event = classified(record(Kind.SEAL, mapping=LIBRARY, address=START, length=0x1000))
    assert event == Seal(
        **{name: getattr(ORIGIN, name) for name in asdict(ORIGIN)},
        severity="info",
        summary=(
            "python3 (pid 4242) sealed 4 KiB at 0x7f0000001000-0x7f0000002000 (r--p, libfoo.so)"
        ),
        start="0x7f0000001000",
        length=0x1000,
        mapping=Mapping(
            "0x7f0000001000",
            "0x7f0000002000",
            "r--p",
            True,
            File("libfoo.so", "254:1", 77, 3 * 4096),
            None,
        ),
        caller="0x0",
        stack=(),
        stack_complete=False,
    )


OTHER = Target(77, TIME, "web", "/srv/web")


def bypass(method: Method, flags: int = READ, pid: int = 77) -> abi.Record:
    return record(
        Kind.BYPASS,
        mapping={**LIBRARY, "flags": flags | SEALED_BIT},
        address=START + 8,
        length=8,
        bypass=abi.Bypass(method=method, pid=pid, task_name=b"web", executable=b"web"),
    )


def test_a_bypass_in_full() -> None:
    event = classified(bypass(Method.PTRACE_POKE), target=OTHER)
    assert event == Bypass(
        **{name: getattr(ORIGIN, name) for name in asdict(ORIGIN)},
        severity="critical",
        summary=(
            "write to sealed memory by ptrace: python3 (pid 4242) wrote to "
            "0x7f0000001008-0x7f0000001010 of web (pid 77) (sealed r--p, libfoo.so); "
            "looks like an attack: read-only data was changed"
        ),
        method="ptrace_poke",
        assessment=Assessment("data_written", "attack"),
        target=OTHER,
        changed=AddressRange("0x7f0000001008", "0x7f0000001010"),
        sealed=Sealed(
            "0x7f0000001000",
            "0x7f0000002000",
            "r--p",
            File("libfoo.so", "254:1", 77, 3 * 4096),
            None,
        ),
        compat=False,
        instruction_pointer="0x0",
        caller="0x0",
        stack=(),
        stack_complete=False,
    )


@pytest.mark.parametrize(
    ("made", "summary", "severity"),
    [
        (
            bypass(Method.PTRACE_POKE, READ | EXEC),
            "of web (pid 77) (sealed r-xp, libfoo.so); "
            "looks like an attack: the code of another process was changed",
            "critical",
        ),
        (
            bypass(Method.PROC_MEM_WRITE, READ | EXEC, 4242),
            "wrote to 0x7f0000001008-0x7f0000001010 (sealed r-xp, libfoo.so); "
            "looks like an attack: a process patched its own sealed code",
            "critical",
        ),
        (
            bypass(Method.PROC_MEM_WRITE, READ, 0),  # whose memory it was is not known
            "wrote to 0x7f0000001008-0x7f0000001010 (sealed r--p, libfoo.so); "
            "looks like an attack: read-only data was changed",
            "critical",
        ),
    ],
)
def test_who_wrote_to_what(made: abi.Record, summary: str, severity: str) -> None:
    event = classified(made)
    assert event.summary.endswith(summary)
    assert event.severity == severity


RANGE = "0x7f0000001000-0x7f0000002000"


@pytest.mark.parametrize(
    ("made", "summary", "severity"),
    [
        (
            denial("pkey_mprotect", arguments=(START, 4096, 1, 2)),
            "pkey_mprotect of sealed memory refused: python3 (pid 4242) asked for r-- with key 2 "
            f"on {RANGE} (sealed r--p, libfoo.so); "
            "looks like an attack: the protection key of memory was to change",
            "critical",
        ),
        (
            denial("munmap", mapping=ANONYMOUS, arguments=(START, 4096)),
            "munmap of sealed memory refused: python3 (pid 4242) tried to unmap "
            f"{RANGE} (sealed r--p, anonymous); "
            "probably a leak: the process unmaps what it has sealed",
            "warning",
        ),
        (
            denial("mremap", role=Role.SOURCE),
            "mremap of sealed memory refused: python3 (pid 4242) tried to move or resize "
            f"{RANGE} (sealed r--p, libfoo.so); "
            "probably a bug: sealed memory was to be resized",
            "warning",
        ),
        (
            denial("mremap", role=Role.DESTINATION),
            "mremap of sealed memory refused: python3 (pid 4242) tried to move memory over "
            f"{RANGE} (sealed r--p, libfoo.so); "
            "looks like an attack: sealed memory was to be replaced",
            "critical",
        ),
        (
            denial("madvise", mapping={**ANONYMOUS, "name": b"v8"}, arguments=(START, 4096, 4)),
            "madvise of sealed memory refused: python3 (pid 4242) advised MADV_DONTNEED on "
            f"{RANGE} (sealed r--p, v8); "
            "looks like an attack: the content of sealed memory was to be discarded",
            "critical",
        ),
        (
            denial("brk", flags=RecordFlag.HIDDEN, mapping=ANONYMOUS, arguments=(START,)),
            "brk of sealed memory refused, unknown to the caller: python3 (pid 4242) tried to "
            f"give back heap memory at {RANGE} (sealed r--p, anonymous); "
            "probably a leak: the heap cannot shrink over sealed memory",
            "warning",
        ),
        (
            denial("mmap", verdict=Verdict.NOT_SEALED, mapping=None),
            "mmap refused, not by a seal: python3 (pid 4242) tried to map over " + RANGE,
            "info",
        ),
        (
            denial(verdict=Verdict.UNVERIFIED, reason=Reason.SECCOMP),
            "mprotect refused, perhaps by a seal (or by a seccomp filter): python3 (pid 4242) "
            f"asked for rw- on {RANGE} (sealed r--p, libfoo.so); looks like an attack: read-only "
            "data was to become writable",
            "critical",
        ),
        (
            denial(
                "shmat",
                verdict=Verdict.UNVERIFIED,
                reason=Reason.UNKNOWN_LENGTH,
                length=0,
                mapping=None,
            ),
            "shmat refused, perhaps by a seal (its length is unknown): python3 (pid 4242) tried "
            "to attach shared memory over 0x7f0000001000",
            "critical",
        ),
        (
            denial(
                "process_madvise",
                verdict=Verdict.UNVERIFIED,
                reason=Reason.OTHER_PROCESS,
                mapping=None,
            ),
            "process_madvise refused, perhaps by a seal (in another process): python3 (pid 4242) "
            f"advised MADV_NORMAL on {RANGE}",
            "warning",
        ),
        (
            fault(Cause.PROT_NONE, access=Access.READ, mapping={**ANONYMOUS, "flags": 0}),
            "read of PROT_NONE memory at 0x7f0000001010 (---p, anonymous): "
            "python3 (pid 4242) died of SIGSEGV; "
            "probably a bug: use of memory that is only reserved, or was freed",
            "warning",
        ),
        (
            fault(Cause.SEALED, mapping=LIBRARY, signal_code=2),
            "write to sealed memory at 0x7f0000001010 (r--p, libfoo.so): "
            "python3 (pid 4242) died of SIGSEGV; "
            "looks like an attack: a write to memory that is sealed against writing",
            "critical",
        ),
        (
            fault(Cause.SEALED, mapping=LIBRARY, disposition=Disposition.HANDLER),
            "write to sealed memory at 0x7f0000001010 (r--p, libfoo.so): "
            "python3 (pid 4242) got SIGSEGV, a handler was called; "
            "looks like an attack: a write to memory that is sealed against writing",
            "critical",
        ),
        (
            fault(
                Cause.SEALED,
                mapping=LIBRARY,
                access=Access.EXECUTE,
                disposition=Disposition.HANDLER,
            ),
            "execution of sealed memory at 0x7f0000001010 (r--p, libfoo.so): "
            "python3 (pid 4242) got SIGSEGV, a handler was called; "
            "looks like an attack: a jump into sealed data",
            "critical",
        ),
        (
            fault(Cause.SEALED, mapping={**ANONYMOUS, "flags": SEALED_BIT}, access=Access.READ),
            "read of sealed memory at 0x7f0000001010 (---p, anonymous): "
            "python3 (pid 4242) died of SIGSEGV; "
            "probably a bug: a read of memory that is sealed against reading",
            "critical",
        ),
        (
            fault(Cause.STACK_GUARD, disposition=Disposition.HANDLER_FAILED),
            "write to memory past the end of a stack at 0x7f0000001010: "
            "python3 (pid 4242) died of SIGSEGV, its handler could not run; "
            "probably a bug: stack overflow",
            "warning",
        ),
        (
            fault(Cause.GUARD_REGION, disposition=Disposition.HANDLER),
            "write to a guard region at 0x7f0000001010: "
            "python3 (pid 4242) got SIGSEGV, a handler was called; "
            "not known: the handler may have mended it, or reported a crash",
            "warning",
        ),
        (
            fault(Cause.PKEY, signal_code=4, pkey=3, mapping=ANONYMOUS),
            "write to memory under protection key 3 at 0x7f0000001010 (r--p, anonymous): "
            "python3 (pid 4242) died of SIGSEGV; "
            "probably a bug: the protection key of the memory was not held",
            "warning",
        ),
        (
            fault(Cause.OTHER, access=Access.EXECUTE, address=0, executable=b""),
            "execution of invalid memory at 0x0: worker (pid 4242) died of SIGSEGV",
            "info",
        ),
    ],
)
def test_summary_and_severity(made: abi.Record, summary: str, severity: str) -> None:
    event = classified(made)
    assert event.summary == summary
    assert event.severity == severity


@pytest.mark.parametrize("operation", NAMES)
@pytest.mark.parametrize("role", Role)
def test_every_operation_has_a_summary(operation: str, role: Role) -> None:
    event = classified(denial(operation, role=role))
    call = "change" if operation == "other" else operation
    assert event.summary.startswith(f"{call} of sealed memory refused: python3 (pid 4242) ")
    assert event.role == role.label


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_summary(reason: Reason) -> None:
    event = classified(denial(verdict=Verdict.UNVERIFIED, reason=reason))
    assert event.reason == (reason.label if reason else None)
    assert "perhaps by a seal" in event.summary


@pytest.mark.parametrize("reason", [r for r in Reason if r not in (0, Reason.OTHER_PROCESS)])
@pytest.mark.parametrize("operation", NAMES)
@pytest.mark.parametrize("mapping", [None, ANONYMOUS])
def test_what_is_unverified_weighs_no_less_than_what_is_proved(
    operation: str, reason: Reason, mapping: abi.Mapping | None
) -> None:
    order = ("info", "warning", "critical")
    proved = classified(denial(operation, mapping=ANONYMOUS))
    event = classified(
        denial(operation, mapping=mapping, verdict=Verdict.UNVERIFIED, reason=reason)
    )
    assert order.index(event.severity) >= order.index(proved.severity)
    assert event.assessment == (proved.assessment if mapping else None)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("disposition", Disposition)
@pytest.mark.parametrize("access", Access)
def test_a_handler_changes_no_severity(
    cause: Cause, disposition: Disposition, access: Access
) -> None:
    worst = classified(fault(cause, access=access, disposition=Disposition.DEFAULT)).severity
    event = classified(fault(cause, access=access, disposition=disposition))
    assert event.severity == worst


VDSO = {**ANONYMOUS, "flags": READ | EXEC | SEALED_BIT, "name": b"[vdso]"}


@pytest.mark.parametrize(
    ("kernel_seals", "by"), [(False, "sealed r-xp"), (True, "sealed by the kernel, r-xp")]
)
def test_who_sealed_a_system_mapping(kernel_seals: bool, by: str) -> None:
    event = classified(denial("munmap", mapping=VDSO), kernel_seals=kernel_seals)
    assert event.summary == (
        "munmap of sealed memory refused: python3 (pid 4242) tried to unmap "
        f"0x7f0000001000-0x7f0000002000 ({by}, [vdso]); "
        "probably on purpose: a mapping that the kernel made was to be unmapped or moved"
    )
    assert event.severity == "warning"


def test_a_file_called_like_a_system_mapping() -> None:
    event = classified(denial("munmap", mapping={**VDSO, "name": b"", "file": b"[vdso]"}))
    assert "(sealed r-xp, file [vdso])" in event.summary
    assert event.assessment == Assessment("unmapped", "leak")


@pytest.mark.parametrize(
    ("verdict", "flags", "shown"),
    [
        (Verdict.SEALED, READ | SEALED_BIT, True),
        (Verdict.UNVERIFIED, READ | SEALED_BIT, True),
        (Verdict.UNVERIFIED, READ, False),
        (Verdict.NOT_SEALED, READ | SEALED_BIT, False),
    ],
)
def test_sealed_is_shown_where_it_may_explain(verdict: Verdict, flags: int, shown: bool) -> None:
    event = classified(denial(verdict=verdict, mapping={**LIBRARY, "flags": flags}))
    assert (event.sealed is not None) is shown
    assert ("libfoo.so" in event.summary) is shown


@pytest.mark.parametrize(
    ("flags", "permissions"),
    [
        (0, "---p"),
        (READ, "r--p"),
        (READ | WRITE, "rw-p"),
        (EXEC, "--xp"),
        (READ | WRITE | EXEC | SHARED, "rwxs"),
        (0x70 | READ, "r--p"),
    ],
)
def test_permissions(flags: int, permissions: str) -> None:
    event = classified(fault(Cause.OTHER, mapping={**ANONYMOUS, "flags": flags}))
    assert event.mapping.permissions == permissions
    assert event.mapping.sealed is False


@pytest.mark.parametrize(
    ("mapping", "path", "expected"),
    [
        (LIBRARY, None, File("libfoo.so", "254:1", 77, 12288)),
        (LIBRARY, "/opt/a\nb/libfoo.so", File("/opt/a\\x0ab/libfoo.so", "254:1", 77, 12288)),
        (ANONYMOUS, None, None),
        ({**LIBRARY, "device": 8 << 20 | 0xFFFFF}, None, File("libfoo.so", "8:1048575", 77, 12288)),
        ({**LIBRARY, "file": b"a\xff'"}, None, File("a\\xff\\x27", "254:1", 77, 12288)),
    ],
)
def test_file(mapping: dict[str, Any], path: str | None, expected: File | None) -> None:
    assert classified(denial(mapping=mapping), file_path=path).sealed.file == expected


def test_the_summary_has_the_base_name_of_a_path() -> None:
    event = classified(denial(), file_path="/usr/lib/libfoo.so.1")
    assert "(sealed r--p, libfoo.so.1); " in event.summary


@pytest.mark.parametrize(("mask", "sealed"), [(SEALED_BIT, True), (1 << 63, False), (0, False)])
def test_the_seal_bit_is_a_parameter(mask: int, sealed: bool) -> None:
    event = classify(record(Kind.SEAL, mapping=LIBRARY), ORIGIN, sealed_mask=mask)
    assert isinstance(event, Seal)
    assert event.mapping is not None
    assert event.mapping.sealed is sealed


def test_bit_63_is_a_seal_bit_too() -> None:
    made = record(Kind.SEAL, mapping={**ANONYMOUS, "flags": 1 << 63 | READ})
    event = classify(made, ORIGIN, sealed_mask=1 << 63)
    assert isinstance(event, Seal)
    assert event.mapping is not None
    assert event.mapping.sealed is True


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (
            0,
            {
                "addr": "0x7f0000001000",
                "length": 4096,
                "prot": "r--",
                "flags": ["MAP_PRIVATE", "MAP_FIXED"],
                "fd": -1,
                "offset": 2,
            },
        ),
        (
            RecordFlag.COMPAT,
            {
                "addr": "0x1000",
                "length": 4096,
                "prot": "r--",
                "flags": ["MAP_PRIVATE", "MAP_FIXED"],
                "fd": -1,
                "offset": 8192,
            },
        ),
    ],
)
def test_arguments(flags: int, arguments: dict[str, object]) -> None:
    event = classified(denial("mmap", flags=flags, arguments=(START, 4096, 1, 0x12, 2**64 - 1, 2)))
    assert event.arguments == arguments
    assert event.compat is bool(flags)


def test_only_a_key_fault_has_a_pkey() -> None:
    assert classified(fault(Cause.PKEY, signal_code=4, pkey=3)).pkey == 3
    assert classified(fault(Cause.SEALED, signal_code=2, pkey=3)).pkey is None


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (1, "invalid memory"),
        (8, "memory that has another tag (MTE, noticed later)"),
        (9, "memory that has another tag (MTE)"),
        (10, "a shadow stack that differs"),
    ],
)
def test_faults_that_no_page_was_the_reason_for(code: int, what: str) -> None:
    summary = classified(fault(Cause.OTHER, signal_code=code)).summary
    assert summary.startswith(f"write to {what} at 0x")


def test_stack() -> None:
    made = denial()
    made.stack.addresses[:2] = 0x7F0000001010, 0x401000
    made.stack.depth = 2
    made.stack.modules[:2] = abi.NO_MODULE, abi.NO_MODULE
    event = classified(made)
    assert [frame.address for frame in event.stack] == ["0x7f0000001010", "0x401000"]
    assert event.stack_complete is False
    made.stack.complete = 1
    assert classified(made).stack_complete is True


def test_a_corrupt_stack_is_a_corrupt_record() -> None:
    made = denial()
    made.stack.depth = 17
    with pytest.raises(ClassifyError, match="corrupt record: a stack of 17 frames"):
        classified(made)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (record(Kind.SEAL), None),
        (abi.Record(kind=4), "4 is no kind"),
        (abi.Record(kind=Kind.DENIAL, operation=len(NAMES)), f"{len(NAMES)} is no operation"),
        (abi.Record(kind=Kind.DENIAL, verdict=3), "3 is no verdict"),
        (abi.Record(kind=Kind.DENIAL, reason=9), "9 is no reason"),
        (abi.Record(kind=Kind.DENIAL, role=3), "3 is no role"),
        (
            abi.Record(kind=Kind.DENIAL, stack=abi.Stack(depth=17)),
            "a stack of 17 frames and 0 modules",
        ),
        (abi.Record(kind=Kind.FAULT, cause=6), "6 is no cause"),
        (abi.Record(kind=Kind.FAULT, disposition=4), "4 is no disposition"),
        (abi.Record(kind=Kind.FAULT, access=255), "255 is no access"),
        (abi.Record(kind=Kind.BYPASS, bypass=abi.Bypass(method=6)), "6 is no method"),
        (abi.Record(kind=Kind.BYPASS), "a bypass without a mapping"),
    ],
)
def test_corrupt_records(made: abi.Record, message: str | None) -> None:
    if message is None:
        classified(made)
        return
    with pytest.raises(ClassifyError, match=f"^corrupt record: {message}$"):
        classify(made, ORIGIN, sealed_mask=SEALED_BIT)


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_any_bytes_make_an_event_or_an_error(raw: bytes) -> None:
    made = abi.Record.from_buffer_copy(raw)
    made.kind %= len(Kind)
    made.operation %= len(NAMES)
    made.verdict %= len(Verdict)
    made.reason %= len(Reason)
    made.role %= len(Role)
    made.cause %= len(Cause)
    made.stack.depth %= 17
    made.stack.module_count %= 9
    try:
        event = classify(made, ORIGIN, sealed_mask=SEALED_BIT)
    except ClassifyError:
        return
    VALIDATOR.validate(events.to_dict(event))


@given(
    st.sampled_from(NAMES),
    st.sampled_from([(verdict, reason) for verdict in Verdict for reason in Reason]),
    st.sampled_from((0, RecordFlag.HIDDEN)),
    st.binary(max_size=63),
    st.binary(max_size=63),
)
def test_a_summary_is_one_short_line(
    operation: str,
    why: tuple[Verdict, Reason],
    flags: int,
    executable: bytes,
    file: bytes,
) -> None:
    event = classified(
        denial(
            operation,
            verdict=why[0],
            reason=why[1],
            flags=flags,
            executable=executable,
            mapping={**LIBRARY, "file": file},
            partial_start=START - 0x1000,
            partial_end=START,
        )
    )
    assert event.summary.isprintable()
    assert len(event.summary) <= 374


def test_an_ordinary_denial_fits_in_270_characters() -> None:
    event = classified(
        denial(
            "pkey_mprotect",
            executable=b"chromium-browser",
            partial_start=START - 0x1000,
            partial_end=START,
        )
    )
    assert len(event.summary) <= 270


@pytest.mark.parametrize(
    ("key", "count", "summary", "facts"),
    [
        (
            {"kind": Kind.DENIAL, "what": NAMES.index("munmap"), "pid": 4242, "caller": 0x401000},
            3,
            "3 more munmap denials of worker (pid 4242) in 2.5 s, counted but not reported singly",
            ("denial", "munmap", None, "0x401000"),
        ),
        (
            {"kind": Kind.FAULT, "what": Cause.SEALED, "pid": 4242, "caller": 0x401000},
            1,
            "1 more sealed fault of worker (pid 4242) in 2.5 s, counted but not reported singly",
            ("fault", None, "sealed", "0x401000"),
        ),
        (
            {"kind": Kind.SEAL, "pid": 4242, "caller": 0x401000},
            2,
            "2 more seals of worker (pid 4242) in 2.5 s, counted but not reported singly",
            ("seal", None, None, "0x401000"),
        ),
        (
            {"kind": Kind.BYPASS, "what": Method.PTRACE_POKE, "pid": 4242, "caller": 0x401000},
            2,
            "2 more ptrace_poke bypasses of worker (pid 4242) in 2.5 s, counted but not reported "
            "singly",
            ("bypass", None, None, "0x401000"),
        ),
        (
            {"kind": Kind.DENIAL},
            7,
            "7 more denials in 2.5 s, counted but not reported singly",
            ("denial", None, None, None),
        ),
    ],
)
def test_suppression(
    key: dict[str, int], count: int, summary: str, facts: tuple[str | None, ...]
) -> None:
    bucket = abi.Bucket(
        suppressed=count,
        first_suppressed_ns=1_000_000_000,
        last_suppressed_ns=3_500_000_001,
        task_name=b"worker",
    )
    held_back = None
    if "pid" in key:
        held_back = Process(
            4242, None, None, None, "worker", None, None, None, None, None, None, None
        )
    event = suppression(
        abi.BucketKey(**key),
        bucket,
        replace(ORIGIN, process=held_back),
        severity="critical",
        offset_ns=1_735_689_600_000_000_000,
    )
    VALIDATOR.validate(events.to_dict(event))
    assert event.summary == summary
    assert (event.of, event.operation, event.cause, event.caller) == facts
    assert event.severity == "critical"
    assert event.method == ("ptrace_poke" if event.of == "bypass" else None)
    assert event.count == count
    assert event.first == "2025-01-01T00:00:01.000000000Z"
    assert event.last == "2025-01-01T00:00:03.500000001Z"
    assert event.process == held_back


def test_a_suppression_of_a_moment_has_no_duration_of_0() -> None:
    bucket = abi.Bucket(
        suppressed=3996, first_suppressed_ns=10**9, last_suppressed_ns=1_008_197_479
    )
    event = suppression(
        abi.BucketKey(kind=Kind.DENIAL), bucket, ORIGIN, severity="warning", offset_ns=0
    )
    assert event.summary.startswith("3,996 more denials of python3 (pid 4242) at once, counted")


@pytest.mark.parametrize(
    "key",
    [
        {"kind": 4},
        {"kind": 0, "what": 99, "pid": 1},
        {"kind": 1, "what": 6, "pid": 1},
        {"kind": 3, "what": 6, "pid": 1},
    ],
)
def test_corrupt_buckets(key: dict[str, int]) -> None:
    with pytest.raises(ClassifyError):
        suppression(
            abi.BucketKey(**key),
            abi.Bucket(suppressed=1),
            ORIGIN,
            severity="warning",
            offset_ns=0,
        )
