"""The service as it is installed: its files, and booted for real with systemd as PID 1."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import own_programs
from imports import NOT_COMPILED
from machine import Machine, booted
from test_daemon import READY_SECONDS, Collected, Running

from monitor.configuration import config
from monitor.daemon import Daemon
from monitor.kernel.privileges import IDENTITY
from monitor.kernel.syscalls import LIBC
from monitor.provoke import table as provoke

ROOT = Path(__file__).parents[2]
WATCHDOG_SECONDS = 6

# ---- What is installed ---------------------------------------------------------------------------


def stage(root: Path) -> Path:
    """Makes `root` with `make install` and nothing else, unless it is there already."""
    for program in ("make", "systemd-nspawn", "systemd-analyze"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if root.exists():
        return root
    done = subprocess.run(
        ["make", "-s", "install", f"DESTDIR={root}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def staged(build_directory: Path) -> Path:
    """A root directory that holds what is installed."""
    return stage(build_directory / "staged")


def test_what_is_installed(staged: Path) -> None:
    found = {
        str(path.relative_to(staged)): oct(path.stat().st_mode & 0o777)
        for path in staged.rglob("*")
        if path.is_file() and not path.is_symlink() and "lib/seal-monitor/" not in str(path)
    }
    optional = {
        "etc/logrotate.d/seal-monitor",
        "usr/local/lib/systemd/catalog/seal-monitor.catalog",
    }
    assert {name: mode for name, mode in found.items() if name not in optional} == {
        "etc/seal-monitor/config.toml": "0o644",
        "usr/local/lib/systemd/system/seal-monitor.service": "0o644",
        "usr/local/share/bash-completion/completions/seal-monitor": "0o644",
        "usr/local/lib/sysusers.d/seal-monitor.conf": "0o644",
        "usr/local/lib/tmpfiles.d/seal-monitor.conf": "0o644",
        "usr/local/share/doc/seal-monitor/config.example.toml": "0o644",
        "usr/local/share/doc/seal-monitor/example.conf": "0o644",
        "usr/local/share/man/man8/seal-monitor.8": "0o644",
        **{
            f"usr/local/share/doc/seal-monitor/{path.name}": "0o644"
            for path in (ROOT / "docs").glob("*.md")
        },
        **{
            f"usr/local/share/seal-monitor/{path.relative_to(ROOT / 'dashboards')}": "0o644"
            for path in (ROOT / "dashboards").glob("**/*.[yj]*")
            if not {"tests", "pictures", "fleet"} & set(path.parts)
        },
        **{
            f"usr/local/share/seal-monitor/{path.relative_to(ROOT / 'dashboards')}": "0o644"
            for path in (ROOT / "dashboards/fleet").glob("**/*.[sy]*")
        },
        **{
            f"usr/local/share/doc/seal-monitor/fleet/{path.name}": "0o644"
            for path in (ROOT / "dashboards/fleet").glob("*.json")
        },
    }
    link = staged / "usr/local/bin/seal-monitor"
    assert os.readlink(link) == "../lib/seal-monitor/bin/seal-monitor"
    first = link.read_text().partition("\n")[0]
    assert first == "#!/usr/local/lib/seal-monitor/bin/python"
    checkout = str(ROOT).encode()
    for path in (staged / "usr/local/lib/seal-monitor").rglob("*.p*h"):
        assert checkout not in path.read_bytes()  # it stays when the checkout goes


def test_its_modules_are_compiled(staged: Path) -> None:
    """The service may not write there: without this each start would compile them again."""
    (package,) = staged.glob("usr/local/lib/seal-monitor/lib/python3*/site-packages/monitor")
    assert len([*package.rglob("*.py")]) == len([*(ROOT / "monitor").rglob("*.py")])
    command = ["/usr/bin/python3", "-c", NOT_COMPILED, str(package)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""


def test_settings_survive_an_upgrade_and_removal(staged: Path) -> None:
    settings = staged / "etc/seal-monitor/config.toml"
    before = settings.read_text()
    root = staged.parent / "removed"
    shutil.copytree(staged, root, symlinks=True)
    kept = root / "etc/seal-monitor/config.toml"
    kept.write_text("# mine\n")
    for target in ("install", "uninstall"):
        command = ["make", "-s", target, f"DESTDIR={root}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
        assert kept.read_text() == "# mine\n"
    left = [path for path in root.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert sorted(left) == [root / "etc/logrotate.d/seal-monitor", kept]
    assert before == (ROOT / "docs/config.example.toml").read_text("utf-8")


def test_another_prefix(tmp_path: Path) -> None:
    command = ["make", "-s", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    ours = [path for path in files if "site-packages" not in path.parts and path.name != "activate"]
    ours = [path for path in ours if path.suffix != ".md"]  # pages speak of both places
    assert len(ours) > 8
    assert [path for path in ours if b"/usr/local" in path.read_bytes()] == []
    assert not (tmp_path / "usr/local").exists()


def test_the_user_and_the_directory(staged: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(staged, root, symlinks=True)
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create", "seal-monitor.conf"]):
        done = subprocess.run(
            [command[0], f"--root={root}", *command[1:]], check=True, capture_output=True, text=True
        )
        assert all(line.startswith("Creating ") for line in done.stderr.splitlines())
    name, _, uid, gid, _, home, shell = (root / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("seal-monitor", "/", "/usr/sbin/nologin")
    folder = (root / "var/log/seal-monitor").stat()
    assert (oct(folder.st_mode), folder.st_uid, folder.st_gid) == ("0o40750", int(uid), int(gid))


# ---- The watchdog --------------------------------------------------------------------------------

_SEIZE, _INTERRUPT, _DETACH, _WALL = 0x4206, 0x4207, 17, 0x40000000
_EPOLL_WAIT = "232"


def _ptrace(request: int, thread: int) -> None:
    result = LIBC.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, None)
    assert result == 0, os.strerror(ctypes.get_errno())


def stop_loop(pid: int) -> None:
    """Stop only the main thread, where it waits and holds no lock."""
    for _ in range(100):
        _ptrace(_SEIZE, pid)
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        if Path(f"/proc/{pid}/syscall").read_text().split()[0] == _EPOLL_WAIT:
            return
        _ptrace(_DETACH, pid)
        time.sleep(0.05)
    raise AssertionError("it never waits")


def fed(manager: socket.socket, seconds: float, enough: int = 1) -> int:
    """How often the watchdog was fed in that time; returns at once when it was `enough`."""
    deadline = time.monotonic() + seconds
    count = 0
    while count < enough and (left := deadline - time.monotonic()) > 0:
        manager.settimeout(left)
        try:
            count += manager.recv(4096) == b"WATCHDOG=1"
        except TimeoutError:
            break
    return count


def test_a_stalled_loop_starves_the_watchdog_while_http_answers(
    tmp_path: Path, require_bpf: None
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        given = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
        daemon = Running(tmp_path, "", environment={**os.environ, **given})
        pid = daemon.process.pid
        try:
            daemon.health("started", READY_SECONDS)
            assert fed(manager, 8, enough=2) == 2
            stop_loop(pid)
            try:
                fed(manager, 0.1, enough=9)  # what was on its way
                assert daemon.get("/-/healthy")[0] == 200
                assert fed(manager, 4) == 0
            finally:
                _ptrace(_DETACH, pid)
            assert fed(manager, 8, enough=2) == 2
            daemon.stop()
        finally:
            daemon.process.kill()
            daemon.process.wait()


@pytest.fixture
def fed_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_bpf: None
) -> Iterator[tuple[Daemon, socket.socket]]:
    """A daemon in this process, ready, with a manager that it feeds ten times a second."""
    settings = config.parse("[canary]\ninterval = 1\n", "test")
    settings = replace(settings, web=replace(settings.web, listen_address=("127.0.0.1", 0)))
    monkeypatch.setattr("monitor.canary.LATE_SECONDS", 1.0)
    monkeypatch.setattr("monitor.daemon.SWEEP_SECONDS", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with Daemon(settings, [Collected()]) as daemon:
            daemon.loop(until=lambda: not daemon.not_ready())
            yield daemon, manager


def turn(daemon: Daemon, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    daemon.loop(until=lambda: time.monotonic() > deadline)


def ring_is_stuck(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.watcher.pump, "drain", lambda: 0)
    with provoke.run("munmap") as violation:
        violation.communicate()
    assert daemon.watcher.ring.used_bytes


def canary_is_stuck(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.loop(until=lambda: daemon._canary.running)
    monkeypatch.setattr(daemon._canary, "result", lambda: None)


@pytest.mark.parametrize(
    ("stall", "seconds"), [(ring_is_stuck, 0.0), (canary_is_stuck, 2.5)], ids=["ring", "canary"]
)
def test_what_stalls_the_pipeline_starves_the_watchdog(
    fed_daemon: tuple[Daemon, socket.socket],
    stall: Callable[[Daemon, pytest.MonkeyPatch], None],
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon, manager = fed_daemon
    turn(daemon, 1)
    assert fed(manager, 0.1, enough=100) >= 3
    stall(daemon, monkeypatch)
    turn(daemon, seconds)
    fed(manager, 0.1, enough=100)
    turn(daemon, 1)
    assert fed(manager, 0.1) == 0


# ---- Booted --------------------------------------------------------------------------------------

PREPARE = f"""
mkdir -p $place/root/etc/systemd/system/seal-monitor.service.d
printf '[Service]\\nWatchdogSec=%s\\nRestartSec=1\\n' {WATCHDOG_SECONDS} \\
    >$place/root/etc/systemd/system/seal-monitor.service.d/test.conf
systemd-sysusers --root=$place/root >&2
systemd-analyze verify --man=no --root=$place/root seal-monitor.service 2>$place/root/verified ||
    echo "exit $?" >>$place/root/verified
"""


@pytest.fixture(scope="module")
def machine(staged: Path, build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    with booted(staged, build_directory, prepare=PREPARE) as machine:
        yield machine


VIOLATE = "/usr/local/lib/seal-monitor/bin/python -m monitor.provoke.table mprotect"


@pytest.mark.host_wide
def test_the_unit_is_right(machine: Machine) -> None:
    assert machine.run("cat", "/verified") == ""


def assert_doctor_is_announced(machine: Machine) -> None:
    """It is no violation; and nobody but root and the service comes near the socket."""
    usual = ("env", "-u", "SEAL_MONITOR_RUNTIME_DIRECTORY")  # not that of the tests
    done = machine.done(*usual, "/usr/local/bin/seal-monitor", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    machine.wait("trials", lambda: machine.health("trials_ended") == 1)
    assert machine.health("trials_announced") == 1
    assert machine.health("announcement_refused") == 0
    assert "monitor.attach.calibrate" not in machine.journal()
    (socket_path,) = machine.run("sh", "-c", "ls -d /run/seal-monitor/*").split()
    assert machine.run("stat", "-c", "%U %a %F", socket_path) == "seal-monitor 600 socket"


@pytest.mark.host_wide
def test_the_service_boots_watches_reloads_recovers_and_stops(machine: Machine) -> None:
    before = own_programs()

    # Started: systemctl returns when it is ready.
    machine.run("systemctl", "start", "seal-monitor.service")
    assert machine.show("ActiveState") == "active", machine.journal()
    assert machine.health("started") == 1
    status = re.compile(r"watching; \d+ seal denials? and \d+ faults?")
    machine.wait("status", lambda: status.fullmatch(machine.show("StatusText")))

    # Its user and its capabilities.
    pid = machine.show("MainPID")
    threads = machine.run("sh", "-c", f"cat /proc/{pid}/task/*/status")
    fields = [line.split(":\t", 1) for line in threads.splitlines() if ":\t" in line]
    user = machine.run("id", "-u", "seal-monitor")
    assert {value for name, value in fields if name == "Uid"} == {"\t".join([user] * 4)}
    for name in ("CapEff", "CapPrm"):
        (held,) = {int(value, 16) for field, value in fields if field == name}
        assert held == sum(1 << each for each in IDENTITY)
    assert {value for name, value in fields if name in ("CapInh", "CapAmb")} == {"0" * 16}
    assert {value for name, value in fields if name == "NoNewPrivs"} == {"1"}
    owners = machine.run("stat", "-c", "%U %a", "/var/log/seal-monitor", "/var/lib/seal-monitor")
    assert owners.splitlines() == ["seal-monitor 750"] * 2

    assert_doctor_is_announced(machine)

    # A violation by a process of another user, in another unit.
    command = ["systemd-run", "--quiet", "--wait", "--unit=victim", "--property=User=nobody"]
    machine.run(*command, *VIOLATE.split())
    machine.wait("denial", lambda: machine.denials("victim.service"))
    (denial,) = machine.denials("victim.service")
    assert (denial["operation"], denial["verdict"]) == ("mprotect", "sealed")
    assert denial["process"]["user_name"] == "nobody"
    assert denial["process"]["executable"].startswith("/usr/bin/python3")

    # Reloaded.
    machine.run("systemctl", "reload", "seal-monitor.service")
    machine.wait("reload", lambda: machine.health("reloaded") == 1)
    machine.wait("reload", lambda: machine.show("SubState") == "running")
    assert machine.show("MainPID") == pid

    # Stalled: the watchdog ends it, the log says where it stood, and it is started again.
    machine.run("kill", "-STOP", pid)
    machine.wait("restart", lambda: machine.show("NRestarts") == "1", 4 * WATCHDOG_SECONDS + 10)
    machine.wait("restart", lambda: machine.show("ActiveState") == "active")
    assert machine.health("started") == 2
    journal = machine.journal()
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal
    assert "in loop" in journal
    assert machine.show("MainPID") != pid

    # Stopped.
    machine.run("systemctl", "stop", "seal-monitor.service")
    assert machine.show("ActiveState") == "inactive"
    assert machine.show("Result") == "success"
    assert machine.events()[-1]["event"] == "stopped"
    assert machine.health("stopped") == 1
    deadline = time.monotonic() + 20  # the kernel frees programs a grace period after their end
    while own_programs().keys() - before.keys() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own_programs().keys() - before.keys() == set()


@pytest.mark.host_wide
def test_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    wrong = "echo wrong = 1 >/etc/seal-monitor/config.toml"
    machine.run("sh", "-c", wrong)
    machine.run("systemctl", "start", "seal-monitor.service")
    time.sleep(2)  # twice what it waits before a restart
    assert machine.show("ActiveState") == "failed"
    assert machine.show("ExecMainStatus") == "2"
    assert machine.show("NRestarts") == "0"
    assert "key 'wrong': there is no such key" in machine.journal()
