"""The sandbox of the service, booted: what it forbids, and why each thing that it allows is needed.

`TAKEN` is a table: what a drop-in takes away from the service, and what fails then. Each
point that `systemd-analyze security` counts against the unit has a row there, or a reason in
`NOT_SHOWN`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import cgroup_root
from machine import Machine, booted
from test_daemon import READY_SECONDS, Running
from test_service_kernel import _WALL as WALL
from test_service_kernel import ROOT, WATCHDOG_SECONDS, stage, stop_loop

from monitor.kernel.privileges import IDENTITY, LOADING, Capability

UNIT = ROOT / "systemd/seal-monitor.service"
PYTHON = "/usr/local/lib/seal-monitor/bin/python"
INTERPRETER = os.path.realpath("/usr/bin/python3")
BASE_NAME = os.path.basename(INTERPRETER)
RUN = "ExecStart=\nExecStart=/usr/local/bin/seal-monitor run"
DROP_INS = "/etc/systemd/system/seal-monitor.service.d"
ELSEWHERE = "198.51.100.1"  # RFC 5737: for examples
EXPOSURE = "2.3"

pytestmark = pytest.mark.host_wide


class Sight(NamedTuple):
    """What an operator sees of a running service."""

    executable: str | None  # of a process of another user's
    command_line: str | None
    file: str | None  # that such a process has mapped and sealed
    cgroup: str | None  # just made, of a process that has ended
    scrape: str  # on loopback
    elsewhere: str  # a scrape on another address
    events_file: str
    host_name: str  # after a rename while it runs


@dataclass(frozen=True)
class Row:
    """`drop_in` takes `what` away. Then the service does not start, and says why; or it loses
    something.

    `counted`: the points of systemd-analyze, by their names in JSON, that this shows to be needed.
    """

    what: str
    drop_in: str
    status: str = ""  # how it ends, when it does not become ready
    said: str = ""
    lost: Mapping[str, str | None] = field(default_factory=dict)
    counted: Collection[str] = ()


def without(capability: Capability) -> str:
    rest = " ".join(each.name for each in sorted((LOADING | IDENTITY) - {capability}))
    names = ("AmbientCapabilities", "CapabilityBoundingSet")
    return "\n".join(f"{name}=\n{name}={rest}" for name in names)


TAKEN = (
    Row(
        "CAP_BPF",
        without(Capability.CAP_BPF),
        status="3",
        said="this process lacks CAP_BPF",
        counted=["CapabilityBoundingSet_CAP_BPF", "AmbientCapabilities"],
    ),
    Row(
        "CAP_PERFMON",
        without(Capability.CAP_PERFMON),
        status="3",
        said="this process lacks CAP_PERFMON",
    ),
    Row(
        "CAP_DAC_READ_SEARCH, while attaching tracepoints",
        without(Capability.CAP_DAC_READ_SEARCH) + f"\n{RUN} --attach tracepoint",
        status="3",
        said="cannot read tracefs (Permission denied)",
        counted=["CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER"],
    ),
    Row(
        "CAP_DAC_READ_SEARCH, while watching",
        without(Capability.CAP_DAC_READ_SEARCH) + f"\n{RUN} --attach raw_tracepoint",
        lost={"file": BASE_NAME, "cgroup": None},
    ),
    Row(
        "CAP_SYS_PTRACE",
        without(Capability.CAP_SYS_PTRACE),
        lost={"executable": BASE_NAME, "command_line": None, "file": BASE_NAME},
        counted=["CapabilityBoundingSet_CAP_SYS_PTRACE"],
    ),
    Row(
        "PrivateUsers=",
        "PrivateUsers=yes",
        status="3",
        said="user namespace",
        counted=["PrivateUsers"],
    ),
    Row(
        "ProcSubset=",
        "ProcSubset=pid",
        status="1",
        said="/proc/sys/kernel/random/boot_id: No such file or directory",
        counted=["ProcSubset"],
    ),
    Row(
        "ProtectProc=, which CAP_SYS_PTRACE overrides; without that",
        without(Capability.CAP_SYS_PTRACE) + "\nProtectProc=invisible",
        lost={"executable": BASE_NAME, "command_line": None, "file": BASE_NAME},
        counted=["ProtectProc"],
    ),
    Row(
        "PrivateNetwork=",
        "PrivateNetwork=yes",
        lost={"scrape": "refused", "elsewhere": "refused"},
        counted=["PrivateNetwork"],
    ),
    Row(
        "AF_INET",
        "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX AF_INET6",
        status="1",
        said="cannot listen on 0.0.0.0:10462: address family not supported by protocol",
        counted=["RestrictAddressFamilies_AF_INET_INET6"],
    ),
    Row(
        "AF_INET6",
        "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX AF_INET\n"
        f"{RUN} --web.listen-address [::1]:10462",
        status="1",
        said="cannot listen on [::1]:10462: address family not supported by protocol",
    ),
    Row(
        "AF_UNIX",
        "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_INET AF_INET6",
        status="2",
        said="output.journal: [Errno 97] Address family not supported by protocol",
        counted=["RestrictAddressFamilies_AF_UNIX"],
    ),
    Row(
        "MemoryDenyWriteExecute=",
        f"MemoryDenyWriteExecute=yes\n{RUN} --attach tracepoint",
        said="canary failed: mprotect was not seen with its verdict",
        counted=["MemoryDenyWriteExecute"],
    ),
    Row(
        "bpf(2)",
        "SystemCallFilter=~bpf",
        status="3",
        said="bpf(2) fails with EPERM: a seccomp filter forbids it",
        counted=["SystemCallFilter_privileged"],
    ),
    Row(
        "perf_event_open(2), while attaching tracepoints",
        f"SystemCallFilter=~perf_event_open\n{RUN} --attach tracepoint",
        status="3",
        said="a seccomp filter forbids perf_event_open(2) (EPERM)",
        counted=["SystemCallFilter_debug"],
    ),
    Row(
        "capset(2)",
        "SystemCallFilter=~capset",
        status="1",
        said="capset: Operation not permitted",
    ),
    Row("open_by_handle_at(2)", "SystemCallFilter=~open_by_handle_at", lost={"cgroup": None}),
    Row(
        "system calls that are not named",
        "SystemCallFilter=\n"
        "SystemCallFilter=@system-service bpf perf_event_open capset open_by_handle_at",
        status="3",
        said="mseal(2) fails with EPERM: a seccomp filter forbids it",
    ),
    Row(
        "addresses other than loopback",
        "IPAddressDeny=any\nIPAddressAllow=localhost",
        lost={"elsewhere": "timed out"},
        counted=["IPAddressDeny"],
    ),
    Row(
        "events that the group may read",
        "UMask=0077",
        lost={"events_file": "600"},
        counted=["UMask"],
    ),
    Row(
        "the host's name, as it is now",
        "ProtectHostname=yes",
        lost={"host_name": "the one before"},
        counted=["ProtectHostname"],
    ),
    Row(
        "the host's /usr",
        "RootDirectory=/var/lib/seal-monitor",
        status="203",
        said="status=203/EXEC",
        counted=["RootDirectoryOrRootImage"],
    ),
)

# Attempts in the service's whole sandbox, and how each ends. Without the sandbox all but the last
# three succeed.
HELD_BACK = {
    "ptrace(2)": "EPERM",
    "process_vm_readv(2)": "EPERM",
    "process_vm_writev(2)": "EPERM",
    "userfaultfd(2)": "EPERM",
    "io_uring_setup(2)": "EPERM",
    "io_setup(2)": "EPERM",
    "keyctl(2)": "EPERM",
    "pidfd_getfd(2)": "EPERM",
    "setpriority(2)": "EPERM",
    "a user namespace": "EPERM",
    "another personality": "EPERM",
    "a netlink socket": "EAFNOSUPPORT",
    "a set-user-id file": "EPERM",
    "a file in /usr": "EROFS",
    "a kernel setting": "EROFS",
    "a cgroup": "EROFS",
    "a program of its own making": "EACCES",
    "a system call of another ABI": "SIGSYS",
    "files in /root": "none",
    "more descriptors": "EPERM",
    "another process's memory, to write": "EACCES",  # without the sandbox as well
    "another process's memory, to read": "done",  # what CAP_SYS_PTRACE is for is let through
    "mseal(2)": "EINVAL",  # and so is this: the flags are wrong
}

# What cannot be shown here, and why.
NOT_SHOWN = {
    "DeviceAllow": "comes with ProtectClock=; PrivateDevices= leaves no such device to open",
    "MemoryMax, TasksMax": "the container has no such controllers where the host has them in v1; "
    "test_memory uses the host's own",
}


# ---- On paper ------------------------------------------------------------------------------------


def test_exposure() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert f"Overall exposure level for seal-monitor.service: {EXPOSURE} " in done.stdout


def test_each_point_of_exposure_is_accounted_for() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--json=short", str(UNIT)],
        check=True,
        capture_output=True,
        text=True,
    )
    left = {point["json_field"] for point in json.loads(done.stdout) if point["exposure"]}
    shown = {name for row in TAKEN for name in row.counted}
    assert left == shown | {"DeviceAllow"}


# ---- Memory --------------------------------------------------------------------------------------


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup limited to so many bytes, in the hierarchy that has the memory controller."""
    root = Path("/sys/fs/cgroup/memory")  # cgroup v1
    if root.is_dir():
        setting = "memory.limit_in_bytes"
    else:
        found = cgroup_root()
        if found is None or "memory" not in (found / "cgroup.controllers").read_text().split():
            pytest.skip("this host has no memory controller")
        root, setting = found, "memory.max"
        (root / "cgroup.subtree_control").write_text("+memory")
    cgroup = root / f"seal-monitor-test-{os.getpid()}-memory"
    cgroup.mkdir()
    try:
        (cgroup / setting).write_text(str(limit))
        yield cgroup
    finally:
        while (cgroup / "cgroup.procs").read_text():  # those that it had started
            time.sleep(0.02)
        cgroup.rmdir()


def said_in(limit: int, folder: Path) -> str:
    """What a daemon with so many bytes says when it is ready or has failed."""
    with memory_cgroup(limit) as cgroup:
        enter = ("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs; exec "$@"', "sh")
        daemon = Running(folder, "", prefix=enter, whole_host=True)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while time.monotonic() < deadline and daemon.process.poll() is None:
                if any(event.get("event") == "started" for event in daemon.events()):
                    daemon.stop()
                    return "started"
                time.sleep(0.05)
        finally:
            daemon.process.kill()
            daemon.process.wait()
        return daemon.errors.read_text("utf-8")


def test_memory(tmp_path: Path, require_bpf: None) -> None:
    (mebibytes,) = re.findall(r"^MemoryMax=(\d+)M$", UNIT.read_text("utf-8"), re.MULTILINE)
    (tmp_path / "enough").mkdir()
    assert said_in(int(mebibytes) << 20, tmp_path / "enough") == "started"
    # The limit holds: the loader is killed, or reads its libraries again and again.
    (tmp_path / "too little").mkdir()
    assert said_in(12 << 20, tmp_path / "too little") != "started"


# ---- Booted --------------------------------------------------------------------------------------

PREPARE = """
systemd-sysusers --root=$place/root >&2
"""

CONFIGURATION = """
[web]
listen_address = "0.0.0.0:10462"
[output]
events_file = "/var/log/seal-monitor/events.jsonl"
"""

# SIOCSIFADDR (linux/sockios.h) of an alias of the loopback interface.
MAKE_ADDRESS = f"""
import fcntl, socket, struct
request = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("{ELSEWHERE}"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8916, request)
"""

SCRAPE = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(f"http://{sys.argv[1]}:10462/-/ready", timeout=1).status)
except urllib.error.URLError as error:
    print("refused" if isinstance(error.reason, ConnectionRefusedError) else error.reason)
"""

# A page of a file is sealed, then to be made writable; the process lives until it is stopped.
VICTIM_FILE = "/usr/local/lib/victim.py"
VICTIM = f"""
import os, time
from monitor.kernel.syscalls import call
page = call("mmap", 0, 4096, 1, 2, os.open("{INTERPRETER}", os.O_RDONLY), 0)
call("mseal", page, 4096, 0)
call("mprotect", page, 4096, 3)
time.sleep(60)
"""


ATTEMPTS = """
import ctypes, errno, os, resource, shutil, signal, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")
def of_another_abi():
    child = os.fork()
    if not child:
        libc.syscall(0x40000000 | 39)  # getpid of x32
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "survived"
def make_set_user_id():
    os.close(os.open(STATE + "/file", os.O_CREAT | os.O_WRONLY, 0o700))
    os.chmod(STATE + "/file", 0o4700)
def execute():
    shutil.copy("/usr/bin/true", STATE + "/program")
    subprocess.run([STATE + "/program"])
STATE = os.environ["STATE_DIRECTORY"]
own, _ = os.pipe()
pidfd = os.pidfd_open(os.getpid())
attempts = {
    "ptrace(2)": lambda: call(101, 0, 0, 0, 0),
    "process_vm_readv(2)": lambda: call(310, os.getpid(), 0, 0, 0, 0, 0),
    "process_vm_writev(2)": lambda: call(311, os.getpid(), 0, 0, 0, 0, 0),
    "userfaultfd(2)": lambda: call(323, 1),
    "io_uring_setup(2)": lambda: call(425, 1, 0),
    "io_setup(2)": lambda: call(206, 1, 0),
    "keyctl(2)": lambda: call(250, 0, -3, 0),
    "pidfd_getfd(2)": lambda: call(438, pidfd, own, 0),
    "setpriority(2)": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "a user namespace": lambda: call(272, 0x10000000),
    "another personality": lambda: call(135, 0x0040000),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "a set-user-id file": make_set_user_id,
    "a file in /usr": lambda: open("/usr/file", "w"),
    "a kernel setting": lambda: open("/proc/sys/kernel/core_pattern", "w"),
    "a cgroup": lambda: os.mkdir("/sys/fs/cgroup/own"),
    "a program of its own making": execute,
    "a system call of another ABI": of_another_abi,
    "files in /root": lambda: " ".join(os.listdir("/root")) or "none",
    "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048)),
    "another process's memory, to write": lambda: open("/proc/1/mem", "r+b"),
    "another process's memory, to read": lambda: open("/proc/1/mem", "rb").close(),
    "mseal(2)": lambda: call(462, 0, 0, -1),
}
for name, attempt in attempts.items():
    try:
        result = attempt() or "done"
    except OSError as error:
        result = errno.errorcode[error.errno]
    except ValueError:  # setrlimit's EPERM
        result = "EPERM"
    print(f"{name}: {result}", flush=True)
print("all tried", flush=True)
"""


class Attempt:
    """The service, started with a drop-in."""

    def __init__(self, machine: Machine, drop_in: str) -> None:
        self._machine = machine
        machine.write(f"{DROP_INS}/zz-row.conf", f"[Service]\nRestart=no\n{drop_in}\n")
        machine.run("rm", "-f", "/var/log/seal-monitor/events.jsonl")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "reset-failed", "seal-monitor.service")
        shown = machine.run("journalctl", "-n0", "--show-cursor")
        self._cursor = shown.rpartition("-- cursor: ")[2]
        machine.run("systemctl", "start", "--no-block", "seal-monitor.service")

    def journal(self, *options: str) -> str:
        options = ("--after-cursor", self._cursor, "--no-pager", "-o", "cat", *options)
        return self._machine.run("journalctl", "-u", "seal-monitor", *options)

    def wait(self, what: str, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not until():
            assert time.monotonic() < deadline, f"{what}: {self.journal()}"
            time.sleep(0.05)

    def denial(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            lines = self.journal("--output-fields=SEAL_MONITOR_EVENT").splitlines()
            events = [json.loads(line) for line in lines if line[:1] == "{"]
            found[:] = [e for e in events if e["kind"] == "denial" and is_wanted(e)]
            return bool(found)

        self.wait("denial", look)
        return found[0]

    @property
    def state(self) -> str:
        return self._machine.show("ActiveState")

    def stop(self) -> None:
        self._machine.run("systemctl", "stop", "seal-monitor.service")

    def sight(self) -> Sight:
        machine = self._machine
        user = ["systemd-run", "--quiet", "--unit=victim", "--property=User=nobody"]
        machine.run(*user, PYTHON, VICTIM_FILE)
        alive = self.denial(lambda event: event["workload"]["unit"] == "victim.service")
        machine.run("systemctl", "stop", "victim.service")
        name = f"renamed-{machine.show('MainPID')}"
        machine.run(PYTHON, "-c", f"import socket; socket.sethostname('{name}')")
        self._dead("first")  # where cgroups cannot be opened by id, all are looked at: once in 10 s
        dead = self._dead("second")
        log = "/var/log/seal-monitor/events.jsonl"
        return Sight(
            alive["process"]["executable"],
            alive["process"]["command_line"],
            alive["sealed"]["file"]["path"],
            dead["workload"]["cgroup"],
            machine.run(PYTHON, "-c", SCRAPE, "127.0.0.1"),
            machine.run(PYTHON, "-c", SCRAPE, ELSEWHERE),
            machine.run("stat", "-c", "%a", log),
            "the new one" if dead["host"]["name"] == name else "the one before",
        )

    def _dead(self, cgroup: str) -> dict[str, Any]:
        """The denial of a process that has ended before anybody looks, in a cgroup just made."""
        machine = self._machine
        pid = machine.show("MainPID")
        machine.run("kill", "-STOP", pid)
        folder = f"/sys/fs/cgroup/{cgroup}"
        violate = f"echo $$ >{folder}/cgroup.procs; exec {PYTHON} -m monitor.provoke.table mprotect"
        machine.run("mkdir", folder)
        victim = json.loads(machine.run("sh", "-c", violate))["pid"]
        machine.run("kill", "-CONT", pid)
        found = self.denial(lambda event: event["process"]["pid"] == victim)
        machine.run("rmdir", folder)
        return found


@pytest.fixture(scope="module")
def machine(build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    staged = stage(build_directory / "staged")
    with booted(staged, build_directory, prepare=PREPARE, own_network=True) as machine:
        machine.write("/etc/seal-monitor/config.toml", CONFIGURATION)
        machine.write(VICTIM_FILE, VICTIM)
        assert machine.done("python3", "-c", MAKE_ADDRESS).stderr == ""
        yield machine


WHOLE = Sight(
    executable=INTERPRETER,
    command_line=f"{PYTHON} {VICTIM_FILE}",
    file=INTERPRETER,
    cgroup="/second",
    scrape="200",
    elsewhere="200",
    events_file="640",
    host_name="the new one",
)


def test_nothing_is_lost_in_the_sandbox(machine: Machine) -> None:
    attempt = Attempt(machine, "")
    attempt.wait("ready", lambda: attempt.state == "active")
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status").splitlines()
    assert "Seccomp:\t2" in status  # a filter
    assert attempt.sight() == WHOLE
    attempt.stop()
    kept = ("sh", "-c", "cd /var/lib/seal-monitor; stat -c '%U %n' incidents.db last_run.json")
    assert machine.run(*kept) == "seal-monitor incidents.db\nseal-monitor last_run.json"
    assert INTERPRETER in machine.run("seal-monitor", "incidents", "list", "--json")


def test_what_is_held_back(machine: Machine) -> None:
    program = "/usr/local/lib/attempts.py"
    machine.write(program, ATTEMPTS)
    attempt = Attempt(machine, f"Type=oneshot\nExecStart=\nExecStart=/usr/bin/python3 {program}")
    attempt.wait("attempts", lambda: "all tried" in attempt.journal())
    lines = [line.partition(": ") for line in attempt.journal().splitlines()]
    found = {name: result for name, _, result in lines if name in HELD_BACK}
    attempt.stop()
    assert found == HELD_BACK


def host_pid(machine: Machine) -> int:
    """The service's main process, by its pid outside of the container."""
    inside = machine.show("MainPID")
    (members,) = machine.cgroup.rglob("seal-monitor.service/cgroup.procs")
    for pid in members.read_text().split():
        status = Path(f"/proc/{pid}/status").read_text()
        if f"\t{inside}\n" in status.partition("NSpid:")[2][:64]:
            return int(pid)
    raise AssertionError(f"no process {inside} among {members.read_text()}")


def end_of(pid: int) -> int:
    """How a process that is traced ended: a status of wait(2)."""
    deadline = time.monotonic() + 3 * WATCHDOG_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, WALL | os.WNOHANG)
        if found and not os.WIFSTOPPED(status):
            return status
        time.sleep(0.05)
    raise AssertionError("it goes on")


def test_a_stalled_loop_is_ended_while_http_answers(machine: Machine) -> None:
    attempt = Attempt(machine, f"WatchdogSec={WATCHDOG_SECONDS}\nRestart=on-failure\nRestartSec=1")
    attempt.wait("ready", lambda: attempt.state == "active")
    stalled = machine.show("MainPID")
    pid = host_pid(machine)
    stop_loop(pid)  # of its threads the main one
    assert machine.run(PYTHON, "-c", SCRAPE, "127.0.0.1") == "200"
    status = end_of(pid)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    attempt.wait("restart", lambda: machine.show("NRestarts") == "1")
    attempt.wait("ready again", lambda: attempt.state == "active")
    assert machine.show("MainPID") != stalled
    attempt.stop()
    assert "Watchdog timeout" in attempt.journal()


@pytest.mark.parametrize("row", TAKEN, ids=lambda row: row.what)
def test_what_is_left_is_needed(machine: Machine, row: Row) -> None:
    attempt = Attempt(machine, row.drop_in)
    try:
        if row.lost:
            attempt.wait("ready", lambda: attempt.state == "active")
            assert attempt.sight() == Sight(**{**WHOLE._asdict(), **row.lost})
            return
        attempt.wait(row.said, lambda: row.said in attempt.journal())
        if row.status:
            attempt.wait("end", lambda: attempt.state == "failed")
            assert machine.show("ExecMainStatus") == row.status
        assert attempt.state != "active"
    finally:
        attempt.stop()
