"""Events to journald, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

journald itself adds who sent an entry, in fields that begin with an underscore. OBJECT_PID is not
sent: journald would look up the process and store its whole command line, which we redact.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from monitor.evidence.cgroups import workload_name
from monitor.evidence.doubts import named
from monitor.sinks.outputs import SinkError, encode

__all__ = ["MESSAGE_IDS", "PRIORITIES", "SOCKET", "JournalSink", "has_standard_output"]

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "seal-monitor"

# These never change: users search for them (journalctl MESSAGE_ID=...), and
# systemd/seal-monitor.catalog has an entry for each.
MESSAGE_IDS: Mapping[str, str] = {
    "denial": "a53aad16813e4d099cc80a419f5c60a6",
    "fault": "8fc47fe1188d4201895b75619a19d89c",
    "seal": "e5670e4d83a049f39c703f5c4c84b42e",
    "bypass": "5caf30afa8c4437d9fde5bc32b1882c6",
    "suppression": "bc7c496bd8674e21876bf8acb5839df9",
    "health": "fe5bbffc9dd74d45a96772071f514530",
}

PRIORITIES: Mapping[str, int] = {"critical": 2, "warning": 4, "info": 6}  # syslog(3)

# A field, and the event's keys that may have its value: the first key that is there counts.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "MESSAGE": ("summary",),
    "SEAL_MONITOR_EVENT_ID": ("id",),
    "SEAL_MONITOR_KIND": ("kind",),
    "SEAL_MONITOR_OPERATION": ("operation",),
    "SEAL_MONITOR_VERDICT": ("verdict",),
    "SEAL_MONITOR_CAUSE": ("cause",),
    "SEAL_MONITOR_METHOD": ("method",),
    "SEAL_MONITOR_PID": ("process.pid",),
    "SEAL_MONITOR_EXECUTABLE": ("process.executable",),
    "SEAL_MONITOR_FILES": ("process.files",),
    "SEAL_MONITOR_IDENTITY": ("process.identity.result",),
    "SEAL_MONITOR_UNIT": ("workload.unit",),
    "SEAL_MONITOR_ADDRESS": ("address", "changed.start", "sealed.start", "start"),
}


def _value(event: Mapping[str, object], key: str) -> object:
    """The value at a dotted key; None where there is none."""
    value: object = event
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _system_unit(event: Mapping[str, object]) -> object:
    """The unit, if it is a system unit: users choose the names of theirs, which are not trusted."""
    unit, cgroup = _value(event, "workload.unit"), _value(event, "workload.cgroup")
    return unit if isinstance(cgroup, str) and workload_name(cgroup) == unit else None


def _fields(event: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    yield "MESSAGE_ID", MESSAGE_IDS[str(event["kind"])]
    yield "PRIORITY", PRIORITIES[str(event["severity"])]
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    for name, keys in _FIELDS.items():
        yield name, next((v for key in keys if (v := _value(event, key)) is not None), None)
    yield "SEAL_MONITOR_PROGRAM", named(event.get("process")) or None
    # With it, `journalctl -u` of that unit shows the event, if root has sent it.
    yield "OBJECT_SYSTEMD_UNIT", _system_unit(event)


def _field(name: str, value: bytes) -> bytes:
    """A field in the form with a length, so that no value can end early and begin another field."""
    return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)


def has_standard_output(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether journald takes standard output; systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(1)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalSink:
    """Events as journal entries. Raises SinkError if journald has no socket."""

    name = "journal"

    def __init__(self, path: Path = SOCKET) -> None:
        if not path.exists():
            raise SinkError(f"there is no {path}; is systemd-journald running?")
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def render(self, event: dict[str, object]) -> bytes:
        found = [
            _field(name, str(value).encode("utf-8", "backslashreplace"))
            for name, value in _fields(event)
            if value is not None
        ]
        return b"".join((*found, _field("SEAL_MONITOR_EVENT", encode(event))))

    def write(self, data: bytes) -> None:
        """Raises SinkError while nobody listens; a new journald is found at the next event."""
        try:
            try:
                self._socket.sendto(data, self._path)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._send_as_file(data)
        except OSError as error:
            raise SinkError(f"{self._path}: {error.strerror}; event not written") from error

    def _send_as_file(self, data: bytes) -> None:
        """Send data that is too large for a datagram, as a sealed file in memory."""
        memory = os.memfd_create("seal-monitor-event", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
            descriptors = array.array("i", [memory])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(memory)

    def reopen(self) -> None:
        """Nothing to open: each entry is sent to the journald that listens at that time."""

    def close(self) -> None:
        self._socket.close()
