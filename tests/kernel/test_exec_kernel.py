"""`seal-monitor exec` as a user runs it: real commands, their violations, exit codes, and nothing
left behind.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ATTACH_MODES
from harness import cgroup_root, own_cgroup, started

from monitor.execute.cgroup import CommandCgroup
from monitor.execute.remains import new_prefix

pytestmark = pytest.mark.usefixtures("require_bpf", "nothing_left")

Compile = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
EXEC = (sys.executable, "-m", "monitor", "exec")
LIMIT = 300.0
CHILDREN = 1000
STORM = 200_000


@dataclass(frozen=True)
class Ran:
    code: int
    output: str
    errors: str
    found: Any


Run = Callable[..., Ran]


def _left() -> set[Path]:
    own = own_cgroup()
    cgroups = own.rglob("seal-monitor-exec-*") if own else ()
    return {*cgroups, *Path(tempfile.gettempdir()).glob("seal-monitor-exec-*")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """But for what an exec beside this test still has: the pid in its name is alive."""
    before = _left()
    yield
    pids = {path: path.name.split("-")[-2] for path in _left() - before}
    assert [path for path, pid in pids.items() if not Path("/proc", pid).exists()] == []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*command: object, flags: Sequence[str] = (), **popen: Any) -> Ran:
        file = tmp_path / "found.json"
        done = subprocess.run(
            [*EXEC, "--json", file, *flags, "--", *map(str, command)],
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            **popen,
        )
        # There is no such file where the command could not be started.
        found = json.loads(file.read_bytes()) if file.exists() else None
        return Ran(done.returncode, done.stdout, done.stderr, found)

    return run


def functions(event: Any) -> list[str]:
    return [(frame["symbol"] or "?").partition("+")[0] for frame in event["stack"]]


# ---- What is reported ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ATTACH_MODES, ids=lambda mode: f"by_{mode}")
def test_short_lived_children_are_all_counted(run: Run, compiled: Compile, mode: str) -> None:
    program = compiled("command")
    # Each process is gone when its functions are named: its file is found nearby.
    ran = run(program, "children", CHILDREN, flags=["--attach", mode], cwd=program.parent)
    assert ran.code == 0
    assert ran.output == ""
    assert ran.found["denials"] == {"munmap": {"sealed": CHILDREN}}
    assert ran.found["violations"] == {"denial": CHILDREN, "fault": 0, "bypass": 0}
    assert ran.found["seals"] == CHILDREN
    assert ran.found["faults"] == {}
    (incident,) = ran.found["incidents"]
    assert incident["count"] == CHILDREN
    assert incident["title"] == "munmap of sealed memory refused"
    # The build id of a library's file may be in no page of a process that was forked just now.
    assert functions(incident["events"][-1])[1] == "unload_table"
    # Once as it happens, once in the table.
    assert ran.errors.count("munmap of sealed memory refused") == 2
    assert f"seal-monitor: {CHILDREN:,} denials, in " in ran.errors
    assert ran.errors.count("unload_table") == 2


def test_a_program_that_the_loader_runs(run: Run, compiled: Compile) -> None:
    """It is named beside the loader, and its incident is not that of the program by itself."""
    program, loader = compiled("leaderless"), Path("/lib64/ld-linux-x86-64.so.2").resolve()
    script = "(echo; sleep 1) | {} --with-leader"
    ran = run("sh", "-c", script.format(f"{loader} {program}"))
    (incident,) = ran.found["incidents"]
    event = incident["events"][0]
    assert event["process"]["executable"] == str(loader)
    assert event["process"]["program"] == {"path": str(program), "files": "host"}
    assert f": {loader.name} running leaderless (pid " in event["summary"]

    alone = run("sh", "-c", script.format(program))
    (other,) = alone.found["incidents"]
    assert other["events"][0]["process"]["program"] is None
    assert other["id"] != incident["id"]


def test_threads_orphans_and_daemons(run: Run, compiled: Compile) -> None:
    program = compiled("command")
    script = f"{program} threads 5; {program} orphans 7; {program} daemons 11"
    ran = run("sh", "-c", script)
    assert ran.found["denials"] == {"munmap": {"sealed": 23}}
    assert sum(incident["count"] for incident in ran.found["incidents"]) == 23
    assert ran.found["still_running"] == []


def test_others_are_not_shown(run: Run, compiled: Compile) -> None:
    program = compiled("command")
    with started([[program, "unmap", 2_000_000_000]]) as (other,):
        quiet = run("true")
        ran = run(program, "unmap", 3)
        assert other.poll() is None
    assert quiet.code == ran.code == 0
    assert quiet.found["denials"] == {}
    assert quiet.found["incidents"] == []
    assert quiet.errors.startswith("seal-monitor: no violations, 0 mseal calls, in ")
    assert quiet.errors.count("\n") == 1
    assert ran.found["denials"] == {"munmap": {"sealed": 3}}
    (incident,) = ran.found["incidents"]
    assert incident["count"] == 3
    # Only processes that are looked at in time have a path.
    assert {Path(event["process"]["executable"]).name for event in incident["events"]} == {
        "command"
    }


def test_a_storm_is_counted_exactly(run: Run, compiled: Compile) -> None:
    ran = run(compiled("command"), "unmap", STORM)
    assert ran.found["denials"] == {"munmap": {"sealed": STORM}}
    (incident,) = ran.found["incidents"]
    assert incident["count"] == STORM
    assert incident["delivered"] < STORM / 1000
    assert f"  {STORM:,}  warning   munmap of sealed memory refused" in ran.errors


def test_a_cgroup_that_the_command_makes(run: Run, compiled: Compile) -> None:
    script = (
        'own=$1$(cut -d: -f3- /proc/self/cgroup | tail -1); mkdir -p "$own/a/b"; '
        'echo $$ >"$own/a/b/cgroup.procs"; cat /proc/self/cgroup; $2 unmap 2; '
        'echo $$ >"$1/cgroup.procs"'
    )
    ran = run("sh", "-c", script, "sh", cgroup_root(), compiled("command"))
    assert ran.output.strip().endswith("/a/b"), ran.errors
    assert ran.found["denials"] == {"munmap": {"sealed": 2}}


# ---- Exit codes ----------------------------------------------------------------------------------


def test_a_fault(run: Run, compiled: Compile) -> None:
    program = compiled("command")
    # The process is gone when its functions are named: its file is found nearby.
    died = run(program, "guard", cwd=program.parent)
    assert died.code == 128 + signal.SIGSEGV
    assert (died.found["exit_code"], died.found["signal"]) == (None, "SIGSEGV")
    assert died.found["faults"] == {"prot_none": {"default": 1}}
    (incident,) = died.found["incidents"]
    assert functions(incident["events"][0])[0] == "overrun"
    assert "1 fault, in " in died.errors
    failed = run(program, "guard", flags=["--fail-on", "denial,fault"])
    assert (failed.code, failed.found["failed_on"]) == (4, ["fault"])
    assert failed.errors.endswith("exit code 4, for --fail-on fault\n")
    other = run(program, "guard", flags=["--fail-on", "denial"])
    assert (other.code, other.found["failed_on"]) == (128 + signal.SIGSEGV, [])


@pytest.mark.parametrize(
    ("commands", "times"),
    [(("run",), 1), (("run", "signal 0", "signal 0", "kill"), 3), (("run", "continue"), 1)],
)
def test_what_a_debugger_swallows(
    run: Run, compiled: Compile, commands: Sequence[str], times: int
) -> None:
    """The consequences, and no violation."""
    words = [word for command in commands for word in ("-ex", command)]
    program = compiled("command")
    gdb = ("gdb", "-q", "-nx", "-batch", *words, "--args", program, "guard")
    ran = run(*gdb, stdin=subprocess.DEVNULL, cwd=program.parent)
    assert (ran.code, ran.found["exit_code"], ran.found["signal"]) == (0, 0, None)
    assert ran.found["faults"]["prot_none"] == {"default": times}  # gdb handles some of its own
    found = [functions(incident["events"][0]) for incident in ran.found["incidents"]]
    assert [names[0] for names in found if names[:1] == ["overrun"]] == ["overrun"]
    assert run(*gdb, flags=["--fail-on", "fault"], stdin=subprocess.DEVNULL).code == 4


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("sh", "-c", "exit 7"), 7, "no violations"),
        (("sh", "-c", "kill -9 $$"), 137, "no violations"),
        (("no-such-command",), 127, "no-such-command: command not found"),
        (("/etc/passwd",), 126, "cannot execute /etc/passwd: Permission denied"),
    ],
)
def test_exit_codes(run: Run, command: Sequence[str], code: int, message: str) -> None:
    ran = run(*command)
    assert ran.code == code
    assert message in ran.errors
    assert ran.errors.count("\n") == 1


# ---- Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "owner"), [(0o755, 0), (0o1777, 65534)])
def test_only_one_user_may_read_the_results(
    run: Run, compiled: Compile, tmp_path: Path, mode: int, owner: int
) -> None:
    """They are the command's user's, where that user could have made them."""
    json_file, page = tmp_path / "found.json", tmp_path / "found.html"
    tmp_path.chmod(mode)
    old = os.umask(0)
    try:
        run(
            *(compiled("command"), "unmap", 3),
            flags=["--report", str(page), "--user", "nobody"],
        )
    finally:
        os.umask(old)
    assert b"munmap of sealed memory refused" in page.read_bytes()
    for file in (json_file, page):
        status = file.stat()
        assert (status.st_uid, status.st_gid) == (owner, owner)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [page, json_file]


def test_old_results_stay_where_there_is_nothing_to_report(run: Run, tmp_path: Path) -> None:
    json_file, page = tmp_path / "found.json", tmp_path / "found.html"
    json_file.write_text('"old"')
    page.write_text("old")
    missing = run("/nonexistent", flags=["--report", str(page)])
    assert (missing.code, missing.found, page.read_text()) == (127, "old", "old")
    quiet = run("true", flags=["--report", str(page)])
    assert quiet.found["violations"] == {"denial": 0, "fault": 0, "bypass": 0}
    assert quiet.errors.endswith("no report: there was no violation\n")
    assert page.read_text() == "old"


@pytest.mark.parametrize(
    ("script", "code", "made"),
    [
        ('ln -s "$1/roots.json" found.json', 125, None),
        ('mv "$PWD" "$1/moved"; ln -s "$1/roots" "$1/place"', 0, "moved/found.json"),
    ],
)
def test_the_command_cannot_lead_results_elsewhere(script: str, code: int, made: str) -> None:
    """The command may write to their directory, but no file of root's is changed."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o777)
        (top / "roots.json").write_text("root's")
        (top / "roots").mkdir()
        (top / "place").mkdir()
        (top / "place").chmod(0o777)
        done = subprocess.run(
            [
                *EXEC,
                "--user",
                "nobody",
                "--json",
                "found.json",
                "--",
                "sh",
                "-c",
                script,
                "sh",
                top,
            ],
            check=False,
            cwd=top / "place",
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == code, done.stderr
        assert (top / "roots.json").read_text() == "root's"
        assert list((top / "roots").iterdir()) == []
        if made:
            assert json.loads((top / made).read_bytes())["exit_code"] == 0
        else:
            assert "found.json: not a regular file; name another" in done.stderr


def test_standard_output(run: Run, compiled: Compile) -> None:
    ran = run("echo", "from the command", flags=["--json", "-"])
    first, _, document = ran.output.partition("\n")
    assert first == "from the command"
    assert json.loads(document)["command"] == ["echo", "from the command"]
    ran = run(compiled("command"), "unmap", 1, flags=["--report", "-"])
    assert ran.output.startswith("<!DOCTYPE html>")
    assert not Path("-").exists()


# ---- The command's surroundings ------------------------------------------------------------------


def test_another_user(run: Run) -> None:
    script = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $MINE; head -c 5"
    ran = run(
        *("sh", "-c", script),
        flags=["--user", "nobody"],
        input="12345678",
        env=os.environ | {"MINE": "kept", "SUDO_USER": "root"},
        extra_groups=[0],
    )
    uid, gid, groups, variables, stdin = ran.output.splitlines()
    assert (uid, gid, groups) == ("65534", "65534", "65534")
    assert variables.endswith(" nobody nobody kept")
    assert stdin == "12345"


def test_whoever_called_sudo(run: Run) -> None:
    ran = run("id", "-u", env=os.environ | {"SUDO_USER": "nobody"})
    assert ran.output == "65534\n"


def test_environment_and_descriptors_are_the_callers(run: Run) -> None:
    reader, writer = os.pipe()
    variables = {"PATH": os.environ["PATH"], "LANG": "C", "ODD": "a=b\udcff", "EMPTY": ""}
    try:
        ran = run(
            *(
                "sh",
                "-c",
                f'tr "\\0" "\\n" </proc/self/environ; echo given >/proc/self/fd/{writer}',
            ),
            env=variables,
            pass_fds=[writer],
            errors="surrogateescape",
        )
    finally:
        os.close(writer)
    with open(reader, "rb") as given:
        assert given.read() == b"given\n"
    found = dict(line.split("=", 1) for line in ran.output.splitlines())
    assert {name: found.get(name) for name in variables} == variables
    assert set(found) - set(variables) <= {"PWD", "OLDPWD", "SHLVL", "_"}


def test_processes_that_live_on_are_reported(run: Run) -> None:
    ran = run("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    pid = int(ran.output)
    try:
        assert ran.found["still_running"] == [{"pid": pid, "name": "sleep"}]
        assert f"1 process of the command still running, no longer watched: sleep ({pid})" in (
            ran.errors
        )
        assert "seal-monitor-exec" not in Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        os.kill(pid, signal.SIGKILL)


def test_signals_are_the_commands(tmp_path: Path) -> None:
    script = 'trap "exit 9" TERM; echo ready; while :; do sleep 0.1; done'
    with subprocess.Popen([*EXEC, "--", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(LIMIT) == 9


def test_an_end_before_the_command_has_started() -> None:
    with subprocess.Popen([*EXEC, "--", "echo", "started"], stdout=subprocess.PIPE) as process:
        while not _left():  # its directory
            time.sleep(0.001)
        process.terminate()
        output, _ = process.communicate(timeout=LIMIT)
    assert (process.returncode, output) == (128 + signal.SIGTERM, b"")


def test_what_sigkill_leaves_is_removed_by_the_next(run: Run) -> None:
    before = _left()
    command = ("sh", "-c", "echo $$; exec sleep 1000")
    with subprocess.Popen([*EXEC, "--", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    assert len(_left()) == len(before) + 2  # a cgroup and a directory
    try:
        run("true")
        (cgroup,) = set(_left()) - set(before)  # as long as a process lives in it
        assert cgroup.is_relative_to(cgroup_root() or "?")
    finally:
        os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
    run("true")
    assert _left() == before


def test_a_terminal_interrupts_the_command() -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [*EXEC, "--", "sh", "-c", "echo ready; sleep 1000"])
    shown = b""
    try:
        has_asked = False
        with suppress(OSError):  # EIO: everybody has closed it
            while data := os.read(terminal, 4096):
                shown += data
                if b"ready" in shown and not has_asked:
                    has_asked = True
                    time.sleep(0.2)
                    os.write(terminal, b"\x03")
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
    assert status == 128 + signal.SIGINT
    assert shown.count(b"no violations") == 1


# ---- The cgroup ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_mounted", [True, False])
def test_cgroup(tmp_path: Path, is_mounted: bool) -> None:
    """Also where no cgroup2 is mounted: exec then mounts one that nobody else sees."""
    proc = Path("/proc")
    if not is_mounted:
        proc = tmp_path
        own = tmp_path / "self"
        own.mkdir()
        (own / "mountinfo").write_text("")
        (own / "cgroup").symlink_to("/proc/self/cgroup")
    before = Path("/proc/self/mountinfo").read_text()
    cgroup = CommandCgroup(proc)
    assert _left()
    with started([["cat"]]) as (process,):
        os.write(cgroup.entry, str(process.pid).encode())
        path = Path(f"/proc/{process.pid}/cgroup").read_text()
        assert f"/{new_prefix()}" in path
        cgroup.close()
        assert new_prefix() not in Path(f"/proc/{process.pid}/cgroup").read_text()
        assert process.poll() is None
    assert Path("/proc/self/mountinfo").read_text() == before
