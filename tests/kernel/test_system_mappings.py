"""Mappings that the kernel makes itself, such as the vdso: by its own name, in real denials."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Harness

from monitor.evidence import events
from monitor.evidence.classify import classify
from monitor.host.facts import kernel_seals
from monitor.kernel.abi import Kind

HOST = events.Host("h", "b", "r")
SEALED = """
import ctypes
from monitor.provoke.provocation import mappings
(found,) = [each for each in mappings() if each.name == {name!r}]
start, size = found.start, found.end - found.start
need("mseal", start, size, 0)
"""
UNMAPPED = """
assert LIBC.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size)) == -1
"""
MOVED = """
area = lay("w" * (size // PAGE))
LIBC.mremap.restype = ctypes.c_ssize_t
assert LIBC.mremap(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_size_t(size), 3,
                   ctypes.c_void_p(area.start)) == -1
"""


def denial_of(harness: Harness, code: str) -> tuple[events.Denial, str]:
    made = harness.python(code)
    (record,) = made.of_kind(Kind.DENIAL)
    origin = events.Origin("i", "t", 0, HOST, None, None)
    event = classify(
        record,
        origin,
        sealed_mask=harness.config.sealed_mask,
        kernel_seals=kernel_seals(),
    )
    assert isinstance(event, events.Denial)
    return event, f"{made.child.executable} (pid {made.child.pid})"


@pytest.mark.parametrize("name", ["[vdso]", "[vvar]", "[vvar_vclock]"])
@pytest.mark.parametrize(
    ("code", "operation", "wanted"),
    [(UNMAPPED, "munmap", "tried to unmap"), (MOVED, "mremap", "tried to move or resize")],
)
def test_a_system_mapping_unmapped_or_moved(
    harness: Harness, name: str, code: str, operation: str, wanted: str
) -> None:
    if f" {name}\n" not in Path("/proc/self/maps").read_text():
        pytest.skip(f"this kernel has no {name}")
    event, who = denial_of(harness, SEALED.format(name=name) + code)
    assert event.sealed is not None
    assert (event.sealed.name, event.sealed.file) == (name, None)
    permissions = "r-xp" if name == "[vdso]" else "r--p"
    by = "by the kernel, " if kernel_seals() else ""
    assert event.summary == (
        f"{operation} of sealed memory refused: {who} {wanted} "
        f"{event.sealed.start}-{event.sealed.end} (sealed {by}{permissions}, {name}); "
        "probably on purpose: a mapping that the kernel made was to be unmapped or moved"
    )
    assert event.severity == "warning"
    assert event.assessment == events.Assessment("system_mapping", "handled")


def test_a_name_that_a_process_chooses_has_no_brackets(harness: Harness) -> None:
    """PR_SET_VMA_ANON_NAME refuses "[vdso]"; a file of that name is shown as a file."""
    code = """
import ctypes, os
name = b"[vdso]"
area = lay("w")
LIBC.prctl.argtypes = None
refused = LIBC.prctl(0x53564d41, ctypes.c_ulong(0), ctypes.c_void_p(area.start),
                     ctypes.c_ulong(PAGE), ctypes.c_char_p(name))
assert refused == -1 and ctypes.get_errno() == 22, ctypes.get_errno()
descriptor = os.memfd_create("[vdso]")
os.ftruncate(descriptor, PAGE)
start = need("mmap", 0, PAGE, 5, 2, descriptor, 0)
need("mseal", start, PAGE, 0)
assert LIBC.munmap(ctypes.c_void_p(start), ctypes.c_size_t(PAGE)) == -1
"""
    event, _ = denial_of(harness, code)
    assert event.sealed is not None
    assert event.sealed.name is None
    assert "[vdso]); " in event.summary
    assert ", [vdso]" not in event.summary
    assert event.assessment is not None
    assert event.assessment.name == "unmapped"
