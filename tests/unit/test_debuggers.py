"""Which programs set breakpoints on purpose; nobody is one of them by the name of his file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_classify import ORIGIN, OTHER, bypass

from monitor.evidence.classify import classify
from monitor.evidence.debuggers import is_debugger
from monitor.evidence.events import Bypass, Process
from monitor.kernel.abi import Method

assert isinstance(ORIGIN.process, Process)
GDB = replace(ORIGIN.process, executable="/usr/bin/gdb", files="host", executable_owner=0)
READ, EXEC = 1, 4  # VM_READ, VM_EXEC


@pytest.mark.parametrize(
    "path",
    [
        *("/usr/bin/gdb", "/usr/libexec/gdb", "/usr/bin/gdb-multiarch", "/usr/bin/gdbserver"),
        *("/usr/lib/llvm-14/bin/lldb-server", "/usr/bin/lldb-server-19", "/usr/bin/lldb-19"),
        *("/usr/bin/dlv", "/usr/bin/ltrace", "/usr/bin/rr", "/usr/sbin/criu"),
    ],
)
def test_the_hosts_own_debuggers(path: str) -> None:
    assert is_debugger(replace(GDB, executable=path))


@pytest.mark.parametrize(
    "process",
    [
        None,
        replace(GDB, executable=None),
        replace(GDB, executable="/usr/bin/python3.11"),  # whatever its script is called
        replace(GDB, executable="/usr/bin/gdbx"),
        replace(GDB, executable="/tmp/gdb", executable_owner=1000),
        replace(GDB, executable_owner=None),  # of a file system that anybody may have written
        replace(GDB, files="namespace", executable_owner=None),
        replace(GDB, executable="gdb", files=None, executable_owner=None),  # it has ended
        replace(GDB, executable="/usr/bin/gdb (deleted)"),
    ],
)
def test_a_name_alone_makes_no_debugger(process: Process | None) -> None:
    assert not is_debugger(process)


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("method", [Method.PTRACE_POKE, Method.PROC_MEM_WRITE])
def test_severity_of_a_breakpoint(method: Method, uid: int) -> None:
    """Root's and any user's are the same; of a program that is only called gdb it is an attack."""

    def found(executable_owner: int | None) -> tuple[str, str, str]:
        process = replace(GDB, uid=uid, executable_owner=executable_owner)
        event = classify(
            bypass(method, READ | EXEC),
            replace(ORIGIN, process=process),
            sealed_mask=1 << 63,
            target=OTHER,
        )
        assert isinstance(event, Bypass)
        assert event.assessment
        return event.severity, event.assessment.name, event.summary.partition("; ")[2]

    assert found(0) == (
        *("warning", "breakpoint", "probably on purpose: a breakpoint of a debugger"),
    )
    assert found(uid or None) == (
        *("critical", "code_injected"),
        "looks like an attack: the code of another process was changed",
    )
