"""What a run leaves for the next one: when it was last alive, how it ended, what it had counted.

A small file in the state directory, written again every few seconds and at the end, by a separate
thread: a slow disk holds up nothing else. A problem with the file or the directory is reported, and
the monitor goes on without it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monitor.untrusted import state_file
from monitor.untrusted.printable import printable

__all__ = [
    "DEFAULT_DIRECTORY",
    "FILE",
    "LastRun",
    "Run",
    "as_details",
    "blind_seconds",
    "ended",
    "state_directory",
]

DEFAULT_DIRECTORY = Path("/var/lib/seal-monitor")
FILE = "last_run.json"
_BAD = f"{FILE}.bad"
_VERSION = 1
_SIZE_LIMIT = 16 * 1024
_TEXT_LIMIT = 200
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Run:
    """What a run last wrote about itself.

    Times are of the real-time clock, in Unix seconds; `alive_boot` is `alive` by the boot clock,
    which nobody sets. `reason` is why the run stopped; None while it runs.
    """

    boot_id: str
    run_id: str
    started: float
    alive: float
    alive_boot: float
    reason: str | None
    counts: Mapping[str, int]


def state_directory(configured: Path | None) -> Path | None:
    """The directory to use: the configured one, else the one that systemd names, else the default
    one if it exists; None: the run keeps nothing.
    """
    if configured is not None:
        return configured
    named = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if named:
        return Path(named)
    return DEFAULT_DIRECTORY if DEFAULT_DIRECTORY.is_dir() else None


def ended(past: Run, boot_id: str) -> str:
    """How a run ended: it stopped, it was killed, or its host rebooted."""
    if past.reason is not None:
        return "stopped"
    return "killed" if past.boot_id == boot_id else "host rebooted"


def blind_seconds(past: Run, boot_id: str, boot_seconds: float, unix_seconds: float) -> float:
    """Seconds since the run was last alive.

    Within one boot they are measured by the boot clock; after a reboot by the real-time clock,
    which may have been set meanwhile.
    """
    if past.boot_id == boot_id:
        return max(boot_seconds - past.alive_boot, 0.0)
    return max(unix_seconds - past.alive, 0.0)


def as_details(past: Run, boot_id: str) -> dict[str, object]:
    """What the event `started` says about the run before."""
    return {
        "run_id": past.run_id,
        "ended": ended(past, boot_id),
        "reason": past.reason,
        "started": past.started,
        "alive": past.alive,
        "counts": dict(past.counts),
    }


# ---- The file ------------------------------------------------------------------------------------


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value < 1e12):  # NaN is in no range
        raise ValueError("a time is missing or out of range")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")  # noqa: TRY004 - of the file, not of a caller
    return printable(value, _TEXT_LIMIT)


def _parse(data: bytes) -> Run:
    """Raises ValueError when it is not what `_encode` wrote."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"not of version {_VERSION}")
    reason, counts = document.get("reason"), document.get("counts")
    if not isinstance(counts, dict) or len(counts) > 16:
        raise ValueError("no counts")
    if not all(isinstance(count, int) and 0 <= count < 1 << 64 for count in counts.values()):
        raise ValueError("a count is out of range")
    return Run(
        boot_id=_text(document.get("boot_id")),
        run_id=_text(document.get("run_id")),
        started=_number(document.get("started")),
        alive=_number(document.get("alive")),
        alive_boot=_number(document.get("alive_boot")),
        reason=None if reason is None else _text(reason),
        counts={_text(name): int(count) for name, count in counts.items()},
    )


def _encode(run: Run) -> bytes:
    return json.dumps({"version": _VERSION, **asdict(run)}, indent=1).encode() + b"\n"


def _open_directory(path: Path) -> int:
    """The directory, locked for as long as the descriptor is open. Raises OSError.

    The path may be a symbolic link, as systemd makes it: only the owner of the directory counts.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _claim(directory)
    except OSError:
        os.close(directory)
        raise
    return directory


def _claim(directory: int) -> None:
    if not state_file.is_owned(os.fstat(directory)):
        raise PermissionError(errno.EPERM, "others may write to it")
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "another instance uses it") from None


def _read(directory: int) -> Run | None:
    """What the last run wrote; None if there is no file. Raises OSError, ValueError."""
    data = state_file.read(directory, FILE, _SIZE_LIMIT)
    return None if data is None else _parse(data)


# ---- A run ---------------------------------------------------------------------------------------


class LastRun:
    """The state directory, as the present run uses it.

    `directory` is its path, None if nothing is kept. `past` is what the last run wrote. The caller
    takes `problems` out and reports them. A thread writes; a failure is reported once, and the next
    write tries again.
    """

    def __init__(self, path: Path | None, boot_id: str) -> None:
        """Without a path, or if it cannot be used, nothing is kept."""
        self.past: Run | None = None
        self.problems: list[str] = []
        self.directory: Path | None = None
        self._directory = -1
        now = time.time()
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._run = Run(boot_id, os.urandom(8).hex(), now, now, boot, None, {})
        self._due = threading.Event()
        self._closing = False
        self._is_failing = False
        self._thread: threading.Thread | None = None
        if path is None:
            return
        try:
            self._directory = _open_directory(path)
        except OSError as error:
            self.problems.append(
                f"cannot use {path}: {error.strerror}; the next start will not know of this run"
            )
            return
        self.directory = path
        self._read(path)

    @property
    def is_kept(self) -> bool:
        return self._directory >= 0

    def _read(self, path: Path) -> None:
        try:
            self.past = _read(self._directory)
        except (OSError, ValueError) as error:
            what = f"{path / FILE} says nothing of the last run: {error}"
            try:
                os.rename(FILE, _BAD, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                what += f"; set aside as {_BAD}"
            except OSError as failure:
                what += f"; it cannot be set aside: {failure}"
            self.problems.append(what)

    def alive(self, counts: Mapping[str, int]) -> None:
        """Write that the run is alive now, and what it has counted.

        The first call starts the thread; until then the process may fork.
        """
        if not self.is_kept:
            return
        self._run = replace(
            self._run,
            alive=time.time(),
            alive_boot=time.clock_gettime(time.CLOCK_BOOTTIME),
            counts=dict(counts),
        )
        self._write_soon()

    def _write_soon(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._keep, name="last-run", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads; the next call tries again
                self._failed(f"cannot start a thread that writes {FILE}: {error}")
                return
            self._thread = thread
        self._due.set()

    def _failed(self, what: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            self.problems.append(f"{what}; the next start will not know of this run")

    def end(self, reason: str, counts: Mapping[str, int]) -> None:
        """Write why the run ended, and the final counts; the time is that of the last `alive`."""
        self._run = replace(self._run, reason=reason, counts=dict(counts))
        if self.is_kept:
            self._write_soon()
        self.close()

    def close(self) -> None:
        """Close the directory; waits for a slow disk, for seconds at most."""
        if self._thread is not None:
            self._closing = True
            self._due.set()
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                return  # the descriptor stays open: the thread may still write with it
            self._thread = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _keep(self) -> None:
        closing = False
        while not closing:
            self._due.wait()
            self._due.clear()
            closing = self._closing
            try:
                state_file.write(self._directory, FILE, _encode(self._run))
            except OSError as error:
                self._failed(f"cannot write {FILE}: {error.strerror}")
            else:
                self._is_failing = False
