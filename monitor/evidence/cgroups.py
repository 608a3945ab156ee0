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
from collections.abc import Callable
from pathlib import Path

from monitor.evidence.events import Workload
from monitor.untrusted.printable import printable
from monitor.untrusted.recent import Recent

__all__ = [
    "Cgroups",
    "cgroup_mount",
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
FILEID_KERNFS = 0xFE  # include/linux/exportfs.h; the handle is the node id, which is the cgroup id

_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?")
_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})\b")
_USER_SLICE = re.compile(r"user-\d+\.slice")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_LIBC = ctypes.CDLL(None, use_errno=True)
NO_WORKLOAD = Workload(unit=None, container_id=None, pod_uid=None, cgroup=None)


def parse_cgroup_path(path: str) -> Workload:
    """The unit, container and pod that a path below the cgroup2 root names.

    `unit` is the first service or scope below the slices: deeper cgroups are delegated, and their
    owner may name them freely. In a user's service manager it is that manager's unit. In a path
    that has only slices it is the innermost slice. `container_id` is the outermost container: the
    host's container runtime named it. Cgroups inside of it are not looked at.
    """
    return _parse(path)[0]


def _parse(path: str) -> tuple[Workload, str | None]:
    """The facts, and the user's service manager that the cgroup belongs to."""
    unit = manager = container = pod = innermost_slice = None
    kubernetes, of_systemd = False, True
    for name in filter(None, path.split("/")):
        kubernetes = kubernetes or "kubepods" in name
        if kubernetes and (found := _POD.search(name)):
            pod = found[1].replace("_", "-")
        if found := _CONTAINER.fullmatch(name):
            container = found[1]
            break
        if not of_systemd:
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

    A user's slice with all its sessions, else the pod, else the outermost container, else the
    systemd unit; where there is none of these, the first name.
    """
    names = [name for name in path.split("/") if name]
    of_user = next((name for name in names if _USER_SLICE.fullmatch(name)), None)
    facts, manager = _parse(path)
    return (
        of_user
        or manager
        or (facts.pod_uid and f"pod/{facts.pod_uid}")
        or (facts.container_id and f"container/{facts.container_id[:12]}")
        or facts.unit
        or f"/{''.join(names[:1])}"
    )


def cgroup_mount(proc: Path = Path("/proc")) -> Path | None:
    """Where cgroup2 is mounted, from /proc/self/mountinfo; None where it is not."""
    try:
        lines = (proc / "self/mountinfo").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields = before.split()
        if after.startswith(b"cgroup2 ") and len(fields) > 4:
            # Blanks in the path are written as octal numbers (show_mountinfo()).
            point = re.sub(
                rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), fields[4]
            )
            return Path(os.fsdecode(point))
    return None


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
        self._known: Recent[int, Workload] = Recent(CGROUPS_CACHED)
        self._clock = clock
        self._scanned: dict[int, bytes] = {}
        self._scan_again = float("-inf")
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
            known = parse_cgroup_path(printable(path, PATH_LIMIT))
            self._known.put(cgroup_id, known)
        return known

    def subtree(self, cgroup_id: int) -> str | None:
        """The path of the cgroup's ancestor at depth 2, which is nobody's but root's to make, as
        in `cgroup_subtree()` of bpf/share.h; None where it cannot be found.
        """
        path = self.workload(cgroup_id).cgroup
        return None if path is None else "/".join(path.split("/")[:3])

    def exists(self, cgroup_id: int) -> bool:
        """Whether the cgroup is still there; True where that is unknown."""
        if self._root is None:
            return True
        return self.path(cgroup_id, None) is not None

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

    @staticmethod
    def _by_handle(root: bytes, cgroup_id: int) -> bytes | None:
        """Raises OSError: ESTALE for a removed cgroup, EPERM without CAP_DAC_READ_SEARCH."""
        handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, FILEID_KERNFS, cgroup_id), 16)
        mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = _LIBC.open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC)
            if fd < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(mount)
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        return (path.removeprefix(root) or b"/") if path.startswith(root) else None

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
        return self._scanned.get(cgroup_id)


def unified_path(text: bytes) -> bytes | None:
    """The path in the unified hierarchy, from the text of /proc/PID/cgroup; None without one."""
    return next((line[3:] for line in text.splitlines() if line.startswith(b"0::")), None)


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
