from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.evidence.cgroups import (
    Cgroups,
    cgroup_mount,
    parse_cgroup_path,
    top_workload,
    unified_path,
    unit_of,
    workload_name,
)
from monitor.evidence.events import Workload

ID = "4f1c2b7e9a3d5068" * 4
OTHER_ID = "0123456789abcdef" * 4
POD = "8a9f0c11-22bb-4c3d-9e4f-5566778899aa"
SHORT = "container/4f1c2b7e9a3d"
POD_ = POD.replace("-", "_")
CONMON = f"libpod-conmon-{ID}.scope"
# Unit, container, pod and name of
ALONE = (None, ID, None, SHORT)
MACHINE = ("machine-web.scope", None, None, "machine-web.scope")
CONTAINERD = ("containerd.service", None, None, "containerd.service")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


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
            None,
            POD,
            f"pod/{POD}",
        ),
        (f"/kubepods/besteffort/pod{POD}/{ID}", None, ID, POD, f"pod/{POD}"),
        (f"/kubepods/pod{ID[:32]}/{ID}", None, ID, ID[:32], f"pod/{ID[:32]}"),
        (
            f"/system.slice/containerd.service/kubepods-besteffort-pod{POD_}.slice:cri-containerd:{ID}",
            None,
            ID,
            POD,
            f"pod/{POD}",
        ),
        *(
            (f"/system.slice/{unit}/kubepods/burstable/pod{POD}/{ID}", None, ID, POD, f"pod/{POD}")
            for unit in ("k3s.service", "kubelet.service", "snap.microk8s.daemon-kubelite.service")
        ),
        (f"/system.slice/containerd.service/system.slice:nerdctl:{ID}", None, ID, None, SHORT),
        ("/system.slice/containerd.service", *CONTAINERD),
        (f"/system.slice/containerd.service/kubepods/x-pod{POD[:8]}", *CONTAINERD),
        # Whoever may make cgroups below his own service cannot take a pod's name.
        (
            f"/system.slice/mine.service/kubepods-pod{POD_}.slice:cri-containerd:{ID}",
            "mine.service",
            ID,
            POD,
            "mine.service",
        ),
        (
            f"{USER}/app.slice/containerd.service/kubepods/pod{POD}/{ID}",
            "containerd.service",
            ID,
            POD,
            "user@1000.service/containerd.service",
        ),
        # What watches a container from outside.
        (f"/machine.slice/{CONMON}", CONMON, None, None, CONMON),
        (
            f"{USER}/user.slice/{CONMON}",
            CONMON,
            None,
            None,
            f"user@1000.service/{CONMON}",
        ),
        ("/libpod_parent/conmon", None, None, None, "/libpod_parent/conmon"),
        (f"/kubepods/besteffort/pod{POD}/crio-conmon-{ID}", None, None, POD, f"pod/{POD}"),
        ("/system.slice/web.service/supervisor", "web.service", None, None, "web.service"),
        # Podman's pods.
        (f"/machine.slice/machine-libpod_pod_{OTHER_ID}.slice/libpod-{ID}.scope", *ALONE),
        (f"/machine.slice/libpod-{ID}.scope/container", *ALONE),
        (f"/libpod_parent/{OTHER_ID}/libpod-{ID}", *ALONE),
        (f"/libpod_parent/libpod-{ID}/container", *ALONE),
        # Others' names of containers.
        (f"/system.slice/nerdctl-{ID}.scope", *ALONE),
        (f"/default/{ID}", *ALONE),
        (f"/ecstasks.slice/ecstasks-{ID[:32]}.slice/docker-{ID}.scope", *ALONE),
        ("/lxc.monitor.web", None, None, None, "/lxc.monitor.web"),
        (
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/ssh.service",
            "systemd-nspawn@web.service",
            None,
            None,
            "systemd-nspawn@web.service",
        ),
        ("/machine.slice/machine-web.scope/supervisor", *MACHINE),
        (f"/machine.slice/machine-web.scope/payload/docker/{ID}", *MACHINE[:1], ID, *MACHINE[2:]),
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
    ("path", "unit"),
    [
        ("/", None),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/deeper.service", "nginx.service"),
        (f"{USER}/app.slice/nginx.service", "user@1000.service/nginx.service"),
        (f"{USER}/init.scope", "user@1000.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/delegated/system.slice/nginx.service", None),
        (f"{USER}/{'x' * 300}nginx.service", f"user@1000.service/{'x' * 300}nginx.service"),
        (f"/system.slice/docker-{ID}.scope", None),
    ],
)
def test_the_unit_of_a_users_manager_has_its_name(path: str, unit: str | None) -> None:
    assert unit_of(path) == unit


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


@contextmanager
def child(*argv: str) -> Iterator[int]:
    """pid of a process that has executed `argv`."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.read(1)
            yield process.pid
        finally:
            process.kill()


SPEAKING = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"


def test_recorded_cgroups(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for directory in (proc / "42", root / "a.slice/a.service", root / "b"):
        directory.mkdir(parents=True)
    (proc / "42/cgroup").write_bytes(b"1:name=systemd:/wrong\n0::/a.slice/a.service\n")
    clock = Clock()
    cgroups = Cgroups(proc, root, clock)
    service, plain = (os.stat(root / path).st_ino for path in ("a.slice/a.service", "b"))
    nothing = Workload(None, None, None, None)

    expected = Workload("a.service", None, None, "/a.slice/a.service")
    assert cgroups.workload(service, 42) == expected
    # Not the cgroup the process is in now: found by its inode number.
    assert cgroups.workload(plain, 42) == Workload(None, None, None, "/b")

    (root / "c").mkdir()
    late = os.stat(root / "c").st_ino
    assert cgroups.workload(late) == nothing
    clock.now += 10.0
    assert cgroups.workload(late) == Workload(None, None, None, "/c")

    (root / "a.slice/a.service").rmdir()
    assert cgroups.workload(service) == expected
    assert Cgroups(proc, root).workload(service) == nothing


def test_no_cgroup2_mount(tmp_path: Path) -> None:
    assert Cgroups(tmp_path).workload(1) == Workload(None, None, None, None)


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
    expected = Workload("web x.service", None, None, path)
    cgroups = Cgroups()
    assert cgroups.workload(number) == expected
    assert cgroups.workload(os.stat(directory.parent.parent).st_ino).cgroup == "/"
    assert cgroups.exists(number)
    directory.rmdir()
    assert not cgroups.exists(number)
    assert cgroups.workload(number) == expected
    assert Cgroups().workload(number) == Workload(None, None, None, None)


IN_A_NAMESPACE = """
import json, sys
from monitor.evidence.cgroups import Cgroups
from monitor.host.doctor import identity_rows
ours, others = map(int, sys.argv[1:])
cgroups = Cgroups()
seen = [(cgroups.workload(each).cgroup, cgroups.exists(each)) for each in (ours, others)]
rows = [row for row in identity_rows() if "cgroup" in row.check]
found = [seen, [(row.check, row.status, row.remedy[:41]) for row in rows]]
print(json.dumps(found), flush=True)
sys.stdin.read(1)
print(json.dumps([cgroups.exists(each) for each in (ours, others)]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("is_whole", [True, False])
def test_in_a_cgroup_namespace(cgroup: tuple[Path, str], is_whole: bool) -> None:
    """One of its own, with the host's mount or one that shows that namespace alone."""
    directory, path = cgroup
    root = directory.parent.parent
    other = directory.parent / "other.service"
    other.mkdir()
    own = f"umount -l {root}; mount -t cgroup2 none {root}; " if not is_whole else ""
    script = (
        f"echo 0 >'{directory}/cgroup.procs'; exec unshare --cgroup --mount sh -c "
        f'\'echo 0 >{root}/cgroup.procs; {own}exec "$@"\' sh "$@"'
    )
    numbers = [str(os.stat(each).st_ino) for each in (directory, other)]
    words = [sys.executable, "-c", IN_A_NAMESPACE, *numbers]
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        seen, rows = json.loads(process.stdout.readline())
        other.rmdir()
        process.stdin.write("x")
        process.stdin.close()
        later = json.loads(process.stdout.readline())
    remedy = "run in the host's cgroup namespace (conta"
    namespace = ["cgroup namespace", "degraded", remedy]
    if is_whole:
        assert seen == [[path, True], [str(Path(path).parent / "other.service"), True]]
        assert rows == [["cgroup v2", "ok", ""], namespace]
    else:
        assert seen == [["/", True], [None, True]]
        assert rows == [["cgroup v2", "degraded", remedy], namespace]
    assert later == [True, False]


@pytest.mark.parametrize(
    ("path", "found"),
    [(b"/../a.service", None), (b"/..", None), (b"/a..b/..c", b"/a..b/..c"), (b"/", b"/")],
)
def test_a_path_outside_of_the_namespace_is_none(path: bytes, found: bytes | None) -> None:
    assert unified_path(b"1:name=systemd:/x\n0::" + path + b"\n") == found


def test_a_cgroup_that_a_walk_cannot_find_may_exist(tmp_path: Path) -> None:
    """Without handles, and with a mount that does not show all."""
    assert Cgroups(tmp_path, tmp_path).exists(4711)


@pytest.mark.parametrize(
    ("path", "top"),
    [
        (
            f"/system.slice/mine.service/kubepods-pod{POD_}.slice:cri-containerd:{ID}",
            "mine.service",
        ),
        (f"/system.slice/web.service/libpod-payload-{ID}", "web.service"),
        (f"/system.slice/k3s.service/kubepods/pod{POD}/{ID}/x", f"pod/{POD}"),
        (f"{KUBE}/crio-conmon-{ID}.scope", f"pod/{POD}"),
        (f"/docker/{ID}/x.service", SHORT),
        (f"{USER}/app.slice/k3s.service/kubepods/pod{POD}/{ID}", "user-1000.slice"),
        ("/lxc.payload.web/system.slice/ssh.service", "/lxc.payload.web"),
    ],
)
def test_who_is_responsible(path: str, top: str) -> None:
    assert top_workload(path) == top


def test_a_real_cgroup_without_handles(cgroup: tuple[Path, str], tmp_path: Path) -> None:
    """By the process in it and by a walk, as it goes without CAP_DAC_READ_SEARCH."""
    directory, path = cgroup
    number = os.stat(directory).st_ino
    expected = Workload("web x.service", None, None, path)
    link = tmp_path / "root"  # a path that handles do not resolve to
    link.symlink_to(directory.parent.parent)
    assert Cgroups(root=link).workload(number) == expected
    with child(sys.executable, "-c", SPEAKING) as pid:
        (directory / "cgroup.procs").write_text(str(pid))
        empty = tmp_path / "proc"
        empty.mkdir()
        (empty / str(pid)).symlink_to(f"/proc/{pid}")
        assert Cgroups(empty, link).workload(number, pid) == expected
