"""The child that demangles untrusted names, in a process with limits.

It is started as a file, so it can import only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

SHOWN_LIMIT = 4096
_MEMORY, _CPU_SECONDS = 256 << 20, 20
_NOBODY = 65534


def serve() -> None:
    """Read one mangled name a line; print the demangled one, or an empty line where it is not."""
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # https://itanium-cxx-abi.github.io/cxx-abi/abi.html#demangler
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    if not os.geteuid():
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for line in sys.stdin.buffer:
        found = demangle(line.rstrip(b"\n"), None, None, None)
        shown = ctypes.string_at(found)[: SHOWN_LIMIT - 1] if found else b""
        free(found)
        sys.stdout.buffer.write(shown.replace(b"\n", b" ") + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
