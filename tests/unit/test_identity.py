from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from monitor.classify import printable
from monitor.events import Workload
from monitor.identity import (
    REDACTED,
    Identities,
    Identity,
    cgroup_mount,
    parse_cgroup_path,
    redact,
    workload_name,
)

ID = "4f1c2b7e9a3d5068" * 4
OTHER_ID = "0123456789abcdef" * 4
POD = "8a9f0c11-22bb-4c3d-9e4f-5566778899aa"
SHORT = "container/4f1c2b7e9a3d"
POD_ = POD.replace("-", "_")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- command lines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("psql --password=x", "psql --password=[redacted]"),
        ("psql --password x db", "psql --password [redacted] db"),
        ("psql --password= x", "psql --password= [redacted]"),
        ("tool --password --token x", "tool --password [redacted] [redacted]"),
        ("env PASSWORD=x true", "env PASSWORD=[redacted] true"),
        ("env PGPASSWORD=x true", "env PGPASSWORD=[redacted] true"),
        (
            "docker run -e MYSQL_ROOT_PASSWORD=x db",
            "docker run -e MYSQL_ROOT_PASSWORD=[redacted] db",
        ),
        ("kubectl create --from-literal=token=x", "kubectl create --from-literal=token=[redacted]"),
        (
            "java -Dspring.datasource.password=x Main",
            "java -Dspring.datasource.password=[redacted] Main",
        ),
        ("aws --secret-access-key x s3", "aws --secret-access-key [redacted] s3"),
        (
            "tool --api-key x --apikey=y --api_key:z",
            "tool --api-key [redacted] --apikey=[redacted] --api_key:[redacted]",
        ),
        ("tool --private-key-data=x", "tool --private-key-data=[redacted]"),
        ("tool --credentials x --auth=y", "tool --credentials [redacted] --auth=[redacted]"),
        ("sshpass -p x ssh -p 22 host", "sshpass -p [redacted] ssh -p [redacted] host"),
        ("mysql -uroot -px db", "mysql -uroot -p[redacted] db"),
        ("sudo /usr/bin/mysql -px", "sudo /usr/bin/mysql -p[redacted]"),
        ("curl -u me:x https://h/", "curl -u [redacted] https://h/"),
        ("curl -sume:x https://h/", "curl -su[redacted] https://h/"),
        ("curl --user me:x --proxy-user=me:y", "curl --user [redacted] --proxy-user=[redacted]"),
        ("redis-cli -a x get k", "redis-cli -a [redacted] get k"),
        ("git clone https://me:x@h/r.git", "git clone https://me:[redacted]@h/r.git"),
        ("git clone https://x@h/r.git", "git clone https://[redacted]@h/r.git"),
        ("git clone ssh://git@h/r.git", "git clone ssh://git@h/r.git"),
        ("app postgres://u:a/b@c@h/db", "app postgres://u:[redacted]@h/db"),
        ("get http://h/?a=b&access_token=x&c=d", "get http://h/?a=b&access_token=[redacted]"),
        # Not secrets.
        ("ssh -p 22 host", "ssh -p 22 host"),
        ("mkdir -pv a", "mkdir -pv a"),
        ("passwd root", "passwd root"),
        ("/usr/bin/apt-key list", "/usr/bin/apt-key list"),
        ("git log --author=me", "git log --author=me"),
        ("nginx -c /etc/ssl/server.key -g x", "nginx -c /etc/ssl/server.key -g x"),
        ("setxkbmap --keyboard=de", "setxkbmap --keyboard=de"),
    ],
)
def test_redact(command: str, shown: str) -> None:
    assert redact(command.split(" ")) == shown.split(" ")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], []),
        ([""], [""]),
        (["curl", "-H", "Authorization: Bearer x"], ["curl", "-H", "Authorization: [redacted]"]),
        (["curl", "-H", "X-Api-Key: x"], ["curl", "-H", "X-Api-Key: [redacted]"]),
        (["sh", "-c", "mysql -px db; ls"], ["sh", "-c", "mysql -p[redacted]"]),
        (["sh", "-c", "psql --password 'a b'"], ["sh", "-c", "psql --password [redacted]"]),
        (["sh", "-c", "echo  two  blanks"], ["sh", "-c", "echo  two  blanks"]),
        (["tool", "--password", "a b"], ["tool", "--password", REDACTED]),
        (["tool", "--password=a b"], ["tool", "--password=[redacted]"]),
        (["t", '{"user": "me", "password": "x"}'], ["t", '{"user": "me", "password": [redacted]']),
        (["tool", '{"password":"x"}'], ["tool", '{"password":"[redacted]']),
        (["worker: token x"], ["worker: token [redacted]"]),
    ],
)
def test_redact_arguments_with_blanks(argv: list[str], shown: list[str]) -> None:
    assert redact(argv) == shown


NAMES = st.sampled_from(
    (
        "password",
        "passwd",
        "token",
        "secret",
        "key",
        "credential",
        "credentials",
        "auth",
        "api-key",
        "api_key",
        "APIKEY",
        "PASSWORD",
        "db-password",
        "access_token",
        "AWS_SECRET_ACCESS_KEY",
        "client.secret",
        "passphrase",
    )
)
ANY_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)
SECRETS = st.text(st.characters(exclude_characters="\0"), min_size=6, max_size=30)
FORMS = st.sampled_from(
    [
        lambda name, secret: [f"--{name}={secret}"],
        lambda name, secret: [f"--{name}", secret],
        lambda name, secret: [f"-{name}", secret],
        lambda name, secret: [f"{name}={secret}"],
        lambda name, secret: [f"{name}: {secret}"],
        lambda name, secret: [f"-e{name}:{secret}"],
        lambda name, secret: ["-H", f"Authorization: Bearer {secret}"],
        lambda name, secret: ["sh", "-c", f"tool --{name} '{secret}' more"],
        lambda name, secret: ["sh", "-c", f"{name}={secret} tool"],
    ]
)


@given(st.lists(ANY_TEXT), NAMES, SECRETS, FORMS, st.lists(ANY_TEXT))
def test_a_secret_never_survives(before, name, secret, form, after) -> None:  # type: ignore[no-untyped-def]
    assume(secret.strip() and secret not in f"{form(name, '')} {REDACTED}")
    assume(not any(secret in text for text in (*before, *after)))
    argv = ["program", *before, *form(name, secret), *after]
    shown = redact(argv)
    assert not any(secret in text for text in shown)
    assert len(shown) == len(argv)


@given(
    st.sampled_from(["http", "https", "postgres", "redis"]),
    st.from_regex(r"[^\s@]{6,}", fullmatch=True),
)
def test_a_password_in_a_url_never_survives(scheme: str, secret: str) -> None:
    assume(secret not in REDACTED and secret not in "user-name")
    assert secret not in redact(["tool", f"{scheme}://user-name:{secret}@host/path"])[1]


def test_no_command_line_stalls_the_redaction() -> None:
    start = time.process_time()
    for text in ("token" * 800, "a-" * 2000, "key " * 1000, "://" * 1300, "http://:" * 500):
        redact(["curl", text])
    assert time.process_time() - start < 1.0


# --- cgroups -------------------------------------------------------------------------------------

KUBE = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + POD_ + ".slice"
USER = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("path", "unit", "container_id", "pod_uid", "name"),
    [
        ("/", None, None, None, "/"),
        ("/init.scope", "init.scope", None, None, "init.scope"),
        ("/system.slice/nginx.service", "nginx.service", None, None, "nginx.service"),
        ("/system.slice/a.service/b.service", "a.service", None, None, "a.service"),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            "getty@tty1.service",
            None,
            None,
            "getty@tty1.service",
        ),
        (
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt",
            r"machine-qemu\x2d1\x2dvm.scope",
            None,
            None,
            r"machine-qemu\x2d1\x2dvm.scope",
        ),
        ("/system.slice", "system.slice", None, None, "system.slice"),
        ("/a.slice/plain", None, None, None, "/a.slice/plain"),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            "session-3.scope",
            None,
            None,
            "session-3.scope",
        ),
        (USER, "user@1000.service", None, None, "user@1000.service"),
        (USER + "/init.scope", "user@1000.service", None, None, "user@1000.service"),
        (
            USER + "/app.slice/app-web-12.scope",
            "app-web-12.scope",
            None,
            None,
            "user@1000.service/app-web-12.scope",
        ),
        (
            USER + "/app.slice/ssh.service/x.service",
            "ssh.service",
            None,
            None,
            "user@1000.service/ssh.service",
        ),
        (
            USER + f"/user.slice/libpod-{ID}.scope/container",
            "user@1000.service",
            ID,
            None,
            "user@1000.service/container/4f1c2b7e9a3d",
        ),
        (f"/system.slice/web.service/libpod-payload-{ID}", "web.service", ID, None, "web.service"),
        ("/system.slice/a.service/user@1.service", "a.service", None, None, "a.service"),
        (f"/system.slice/docker-{ID}.scope", None, ID, None, SHORT),
        (f"/docker/{ID}", None, ID, None, SHORT),
        (f"/docker/{ID}/system.slice/ssh.service", None, ID, None, SHORT),
        (f"/docker/{ID}/docker/{OTHER_ID}", None, ID, None, SHORT),
        (f"/machine.slice/libpod-{ID}.scope", None, ID, None, SHORT),
        (f"/ecs/0123456789abcdef0123456789abcdef/{ID}", None, ID, None, SHORT),
        (
            "/lxc.payload.web/system.slice/ssh.service",
            None,
            None,
            None,
            "/lxc.payload.web/system.slice/ssh.service",
        ),
        (f"{KUBE}/cri-containerd-{ID}.scope", None, ID, POD, f"pod/{POD}"),
        (f"{KUBE}/crio-{ID}.scope/container", None, ID, POD, f"pod/{POD}"),
        (KUBE, None, None, POD, f"pod/{POD}"),
        (
            f"/kubepods.slice/kubepods-pod{POD_}.slice/crio-conmon-{ID}.scope",
            None,
            ID,
            POD,
            f"pod/{POD}",
        ),
        (f"/kubepods/besteffort/pod{POD}/{ID}", None, ID, POD, f"pod/{POD}"),
        (f"/kubepods/pod{ID[:32]}/{ID}", None, ID, ID[:32], f"pod/{ID[:32]}"),
        (
            f"/system.slice/containerd.service/kubepods-besteffort-pod{POD_}.slice:cri-containerd:{ID}",
            "containerd.service",
            ID,
            POD,
            "containerd.service",
        ),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope",
            None,
            ID,
            POD,
            f"pod/{POD}",
        ),
        (f"/elsewhere/pod{POD}", None, None, None, f"/elsewhere/pod{POD}"),
        ("/kubepods.slice", "kubepods.slice", None, None, "kubepods.slice"),
    ],
)
def test_cgroup_paths(
    path: str, unit: str | None, container_id: str | None, pod_uid: str | None, name: str
) -> None:
    assert parse_cgroup_path(path) == Workload(unit, container_id, pod_uid, path)
    assert workload_name(path) == name


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        (4711, "cgroup:4711"),
        ("/a\nb\x1b[31m", r"/a\x0ab\x1b[31m"),
        ("/" + "a" * 150 + "/" + "b" * 150, "…" + "a" * 48 + "/" + "b" * 150),
    ],
)
def test_workload_name_is_bounded_and_printable(cgroup: str | int, name: str) -> None:
    assert workload_name(cgroup) == name
    assert len(name) <= 200


@pytest.mark.parametrize(
    ("mountinfo", "mount"),
    [
        (
            b"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "/sys/fs/cgroup/unified",
        ),
        (b"41 31 0:38 / /a\\040b rw shared:9 master:1 - cgroup2 none rw\n", "/a b"),
        (b"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup2 rw\n", None),
        (None, None),
    ],
)
def test_cgroup_mount(tmp_path: Path, mountinfo: bytes | None, mount: str | None) -> None:
    (tmp_path / "self").mkdir()
    if mountinfo is not None:
        (tmp_path / "self/mountinfo").write_bytes(mountinfo)
    assert cgroup_mount(tmp_path) == (None if mount is None else Path(mount))


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
    fields = [state, *["0"] * 18, str(start_ticks), *["0"] * 30]
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
    assert identities.lookup(42, START, 0) == Identity("/usr/bin/app", shown, "root", "complete")


@pytest.mark.parametrize(
    ("pid", "start_boot_ns", "state", "result"),
    [
        (43, START, "S", "gone"),
        (42, START, "Z", "gone"),
        (42, START + 1, "S", "reused"),
        (42, 1234 * TICK_NS - 1, "S", "reused"),
    ],
)
def test_another_process_is_never_told(
    tmp_path: Path, pid: int, start_boot_ns: int, state: str, result: str
) -> None:
    record_process(tmp_path, state=state)
    identity = Identities(tmp_path).lookup(pid, start_boot_ns, 4_000_000_000)
    assert identity == Identity(None, None, None, result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("executable", "cmdline", "told"),
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
    tmp_path: Path, executable: bytes, cmdline: bytes, told: tuple[str, str | None]
) -> None:
    record_process(tmp_path, executable=executable, cmdline=cmdline)
    identity = Identities(tmp_path).lookup(42, START)
    assert identity == Identity(*told, None, "complete")


def test_an_exec_is_told_apart(tmp_path: Path) -> None:
    clock = Clock()
    identities = Identities(tmp_path, clock=clock)
    record_process(tmp_path, executable=b"/bin/sh", cmdline=b"sh\0")
    shell = Identity("/bin/sh", "sh", None, "complete")
    assert identities.lookup(42, START, base_name=b"sh") == shell

    record_process(tmp_path, executable=b"/bin/app (deleted)", cmdline=b"app\0")
    app = Identity("/bin/app (deleted)", "app", None, "complete")
    assert identities.lookup(42, START, base_name=b"sh") == shell
    assert identities.lookup(42, START, base_name=b"app") == app
    assert identities.lookup(42, START, base_name=b"sh") == Identity(None, None, None, "partial")

    record_process(tmp_path, executable=b"/bin/last", cmdline=b"last\0")
    assert identities.lookup(42, START) == app
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


def test_recorded_cgroups(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for directory in (proc / "42", root / "a.slice/a.service", root / "b"):
        directory.mkdir(parents=True)
    (proc / "42/cgroup").write_bytes(b"1:name=systemd:/wrong\n0::/a.slice/a.service\n")
    clock = Clock()
    identities = Identities(proc, root, clock=clock)
    service, plain = (os.stat(root / path).st_ino for path in ("a.slice/a.service", "b"))
    nothing = Workload(None, None, None, None)

    told = Workload("a.service", None, None, "/a.slice/a.service")
    assert identities.workload(service, 42) == told
    # Not the cgroup the process is in now: found by its inode number.
    assert identities.workload(plain, 42) == Workload(None, None, None, "/b")

    (root / "c").mkdir()
    late = os.stat(root / "c").st_ino
    assert identities.workload(late) == nothing
    clock.now += 10.0
    assert identities.workload(late) == Workload(None, None, None, "/c")

    (root / "a.slice/a.service").rmdir()
    assert identities.workload(service) == told
    assert Identities(proc, root).workload(service) == nothing


def test_no_cgroup2_mount(tmp_path: Path) -> None:
    assert Identities(tmp_path).workload(1) == Workload(None, None, None, None)


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
    assert identity == Identity(None, printable(shown, 512), "root", "partial")


def test_a_deleted_executable(tmp_path: Path) -> None:
    copy = tmp_path / "sleep copy"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o700)
    with subprocess.Popen([copy, "60"]) as process:  # returns when the exec has happened
        try:
            copy.unlink()
            stat = Path(f"/proc/{process.pid}/stat").read_text()
            start = int(stat.rpartition(")")[2].split()[19]) * TICK_NS
            identity = Identities().lookup(process.pid, start, None, b"sleep copy")
        finally:
            process.kill()
    assert identity == Identity(f"{copy} (deleted)", f"{copy} 60", None, "complete")


@pytest.fixture
def cgroup() -> Iterator[tuple[Path, str]]:
    root = cgroup_mount()
    if root is None:
        pytest.skip("cgroup2 is not mounted")
    directory = root / f"seal-monitor-test-{os.getpid()}.slice"
    service = directory / "web x.service"
    try:
        service.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cannot make a cgroup in {root}: {error.strerror}")
    try:
        yield service, "/" + str(service.relative_to(root))
    finally:
        for path in (service, directory):
            if path.exists():
                path.rmdir()


def test_a_real_cgroup(cgroup: tuple[Path, str]) -> None:
    directory, path = cgroup
    number = os.stat(directory).st_ino
    told = Workload("web x.service", None, None, path)
    identities = Identities()
    assert identities.workload(number) == told
    assert identities.workload(os.stat(directory.parent.parent).st_ino).cgroup == "/"
    directory.rmdir()
    assert identities.workload(number) == told
    assert Identities().workload(number) == Workload(None, None, None, None)


def test_a_real_cgroup_without_handles(cgroup: tuple[Path, str], tmp_path: Path) -> None:
    """By the process in it, and by a walk, as without CAP_DAC_READ_SEARCH."""
    directory, path = cgroup
    number = os.stat(directory).st_ino
    told = Workload("web x.service", None, None, path)
    link = tmp_path / "root"  # a path that handles do not resolve to
    link.symlink_to(directory.parent.parent)
    assert Identities(cgroup_root=link).workload(number) == told
    with child(sys.executable, "-c", SPEAKING) as (pid, _):
        (directory / "cgroup.procs").write_text(str(pid))
        empty = tmp_path / "proc"
        empty.mkdir()
        (empty / str(pid)).symlink_to(f"/proc/{pid}")
        assert Identities(empty, link).workload(number, pid) == told
