"""Python processes forked from one that has imported what provocations need.

A fresh process takes 40 ms to start, and a second where the machine is emulated. Run as a program,
this module is the process that forks; its children are children of the process that started it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any, TextIO

__all__ = ["Warm", "WarmProcess"]

_CLONE_PARENT, _SIGCHLD = 0x8000, 17
_MESSAGE_MAX = 1 << 16


class WarmProcess:
    """What tests use of subprocess.Popen, with pipes for standard input and output."""

    def __init__(self, pid: int, arguments: list[str], stdin: TextIO, stdout: TextIO) -> None:
        self.pid, self.args = pid, arguments
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is not None and self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.001)
        self._reap(0)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)


class Warm:
    """The process that forks. Use `close` when it is needed no more."""

    def __init__(self, environment: dict[str, str], executable: str = sys.executable) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [executable, "-S", "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def start(self, code: str, *arguments: str) -> WarmProcess:
        """A new process that runs the code, with `arguments` in sys.argv."""
        their_input, stdin = os.pipe()
        stdout, their_output = os.pipe()
        request = json.dumps([code, *arguments]).encode()
        socket.send_fds(self._channel, [request], [their_input, their_output])
        os.close(their_input)
        os.close(their_output)
        answer = self._channel.recv(_MESSAGE_MAX)
        if not answer:
            raise RuntimeError("the process that forks has ended")
        return WarmProcess(
            int(answer), [code, *arguments], os.fdopen(stdin, "w"), os.fdopen(stdout)
        )

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


def _serve(channel: socket.socket) -> list[Any]:
    """Returns in each forked process, with its request. Raises SystemExit when the input ends."""
    from monitor.kernel.syscalls import call  # noqa: PLC0415 - only here is it on the path

    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_MAX, 2)
        if not request:
            raise SystemExit(0)
        pid = call("clone", _CLONE_PARENT | _SIGCHLD)
        if pid < 0:
            raise OSError("clone failed")
        if not pid:
            channel.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            found: list[Any] = json.loads(request)
            return found
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


if __name__ == "__main__":
    import ctypes  # noqa: F401 - for the processes to come
    import resource  # noqa: F401
    import struct  # noqa: F401

    import monitor.provoke.table  # noqa: F401

    code, *sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    exec(code, {"__name__": "__main__"})
