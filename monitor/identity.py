"""pid -> executable, command line and user; cgroup id -> systemd unit, container and pod.

The kernel's record names a process by pid and start time, and its cgroup by id. /proc and the
cgroup2 mount add the rest, as long as they still have it. All of it is chosen by the process or
its owner, so it is bounded and escaped here and never interpreted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, Literal, TypeVar

from monitor.classify import printable
from monitor.events import Workload

__all__ = [
    "REDACTED",
    "CommandLine",
    "Identities",
    "Identity",
    "Lookup",
    "cgroup_mount",
    "parse_cgroup_path",
    "redact",
    "workload_name",
]

CommandLine = Literal["redacted", "full", "off"]
Lookup = Literal["complete", "partial", "gone", "reused"]

REDACTED = "[redacted]"

TEXT_LIMIT = 512
PATH_LIMIT = 1024
NAME_LIMIT = 200
ARGUMENTS_READ = 4096
ARGUMENTS_SHOWN = 32
CACHED = 4096
# An exec keeps pid and start time; the kernel's base name shows most of them at once, the rest,
# like a program that rewrites its own command line, after this time.
FRESH_SECONDS = 1.0
USER_FRESH_SECONDS = 60.0
SCAN_SECONDS = 10.0
SCAN_DIRECTORIES = 4096

# What /proc/PID/stat counts in: USER_HZ, as nsec_to_clock_t() does (kernel/time/time.c).
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
FILEID_KERNFS = 0xFE  # include/linux/exportfs.h; the handle is the node id, which is the cgroup id

_WORD = re.compile(r"[\w.-]+")
_SENSITIVE = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|cookie|bearer|authorization"
    r"|(?:key|pass|auth)s?$|(?:^|[-_.])(?:key|pass|auth|cred)s?(?:[-_.]|$)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"""["']*[=:]["']*""")
_USER_INFORMATION = re.compile(r"(://[^\s/:@]*:)\S*@|(https?://)[^\s/:@]+@", re.IGNORECASE)
# Options for a password that only mean one in these programs (-p is a port to many others).
_OPTIONS = {
    program: re.compile(options)
    for programs, options in (
        ("mysql mysqladmin mysqldump mariadb mariadb-admin mariadb-dump sshpass", r"-(?!-)\w*?p"),
        ("ldapadd ldapmodify ldapsearch", r"-(?!-)\w*?w"),
        ("redis-cli", r"-(?!-)\w*?a"),
        ("curl", r"-(?!-)\w*?[uU]|--(?:proxy-)?user=?"),
        ("smbclient", r"-(?!-)\w*?U|--user=?"),
    )
    for program in programs.split()
}
_NO_OPTIONS = re.compile(r"(?!)")

_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?")
_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})\b")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_WORKLOAD = Workload(unit=None, container_id=None, pod_uid=None, cgroup=None)

K = TypeVar("K")
V = TypeVar("V")


def _redact_word(word: str, options: re.Pattern[str]) -> tuple[str, bool]:
    """The word as it may be shown, and whether it announces that the next one is a secret."""
    if option := options.match(word):
        return (word, True) if option[0] == word else (option[0] + REDACTED, False)
    for name in _WORD.finditer(word):
        if not _SENSITIVE.search(name[0]):
            continue
        separator = _SEPARATOR.match(word, name.end())
        end = separator.end() if separator else name.end()
        if end == len(word):
            announces = not word[: name.start()].strip("\"'{,/")
            return _redact_user_information(word), announces or separator is not None
        if separator:
            return _redact_user_information(word[:end]) + REDACTED, False
    return _redact_user_information(word), False


def _redact_user_information(text: str) -> str:
    return _USER_INFORMATION.sub(lambda found: f"{found[1] or found[2]}{REDACTED}@", text)


def _redact(words: Sequence[str], is_program: bool) -> tuple[list[str], bool]:
    shown: list[str] = []
    hide, options = False, _NO_OPTIONS
    for word in words:
        inner = word.split()
        if hide:
            # "--password --token x": whichever of the two takes no value, x stays hidden.
            shown.append(REDACTED)
            hide = _redact_word(word, options)[1]
        elif len(inner) > 1:
            # A script for a shell, a header, a rewritten title: quoting is unknown, so nothing
            # behind the first secret is shown.
            parts, hide = _redact(inner, is_program=False)
            first = next(
                (i for i, (a, b) in enumerate(zip(inner, parts, strict=True)) if a != b), None
            )
            shown.append(word if first is None else " ".join(parts[: first + 1]))
        else:
            options = _OPTIONS.get(os.path.basename(word), options)
            text, hide = _redact_word(word, options)
            shown.append(text)
            hide = hide and not (is_program and len(shown) == 1)
    return shown, hide


def redact(argv: Sequence[str]) -> list[str]:
    """`argv` with what may be a secret replaced by `[redacted]`; the same number of arguments.

    Hidden are: the rest of an argument behind a name like password, token, secret, key, auth and
    `=` or `:`; the argument after one that is nothing but such a name; user information in URLs;
    and the options for a password of a few common programs. Rather too much than too little.
    """
    return _redact(argv, is_program=True)[0]


def parse_cgroup_path(path: str) -> Workload:
    """The unit, container and pod that a path below the cgroup2 root tells.

    `unit` is the first service or scope below the slices: what lies deeper is delegated, and its
    owner may name it as they like. In a user's service manager it is that manager's unit. A path of
    slices alone gives the innermost slice. `container_id` is the outermost container, whose name
    the host's container runtime gave; only the cgroups above it are read.
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
    """The `workload` label of a cgroup's path, or of its id where the path is unknown.

    The first that there is of: the systemd unit, `pod/<uid>`, `container/<12 digits>`, the path,
    `cgroup:<id>`. Anything in a user's service manager is preceded by that manager's name, as in
    `user@1000.service/app.scope`: users name their units as they like. At most 200 characters.
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


def cgroup_mount(proc: Path = Path("/proc")) -> Path | None:
    """Where cgroup2 is mounted, from /proc/self/mountinfo; None where it is not."""
    try:
        lines = (proc / "self/mountinfo").read_bytes().splitlines()
    except OSError:
        return None
    for fields in map(bytes.split, lines):
        if fields[fields.index(b"-") + 1] == b"cgroup2":
            # Blanks in the path are written as octal numbers (show_mountinfo()).
            point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), fields[4])
            return Path(os.fsdecode(point))
    return None


@dataclass(frozen=True, slots=True)
class Identity:
    """What /proc and the user database add to the kernel's facts.

    `result` is `complete`; `partial`: something could not be read, or the process has since
    executed another program; `gone`: it has exited; `reused`: the pid is another process's now.
    """

    executable: str | None
    command_line: str | None
    user_name: str | None
    result: Lookup


@dataclass(frozen=True, slots=True)
class _Facts:
    executable: str | None
    command_line: str | None
    result: Lookup
    base_name: bytes = b""
    expires: float = 0.0

    def is_image(self, base_name: bytes) -> bool:
        """Whether they are of the program whose base name the kernel recorded, cut to its size."""
        own = self.base_name
        return not (own and base_name) or any(
            name[: len(base_name)] == base_name and (len(base_name) >= 63 or name == base_name)
            for name in (own, own.removesuffix(b" (deleted)"))
        )


class _Recent(Generic[K, V]):
    """The answers asked for last, at most `limit`; safe to use from several threads."""

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)


def _read(name: str, directory: int, limit: int) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


class Identities:
    """Look-ups in /proc, the user database and the cgroup2 mount, with bounded caches."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroup_root: Path | None = None,
        command_line: CommandLine = "redacted",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._command_line = command_line
        self._clock = clock
        self._processes: _Recent[tuple[int, int], _Facts] = _Recent()
        self._users: _Recent[int, tuple[str | None, float]] = _Recent()
        self._workloads: _Recent[int, Workload] = _Recent()
        self._cgroups = _Cgroups(proc, cgroup_root or cgroup_mount(proc), clock)

    def lookup(
        self, pid: int, start_boot_ns: int, uid: int | None = None, base_name: bytes = b""
    ) -> Identity:
        """The process with this pid that started then (task_struct.start_boottime, ns).

        `base_name` is the kernel's name of its executable at the time in question: facts of a
        program that the process has executed since are not returned for it.
        """
        key = (pid, start_boot_ns)
        known = self._processes.get(key)
        if known is None or self._clock() >= known.expires or not known.is_image(base_name):
            facts = self._process(pid, start_boot_ns)
            if known is None or facts.result not in ("gone", "reused"):
                self._processes.put(key, facts)
                known = facts
            elif not known.is_image(base_name):
                known = facts
        user_name = None if uid is None else self._user_name(uid)
        if not known.is_image(base_name):
            return Identity(None, None, user_name, "partial")
        return Identity(known.executable, known.command_line, user_name, known.result)

    def _process(self, pid: int, start_boot_ns: int) -> _Facts:
        gone = _Facts(None, None, "gone", expires=self._clock() + FRESH_SECONDS)
        try:
            directory = os.open(self._proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        try:
            before = self._result(directory, start_boot_ns)
            if before != "complete":
                return _Facts(None, None, before, expires=gone.expires)
            executable, command_line, complete = self._image(directory)
            after = self._result(directory, start_boot_ns)
        except (FileNotFoundError, ProcessLookupError):
            return gone
        finally:
            os.close(directory)
        if after != "complete":
            return _Facts(None, None, after, expires=gone.expires)
        return _Facts(
            None if executable is None else printable(executable, TEXT_LIMIT),
            None if command_line is None else printable(command_line, TEXT_LIMIT),
            "complete" if complete else "partial",
            base_name=os.path.basename(executable or b""),
            expires=gone.expires,
        )

    @staticmethod
    def _result(directory: int, start_boot_ns: int) -> Lookup:
        """Whether this is the process: field 22 of its stat, in ticks since boot.

        In a time namespace with an offset the two never agree; that too is `reused`.
        """
        # The name, in parentheses, may hold anything; field 3 is the first behind it.
        fields = _read("stat", directory, 4096).rpartition(b")")[2].split()
        if int(fields[19]) != start_boot_ns // TICK_NS:
            return "reused"
        return "gone" if fields[0] in (b"Z", b"X") else "complete"

    def _image(self, directory: int) -> tuple[bytes | None, bytes | None, bool]:
        executable = command_line = None
        complete = True
        try:
            # Bytes in, bytes out: a path need not be UTF-8.
            executable = os.readlink(b"exe", dir_fd=directory)
        except PermissionError:
            complete = False
        if self._command_line != "off":
            try:
                raw = _read("cmdline", directory, ARGUMENTS_READ)
            except PermissionError:
                complete = False
            else:
                command_line = self._shown(raw) or None
        return executable, command_line, complete

    def _shown(self, raw: bytes) -> bytes:
        argv = os.fsdecode(raw.removesuffix(b"\0")).split("\0")
        more = len(argv) > ARGUMENTS_SHOWN or len(raw) == ARGUMENTS_READ
        argv = argv[:ARGUMENTS_SHOWN]
        if self._command_line == "redacted":
            argv = redact(argv)
        return os.fsencode(" ".join([*argv, "..."] if more else argv))

    def _user_name(self, uid: int) -> str | None:
        known = self._users.get(uid)
        if known is None or self._clock() >= known[1]:
            try:
                name = printable(os.fsencode(pwd.getpwuid(uid).pw_name))
            except KeyError:
                name = None
            known = (name, self._clock() + USER_FRESH_SECONDS)
            self._users.put(uid, known)
        return known[0]

    def workload(self, cgroup_id: int, pid: int | None = None) -> Workload:
        """What the cgroup with this id is; all None where that cannot be told.

        An id is not given twice and a cgroup keeps its path, so what was once told stays true,
        also when the cgroup has been removed.
        """
        known = self._workloads.get(cgroup_id)
        if known is None:
            path = self._cgroups.path(cgroup_id, pid)
            if path is None:
                return _NO_WORKLOAD
            known = parse_cgroup_path(printable(path, PATH_LIMIT))
            self._workloads.put(cgroup_id, known)
        return known


class _Cgroups:
    """cgroup id -> path. The id is the inode number of the cgroup's directory."""

    def __init__(self, proc: Path, root: Path | None, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._root = None if root is None else os.fsencode(root)
        self._clock = clock
        self._scanned: dict[int, bytes] = {}
        self._scan_again = float("-inf")
        self._handles = False
        if self._root is not None:
            try:
                self._handles = self._by_handle(self._root, os.stat(self._root).st_ino) == b"/"
            except OSError:
                self._handles = False

    def path(self, cgroup_id: int, pid: int | None) -> bytes | None:
        """The path below the root; None where it cannot be told."""
        if self._root is None:
            return None
        if self._handles:
            try:
                return self._by_handle(self._root, cgroup_id)
            except OSError as error:
                if error.errno == errno.ESTALE:  # removed: looking elsewhere finds nothing
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
            lines = (self._proc / str(pid) / "cgroup").read_bytes().splitlines()
            path = next((line[3:] for line in lines if line.startswith(b"0::")), None)
            found = path is not None and os.stat(root + path).st_ino == cgroup_id
        except OSError:
            return None
        return path if found else None

    def _by_scan(self, root: bytes, cgroup_id: int) -> bytes | None:
        """From a walk of at most SCAN_DIRECTORIES, at most once in SCAN_SECONDS."""
        if cgroup_id not in self._scanned and self._clock() >= self._scan_again:
            self._scan_again = self._clock() + SCAN_SECONDS
            self._scanned = _scan(root)
        return self._scanned.get(cgroup_id)


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
