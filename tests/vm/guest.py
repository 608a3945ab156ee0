"""A guest made of this machine's own files, and booted under software emulation.

It has no disk, no modules and no bcc: Python, the virtual environment, the checkout and some
programs lie in an initramfs at the paths that they have here. That of another processor is made of
Debian's packages for it (foreign.py), with the checkout at its path; or it is installed, boots with
systemd as PID 1, and has only our package and its test (service.py). The kernel's messages leave
the guest by its first serial port, what the command prints by its second.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import foreign

__all__ = ["ROOT", "WITH_SYSTEMD", "GuestError", "Result", "boot", "build", "build_installed"]

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests/assets"
SERVICE_TEST = ROOT / "tests/vm/service.py"
BUILT_ASSETS = Path("/usr/lib/seal-monitor-test-assets")
PYTHON = Path("/usr/bin/python3").resolve()
STANDARD_LIBRARY = Path("/usr/lib") / PYTHON.name
PACKAGES = Path("/usr/lib/python3/dist-packages")
FROM_DEBIAN = ("yaml",)
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
LOADED_BY_NAME = (
    *("libbpf.so.1", "libgcc_s.so.1", "libstdc++.so.6"),
    *("librt.so.1", "libpthread.so.0", "libdl.so.2"),
)
PROGRAMS = (
    *(
        "bash",
        "sh",
        "mount",
        "umount",
        "stty",
        "ip",
        "setpriv",
        "unshare",
        "taskset",
        "kill",
        "env",
    ),
    *(
        "base64",
        "cat",
        "cp",
        "cut",
        "date",
        "echo",
        "false",
        "grep",
        "head",
        "id",
        "ls",
        "mkdir",
        "rm",
    ),
    *("sed", "sleep", "sort", "tail", "true", "uname", "wc"),
)
# What only developing and installing needs.
LEFT_OUT = shutil.ignore_patterns(
    *("config-*", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo"),
    *(
        "pip",
        "pip-*",
        "setuptools*",
        "pkg_resources",
        "_distutils_hack",
        "distutils-precedence.pth",
    ),
    *(
        "clang",
        "libclang*",
        "mypy",
        "mypyc",
        "mypy-*",
        "*__mypyc*.so",
        "librt*",
        "ast_serialize*",
        "ruff",
        "ruff-*",
    ),
    *("*-stubs", "types_*", "_sysconfigdata_*_i386*", "*.opt-?.pyc"),
    # The engines of the centre, and what they bring: a GiB that no test in a guest asks for.
    *("chdb*", "datastore", "adbc_driver_*", "numpy*", "pandas*", "pyarrow*"),
    *("psycopg*", "pyvrl*", "rotel*"),
)
KERNEL_COMMAND_MAX = 2047  # COMMAND_LINE_SIZE, less its end


@dataclass(frozen=True)
class Machine:
    """What QEMU emulates. `memory` in MiB; `output`: the guest's name of its second serial port."""

    emulator: str
    memory: int
    options: tuple[str, ...]
    console: str
    output: str
    second_port: tuple[str, ...]  # QEMU's options; {} is the file
    words: str = ""  # of the kernel's command line


MACHINES = {
    "amd64": Machine(
        "qemu-system-x86_64",
        2048,
        ("-cpu", "max,-cx16"),  # with cmpxchg16b two CPUs end in a double fault under QEMU 7.2
        "ttyS0",
        "ttyS1",
        ("-serial", "file:{}"),
        "no_timer_check",  # else a kernel panics whose timer stood still: the host was busy
    ),
    "arm64": Machine(
        "qemu-system-aarch64",
        3072,
        ("-machine", "virt", "-cpu", "neoverse-n1"),
        "ttyAMA0",
        "ttyS0",
        ("-chardev", "file,id=second,path={}", "-device", "pci-serial,chardev=second"),
    ),
}

INIT = """#!/bin/sh
export PATH={path} HOME=/root LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1
export SEAL_MONITOR_BUILT_ASSETS={assets}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
cd {root}
{run}"""
# The command of the kernel's command line, its end, and that of the machine.
RUN = """for word in $(cat /proc/cmdline); do
    case $word in seal_monitor.command=*) encoded=${{word#*=}} ;; esac
done
command=$(echo $encoded | base64 -d)
stty -F /dev/{output} raw
(
    sh -c "$command" </dev/null
    printf '\\036%d\\n' $?
) >/dev/{output} 2>&1
echo b >/proc/sysrq-trigger
sleep 60
"""
# Nothing else is started: a unit that the package enables, it starts itself.
UNIT = """[Unit]
Description=What this guest is for
Requires=basic.target
After=basic.target

[Service]
Type=oneshot
ExecStart=/root/run
"""
UNIT_NAME = "guest.service"
WITH_SYSTEMD = f"systemd.unit={UNIT_NAME}"
# What waits for modules, or for a person.
MASKED = (
    *("systemd-firstboot.service", "proc-sys-fs-binfmt_misc.automount", "timers.target"),
    *("systemd-networkd.service", "systemd-udevd.service", "systemd-journal-flush.service"),
)
_END = re.compile(r"\x1e(\d+)\n\Z")


class GuestError(RuntimeError):
    """A guest that cannot be made, or did not report."""


@dataclass(frozen=True)
class Result:
    """What the command printed and ended with; the kernel's messages; seconds from the start."""

    output: str
    exit_code: int
    console: str
    seconds: float


# ---- The image -----------------------------------------------------------------------------------


class _Archive:
    """A cpio archive of the kind that kernels unpack ("newc"). Directories come by themselves."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._paths: set[str] = set()

    def _entry(self, path: str, mode: int, content: bytes, modified: int = 0) -> None:
        if path in self._paths:
            return
        parent = os.path.dirname(path)
        if parent:
            self.directory(parent)
        self._paths.add(path)
        name = path.encode() + b"\0"
        fields = (len(self._paths), mode, 0, 0, 1, modified, len(content))
        header = "070701" + "".join(f"{field:08X}" for field in (*fields, 0, 0, 0, 0, len(name), 0))
        self._write(header.encode() + name)
        self._write(content)

    def _write(self, data: bytes) -> None:
        self._file.write(data + bytes(-len(data) % 4))

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._entry(path.lstrip("/"), stat.S_IFDIR | mode, b"")

    def link(self, path: str, target: str) -> None:
        self._entry(path.lstrip("/"), stat.S_IFLNK | 0o777, target.encode())

    def text(self, path: str, content: str, mode: int = 0o644) -> None:
        self._entry(path.lstrip("/"), stat.S_IFREG | mode, content.encode())

    def file(self, source: Path, path: str) -> None:
        """A file, followed if it is a link. Python compares the time of a .py with its .pyc."""
        found = source.stat()
        mode = stat.S_IFREG | stat.S_IMODE(found.st_mode)
        self._entry(path.lstrip("/"), mode, source.read_bytes(), int(found.st_mtime))

    def tree(self, source: Path, path: str) -> None:
        for folder, directories, files in os.walk(source):
            left_out = LEFT_OUT(folder, [*directories, *files])
            directories[:] = sorted(set(directories) - left_out)
            inside = Path(path) / Path(folder).relative_to(source)
            self.directory(str(inside))
            for name in sorted(set(files) - left_out):
                self.file(Path(folder, name), str(inside / name))

    def copy(self, root: Path) -> None:
        """A tree as the whole of the archive, with its links, but without what is LEFT_OUT."""
        for folder, directories, files in os.walk(root):
            inside = Path(folder).relative_to(root)
            for name in sorted((*directories, *files)):
                source, path = Path(folder, name), str(inside / name)
                if source.is_symlink():
                    self.link(path, str(source.readlink()))
                elif source.is_file() and not foreign.LEFT_OUT.match(path):
                    self.file(source, path)
                elif source.is_dir() and not foreign.LEFT_OUT.match(path):
                    self.directory(path, stat.S_IMODE(source.stat().st_mode))
            directories[:] = [
                name for name in directories if not foreign.LEFT_OUT.match(str(inside / name))
            ]

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")


def _program(name: str) -> Path:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if not found:
        raise GuestError(f"the guest needs {name}, which is not installed; run: make test-kernels")
    return Path(found)


def _shared_libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The libraries that these programs need, by the names that they ask for."""
    output = subprocess.run(
        ["ldd", *programs], capture_output=True, text=True, check=False
    ).stdout  # it fails for those that are linked statically
    yield from {Path(name) for name in re.findall(r"(/\S+) \(0x", output)}


def _compile_assets(directory: Path) -> Iterator[Path]:
    for source in sorted(ASSETS.glob("*.c")):
        program = directory / source.stem
        subprocess.run(["gcc", "-O2", "-pthread", source, "-o", program], check=True)
        yield program


def _run(architecture: str) -> str:
    return RUN.format(output=MACHINES[architecture].output)


def _init(path: str, architecture: str) -> str:
    return INIT.format(path=path, assets=BUILT_ASSETS, root=ROOT, run=_run(architecture))


def _write_checkout(archive: _Archive) -> None:
    for name in ("monitor", "bpf", "tests", "docs"):
        archive.tree(ROOT / name, str(ROOT / name))
    archive.file(ROOT / "pyproject.toml", str(ROOT / "pyproject.toml"))


def _write_foreign(archive: _Archive, directory: Path, architecture: str) -> None:
    archive.text("init", _init("/usr/bin:/usr/sbin", architecture), 0o755)
    archive.copy(foreign.tree(architecture))
    archive.link("/usr/bin/python", "python3")
    package = foreign.package(architecture, directory)
    subprocess.run(["dpkg-deb", "--extract", package, directory / "package"], check=True)
    archive.copy(directory / "package")
    made = foreign.programs_object(architecture)
    archive.file(made, str(ROOT / "bpf" / made.name))  # before that of this machine
    for path in foreign.assets(architecture, ASSETS, directory):
        archive.file(path, f"{BUILT_ASSETS}/{path.name}")
    _write_checkout(archive)


def _write_installed(archive: _Archive, directory: Path, architecture: str) -> None:
    tree = foreign.tree(architecture, foreign.INSTALLED)
    archive.link("init", "usr/lib/systemd/systemd")
    archive.text("etc/fstab", "")
    archive.text("etc/machine-id", "5ea1000000000000000000000000cafe\n")
    archive.text("root/run", f"#!/bin/sh\ncd /root\n{_run(architecture)}", 0o755)
    archive.text(f"etc/systemd/system/{UNIT_NAME}", UNIT)
    for unit in MASKED:
        archive.link(f"etc/systemd/system/{unit}", "/dev/null")
    archive.file(SERVICE_TEST, f"root/{SERVICE_TEST.name}")
    archive.file(foreign.package(architecture, directory), "root/new.deb")
    archive.copy(tree)


def _write(archive: _Archive, directory: Path, files: Sequence[tuple[Path, str]]) -> None:
    for name in ("proc", "sys", "dev", "run", "root", "usr/sbin"):
        archive.directory(name)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.link(name, f"usr/{name}")
    archive.directory("tmp", 0o1777)
    archive.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    archive.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
    archive.text("etc/hosts", "127.0.0.1 localhost\n")
    environment = ROOT / ".venv"
    init = _init(f"{environment}/bin:/usr/bin", "amd64")
    archive.text("init", init, 0o755)

    programs = [(PYTHON, f"/usr/bin/{PYTHON.name}")]
    programs += [(_program(name), f"/usr/bin/{name}") for name in PROGRAMS]
    programs += [(path, f"{BUILT_ASSETS}/{path.name}") for path in _compile_assets(directory)]
    libraries = [LIBRARIES / name for name in LOADED_BY_NAME]
    extensions = [
        path
        for folder in (STANDARD_LIBRARY / "lib-dynload", environment / "lib")
        for path in folder.rglob("*.so")
        if not LEFT_OUT(str(folder), [*path.relative_to(folder).parts])
    ]
    for source, path in (*programs, *((library, str(library)) for library in libraries), *files):
        archive.file(source, path)
    archive.link("/usr/bin/python3", PYTHON.name)
    binaries = [source.resolve() for source, _ in programs]
    for library in _shared_libraries([*binaries, *libraries, *extensions]):
        archive.file(library, str(library.parent.resolve() / library.name))

    archive.tree(STANDARD_LIBRARY, str(STANDARD_LIBRARY))
    for name in FROM_DEBIAN:
        archive.tree(PACKAGES / name, str(PACKAGES / name))
    packages = environment / "lib" / PYTHON.name / "site-packages"
    archive.tree(packages, str(packages))
    archive.file(environment / "pyvenv.cfg", str(environment / "pyvenv.cfg"))
    archive.link(f"{environment}/bin/python", str(PYTHON))
    archive.link(f"{environment}/bin/python3", str(PYTHON))
    archive.file(environment / "bin/seal-monitor", f"{environment}/bin/seal-monitor")
    _write_checkout(archive)


@contextmanager
def _image(directory: Path, name: str) -> Iterator[tuple[Path, _Archive, Path]]:
    """The image's path, what is written to it, and a directory for what is made on the way."""
    image = directory / f"guest-{name}.cpio"
    with image.open("wb") as file, tempfile.TemporaryDirectory() as place:
        archive = _Archive(file)
        try:
            yield image, archive, Path(place)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise GuestError(f"no guest of {name}: {error}") from error
        archive.close()


def build(
    directory: Path, files: Sequence[tuple[Path, str]] = (), architecture: str = "amd64"
) -> Path:
    """The guest's initramfs, written into `directory`; with more files, at paths in the guest.

    Raises GuestError where something that it needs is not installed.
    """
    with _image(directory, architecture) as (image, archive, place):
        if architecture == "amd64":
            _write(archive, place, files)
        else:
            _write_foreign(archive, place, architecture)
    return image


def build_installed(directory: Path, architecture: str) -> Path:
    """The initramfs of a guest with systemd, our package as /root/new.deb, and its test.

    Boot it with `WITH_SYSTEMD` at the kernel's command line. Raises GuestError.
    """
    with _image(directory, f"{architecture}-installed") as (image, archive, place):
        _write_installed(archive, place, architecture)
    return image


# ---- The machine ---------------------------------------------------------------------------------


def _kernel_command(command: str, append: str, machine: Machine) -> str:
    encoded = base64.b64encode(command.encode()).decode()
    # Warnings are on level 4; a panic restarts the machine, and then QEMU ends.
    words = f"console={machine.console} loglevel=5 panic=-1 {machine.words} {append}"
    words += f" seal_monitor.command={encoded}"
    if len(words) > KERNEL_COMMAND_MAX:
        raise GuestError(f"the kernel's command line is too long, {len(words)} characters: {words}")
    return words


def _tail(console: str, lines: int = 40) -> str:
    return "\n".join(console.splitlines()[-lines:])


def boot(
    kernel: Path,
    initramfs: Path,
    command: str,
    *,
    append: str = "",
    qemu: Sequence[str] = (),
    seconds: float = 300,
    architecture: str = "amd64",
) -> Result:
    """Run a shell command in a guest: as root, in the checkout, with the usual mounts.

    `append` goes to the kernel's command line, `qemu` to QEMU's. Raises GuestError, with the end of
    the console, when the guest does not report the command's end within `seconds`.
    """
    machine = MACHINES[architecture]
    emulator = _program(machine.emulator)
    words = _kernel_command(command, append, machine)
    with tempfile.TemporaryDirectory() as name:
        console, output = Path(name, "console"), Path(name, "output")
        began = time.monotonic()
        process = subprocess.Popen(
            [
                *(emulator, "-accel", "tcg", "-smp", "2", "-m", str(machine.memory)),
                *(*machine.options, "-kernel", str(kernel), "-initrd", str(initramfs)),
                *("-append", words),
                *("-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"),
                *("-serial", f"file:{console}"),
                *(option.format(str(output)) for option in machine.second_port),
                *qemu,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
            problem = f"QEMU ended with {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            problem = f"it did not end within {seconds:.0f} s"
        took = time.monotonic() - began
        kernel_said = console.read_text(errors="replace") if console.exists() else ""
        text = output.read_text(errors="replace") if output.exists() else ""
    end = _END.search(text)
    if problem or not end:
        raise GuestError(
            f"the guest {kernel} did not report the end of: {command}\n"
            f"{problem or 'it ended before'}\n{said}"
            f"---- end of its output:\n{_tail(text)}\n"
            f"---- end of its console:\n{_tail(kernel_said)}"
        )
    return Result(text[: end.start()], int(end[1]), kernel_said, took)
