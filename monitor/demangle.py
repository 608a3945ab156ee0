"""Names of C++ and Rust functions as their authors wrote them.

The names come from files of monitored processes, and the demangler of libstdc++ (which bcc needs
anyway) is C code that some names make recurse or take memory without end. So it runs in a child
with limits: where the child dies, a name stays as it is. This file is also the child's program
and imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import subprocess
import sys

__all__ = ["Demangler"]

NAME_LIMIT = 1024
SHOWN_LIMIT = 4096
ANSWER_SECONDS = 2.0
CHILDREN_LIMIT = 4
_MEMORY, _CPU_SECONDS = 256 << 20, 20
_NOBODY = 65534

_MANGLED = re.compile(r"_Z[\w.$]+", re.ASCII)
# Rust's first scheme is C++'s, with a hash at the end (rustc: symbol_mangling/legacy.rs).
_RUST = re.compile(r"(_ZN.*17h[0-9a-f]{16}E)(?:\.llvm\.[0-9A-F]+)?")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_ESCAPES = {
    "SP": "@",
    "BP": "*",
    "RF": "&",
    "LT": "<",
    "GT": ">",
    "LP": "(",
    "RP": ")",
    "C": ",",
}


class Demangler:
    """Its child starts with the first name that needs it, and ends with `close`."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._children = 0

    def demangle(self, name: str) -> str:
        """The name as in the source; as it is, where it is no mangled one or it cannot be told."""
        if not _MANGLED.fullmatch(name) or len(name) > NAME_LIMIT:
            return name
        rust = _RUST.fullmatch(name)
        shown = self._ask(rust[1] if rust else name)
        if shown is None:
            return name
        return _rust(shown) if rust else shown

    def _ask(self, name: str) -> str | None:
        if self._child is None:
            if self._children == CHILDREN_LIMIT:
                return None
            self._children += 1
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        pipes = self._child.stdin, self._child.stdout
        assert pipes[0]
        assert pipes[1]
        answer = b""
        try:
            pipes[0].write(name.encode() + b"\n")
            # At most SHOWN_LIMIT: one pipe buffer, written at once.
            if select.select([pipes[1]], [], [], ANSWER_SECONDS)[0]:
                answer = pipes[1].read(SHOWN_LIMIT + 1) or b""
        except BrokenPipeError:
            pass
        if not answer.endswith(b"\n"):
            self.close()
            return None
        return answer.decode("utf-8", "replace").removesuffix("\n") or None

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _rust(shown: str) -> str:
    def unescaped(found: re.Match[str]) -> str:
        code = found[1]
        return _RUST_ESCAPES.get(code) or chr(int(code[1:], 16))

    text = re.sub(r"(^|::)_\$", r"\1$", _RUST_HASH.sub("", shown))
    text = re.sub(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,5})\$", unescaped, text)
    return text.replace("..", "::")


def _serve() -> None:
    """A name a line in, what it means a line out; empty where it means nothing."""
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
    _serve()
