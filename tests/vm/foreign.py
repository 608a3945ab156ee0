"""A tree of Debian for a processor that this machine does not have: unpacked, nothing in it is run.

What the monitor and its tests need there is Debian's own; the test programs are compiled here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kernels import KEYRING, apt_settings, cache_directory, mirror

__all__ = ["LEFT_OUT", "assets", "package", "programs_object", "tree"]

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
FRESH_DAYS = 14
COMPILERS = {"arm64": "aarch64-linux-gnu-gcc"}
# Test programs for the 32-bit processor that the other one also is.
OF_32_BITS = {"aarch32": ("arm-linux-gnueabihf-gcc", "-static")}
# As systemd/debian/control has it, and what the tests and an init of our own call.
INCLUDED = (
    *("libbpf1", "libstdc++6", "python3", "python3-bcrypt", "python3-jinja2"),
    *("python3-prometheus-client", "python3-structlog", "python3-yaml", "python3-pyelftools"),
    *("python3-pytest", "python3-hypothesis", "python3-jsonschema"),
    *("bash", "coreutils", "dash", "grep", "iproute2", "libc-bin", "mount", "procps", "sed"),
    "util-linux",
)
# Directories of the tree that a guest does without.
LEFT_OUT = re.compile(
    r"usr/share/(doc|locale|man|info|i18n|zoneinfo|perl)|usr/lib/python3[^/]*/(test|idlelib|lib2to3)"
    r"|usr/lib/\w+-linux-gnu/(gconv|perl)|var/(cache|lib)/apt|usr/lib/locale/(?!C)|usr/include"
)


def _make(architecture: str, directory: Path) -> None:
    directory.mkdir(parents=True)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation=private"),  # its mounts end with it
            *("mmdebstrap", "--variant=extract", f"--architectures={architecture}"),
            *(f"--include={','.join(INCLUDED)}", "--skip=check/qemu,check/empty"),
            f"--aptopt={apt_settings(directory)}",
            *(SUITE, str(directory / "root")),
            f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"no tree of {SUITE} for {architecture}:\n{done.stderr[-2000:]}")
    (directory / "included").write_text(",".join(INCLUDED))


def tree(architecture: str) -> Path:
    """Its root directory: kept between runs, made again after two weeks. Raises RuntimeError."""
    directory = cache_directory().parent / "trees" / f"{SUITE}-{architecture}"
    stamp = directory / "included"
    if not (
        stamp.exists()
        and stamp.read_text() == ",".join(INCLUDED)
        and time.time() - stamp.stat().st_mtime < FRESH_DAYS * 86_400
    ):
        shutil.rmtree(directory, ignore_errors=True)
        new = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            _make(architecture, new)
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
    """The files of our own package for this processor, as below /."""
    build = ROOT / "systemd/debian/build-package"
    subprocess.run([str(build), str(directory), "", architecture], check=True, capture_output=True)
    (made,) = directory.glob(f"seal-monitor_*_{architecture}.deb")
    subprocess.run(["dpkg-deb", "--extract", str(made), str(directory / "root")], check=True)
    return directory / "root"


def assets(architecture: str, sources: Path, directory: Path) -> Iterator[Path]:
    """The test programs in C."""
    for source in sorted(sources.glob("*.c")):
        program = directory / source.stem
        compiler = OF_32_BITS.get(source.stem, (COMPILERS[architecture],))
        command = (*compiler, "-O2", "-pthread", str(source), "-o", str(program))
        subprocess.run(command, check=True)
        yield program
