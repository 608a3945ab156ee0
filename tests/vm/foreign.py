"""Trees of Debian for a processor that this machine does not have.

One is unpacked, and nothing in it is run; what the monitor and its tests need there is Debian's
own, and the test programs are compiled here. The other is installed, with systemd, so that a
package can be installed there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import emulated
from kernels import KEYRING, apt_settings, cache_directory, mirror

__all__ = [
    "INSTALLED",
    "LEFT_OUT",
    "UNPACKED",
    "Content",
    "assets",
    "package",
    "programs_object",
    "tree",
]

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
FRESH_DAYS = 14
COMPILERS = {"arm64": "aarch64-linux-gnu-gcc"}
# Test programs for the 32-bit processor that the other one also is.
OF_32_BITS = {"aarch32": ("arm-linux-gnueabihf-gcc", "-static")}


@dataclass(frozen=True)
class Content:
    """What a tree has. `is_installed`: the packages' own scripts have run, under emulation."""

    name: str
    included: tuple[str, ...]
    is_installed: bool = False


# As systemd/debian/control has it.
DEPENDENCIES = (
    *("libbpf1", "libstdc++6", "python3", "python3-bcrypt", "python3-jinja2"),
    *("python3-prometheus-client", "python3-structlog", "python3-yaml"),
)
# With what the tests and an init of our own call.
UNPACKED = Content(
    "",
    (
        *DEPENDENCIES,
        *("python3-pyelftools", "python3-pytest", "python3-hypothesis", "python3-jsonschema"),
        *("bash", "coreutils", "dash", "grep", "iproute2", "libc-bin", "mount", "procps", "sed"),
        "util-linux",
    ),
)
INSTALLED = Content("-installed", (*DEPENDENCIES, "systemd", "init-system-helpers"), True)
# Directories of the tree that a guest does without.
LEFT_OUT = re.compile(
    r"usr/share/(doc|locale|man|info|i18n|zoneinfo|perl)|usr/lib/python3[^/]*/(test|idlelib|lib2to3)"
    r"|usr/lib/\w+-linux-gnu/(gconv|perl$)|var/(cache|lib)/apt|usr/lib/locale/(?!C)|usr/include"
)


def _make(architecture: str, content: Content, directory: Path) -> None:
    directory.mkdir(parents=True)
    included = ",".join(content.included)
    command = (
        *("unshare", "--mount", "--propagation=private"),  # its mounts end with it
        *("mmdebstrap", f"--variant={'apt' if content.is_installed else 'extract'}"),
        *(f"--architectures={architecture}", f"--include={included}"),
        *("--skip=check/qemu,check/empty", "--dpkgopt=force-unsafe-io"),
        f"--aptopt={apt_settings(directory)}",
        *(SUITE, str(directory / "root")),
        f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main",
    )
    done = (
        emulated.run(architecture, command)
        if content.is_installed
        else subprocess.run(command, check=False, capture_output=True, text=True)
    )
    if done.returncode:
        raise RuntimeError(f"no tree of {SUITE} for {architecture}:\n{done.stderr[-2000:]}")
    (directory / "included").write_text(included)


def tree(architecture: str, content: Content = UNPACKED) -> Path:
    """Its root directory: kept between runs, made again after two weeks. Raises RuntimeError."""
    name = f"{SUITE}-{architecture}{content.name}"
    directory = cache_directory().parent / "trees" / name
    stamp = directory / "included"
    if not (
        stamp.exists()
        and stamp.read_text() == ",".join(content.included)
        and time.time() - stamp.stat().st_mtime < FRESH_DAYS * 86_400
    ):
        shutil.rmtree(directory, ignore_errors=True)
        new = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            _make(architecture, content, new)
            new.rename(directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return directory / "root"


def programs_object(architecture: str) -> Path:
    """The compiled BPF programs for this processor."""
    path = ROOT / f"build/{architecture}/seal_monitor.object"
    compiler = ("/usr/bin/python3", "-m", "monitor.kernel.compiler")
    subprocess.run([*compiler, "object", str(path), architecture], check=True, cwd=ROOT)
    return path


def package(architecture: str, directory: Path) -> Path:
    """Our own package for this processor, built into `directory`."""
    build = ROOT / "systemd/debian/build-package"
    subprocess.run([str(build), str(directory), "", architecture], check=True, capture_output=True)
    (made,) = directory.glob(f"seal-monitor_*_{architecture}.deb")
    return made


def assets(architecture: str, sources: Path, directory: Path) -> Iterator[Path]:
    """The test programs in C."""
    for source in sorted(sources.glob("*.c")):
        program = directory / source.stem
        compiler = OF_32_BITS.get(source.stem, (COMPILERS[architecture],))
        command = (*compiler, "-O2", "-pthread", str(source), "-o", str(program))
        subprocess.run(command, check=True)
        yield program
