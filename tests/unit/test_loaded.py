"""Which program a dynamic loader runs: by its command line and by what is mapped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from monitor.evidence.image import program_file
from monitor.evidence.loaded import Loaded, argument, loaded

PROC = Path("/proc")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
MUSL = Path("/lib/ld-musl-x86_64.so.1")


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("ld.so /usr/bin/true", "/usr/bin/true"),
        ("ld.so prog /usr/bin/true", "prog"),
        ("ld.so --library-path /lib /usr/bin/true -x", "/usr/bin/true"),
        ("ld.so --inhibit-cache --preload a.so --argv0 true prog", "prog"),
        ("ld.so --library-path=/lib prog", "prog"),
        ("ld.so -- --odd", "--odd"),
        ("ld.so --list /usr/bin/true", None),
        ("ld.so --version", None),
        ("ld.so --library-path", None),
        ("ld.so", None),
        ("", None),
    ],
)
def test_argument(line: str, program: str | None) -> None:
    found = argument([word.encode() for word in line.split()])
    assert found == (program.encode() if program else None)


Run = Callable[..., Loaded | None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a command that waits, and looks at it."""
    with ExitStack() as stack:

        def start(*command: object, cwd: Path | None = None) -> Loaded | None:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=cwd,
            )
            stack.callback(process.communicate)
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.stdout.read(1) == b"x"  # it runs, and waits for more
            directory = os.open(PROC / str(process.pid), os.O_RDONLY | os.O_DIRECTORY)
            try:
                path, file = os.readlink(b"exe", dir_fd=directory), program_file(directory)
            finally:
                os.close(directory)
            return loaded(PROC, process.pid, path, file)

        yield start


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return Path(shutil.copy("/bin/cat", tmp_path / "kitten"))


@pytest.mark.parametrize("options", [(), ("--inhibit-cache",), ("--library-path", "/nowhere")])
def test_a_program_by_the_loader(run: Run, cat: Path, options: tuple[str, ...]) -> None:
    assert run(LOADER, *options, cat, "-u") == Loaded(os.fsencode(cat), "host")


def test_a_relative_path_and_a_link(run: Run, cat: Path) -> None:
    (cat.parent / "link").symlink_to("kitten")
    assert run(LOADER, "./kitten", "-u", cwd=cat.parent) == Loaded(os.fsencode(cat), "host")
    assert run(LOADER, "./link", "-u", cwd=cat.parent) == Loaded(os.fsencode(cat), "host")


def test_other_executables_run_themselves(run: Run, cat: Path) -> None:
    assert run(cat, "-u") is None
    named = Path(shutil.copy(cat, cat.parent / "ld-linux-x86-64.so.2"))  # by name alone
    assert run(named, "-u") is None


def test_a_copy_of_the_loader_is_one(run: Run, cat: Path) -> None:
    copy = shutil.copy(LOADER, cat.parent / "my.so")
    assert run(copy, cat, "-u") == Loaded(os.fsencode(cat), "host")


def test_a_command_line_is_no_proof(run: Run, cat: Path) -> None:
    """A process can write over its arguments: what they name must be mapped as code."""
    other = shutil.copy("/bin/true", cat.parent / "other")
    script = cat.parent / "forge.py"
    script.write_text(
        "import ctypes, os, sys\n"
        "lines = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start = int(lines[45])\n"
        "line = open('/proc/self/cmdline', 'rb').read().split(b'\\0')\n"
        "place = start + len(line[0]) + 1\n"
        "name = sys.argv[1].encode()\n"
        "assert len(name) <= len(b'\\0'.join(line[1:]))\n"
        "ctypes.memmove(place, name + b'\\0', len(name) + 1)\n"
        "os.write(1, os.read(0, 1)); os.read(0, 1)\n"
    )
    python = Path("/usr/bin/python3").resolve()
    assert run(LOADER, python, script, other, "x" * 300) is None
    assert run(LOADER, python, script, python, "x" * 300) == Loaded(os.fsencode(python), "host")


def test_musl(run: Run, tmp_path: Path) -> None:
    if not shutil.which("musl-gcc"):
        pytest.skip("musl-gcc is not installed")
    source, program = tmp_path / "a.c", tmp_path / "echo"
    source.write_text(
        "#include <unistd.h>\nint main(void){char c; while (read(0, &c, 1) > 0) write(1, &c, 1);}"
    )
    subprocess.run(["musl-gcc", "-w", str(source), "-o", str(program)], check=True)
    assert run(MUSL, program) == Loaded(os.fsencode(program), "host")
