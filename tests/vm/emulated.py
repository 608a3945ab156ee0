"""Programs of another processor, run on this machine by QEMU: for one command and what it starts.

The kernel has a table of such interpreters for each user namespace (binfmt_misc, Linux 6.7 and
later): the one that is used here ends with the command, and the host's own table stays as it is.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kernels import cache_directory

__all__ = ["run"]

PACKAGE = "qemu-user-static"
START_SECONDS = 10.0
# The first bytes of an ELF file: magic, class, byte order, version; then type and machine.
ANY_TYPE_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


class Emulator(NamedTuple):
    program: str
    magic: str


EMULATORS = {
    "arm64": Emulator(
        "qemu-aarch64-static",
        r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    ),
}
# The rule's last letters: the program is opened now, for any root directory (F), and given the
# credentials (OC) and the name (P) that the emulated one would have.
_SCRIPT = """
set -eu
read -r _
rule=$1; shift
mount -t proc proc /proc
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf %s "$rule" >/proc/sys/fs/binfmt_misc/register
exec "$@" </dev/null
"""


def _program(name: str) -> Path:
    """From its package, which is not installed: that would change the host's own table."""
    path = cache_directory().parent / "emulators" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            fetch = ("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE)
            if subprocess.run(fetch, cwd=place, check=False, capture_output=True).returncode:
                subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
                subprocess.run(fetch, cwd=place, check=True, capture_output=True)
            (package,) = Path(place).glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", package, place], check=True)
            (Path(place) / "usr/bin" / name).rename(path)
    return path


def _map_identities(process: subprocess.Popen[str]) -> None:
    """Once it has a user namespace: users and groups have the same numbers there as here."""
    own = Path("/proc/self/ns/user").readlink()
    deadline = time.monotonic() + START_SECONDS
    while Path(f"/proc/{process.pid}/ns/user").readlink() == own:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("this machine makes no user namespace, which emulation needs")
        time.sleep(0.01)
    for name in ("uid_map", "gid_map"):
        ranges = [line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
        identity = "".join(f"{first} {first} {count}\n" for first, _, count in ranges)
        Path(f"/proc/{process.pid}/{name}").write_text(identity)


def run(architecture: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What a command came to, such as a chroot into a tree of that processor; run as root.

    Raises RuntimeError where this machine makes no user namespace, OSError or
    subprocess.CalledProcessError where the emulator cannot be had.
    """
    name, magic = EMULATORS[architecture]
    rule = f":{name}:M::{magic}:{ANY_TYPE_MASK}:{_program(name)}:OCPF"
    with subprocess.Popen(
        [
            *("unshare", "--user", "--mount", "--pid", "--fork", "--kill-child"),
            *("--propagation=private", "sh", "-c", _SCRIPT, "sh", rule, *command),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        try:
            _map_identities(process)
            output, errors = process.communicate("go\n")
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
