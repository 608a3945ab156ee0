"""The running kernel's own list against the reviewed one, and what the review claims, tried."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from typing import Any

import pytest

from monitor.host import facts as host
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.reviewed_calls import REVIEWED, Effect, calls, unreviewed
from monitor.kernel.syscalls import call
from monitor.provoke import table as provoke

pytestmark = pytest.mark.skipif(
    call("mseal", 0, 0, 2**64 - 1) == -errno.ENOSYS, reason="this kernel has no mseal"
)

PREPARED = """
import ctypes, json, os
from monitor.kernel.arch import NUMBERS
from monitor.provoke.provocation import *
from monitor.kernel.syscalls import *
IO_SETUP, IO_DESTROY = (NUMBERS[name] for name in ("io_setup", "io_destroy"))
EVERY, SHARED, PRIVATE = PROT_READ | PROT_WRITE, 1, 2
def mapped(address):
    return any(area.start == address for area in mappings())
def ring():
    context = ctypes.c_ulong(0)
    if LIBC.syscall(IO_SETUP, 8, ctypes.addressof(context), 0, 0, 0, 0):
        raise Unsupported("io_setup: " + os.strerror(ctypes.get_errno()))
    return next(area for area in mappings() if area.start == context.value)
def destroy(area):
    return LIBC.syscall(IO_DESTROY, area.start, 0, 0, 0, 0, 0)
"""


def tried(code: str) -> Any:
    """What the code prints, run in another process."""
    command = [sys.executable, "-S", "-P", "-c", PREPARED + code]
    done = subprocess.run(
        command, env=provoke.environment(), check=True, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout)


def test_every_call_of_this_kernel_is_reviewed() -> None:
    assert unreviewed(host.system_calls()) == []


def test_the_kernels_list_is_whole() -> None:
    found = host.system_calls()
    watched = {operation.name for operation in OPERATIONS if operation.number is not None}
    assert watched | {"mseal", "mmap_pgoff", "newuname", "io_destroy"} <= found
    assert len(found) > 400
    assert not [name for name in found if "." in name]


def test_a_sealed_ring_outlives_io_destroy_without_an_error() -> None:
    found = tried("""
area = ring()
seal(area.start, area.end - area.start)
print(json.dumps([destroy(area), mapped(area.start)]))
""")
    assert REVIEWED["io_destroy"].effect is Effect.HIDDEN
    assert found == [0, True]


@pytest.mark.parametrize(("sealed", "stays"), [(False, False), (True, True)])
def test_io_destroy_unmaps_what_has_come_in_the_rings_place(sealed: bool, stays: bool) -> None:
    found = tried(f"""
area = ring()
size = area.end - area.start
content = ctypes.string_at(area.start, 64)
need("munmap", area.start, size)
flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
need("mmap", area.start, size, EVERY, flags, 2**64 - 1, 0)
ctypes.memmove(area.start, content, len(content))
if {sealed}:
    seal(area.start, size)
print(json.dumps([destroy(area), mapped(area.start)]))
""")
    assert found == [0, stays]


CUT = """os.ftruncate(file, 0); os.ftruncate(file, PAGE)"""
PUNCH = """
allocate = LIBC.fallocate
allocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
assert allocate(file, 3, 0, PAGE) == 0
"""


@pytest.mark.parametrize(
    ("name", "code", "private", "shared"),
    [
        ("write", "os.pwrite(file, b'new', 0)", "own", "new"),
        ("fallocate", PUNCH, "own", ""),
        ("ftruncate", CUT, "", ""),
    ],
)
def test_the_file_behind_sealed_memory_can_change_it(
    name: str, code: str, private: str, shared: str
) -> None:
    found = tried(f"""
file = os.memfd_create("behind")
os.write(file, b"old".ljust(PAGE, b"\\0"))
copied, seen = (need("mmap", 0, PAGE, EVERY, kind, file, 0) for kind in (PRIVATE, SHARED))
ctypes.memmove(copied, b"own", 3)
for start in copied, seen:
    need("mprotect", start, PAGE, PROT_READ)
    seal(start, PAGE)
{code}
print(json.dumps([ctypes.string_at(start).decode() for start in (copied, seen)]))
""")
    assert REVIEWED[name].effect is Effect.BYPASS
    assert found == [private, shared]


def test_a_sealed_mapping_of_a_socket_gets_new_pages() -> None:
    found = tried("""
import socket, struct, time
SIZE = PAGE  # of one segment: what is cut by the end of one is no whole page
server = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(server.getsockname())
receiver, _ = server.accept()
sender.setsockopt(socket.SOL_SOCKET, 60, 1)
start = need("mmap", 0, SIZE, PROT_READ, SHARED, receiver.fileno(), 0)
seal(start, SIZE)
source = need("mmap", 0, SIZE, EVERY, MAP_PRIVATE | MAP_ANONYMOUS, 2**64 - 1, 0)
found = []
for letter in b"AB":
    ctypes.memset(source, letter, SIZE)
    sender.send((ctypes.c_char * SIZE).from_address(source), 0x4000000)
    while len(receiver.recv(SIZE, socket.MSG_PEEK)) < SIZE:
        time.sleep(0.001)
    asked = ctypes.create_string_buffer(struct.pack("=QIIQ", start, SIZE, 0, 0), 64)
    length = ctypes.c_uint(24)
    refused = LIBC.getsockopt(
        receiver.fileno(), socket.IPPROTO_TCP, 35, asked, ctypes.byref(length)
    )
    found.append([refused, ctypes.string_at(start, 1).decode()])
print(json.dumps(found))
""")
    assert "getsockopt" in calls(Effect.BYPASS)
    assert found == [[0, "A"], [0, "B"]]
