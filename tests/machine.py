"""Systemd as PID 1 in a container for a test, on a tree of files that it cannot change."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
from harness import cgroup_root

from monitor.evidence import events

__all__ = ["Machine", "booted"]

BOOT_SECONDS = 90.0
VALIDATOR = jsonschema.Draft202012Validator(events.schema())
Event = dict[str, Any]

# The tree `lower` with the files of `upper` above it, in a mount namespace that ends with the
# container. The container's systemd needs a cgroup in each hierarchy that it uses.
_BOOT = """
set -eu
lower=$1 upper=$2 place=$3; shift 3
for cgroup; do echo $$ >$cgroup/cgroup.procs; done
mount -t tmpfs none $place
mkdir $place/work $place/root
cp -a $upper $place/upper
mount -t overlay -o lowerdir=$lower,upperdir=$place/upper,workdir=$place/work none $place/root
: >$place/root/etc/fstab
PREPARE
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_SECCOMP=0 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 \
    systemd-nspawn --quiet --directory=$place/root --register=no --keep-unit --capability=all \
    --console=pipe --link-journal=no NETWORK --boot systemd.unit=basic.target \
    MASKED
""".replace(
    "MASKED",
    " ".join(
        f"systemd.mask={unit}"
        for unit in (
            *("systemd-firstboot.service", "systemd-update-utmp.service", "timers.target"),
            *("systemd-random-seed.service", "systemd-journal-flush.service"),
            *("systemd-repart.service", "systemd-binfmt.service", "systemd-sysctl.service"),
        )
    ),
)


class Machine:
    """A booted container; commands run in all of its namespaces."""

    def __init__(self, nspawn: subprocess.Popen[bytes], log: Path, cgroup: Path) -> None:
        self.nspawn = nspawn
        self._log = log
        self.cgroup = cgroup
        self._leader = 0

    def wait(self, what: str, until: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert self.nspawn.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"{what}: {self.journal()}"
            time.sleep(0.05)

    def has_booted(self) -> bool:
        pid = self.nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-active", "basic.target") == "active"

    def run(self, *command: str) -> str:
        """Standard output, without the end of the last line."""
        return self.done(*command).stdout.rstrip("\n")

    def done(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--target={self._leader}", "--all", "--", *command]
        return subprocess.run(inside, check=False, capture_output=True, text=True, timeout=seconds)

    def write(self, path: str, text: str) -> None:
        command = 'mkdir -p "${2%/*}" && printf %s "$1" >"$2"'
        assert self.done("sh", "-c", command, "sh", text, path).returncode == 0

    def pid_on_host(self, pid: int) -> int:
        """What the host calls a process of the machine."""
        for procs in self.cgroup.rglob("cgroup.procs"):
            for other in procs.read_text().split():
                status = Path(f"/proc/{other}/status").read_text()
                if re.findall(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE) == [str(pid)]:
                    return int(other)
        raise LookupError(f"no process of the machine is {pid} in there")

    def show(self, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, "seal-monitor.service")

    def journal(self) -> str:
        return self.run("journalctl", "-u", "seal-monitor", "--no-pager", "-o", "cat")

    def events(self) -> list[Event]:
        """Its events in the journal, where standard output goes."""
        lines = self.run(
            *("journalctl", "-u", "seal-monitor", "--no-pager", "-o", "cat"),
            "--output-fields=SEAL_MONITOR_EVENT",
        ).splitlines()
        found = [json.loads(line) for line in lines if line[:1] == "{"]
        for event in found:
            VALIDATOR.validate(event)
        return found

    def denials(self, unit: str) -> list[Event]:
        return [
            event
            for event in self.events()
            if event["kind"] == "denial" and event["workload"]["unit"] == unit
        ]

    def health(self, name: str) -> int:
        """How many events of this kind there are."""
        return sum(event.get("event") == name for event in self.events())


@contextmanager
def _own_cgroups() -> Iterator[list[Path]]:
    """A cgroup in each hierarchy that a container's systemd uses; what is in them is ended."""
    roots = [cgroup_root(), Path("/sys/fs/cgroup/systemd")]
    name = f"seal-monitor-test-{os.getpid()}-machine"
    found = [root / name for root in roots if root is not None and root.is_dir()]
    for path in found:
        path.mkdir()
    try:
        yield found
    finally:
        kill = found[0] / "cgroup.kill"
        kill.write_text("1")
        for path in found:
            _remove(path)


def _remove(cgroup: Path) -> None:
    """With all below it, once its last process is gone."""
    deadline = time.monotonic() + 30
    while cgroup.exists():
        try:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def booted(
    upper: Path,
    folder: Path,
    lower: Path = Path("/"),
    prepare: str = "",
    own_network: bool = False,
) -> Iterator[Machine]:
    """A machine of the files of `lower`, which stay as they are, with those of `upper` above them.

    `folder` is for what it needs; `prepare` are words of a shell that run before, where $place/root
    is its root directory. With `own_network` it has only loopback, and not the host's.
    """
    place, log = folder / "machine", folder / "boot.log"
    place.mkdir()
    network = "--private-network" if own_network else ""
    script = _BOOT.replace("PREPARE", prepare).replace("NETWORK", network)
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"]
    with _own_cgroups() as cgroups, log.open("wb") as output:
        nspawn = subprocess.Popen(
            [*command, *map(str, (lower, upper, place, *cgroups))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        machine = Machine(nspawn, log, cgroups[0])
        try:
            machine.wait("boot", machine.has_booted, BOOT_SECONDS)
            yield machine
        finally:
            nspawn.terminate()
            try:
                nspawn.wait(15)
            except subprocess.TimeoutExpired:
                nspawn.kill()
                nspawn.wait()
            place.rmdir()
