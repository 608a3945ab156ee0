"""The build id of a file that changes: a kept one is not shown for another."""

from __future__ import annotations

import textwrap
from typing import Any

from harness import Harness
from machine_code import function_of_call

from monitor.evidence.stacks import frames
from monitor.kernel.abi import Kind
from monitor.kernel.arch import NUMBERS

# A file with a build id and one function: mprotect. Its mapping takes the place of the one before:
# same process, same address.
FILES = f"""
import struct, tempfile, time
from pathlib import Path
CODE = 512
MPROTECT = {function_of_call(NUMBERS["mprotect"])!r}
NOTES = 120

def content(build_id):
    header = b"\\x7fELF\\x02\\x01\\x01".ljust(32, b"\\0") + struct.pack("<Q", 64)
    header = header.ljust(56, b"\\0") + struct.pack("<H", 1)
    table = struct.pack("<II6Q", 4, 4, NOTES, 0, 0, 36, 36, 4)
    note = struct.pack("<III4s", 4, 20, 3, b"GNU") + bytes.fromhex(build_id)
    return ((header.ljust(64, b"\\0") + table + note).ljust(CODE, b"\\0") + MPROTECT).ljust(PAGE)

place = need("mmap", 0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 2**64 - 1, 0)
sealed = lay("S")

def show(path, protection=PROT_READ | PROT_EXEC):
    file = os.open(path, os.O_RDWR)
    need("mmap", place, PAGE, protection, MAP_PRIVATE | MAP_FIXED, file, 0)
    os.close(file)
    again()

def again():
    ctypes.string_at(place, 1)  # a page that is not there cannot be read
    refused = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_uint64] * 3)(place + CODE)
    assert refused(sealed.start, PAGE, PROT_READ) == -1

directory = Path(tempfile.mkdtemp())
first, second = directory / "first", directory / "second"
A, B, C = ("%02x" % number * 20 for number in (0xAA, 0xBB, 0xCC))
first.write_bytes(content(A))
second.write_bytes(content(B))
"""
END = """
import shutil
shutil.rmtree(directory)
print(json.dumps({}))
"""
TICK = "time.sleep(0.05)  # the time of a change has ticks of up to 10 ms\n"


def shown(harness: Harness, steps: str) -> list[tuple[Any, ...]]:
    """Of each refusal: file and first digits of the build id of its innermost frame."""
    with harness.configured(emit_seals=0):
        made = harness.python(FILES + textwrap.dedent(steps) + END)
    stacks = [frames(record.stack)[0] for record in made.of_kind(Kind.DENIAL)]
    return [(frame.module, (frame.build_id or "")[:2]) for frame in stacks]


def test_one_file(harness: Harness) -> None:
    steps = "show(first)\nagain()\nshow(first)\n"
    assert shown(harness, steps) == [("first", "aa")] * 3


def test_another_in_its_place(harness: Harness) -> None:
    steps = "show(first)\nos.replace(second, first)\nagain()\nshow(first)\n"
    assert shown(harness, steps) == [("first", "aa"), ("first", "aa"), ("first", "bb")]


def test_written_to_in_place(harness: Harness) -> None:
    """Also where the time of the last write is put back: the time of the last change stays true."""
    steps = f"""
        show(first)
        {TICK}
        before = first.stat()
        with first.open("r+b") as file:
            file.write(content(C))
        os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
        again()
        show(first)
    """
    assert shown(harness, steps) == [("first", "aa"), ("first", "cc"), ("first", "cc")]


def test_by_another_name(harness: Harness) -> None:
    steps = "os.link(first, directory / 'link')\nshow(first)\nshow(directory / 'link')\n"
    steps += "show(second)\n"
    assert shown(harness, steps) == [("first", "aa"), ("link", "aa"), ("second", "bb")]


def test_written_to_in_memory(harness: Harness) -> None:
    """The process's own copy is what it shows, and may be another each time."""
    steps = """
        show(first, PROT_READ | PROT_WRITE | PROT_EXEC)
        for build_id in (B, C):
            ctypes.memmove(place, content(build_id), PAGE)
            again()
        need("mprotect", place, PAGE, PROT_READ | PROT_EXEC)
        again()
    """
    assert [build_id for _, build_id in shown(harness, steps)] == ["aa", "bb", "cc", "cc"]


def test_the_same_inode_number_on_two_mounts(harness: Harness) -> None:
    """Two file systems in memory number their files alike."""
    steps = """
        NEWNS, RECURSIVE_PRIVATE = 0x20000, 0x44000
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.unshare(NEWNS)
        assert not libc.mount(b"none", b"/", None, RECURSIVE_PRIVATE, None)
        numbers = set()
        for name, build_id in (("one", A), ("other", B)):
            mount = directory / name
            mount.mkdir()
            assert not libc.mount(b"tmpfs", bytes(mount), b"tmpfs", 0, None)
            (mount / "file").write_bytes(content(build_id))
            numbers.add((mount / "file").stat().st_ino)
        assert len(numbers) == 1
        for name in ("one", "other", "one"):
            show(directory / name / "file")
        for name in ("one", "other"):
            assert not libc.umount2(bytes(directory / name), 2)
    """
    assert shown(harness, steps) == [("file", "aa"), ("file", "bb"), ("file", "aa")]
