"""A provocation, and its memory: pages with known protections and seals."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

from monitor.kernel.syscalls import PAGE, call

__all__ = [
    "MAP_ANONYMOUS",
    "MAP_FIXED",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "PROT_EXEC",
    "PROT_NONE",
    "PROT_READ",
    "PROT_WRITE",
    "Facts",
    "Fault",
    "Mapping",
    "Pages",
    "Provocation",
    "Unsupported",
    "lay",
    "machine_code",
    "mappings",
    "need",
    "seal",
]

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000

# Protection of a page by its letter in a layout; a capital letter is a sealed page.
_PROTECTIONS = {"n": PROT_NONE, "r": PROT_READ, "w": PROT_READ | PROT_WRITE, "s": PROT_READ}
_FILL = 0xA5

Facts = dict[str, object]


class Unsupported(Exception):
    """This kernel or CPU cannot make the provocation; the message says what failed."""


class Fault(NamedTuple):
    """A fault to make. Print `facts` before you call `strike`: the process may not survive it."""

    facts: Facts
    strike: Callable[[], object]


class Provocation(NamedTuple):
    """One small real violation.

    `kind` is denial, fault, seal, bypass or other (an EPERM or a SIGSEGV that is no violation).
    `lasting`: it ends its process or leaves it under a seccomp filter.
    """

    name: str
    kind: str
    description: str
    function: Callable[[], Facts | Fault]
    lasting: bool = False


class Pages(NamedTuple):
    """Addresses of a layout; `sealed_start` == `sealed_end` when nothing in it is sealed."""

    start: int
    end: int
    sealed_start: int
    sealed_end: int


class Mapping(NamedTuple):
    start: int
    end: int
    permissions: str
    name: str


def need(name: str, *arguments: int) -> int:
    """Like `call`, but raises Unsupported when the call fails."""
    result = call(name, *arguments)
    if result < 0:
        raise Unsupported(f"{name}: {os.strerror(-result)}")
    return result


def seal(start: int, length: int) -> None:
    """mseal the range; raises Unsupported on a kernel without mseal."""
    need("mseal", start, length, 0)


def lay(layout: str, flags: int = 0) -> Pages:
    """Map fresh private anonymous pages, one for each letter of `layout`.

    n, r and w are pages without access, read-only and writable; N and W are the same, sealed; S is
    a sealed read-only page. Pages are filled before they are protected. An inaccessible page lies
    on either side, so that nothing else merges with the layout. The sealed range in the result is
    the first run of S or N, else of W: madvise is allowed on a sealed writable page.
    """
    length = len(layout) * PAGE
    flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    start = PAGE + need("mmap", 0, length + 2 * PAGE, PROT_NONE, flags, 2**64 - 1, 0)
    need("mprotect", start, length, PROT_READ | PROT_WRITE)
    ctypes.memset(start, _FILL, length)
    for index, letter in enumerate(layout):
        need("mprotect", start + index * PAGE, PAGE, _PROTECTIONS[letter.lower()])
    for index, letter in enumerate(layout):
        if letter.isupper():
            seal(start + index * PAGE, PAGE)
    first = next((i for kind in ("SN", "W") for i, c in enumerate(layout) if c in kind), 0)
    last = first
    while layout[last : last + 1].isupper() and layout[last] == layout[first]:
        last += 1
    return Pages(start, start + length, start + first * PAGE, start + last * PAGE)


def machine_code(code: bytes) -> int:
    """Address of an executable page that holds `code`."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    address = need("mmap", 0, PAGE, PROT_READ | PROT_WRITE, flags, 2**64 - 1, 0)
    ctypes.memmove(address, code, len(code))
    need("mprotect", address, PAGE, PROT_READ | PROT_EXEC)
    return address


def mappings() -> list[Mapping]:
    """This process's mappings, from /proc/self/maps."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            bounds, mode, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            found.append(Mapping(start, end, mode, "".join(name).strip()))
    return found
