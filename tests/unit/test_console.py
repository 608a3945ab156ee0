from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from monitor.sinks.console import program_items
from monitor.sinks.outputs import pretty

HOST = {"name": "web-1", "boot_id": "1b4e28ba", "kernel_release": "6.18.44"}


PROCESS = {"pid": 4242, "name": "python3", "uid": 1000, "user_name": None}


COMMON: dict[str, Any] = {
    "schema": 1,
    "id": "1b4e28ba-00000000000003e8-00000001",
    "time": "2025-01-02T03:04:05.678000006Z",
    "time_boot_ns": 1000,
}


WHO: dict[str, Any] = {
    "host": HOST,
    "process": PROCESS,
    "workload": {
        "unit": "app.service",
        "container_id": None,
        "pod_uid": None,
        "cgroup": "/system.slice/app.service",
    },
}


FILE = {"path": "/usr/lib/libfoo.so", "device": "254:1", "inode": 7, "offset": 12288}


SEALED = {
    "start": "0x7f0000001000",
    "end": "0x7f0000002000",
    "permissions": "r--p",
    "file": FILE,
    "name": None,
}


DENIAL: dict[str, Any] = {
    **COMMON,
    "kind": "denial",
    "severity": "critical",
    "summary": (
        "mprotect of sealed memory refused: python3 (pid 4242) asked for rw- on "
        "0x7efffffff000-0x7f0000002000 (sealed r--p, libfoo.so); the 8 KiB before the seal were "
        "changed"
    ),
    **WHO,
    "operation": "mprotect",
    "verdict": "sealed",
    "reason": None,
    "sealed": SEALED,
    "partial_update": {"start": "0x7efffffff000", "end": "0x7f0000001000"},
    "caller": "0x401234",
    "stack": [
        {"address": "0x7f10", "module": "libc.so.6", "offset": 0x7F10},
        {"address": "0x401234", "module": "app", "offset": 0x1234},
    ],
}


UNVERIFIED: dict[str, Any] = {
    **DENIAL,
    "severity": "warning",
    "summary": "munmap refused, perhaps by a seal",
    "verdict": "unverified",
    "reason": "seccomp",
    "stack": [{"address": "0x401234", "module": None, "offset": None}],
    "sealed": None,
    "partial_update": None,
    "process": {**PROCESS, "user_name": "app"},
}


FAULT: dict[str, Any] = {
    **COMMON,
    "kind": "fault",
    "severity": "warning",
    "summary": "write to a guard region at 0x10: python3 (pid 4242) died of SIGSEGV",
    **WHO,
    "cause": "guard_region",
    "inferred": True,
    "mapping": {**SEALED, "file": None, "name": "arena", "sealed": False},
    "instruction_pointer": "0x401000",
    "stack": [],
}


SEAL: dict[str, Any] = {
    **COMMON,
    "kind": "seal",
    "severity": "info",
    "summary": "python3 (pid 4242) sealed 4 KiB",
    **WHO,
    "mapping": {**SEALED, "sealed": True},
}


SUPPRESSION: dict[str, Any] = {
    **COMMON,
    "kind": "suppression",
    "severity": "warning",
    "summary": "7 more denials in 2.5 s, counted but not reported singly",
    "host": HOST,
    "process": None,
    "workload": None,
    "caller": None,
    "first": "2025-01-02T03:04:02.500000000Z",
    "last": "2025-01-02T03:04:05.000000000Z",
}


HEALTH: dict[str, Any] = {
    **COMMON,
    "kind": "health",
    "severity": "critical",
    "summary": "the probe of munmap is gone",
    "host": HOST,
    "process": None,
    "workload": None,
    "event": "probe_lost",
    "message": "the probe of munmap is gone",
    "blind_seconds": 2.5,
    "details": {"probe": "munmap", "runs": 3, "last_run": None},
}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017 - the test closed it itself


def shown(event: dict[str, Any], pipe: tuple[int, int], **options: Any) -> str:
    reader, writer = pipe
    sink = pretty(writer, **{"colours": False, **options})
    sink.write(sink.render(event))
    return os.read(reader, 65536).decode()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            DENIAL,
            """\
03:04:05 denial      mprotect of sealed memory refused: python3 (pid 4242) asked for rw- on
                     0x7efffffff000-0x7f0000002000 (sealed r--p, libfoo.so); the 8 KiB before the
                     seal were changed
         critical    verdict sealed  seal 0x7f0000001000-0x7f0000002000 r--p
                     file /usr/lib/libfoo.so+0x3000  changed 0x7efffffff000-0x7f0000001000
                     caller app+0x1234  unit app.service  uid 1000
""",
        ),
        (
            UNVERIFIED,
            """\
03:04:05 denial      munmap refused, perhaps by a seal
         warning     verdict unverified (seccomp)  caller 0x401234  unit app.service  user app
""",
        ),
        (
            FAULT,
            """\
03:04:05 fault       write to a guard region at 0x10: python3 (pid 4242) died of SIGSEGV
         warning     cause guard_region (inferred)  mapping 0x7f0000001000-0x7f0000002000 r--p
                     name arena  instruction 0x401000  unit app.service  uid 1000
""",
        ),
        (
            SEAL,
            """\
03:04:05 seal        python3 (pid 4242) sealed 4 KiB
         info        mapping 0x7f0000001000-0x7f0000002000 r--p  file /usr/lib/libfoo.so+0x3000
                     unit app.service  uid 1000
""",
        ),
        (
            SUPPRESSION,
            """\
03:04:05 suppression 7 more denials in 2.5 s, counted but not reported singly
         warning     first 03:04:02.500  last 03:04:05.000
""",
        ),
        (
            HEALTH,
            """\
03:04:05 health      the probe of munmap is gone
         critical    probe_lost  blind for 2.5 s  probe munmap  runs 3
""",
        ),
    ],
    ids=["denial", "unverified", "fault", "seal", "suppression", "health"],
)
def test_pretty(event: dict[str, Any], expected: str, pipe: tuple[int, int]) -> None:
    assert shown(event, pipe) == expected


@pytest.mark.parametrize("event", [DENIAL, UNVERIFIED, FAULT, SEAL, SUPPRESSION, HEALTH])
def test_colours_change_nothing_but_colours(event: dict[str, Any], pipe: tuple[int, int]) -> None:
    plain = shown(event, pipe)
    coloured = shown(event, pipe, colours=True)
    assert "\x1b" not in plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in stripped.split("\n")] == plain.split("\n")
    colour = {"critical": "1;31", "warning": "33", "info": "36"}[event["severity"]]
    assert f"\x1b[{colour}m{event['kind']}" in coloured
    assert f"\x1b[{colour}m{event['severity']}" in coloured


def test_pretty_fits_the_width_whatever_a_path_is_like(pipe: tuple[int, int]) -> None:
    long = {**SEALED, "file": {**FILE, "path": "/very/long" * 100}}
    text = shown({**DENIAL, "sealed": long}, pipe)
    assert max(map(len, text.split("\n"))) <= 100
    assert "file /very/long" in text
    assert "/long+0x3000" in text


def test_a_path_that_is_not_the_hosts_is_marked(pipe: tuple[int, int]) -> None:
    whose = {"executable": "/usr/bin/sleep", "files": "namespace"}
    whose["identity"] = {"result": "complete", "reason": None}  # type: ignore[assignment]
    text = shown({**UNVERIFIED, "process": {**PROCESS, **whose}}, pipe, width=80)
    assert "program /usr/bin/sleep  (own mount namespace)" in text
    long = {**whose, "executable": "/long" * 100}
    text = shown({**UNVERIFIED, "process": {**PROCESS, **long}}, pipe, width=80)
    assert "(own mount namespace)" in text
    assert max(map(len, text.split("\n"))) <= 80


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (
            {"executable": "sleep", "files": None, "identity": ("partial", "not permitted")},
            ["program sleep", "(not verified: not permitted)"],
        ),
        (
            {"executable": "/bin/sleep", "files": "host", "identity": ("partial", "not permitted")},
            ["program /bin/sleep", "(partial: not permitted)"],
        ),
        ({"executable": "/bin/sleep", "files": "host", "identity": ("complete", None)}, []),
        ({"executable": "sleep", "files": None, "identity": ("gone", None)}, []),  # no path
        ({}, []),
    ],
)
def test_program_items(process: dict[str, Any], words: list[str]) -> None:
    if identity := process.get("identity"):
        process = {**process, "identity": {"result": identity[0], "reason": identity[1]}}
    assert program_items({**PROCESS, **process}) == words


def test_pretty_obeys_no_control_characters(pipe: tuple[int, int]) -> None:
    text = shown(
        {
            **DENIAL,
            "summary": "a\x1b[2J\nb",
            "workload": {"unit": "x\r\u202e.service", "container_id": None},
        },
        pipe,
    )
    assert "\x1b" not in text
    assert "03:04:05 denial      a\\u001b[2J\\u000ab\n" in text
    assert "unit x\\u000d\\u202e.service" in text
