"""cgroup id -> path -> systemd unit, container and pod.

The id is the inode number of the cgroup's directory in the cgroup2 mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from monitor.evidence.events import Workload
from monitor.untrusted.printable import printable
from monitor.untrusted.recent import SharedRecent

__all__ = [
    "Cgroups",
    "alerted_workload",
    "cgroup_mount",
    "has_all",
    "is_initial_namespace",
    "parse_cgroup_path",
    "top_workload",
    "unified_path",
    "unit_of",
    "workload_name",
]

PATH_LIMIT = 1024
NAME_LIMIT = 200
SCAN_SECONDS = 10.0
SCAN_DIRECTORIES = 4096
CGROUPS_CACHED = 4096  # every scrape asks for each of those with a denial
_ROOT_ID = 1  # kernfs_create_root() in fs/kernfs/dir.c: its own inode has the first number
_INITIAL_NAMESPACE = "cgroup:[4026531835]"  # PROC_CGROUP_INIT_INO in include/linux/proc_ns.h
FILEID_KERNFS = 0xFE  # include/linux/exportfs.h; the handle is the node id, which is the cgroup id

# By the runtimes' own names: docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope,
# libpod-ID.scope, libpod-payload-ID, nerdctl-ID.scope; with the cgroupfs driver ID alone, or
# SLICE:cri-containerd:ID. libpod-conmon-ID.scope and crio-conmon-ID.scope are the watchers of a
# container, outside of it.
_CONTAINER = re.compile(r"(?!.*\bconmon-)(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?")
_PODMANS_PODS = "libpod_parent"  # there an ID alone is a pod of Podman's
# Without a systemd of its own to ask, a runtime makes the cgroups of pods and containers below that
# of its service, where they are no part of the service.
_RUNTIME = re.compile(
    r"(?:containerd|crio|cri-o|docker|cri-docker|kubelet|k3s|k3s-agent|rke2-server|rke2-agent"
    r"|k0scontroller|k0sworker|snap\.docker\.dockerd"
    r"|snap\.microk8s\.daemon-(?:containerd|kubelet|kubelite))\.service"
)
_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})\b")
_USER_SLICE = re.compile(r"user-\d+\.slice")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_LIBC = ctypes.CDLL(None, use_errno=True)
NO_WORKLOAD = Workload(unit=None, container_id=None, pod_uid=None, cgroup=None)


def parse_cgroup_path(path: str) -> Workload:
    """The unit, container and pod that a path below the cgroup2 root names.

    `unit` is the first service or scope below the slices: deeper cgroups are delegated, and their
    owner may name them freely. In a user's service manager it is that manager's unit. In a path
    that has only slices it is the innermost slice. What a runtime has put below the cgroup of its
    own service is in no unit, and neither is what is in a pod. `container_id` is the outermost
    container: the host's container runtime named it. Cgroups inside of it are not looked at.
    """
    return _parse(path)[0]


def _parse(path: str) -> tuple[Workload, str | None]:
    """The facts, and the user's service manager that the cgroup belongs to."""
    unit = manager = container = pod = innermost_slice = None
    kubernetes, of_systemd, above = False, True, ""
    for name in filter(None, path.split("/")):
        kubernetes = kubernetes or "kubepods" in name
        if kubernetes and (found := _POD.search(name)):
            pod = found[1].replace("_", "-")
        found = _CONTAINER.fullmatch(name)
        if found and not (above == _PODMANS_PODS and found[1] == name):
            container = found[1]
            break
        above = name
        if not of_systemd:
            continue
        if pod:
            of_systemd = False
            continue
        if name.endswith(".slice"):
            innermost_slice = name
        elif manager is None and _USER_MANAGER.fullmatch(name):
            unit = manager = name
        else:
            of_systemd = False
            # A user manager's own processes are in its init.scope.
            if name.endswith((".service", ".scope")) and not (manager and name == "init.scope"):
                unit = name
    if of_systemd and not (unit or container or pod):
        unit = innermost_slice
    if unit and not manager and (container or pod) and _RUNTIME.fullmatch(unit):
        unit = None
    return Workload(unit=unit, container_id=container, pod_uid=pod, cgroup=path), manager


def workload_name(cgroup: str | int) -> str:
    """The `workload` label for a cgroup's path, or for its id where the path is unknown.

    The first of these that is known: the systemd unit, `pod/<uid>`, `container/<12 digits>`, the
    path, `cgroup:<id>`. In a user's service manager that manager's name comes first, as in
    `user@1000.service/app.scope`: users may name their units freely. At most 200 characters.
    """
    if isinstance(cgroup, int):
        return f"cgroup:{cgroup}"
    path = printable(cgroup, PATH_LIMIT)
    facts, manager = _parse(path)
    if facts.unit and facts.unit != manager:
        name = facts.unit
    elif facts.pod_uid:
        name = f"pod/{facts.pod_uid}"
    elif facts.container_id:
        name = f"container/{facts.container_id[:12]}"
    else:
        manager, name = None, manager or path
    if manager:
        name = f"{manager}/{name}"
    return name if len(name) <= NAME_LIMIT else "\N{HORIZONTAL ELLIPSIS}" + name[1 - NAME_LIMIT :]


def alerted_workload(cgroup: str | int) -> str:
    """The workload that an alert names: as in workload_name(), but the slice of a user for all that
    he runs. A login makes a new scope there, and the user more at will: each would be new, and a
    page of its own. Only root makes what is below `user.slice` itself.
    """
    names = cgroup.split("/", 3) if isinstance(cgroup, str) else []
    if len(names) > 2 and names[:2] == ["", "user.slice"] and _USER_SLICE.fullmatch(names[2]):
        return names[2]
    return workload_name(cgroup)


def unit_of(path: str) -> str | None:
    """The systemd unit that a cgroup's path names; None without one.

    In a user's service manager that manager's name comes first, as in
    `user@1000.service/app.scope`: users may name their units freely.
    """
    facts, manager = _parse(path)
    if facts.unit and manager and facts.unit != manager:
        return f"{manager}/{facts.unit}"
    return facts.unit


def top_workload(path: str) -> str:
    """Who is responsible for a cgroup, by its path: what a user or container's owner may make below
    counts as theirs.

    A user's slice with all its sessions, else the systemd unit, which says in its cgroups what it
    likes, else the pod, else the outermost container; where there is none of these, the first name.
    """
    names = [name for name in path.split("/") if name]
    of_user = next((name for name in names if _USER_SLICE.fullmatch(name)), None)
    facts, manager = _parse(path)
    return (
        of_user
        or manager
        or facts.unit
        or (facts.pod_uid and f"pod/{facts.pod_uid}")
        or (facts.container_id and f"container/{facts.container_id[:12]}")
        or f"/{''.join(names[:1])}"
    )


def cgroup_mount(proc: Path = Path("/proc")) -> Path | None:
    """Where cgroup2 is mounted, from /proc/self/mountinfo; None where it is not.

    If it is mounted several times, it is where all of it is.
    """
    try:
        lines = (proc / "self/mountinfo").read_bytes().splitlines()
    except OSError:
        return None
    points = list(_mount_points(lines))
    return next(filter(has_all, points), points[0] if points else None)


def has_all(mount: Path) -> bool:
    """Whether this cgroup2 mount has every cgroup of the host, and not those of a namespace."""
    try:
        return os.stat(mount).st_ino == _ROOT_ID
    except OSError:
        return False


def is_initial_namespace(proc: Path = Path("/proc")) -> bool:
    """Whether this process sees the paths of cgroups as the host does; True where it is unknown."""
    try:
        return os.readlink(proc / "self/ns/cgroup") == _INITIAL_NAMESPACE
    except OSError:
        return True


def _mount_points(lines: Iterable[bytes]) -> Iterator[Path]:
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields = before.split()
        if after.startswith(b"cgroup2 ") and len(fields) > 4:
            # Blanks in the path are written as octal numbers (show_mountinfo()).
            point = re.sub(
                rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), fields[4]
            )
            yield Path(os.fsdecode(point))


class Cgroups:
    """Look-ups in the cgroup2 mount, with a bounded cache; safe to use from several threads."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        root: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`root` is the cgroup2 mount; found in /proc/self/mountinfo when it is None."""
        root = root or cgroup_mount(proc)
        self._proc = proc
        self._root = None if root is None else os.fsencode(root)
        self._known: SharedRecent[int, Workload] = SharedRecent(CGROUPS_CACHED)
        self._clock = clock
        self._scanned: dict[int, bytes] = {}
        self._scan_again = float("-inf")
        self._sees_all = False
        self._handles = False
        if self._root is not None:
            try:
                self._handles = self._by_handle(self._root, os.stat(self._root).st_ino) == b"/"
            except OSError:
                self._handles = False

    def workload(self, cgroup_id: int, pid: int | None = None) -> Workload:
        """The unit, container and pod of the cgroup with this id; all None where it is not found.

        The kernel gives an id only once and a cgroup keeps its path, so an answer stays true, even
        when the cgroup has been removed.
        """
        known = self._known.get(cgroup_id)
        if known is None:
            path = self.path(cgroup_id, pid)
            if path is None:
                return NO_WORKLOAD
            name = printable(path, PATH_LIMIT)
            known = parse_cgroup_path(name)
            self._known.put(cgroup_id, known, top_workload(name))
        return known

    def subtree(self, cgroup_id: int) -> str | None:
        """The path of the cgroup's ancestor at depth 2, which is nobody's but root's to make, as
        in `cgroup_subtree()` of bpf/share.h; None where it cannot be found.
        """
        path = self.workload(cgroup_id).cgroup
        return None if path is None else "/".join(path.split("/")[:3])

    def exists(self, cgroup_id: int) -> bool:
        """Whether the cgroup is still there; True where that is unknown.

        In a cgroup namespace one that is outside of it is there, though it has no path.
        """
        if self._root is None:
            return True
        if self._handles:
            try:
                os.close(self._opened(self._root, cgroup_id))
            except OSError as error:
                return error.errno != errno.ESTALE
            return True
        return self.path(cgroup_id, None) is not None or not self._sees_all

    def path(self, cgroup_id: int, pid: int | None) -> bytes | None:
        """The path below the root; None where it is not found."""
        if self._root is None:
            return None
        if self._handles:
            try:
                return self._by_handle(self._root, cgroup_id)
            except OSError as error:
                if error.errno == errno.ESTALE:  # removed: the other ways would not find it
                    return None
        return self._by_process(self._root, cgroup_id, pid) or self._by_scan(self._root, cgroup_id)

    def _by_handle(self, root: bytes, cgroup_id: int) -> bytes | None:
        """None where the mount does not have it. Raises OSError: see _opened()."""
        fd = self._opened(root, cgroup_id)
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        if path == root:
            return b"/"
        return path.removeprefix(root) if path.startswith(root + b"/") else None

    @staticmethod
    def _opened(root: bytes, cgroup_id: int) -> int:
        """Raises OSError: ESTALE for a removed cgroup, EPERM without CAP_DAC_READ_SEARCH."""
        handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, FILEID_KERNFS, cgroup_id), 16)
        mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = _LIBC.open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC)
            if fd < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return int(fd)
        finally:
            os.close(mount)

    def _by_process(self, root: bytes, cgroup_id: int, pid: int | None) -> bytes | None:
        """From /proc/PID/cgroup, when the process is still in that cgroup."""
        if pid is None:
            return None
        try:
            path = unified_path((self._proc / str(pid) / "cgroup").read_bytes())
            found = path is not None and os.stat(root + path).st_ino == cgroup_id
        except (OSError, ValueError):  # ValueError: no path has a NUL in it
            return None
        return path if found else None

    def _by_scan(self, root: bytes, cgroup_id: int) -> bytes | None:
        """From a walk of at most SCAN_DIRECTORIES, at most once in SCAN_SECONDS."""
        if cgroup_id not in self._scanned and self._clock() >= self._scan_again:
            self._scan_again = self._clock() + SCAN_SECONDS
            self._scanned = _scan(root)
            self._sees_all = len(self._scanned) < SCAN_DIRECTORIES and has_all(
                Path(os.fsdecode(root))
            )
        return self._scanned.get(cgroup_id)


def unified_path(text: bytes) -> bytes | None:
    """The path in the unified hierarchy, from the text of /proc/PID/cgroup; None without one, and
    where it is outside of the reader's cgroup namespace, which shows "..", not its names.
    """
    path = next((line[3:] for line in text.splitlines() if line.startswith(b"0::")), None)
    return None if path is not None and b"/../" in path + b"/" else path


def _scan(root: bytes) -> dict[int, bytes]:
    found = {os.stat(root).st_ino: b"/"}
    pending = deque([b""])
    while pending and len(found) < SCAN_DIRECTORIES:
        parent = pending.popleft()
        try:
            with os.scandir(root + parent) as entries:
                children = [e for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:  # removed meanwhile
            continue
        for entry in children:
            path = parent + b"/" + entry.name
            found[entry.inode()] = path
            pending.append(path)
    return found
