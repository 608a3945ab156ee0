"""Machine code that tests make, for each processor; the C test programs have processor.h."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from monitor.kernel.arch import ARM64, THIS, X86_64

__all__ = ["function_of_call"]


def _x86_64(number: int) -> bytes:
    return struct.pack("<2sQ3s", b"\x48\xb8", number, b"\x0f\x05\xc3")  # mov rax; syscall; ret


def _arm64(number: int) -> bytes:
    halves = (number >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    loads = (0xF2800008 | place << 21 | half << 5 for place, half in enumerate(halves))
    return struct.pack("<6I", *loads, 0xD4000001, 0xD65F03C0)  # movk x8 four times; svc; ret


_CALLS: Mapping[str, Callable[[int], bytes]] = {X86_64.name: _x86_64, ARM64.name: _arm64}


def function_of_call(number: int) -> bytes:
    """A function that makes the call of this number, of 64 bits, with up to three arguments."""
    return _CALLS[THIS.name](number)
