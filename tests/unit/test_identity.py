from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.evidence.identity import EXECUTED, NOT_PERMITTED, Identities, Identity
from monitor.evidence.image import Image, program_file
from monitor.evidence.waiting import TooLong, Waiting
from monitor.untrusted.printable import printable
from monitor.untrusted.process_stat import parse_stat

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- a recorded /proc ----------------------------------------------------------------------------


def record_process(
    proc: Path,
    *,
    start_ticks: int = 1234,
    executable: bytes = b"/usr/bin/app",
    cmdline: bytes = b"app\0--token=x\0",
    state: str = "S",
) -> None:
    """Process 42 as /proc shows it."""
    directory = proc / "42"
    directory.mkdir(exist_ok=True)
    fields = [state, *["0"] * 18, str(start_ticks), *["1"] * 30]
    (directory / "stat").write_text(f"42 (a) R 1 (b) {' '.join(fields)}\n")
    (directory / "cmdline").write_bytes(cmdline)
    (directory / "exe").unlink(missing_ok=True)
    os.symlink(executable, os.fsencode(directory / "exe"))


START = 1234 * TICK_NS + TICK_NS - 1


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("redacted", "app --token=[redacted]"), ("full", "app --token=x"), ("off", None)],
)
def test_command_line_modes(tmp_path: Path, mode: str, shown: str | None) -> None:
    record_process(tmp_path)
    identities = Identities(tmp_path, command_line=mode)  # type: ignore[arg-type]
    assert identities.lookup(42, START, 0, b"", 5) == Identity(
        "/usr/bin/app", shown, "root", "complete", "tty"
    )


def test_what_was_shown_in_the_old_way_is_forgotten(tmp_path: Path) -> None:
    record_process(tmp_path)
    identities = Identities(tmp_path, command_line="full", clock=lambda: 0.0)
    shown = []
    for mode in ("full", "redacted", "redacted", "off"):
        identities.reconfigure(mode)
        shown.append(identities.lookup(42, START).command_line)
    assert shown == ["app --token=x", *["app --token=[redacted]"] * 2, None]


@pytest.mark.parametrize(
    ("pid", "start_boot_ns", "state", "result"),
    [
        (43, START, "S", "gone"),
        (42, START, "Z", "gone"),
        (42, START + 1, "S", "reused"),
        (42, 1234 * TICK_NS - 1, "S", "reused"),
    ],
)
def test_another_process_is_never_shown(
    tmp_path: Path, pid: int, start_boot_ns: int, state: str, result: str
) -> None:
    record_process(tmp_path, state=state)
    identity = Identities(tmp_path).lookup(pid, start_boot_ns, 4_000_000_000)
    assert identity == Identity(None, None, None, result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("executable", "cmdline", "shown"),
    [
        (b"/tmp/x (deleted)", b"x\0", ("/tmp/x (deleted)", "x")),
        (b"/tmp/\xff\n\x1b", b"\xff\n\0a b\0", (r"/tmp/\xff\x0a\x1b", r"\xff\x0a a b")),
        (b"/usr/bin/app", b"", ("/usr/bin/app", None)),
        (b"/" + b"d" * 600, b"c" * 600, ("/" + "d" * 510 + "…", "c" * 511 + "…")),
        (b"/x", b"a\0" * 40, ("/x", " ".join(["a"] * 32) + " ...")),
        (b"/x", b"\0" * 5000, ("/x", " " * 31 + " ...")),
    ],
)
def test_untrusted_text_is_escaped_and_bounded(
    tmp_path: Path, executable: bytes, cmdline: bytes, shown: tuple[str, str | None]
) -> None:
    record_process(tmp_path, executable=executable, cmdline=cmdline)
    identity = Identities(tmp_path).lookup(42, START)
    assert identity == Identity(*shown, None, "complete")


def test_an_exec_is_distinguished(tmp_path: Path) -> None:
    clock = Clock()
    identities = Identities(tmp_path, clock=clock)
    record_process(tmp_path, executable=b"/srv/sh", cmdline=b"sh\0")
    shell = Identity("/srv/sh", "sh", None, "complete")
    assert identities.lookup(42, START, base_name=b"sh") == shell

    record_process(tmp_path, executable=b"/bin/app (deleted)", cmdline=b"app\0")
    app = Identity("/bin/app (deleted)", "app", None, "complete", is_deleted=True)
    assert identities.lookup(42, START, base_name=b"sh") == shell
    assert identities.lookup(42, START, base_name=b"app") == app
    executed = Identity(None, None, None, "partial", None, EXECUTED)
    assert identities.lookup(42, START, base_name=b"sh") == executed

    record_process(tmp_path, executable=b"/bin/last", cmdline=b"last\0")
    assert identities.lookup(42, START) == replace(app, is_deleted=False)  # nobody has said so
    clock.now += 1.0
    assert identities.lookup(42, START).executable == "/bin/last"


def test_what_was_known_outlives_the_process(tmp_path: Path) -> None:
    clock = Clock()
    identities = Identities(tmp_path, clock=clock)
    record_process(tmp_path)
    known = identities.lookup(42, START, base_name=b"app")
    record_process(tmp_path, start_ticks=9999, executable=b"/bin/next")
    clock.now += 10.0
    assert identities.lookup(42, START, base_name=b"app") == known
    assert identities.lookup(42, START, base_name=b"exec") == Identity(None, None, None, "reused")
    assert identities.lookup(42, 9999 * TICK_NS).executable == "/bin/next"


def test_a_base_name_cut_by_the_kernel(tmp_path: Path) -> None:
    record_process(tmp_path, executable=b"/bin/" + b"n" * 100)
    identities = Identities(tmp_path)
    assert identities.lookup(42, START, base_name=b"n" * 63).result == "complete"
    assert identities.lookup(42, START, base_name=b"n" * 62).result == "partial"


# --- real processes and cgroups ------------------------------------------------------------------


@contextmanager
def child(*argv: str) -> Iterator[tuple[int, int]]:
    """pid and start (ns since boot, to the tick) of a process that has executed `argv`."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.read(1)
            stat = Path(f"/proc/{process.pid}/stat").read_text()
            yield process.pid, int(stat.rpartition(")")[2].split()[19]) * TICK_NS
        finally:
            process.kill()


SPEAKING = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"


def test_a_real_process() -> None:
    identities = Identities()
    with child(sys.executable, "-c", SPEAKING, "--password", "hunter22") as (pid, start):
        identity = identities.lookup(pid, start, os.getuid(), b"")
        assert identity.result == "complete"
        assert identity.executable == os.path.realpath(sys.executable)
        assert identity.command_line is not None
        assert identity.command_line.endswith("--password [redacted]")
        assert "hunter22" not in identity.command_line
        assert identities.lookup(pid, start + TICK_NS).result == "reused"
        fresh = Identities()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert fresh.lookup(pid, start).result == "gone"  # a zombie
    assert Identities().lookup(pid, start).result == "gone"
    assert identities.lookup(pid, start, os.getuid()) == identity


def test_what_may_not_be_read_is_partial() -> None:
    """As the daemon sees other users' processes without CAP_SYS_PTRACE."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a process that another user may not inspect")
    with child(sys.executable, "-c", SPEAKING, "mark") as (pid, start):
        os.seteuid(65534)
        try:
            identity = Identities().lookup(pid, start, 0, b"anything")
        finally:
            os.seteuid(0)
    shown = f"{sys.executable} -c {SPEAKING} mark"
    assert identity == Identity(None, printable(shown, 512), "root", "partial", None, NOT_PERMITTED)


def test_another_program_of_the_same_name_is_distinguished(tmp_path: Path) -> None:
    """The record was made by this file; the process has since executed /usr/bin/sleep."""
    copy = tmp_path / "sleep"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o700)
    shell = 'read line; exec /usr/bin/sleep "$1"'
    command = ["/bin/sh", "-c", shell, "sh", "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.001)  # Popen returns in the middle of the exec
            before = image_of(process.pid)
            start = start_of(process.pid)
            first = Identities().lookup(process.pid, start, image=before)
            assert (first.executable, first.result) == (os.path.realpath("/bin/sh"), "complete")
            assert process.stdin
            process.stdin.write(b"\n")
            process.stdin.close()
            while os.readlink(f"/proc/{process.pid}/exe") == first.executable:
                time.sleep(0.001)
            identities = Identities()
            late = identities.lookup(process.pid, start, 0, b"sleep", image=before)
            assert late == Identity(None, None, "root", "partial", None, EXECUTED)
            assert identities.executable(process.pid, start, before, 0) == (None, None)
            now = identities.lookup(process.pid, start, 0, b"sleep", image=image_of(process.pid))
            assert now.executable == os.path.realpath("/usr/bin/sleep")
        finally:
            process.kill()


@pytest.mark.parametrize("changed", [{"inode": 1}, {"mount": 1}, {"start_stack": 1}])
def test_each_part_of_an_image_counts(changed: dict[str, int]) -> None:
    own = image_of(os.getpid())
    start = start_of(os.getpid())
    assert Identities().lookup(os.getpid(), start, image=own).result == "complete"
    other = own._replace(**changed)
    assert Identities().lookup(os.getpid(), start, image=other).reason == EXECUTED


def start_of(pid: int) -> int:
    return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).start_ticks * TICK_NS


def image_of(pid: int) -> Image:
    """As the kernel would record it now."""
    stat = parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    directory = os.open(f"/proc/{pid}", os.O_RDONLY)
    file = program_file(directory)
    os.close(directory)
    return Image(file.inode, file.mount, stat.start_code, stat.start_stack)


def test_a_deleted_executable(tmp_path: Path) -> None:
    copy = tmp_path / "sleep copy"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o700)
    with subprocess.Popen([copy, "60"]) as process:
        try:
            # Popen returns in the middle of the exec, when descriptors have been closed.
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.001)
            copy.unlink()
            stat = Path(f"/proc/{process.pid}/stat").read_text()
            start = int(stat.rpartition(")")[2].split()[19]) * TICK_NS
            identity = Identities().lookup(process.pid, start, None, b"sleep copy")
        finally:
            process.kill()
    assert (identity.executable, identity.result) == (f"{copy} (deleted)", "complete")
    assert (identity.files, identity.owner, identity.is_deleted) == ("host", os.getuid(), True)
    assert identity.build_id  # of the file that it runs, wherever that is


def test_nobody_uses_up_the_time_for_the_name_of_another() -> None:
    """The program is root's, and the look-ups of the user who runs it have taken too long."""

    class Spent(Waiting):
        def run(self, user: int, work: Callable[[], Any], place: str = "") -> Any:
            if user == 65534:
                raise TooLong("spent")
            return super().run(user, work)

    identities = Identities(waiting=Spent())
    start = start_of(os.getpid())
    identity = identities.lookup(os.getpid(), start, 65534)
    assert (identity.user_name, identity.owner, identity.reason) == ("nobody", None, "spent")
    identity = identities.lookup(os.getppid(), start_of(os.getppid()), 0)
    assert identity.user_name == "root"


def test_many_processes_of_one_user_push_nobody_elses_out() -> None:
    """What sealed memory was looked up then: it may be gone by the time of a violation."""
    identities = Identities(waiting=Waiting(seconds=60.0, at_once=60.0))  # however busy the machine
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        os.write(process.stdin.fileno(), b"x")
        assert os.read(process.stdout.fileno(), 1) == b"x"  # it has begun
        start = start_of(process.pid)
        before = identities.lookup(process.pid, start, 0)
    assert before.result == "complete"
    for number in range(3000):  # none of them is there
        identities.lookup(2**30 + number, 1, 100_000 + number)
    assert identities.lookup(process.pid, start, 0).executable == before.executable
