"""A real debugger sets breakpoints in sealed code: what is reported, and what docs/mutes.md mutes.

gdb writes through /proc/PID/mem; where that cannot be opened for writing, it uses ptrace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import why_no_fexit
from test_daemon import Compile, Running, Start, start

__all__ = ["start"]  # a fixture

ROOT = Path(__file__).parents[2]
NOBODY = 65534
GDB = "/usr/bin/gdb"
AS_IT_IS, READ_ONLY = "proc_mem_write", "ptrace_poke"  # /proc, and the method that follows
READ_ONLY_PROC = "mount --bind /proc /proc && mount -o remount,bind,ro /proc"
SECONDS = 20.0
# The breakpoint is in place while the program runs between two stops.
SCRIPT = ("break work", "run", "continue 2", "delete", "continue")


class Places(NamedTuple):
    """`copy` is a file of the user's that is called gdb."""

    program: Path
    copy: Path


@pytest.fixture(scope="module")
def places(compiled: Compile) -> Iterator[Places]:
    """In a directory that any user can go into."""
    if not Path(GDB).exists():
        pytest.skip(f"{GDB} is not installed")
    folder = Path("/var/tmp") / f"seal-monitor-test-{os.getpid()}"
    folder.mkdir(mode=0o755, parents=True)
    folder.chmod(0o755)
    found = Places(folder / "sealed_code", folder / "gdb")
    for source, place, uid in ((compiled("sealed_code"), found[0], 0), (GDB, found[1], NOBODY)):
        shutil.copy(source, place)
        place.chmod(0o755)
        os.chown(place, uid, uid)
    yield found
    shutil.rmtree(folder)


@pytest.fixture(params=[AS_IT_IS, READ_ONLY])
def method(request: pytest.FixtureRequest) -> str:
    """Each way in which gdb writes, as far as this kernel's hooks see it."""
    name: str = request.param
    if name == AS_IT_IS and (reason := why_no_fexit()):
        pytest.skip(reason)
    return name


def debugged(gdb: str | Path, program: Path, method: str, user: int, *commands: str) -> None:
    """Run the program under gdb, with a breakpoint in its sealed code."""
    words = [str(gdb), "-q", "-nx", "-batch"]
    for command in commands or SCRIPT:
        words += ["-ex", command]
    ids = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    before = f"{READ_ONLY_PROC} && " if method == READ_ONLY else ""
    shown = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{before}exec "$@"', "sh", *ids, *words, program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.search(r"^Breakpoint 1, .*work \(", shown.stdout, re.MULTILINE), (
        shown.stdout + shown.stderr
    )
    assert "exited normally" in shown.stdout


def counted(daemon: Running, method: str) -> int:
    return int(daemon.metric(f'seal_monitor_bypasses_total{{method="{method}"}}'))


def filtered(daemon: Running) -> int:
    return int(daemon.metric('seal_monitor_events_total{kind="bypass",result="filtered"}'))


def reported(daemon: Running, method: str, but: int = 0) -> list[dict[str, Any]]:
    """The events of all bypasses, `but` so many. None of them is held back."""
    deadline = time.monotonic() + SECONDS
    while len(found := daemon.events("bypass")) < counted(daemon, method) - but:
        assert time.monotonic() < deadline, (len(found), counted(daemon, method), but)
        time.sleep(0.05)
    return found


def verdicts(found: Sequence[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {
        (
            each["method"],
            each["severity"],
            each["assessment"]["name"],
            each["process"]["executable"],
            each["target"]["executable"].rpartition("/")[2],
        )
        for each in found
    }


def test_a_breakpoint_is_a_warning(start: Start, places: Places, method: str) -> None:
    """Of root's and of a user's; what has only the name of gdb gets no less than any program."""
    daemon = start()
    expected = set()
    for gdb, user, severity in (
        (GDB, 0, ("warning", "breakpoint")),
        (GDB, NOBODY, ("warning", "breakpoint")),
        (places.copy, NOBODY, ("critical", "code_injected")),
        (places.copy, 0, ("critical", "code_injected")),
    ):
        debugged(gdb, places.program, method, user)
        expected.add((method, *severity, str(gdb), "sealed_code"))
        assert verdicts(reported(daemon, method)) == expected
    uids = {each["process"]["uid"] for each in daemon.events("bypass")}
    assert uids == {0, NOBODY}


def the_page_s_mute() -> str:
    """The example of docs/mutes.md, as it stands there, for a user that this host has."""
    section = (ROOT / "docs/mutes.md").read_text("utf-8").partition("## Debuggers")[2]
    (text,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    assert text.count('user = "developer"') == 2
    return str(text.replace("developer", "nobody"))


def test_the_example_mutes_it_and_nothing_else(start: Start, places: Places, method: str) -> None:
    daemon = start(the_page_s_mute())
    debugged(GDB, places.program, method, NOBODY)
    muted = counted(daemon, method)
    assert muted >= 2  # the breakpoint was set and taken away
    deadline = time.monotonic() + SECONDS
    while filtered(daemon) < muted:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert daemon.events("bypass") == []
    # Not another user's, not a copy, not what the debugged program does.
    debugged(GDB, places.program, method, 0)
    debugged(places.copy, places.program, method, NOBODY)
    found = reported(daemon, method, but=muted)
    assert {(each["process"]["executable"], each["process"]["uid"]) for each in found} == {
        (GDB, 0),
        (str(places.copy), NOBODY),
    }
    unmap = "call (int)munmap((void *)((unsigned long)&work & ~0xfffUL), 4096)"
    before = len(daemon.events("denial"))
    debugged(GDB, places.program, method, NOBODY, *SCRIPT[:2], unmap, *SCRIPT[3:])
    deadline = time.monotonic() + SECONDS
    while len(daemon.events("denial")) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    denial = daemon.events("denial")[-1]
    assert (denial["operation"], denial["verdict"]) == ("munmap", "sealed")
    assert denial["process"]["executable"] == str(places.program)
    assert len(reported(daemon, method, but=filtered(daemon))) == len(found)
