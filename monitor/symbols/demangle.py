"""Names of C++ and Rust functions as their authors wrote them.

The names come from files of monitored processes. The demangler of libstdc++ is C code that some
names make recurse or allocate without end. So it runs in a child with limits. Where the child
dies, or there is no libstdc++, a name stays as it is.
"""

from __future__ import annotations

import re
import select
import subprocess
import sys
from pathlib import Path

from monitor.symbols.rust_names import legacy_name, v0_name

__all__ = ["Demangler"]

NAME_LIMIT = 4096
SHOWN_LIMIT = 4096
ANSWER_SECONDS = 2.0
START_SECONDS = 10.0  # until the first answer, on a busy host
CHILDREN_LIMIT = 4
_CHILD = Path(__file__).with_name("demangle_child.py")

_MANGLED = re.compile(r"_Z[\w.$]+", re.ASCII)
# Rust's first scheme is C++'s, with a hash at the end.
_RUST = re.compile(r"(_ZN.*17h[0-9a-f]{16}E)(?:\.llvm\.[0-9A-F]+)?")


class Demangler:
    """Starts a child for the first name that needs one; `close` ends it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._children = 0

    def demangle(self, name: str) -> str:
        """The name as in the source; unchanged where it is not mangled or cannot be demangled."""
        if len(name) > NAME_LIMIT:
            return name
        if name.startswith("_R"):
            return v0_name(name) or name
        if not _MANGLED.fullmatch(name):
            return name
        rust = _RUST.fullmatch(name)
        shown = self._ask(rust[1] if rust else name)
        if shown is None:
            return name
        return legacy_name(shown) if rust else shown

    def _ask(self, name: str) -> str | None:
        limit = ANSWER_SECONDS
        if self._child is None:
            limit = START_SECONDS
            if self._children == CHILDREN_LIMIT:
                return None
            self._children += 1
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", _CHILD],
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
            # At most one pipe buffer, which is written at once (pipe(7), PIPE_BUF).
            if select.select([pipes[1]], [], [], limit)[0]:
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
