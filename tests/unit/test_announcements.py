"""Announcements of our own trials: who may make them, of what, and what a client cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clocks import at_most

from monitor.evidence.cgroups import cgroup_mount, unified_path
from monitor.execute.remains import new_prefix
from monitor.kernel.announced import Marks, NoRoomError
from monitor.life import announcements
from monitor.life.announcements import Announcements, RuntimeDirectoryError, listen
from monitor.provoke import announce
from monitor.provoke.announce import SUFFIX, Announcer, sockets

root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can announce")
SLEEP = ("sleep", "60")


class Kernel(Marks):
    """Places, without a kernel."""

    def __init__(self, places: int = 8) -> None:
        self.held: dict[int, object] = {}
        self._free = list(range(places))

    def _take(self, what: object) -> int:
        if not self._free:
            raise NoRoomError
        place = self._free.pop(0)
        self.held[place] = what
        return place

    def process(self, pid: int, start_ticks: int) -> int:
        return self._take((pid, start_ticks))

    def cgroup(self, descriptor: int) -> int:
        return self._take(os.fstat(descriptor).st_ino)

    def free(self, place: int) -> None:
        del self.held[place]
        self._free.insert(0, place)

    @property
    def pids(self) -> list[int]:
        return [what[0] for what in self.held.values() if isinstance(what, tuple)]


class Setting:
    """A daemon's end, its clock, and what it reported."""

    def __init__(self, directory: Path, places: int = 8) -> None:
        self.directory = directory
        self.kernel = Kernel(places)
        self.now = 1000.0
        self.counted = 0
        self.reported: list[tuple[str, str]] = []
        listener, self.path = listen(directory)
        self.end = Announcements(
            *(listener, self.path, self.kernel),
            lambda: self.counted,
            lambda name, text: self.reported.append((name, text)),
            clock=lambda: self.now,
        )

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(5)
        connection.connect(str(self.path))
        return connection

    def say(
        self, connection: socket.socket, message: object, *descriptors: int
    ) -> dict[str, object]:
        """The answer to a message."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(connection, [data], list(descriptors))
        self.settle()
        connection.settimeout(0)
        answer: dict[str, object] = json.loads(connection.recv(4096))
        return answer

    def settle(self) -> None:
        """Turn until nothing is left to do: a turn accepts, and the next one reads."""
        for _ in range(3):
            self.end.turn()

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Its loop runs in a thread."""
        over = threading.Event()

        def loop() -> None:
            while not over.is_set():
                select.select([self.end.descriptor], [], [], 0.005)
                self.end.turn()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path / "run")
    yield made
    made.end.close()


@contextlib.contextmanager
def child(*words: str) -> Iterator[tuple[int, int]]:
    """Its pid and a pidfd."""
    process = subprocess.Popen(words or SLEEP)
    descriptor = os.pidfd_open(process.pid)
    try:
        yield process.pid, descriptor
    finally:
        os.close(descriptor)
        process.kill()
        process.wait()


def wish(seconds: object = 60, kind: str = "process") -> dict[str, object]:
    return {kind: seconds, "by": "doctor"}


# ---- What is taken -------------------------------------------------------------------------------


@root
def test_a_child_just_started_is_marked(setting: Setting) -> None:
    with setting.connect() as client, child() as (pid, descriptor):
        assert setting.say(client, wish(), descriptor) == {"until": 60.0}
        stat_fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert list(setting.kernel.held.values()) == [(pid, int(stat_fields[19]))]
        setting.counted = 7
        client.close()
        setting.settle()
    assert setting.kernel.held == {}
    own = f"doctor (pid {os.getpid()})"
    assert setting.reported == [
        (
            "trials_announced",
            f"{own} announces its child, pid {pid}, for 60 s at most: its violations are counted "
            "separately and make no events",
        ),
        (
            "trials_ended",
            f"{own} has ended; violations of what was announced meanwhile: 7, announcements: 1",
        ),
    ]


@root
def test_the_next_process_takes_the_place_of_the_last(setting: Setting) -> None:
    with setting.connect() as client, child() as first, child() as second:
        setting.say(client, wish(), first[1])
        setting.say(client, wish(), second[1])
        assert setting.kernel.pids == [second[0]]
    setting.settle()
    assert [name for name, _ in setting.reported] == ["trials_announced", "trials_ended"]


@root
def test_an_announcement_ends_after_its_seconds(setting: Setting) -> None:
    with setting.connect() as client, child() as (pid, descriptor):
        setting.say(client, wish(5), descriptor)
        setting.now += 4.9
        setting.end.turn()
        assert setting.kernel.pids == [pid]
        setting.now += 0.1
        setting.end.turn()
        assert setting.kernel.pids == []


# ---- What is refused -----------------------------------------------------------------------------


@root
@pytest.mark.parametrize(
    "message",
    [
        b"\xff{",
        b"[" * 900,
        [],
        {},
        {"process": 60},
        {"process": True, "by": "doctor"},
        {"process": "60", "by": "doctor"},
        {"process": 60.1, "by": "doctor"},
        {"process": 0, "by": "doctor"},
        {"process": 60, "command": 60, "by": "doctor"},
        {"process": 60, "by": ["doctor"]},
        b'{"process": NaN, "by": "doctor"}',
        b'{"process": Infinity, "by": "doctor"}',
    ],
)
def test_a_message_that_is_none(setting: Setting, message: object) -> None:
    with setting.connect() as client, child() as (_, descriptor):
        answer = setting.say(client, message, descriptor)
        assert answer == {"refused": "it is not understood; are both of one version?"}
        assert setting.kernel.held == {}


@root
def test_only_a_child_of_the_announcer_is_taken(setting: Setting) -> None:
    none = "its process is no child of the announcer"
    for pid in (1, os.getpid(), os.getppid()):
        with setting.connect() as client:
            descriptor = os.pidfd_open(pid)
            assert setting.say(client, wish(), descriptor) == {"refused": none}
            os.close(descriptor)
    grandchild = "import subprocess; p = subprocess.Popen(['sleep', '9']); print(p.pid, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{grandchild}; input(); p.kill()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        descriptor = os.pidfd_open(int(process.stdout.readline()))
        with setting.connect() as client:
            assert setting.say(client, wish(), descriptor) == {"refused": none}
        os.close(descriptor)
        process.communicate("\n")
    assert setting.kernel.held == {}


@root
def test_a_child_of_long_ago_is_no_trial(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "FRESH_SECONDS", -1.0)
    with setting.connect() as client, child() as (_, descriptor):
        answer = setting.say(client, wish(), descriptor)
        assert str(answer["refused"]).startswith("its process was started ")


@root
def test_a_descriptor_of_something_else(setting: Setting, tmp_path: Path) -> None:
    with setting.connect() as client, child() as (pid, descriptor):
        assert "refused" in setting.say(client, wish())
        assert "refused" in setting.say(client, wish(), descriptor, descriptor)
        assert "refused" in setting.say(client, wish(), *[descriptor] * 5)
        assert "refused" in setting.say(client, wish(), 0)
        assert "refused" in setting.say(client, wish(), client.fileno())
        assert "refused" in setting.say(client, wish(kind="command"), descriptor)
        for path in (tmp_path, "/sys/fs/cgroup", f"/proc/{pid}"):
            other = os.open(path, os.O_RDONLY)
            assert "refused" in setting.say(client, wish(), other)
            assert "refused" in setting.say(client, wish(kind="command"), other)
            os.close(other)
        assert setting.kernel.held == {}
    assert [name for name, _ in setting.reported] == ["announcement_refused"]  # once a minute


@root
def test_refused_ones_leave_no_descriptor(setting: Setting) -> None:
    with setting.connect() as client, child() as (_, descriptor):
        setting.say(client, {}, descriptor)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            setting.say(client, {}, descriptor)
            setting.say(client, wish(), descriptor, descriptor)
            setting.say(client, wish(), 0)
        assert len(os.listdir("/proc/self/fd")) == before


@root
def test_a_process_that_has_ended(setting: Setting) -> None:
    with setting.connect() as client:
        process = subprocess.Popen(["true"])
        descriptor = os.pidfd_open(process.pid)
        process.wait()
        answer = setting.say(client, wish(), descriptor)
        os.close(descriptor)
    assert answer == {"refused": "its process has ended, or is of another pid namespace"}


@root
def test_one_announcement_for_each_announcer(setting: Setting) -> None:
    with setting.connect() as one, setting.connect() as two, child() as a, child() as b:
        assert "until" in setting.say(one, wish(), a[1])
        assert setting.say(two, wish(), b[1]) == {
            "refused": "it has another announcement, by another connection"
        }
        assert setting.kernel.pids == [a[0]]


@root
def test_ordinary_users_cannot_announce() -> None:
    """Not even one who may open the socket: the kernel says whose the other end is."""
    program = (
        "import json, os, socket, sys\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        "print(s.recv(4096).decode(), repr(s.recv(1)))"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        setting = Setting(Path(folder, "run"))
        setting.path.chmod(0o666)
        with setting.served():
            said = subprocess.run(
                [sys.executable, "-c", program, str(setting.path)],
                capture_output=True,
                text=True,
                check=True,
                cwd="/",
                timeout=30,
            ).stdout
        setting.end.close()
    assert said == '{"refused": "root alone may announce, and it is of uid 65534"} b\'\'\n'


# ---- Clients that hang, or are many --------------------------------------------------------------


@root
def test_a_client_that_says_nothing_loses_its_connection(setting: Setting) -> None:
    with setting.connect() as client:
        setting.end.turn()
        setting.now += announcements.IDLE_SECONDS
        setting.end.turn()
        assert client.recv(1) == b""


@root
def test_a_client_that_reads_no_answers_holds_nothing_up(setting: Setting) -> None:
    with setting.connect() as client, child() as (_, descriptor):
        client.setblocking(False)
        for _ in range(5000):
            with contextlib.suppress(BlockingIOError):
                socket.send_fds(client, [b"{}"], [descriptor])
            setting.end.turn()
        assert setting.kernel.held == {}


@root
def test_forty_announcers_all_get_their_turn(tmp_path: Path) -> None:
    """Each is a process of its own; more than there is room for wait."""
    setting = Setting(tmp_path / "run", places=3)
    program = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from monitor.provoke.announce import Announcer\n"
        "with Announcer('demo', Path(sys.argv[1]), answer_seconds=50) as announcer:\n"
        "    p = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n"
        "    announcer.process(p.pid); time.sleep(0.01); p.stdin.close(); p.wait()\n"
    )
    most = 0
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(setting.directory)], stderr=subprocess.PIPE
                )
            )
            for _ in range(40)
        ]
        while any(client.poll() is None for client in clients):
            setting.end.turn()
            most = max(most, len(setting.kernel.held))
            time.sleep(0.001)
        setting.end.turn()
        assert [client.stderr.read() for client in clients if client.stderr] == [b""] * 40
        assert {client.returncode for client in clients} == {0}
    assert most <= 3
    assert setting.kernel.held == {}
    names = [name for name, _ in setting.reported]
    assert (names.count("trials_announced"), names.count("trials_ended")) == (40, 40)
    setting.end.close()


@root
def test_places_are_kept_until_one_who_waits_gives_up(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run", places=0)
    with setting.connect() as client, child() as (_, descriptor):
        socket.send_fds(client, [json.dumps(wish()).encode()], [descriptor])
        setting.settle()
        before = len(os.listdir("/proc/self/fd"))
        setting.now += announcements.IDLE_SECONDS  # it waits, and is not idle
        setting.end.turn()
        client.close()
        setting.end.turn()
    assert len(os.listdir("/proc/self/fd")) < before
    setting.end.close()


# ---- The directory -------------------------------------------------------------------------------


def test_the_socket_is_the_daemons_alone(setting: Setting) -> None:
    assert stat.S_IMODE(setting.path.stat().st_mode) == 0o600
    assert sockets(setting.directory) == [setting.path]
    assert not setting.directory.stat().st_mode & 0o022
    setting.end.close()
    assert not setting.directory.exists()


def test_a_killed_daemons_socket_is_removed_and_a_living_ones_stays(setting: Setting) -> None:
    dead = setting.directory / f"0{SUFFIX}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(dead))
        killed.listen()
    other = Setting(setting.directory)
    assert not dead.exists()
    assert sorted(sockets(setting.directory)) == sorted([setting.path, other.path])
    other.end.close()
    assert setting.path.exists()


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_a_directory_of_others_is_not_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    else:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs").chmod(0o777)
        path = tmp_path / "theirs"
    if kind == "link":
        path = tmp_path / "run"
        path.symlink_to(tmp_path / "theirs")
    with pytest.raises(RuntimeDirectoryError, match="no announcements are taken"):
        listen(path)
    assert sockets(path) == []


# ---- The client ----------------------------------------------------------------------------------


@pytest.fixture
def problems() -> list[str]:
    return []


def announcer(directory: Path, problems: list[str], seconds: float = 0.2) -> Announcer:
    return Announcer("doctor", directory, problems.append, seconds)


def test_without_a_daemon_nothing_is_said(tmp_path: Path, problems: list[str]) -> None:
    with announcer(tmp_path / "none", problems) as client:
        client.process(os.getpid())
        client.cgroup(0)
        client.again(0)
    assert problems == []


@root
def test_a_daemon_that_does_not_answer_is_named_once(setting: Setting, problems: list[str]) -> None:
    with announcer(setting.directory, problems) as client, child() as (pid, _):
        with at_most(5, "a wait without end"):
            client.process(pid)
        client.process(pid)
    assert problems == [
        "the monitor does not answer an announcement: it reports what this command tries as "
        f"violations ({setting.path})"
    ]


@root
@pytest.mark.parametrize("answer", [b"?", b"{}", b"[]", b"[" * 900, b'{"refused": "\\u001b[31m"}'])
def test_an_answer_is_not_trusted(tmp_path: Path, problems: list[str], answer: bytes) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        announcer(tmp_path, problems, 5) as client,
        child() as (pid, _),
    ):
        listener.bind(str(tmp_path / f"1{SUFFIX}"))
        listener.listen()

        def say() -> None:
            connection, _ = listener.accept()
            connection.send(answer)
            connection.recv(10)
            connection.close()

        thread = threading.Thread(target=say)
        thread.start()
        client.process(pid)
        client.close()
        thread.join()
    (problem,) = problems
    assert problem.isprintable()


@root
def test_a_daemon_that_ends_or_is_restarted(setting: Setting, problems: list[str]) -> None:
    with announcer(setting.directory, problems, 5) as client, child() as (pid, _):
        with setting.served():
            client.process(pid)
        setting.end.close()
        client.process(pid)
        again = Setting(setting.directory)
        with again.served():
            client.process(pid)
            assert again.kernel.pids == [pid]
        again.end.close()
    assert problems == []


@root
def test_every_daemon_hears_of_it(setting: Setting, problems: list[str]) -> None:
    other = Setting(setting.directory)
    with setting.served(), other.served(), child() as (pid, _):
        with announcer(setting.directory, problems, 5) as client:
            client.process(pid)
            assert setting.kernel.pids == other.kernel.pids == [pid]
        wait(lambda: not setting.kernel.held and not other.kernel.held)
    other.end.close()
    assert problems == []


@contextlib.contextmanager
def cgroup(name: str) -> Iterator[tuple[Path, int]]:
    """A cgroup below this process's own, and a descriptor of it."""
    root = cgroup_mount()
    own = unified_path(Path("/proc/self/cgroup").read_bytes())
    if root is None or own is None:
        pytest.skip("cgroup2 is not mounted")
    path = root / os.fsdecode(own.removeprefix(b"/")) / name
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield path, descriptor
    finally:
        os.close(descriptor)
        path.rmdir()


@root
def test_a_cgroup_of_execs_is_marked_and_kept(setting: Setting, problems: list[str]) -> None:
    with cgroup(f"{new_prefix()}c0ffee") as (path, descriptor), setting.connect() as client:
        for _ in range(3):
            assert setting.say(client, wish(kind="command"), descriptor) == {"until": 60.0}
            assert list(setting.kernel.held.values()) == [path.stat().st_ino]
            setting.now += 50
            setting.end.turn()
        setting.now += 10
        setting.end.turn()
        assert setting.kernel.held == {}
        with setting.connect() as again:  # exec was stopped for a while, and goes on
            assert setting.say(again, wish(kind="command"), descriptor) == {"until": 60.0}
            assert len(setting.kernel.held) == 1
        setting.settle()
    assert setting.kernel.held == {}
    assert [name for name, _ in setting.reported] == ["trials_announced", "trials_ended"] * 2
    assert f"in cgroup {path.name}, for as long as it watches it" in setting.reported[0][1]


@root
@pytest.mark.parametrize("kind", ["name", "announcer", "owner", "mode"])
def test_a_cgroup_that_others_may_enter_is_refused(setting: Setting, kind: str) -> None:
    name = {
        "name": "seal-monitor-executes",
        "announcer": new_prefix().replace(f"-{os.getpid()}-", "-1-") + "c0ffee",
    }.get(kind, f"{new_prefix()}c0ffee")
    with cgroup(name) as (path, descriptor), setting.connect() as client:
        if kind == "owner":
            os.chown(path / "cgroup.procs", 65534, 65534)
        if kind == "mode":
            path.chmod(0o775)
        answer = setting.say(client, wish(kind="command"), descriptor)
        assert answer["refused"] == (
            "others may write to its cgroup"
            if kind in ("owner", "mode")
            else "its cgroup was not made by exec for its command"
        )
        assert setting.kernel.held == {}


@root
def test_exec_waits_for_nobody_when_it_announces_again(
    setting: Setting, problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that has stopped answering is named, and that is all."""
    monkeypatch.setattr(announce, "_AGAIN_SECONDS", 0.0)
    with (
        cgroup(f"{new_prefix()}c0ffee") as (_, descriptor),
        announcer(setting.directory, problems, 60) as client,
    ):
        with setting.served():
            client.cgroup(descriptor)
            client.again(descriptor)
            wait(lambda: bool(select.select([*client._connections.values()], [], [], 1)[0]))
            client.again(descriptor)
            wait(lambda: bool(select.select([*client._connections.values()], [], [], 1)[0]))
        assert problems == []
        client.again(descriptor)
        client.again(descriptor)
        client.again(descriptor)
    (problem,) = problems
    assert problem.startswith("the monitor does not answer an announcement")


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_others_put_there_is_not_asked(tmp_path: Path, problems: list[str]) -> None:
    (tmp_path / f"file{SUFFIX}").write_text("")
    (tmp_path / f"link{SUFFIX}").symlink_to("/nonexistent")
    with announcer(tmp_path, problems) as client, child() as (pid, _):
        client.process(pid)
    assert problems == []
    tmp_path.chmod(0o777)
    assert sockets(tmp_path) == []
