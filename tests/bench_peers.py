"""Other programs that can report refused calls, each doing the closest that it can.

They start the measured program themselves, so each is the front of its command. A tracefs that one
of them mounts is gone with its mount namespace.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from monitor.kernel.operations import OPERATIONS

__all__ = ["PEERS", "CannotStart", "Peer", "run"]

WATCHED = [operation.name for operation in OPERATIONS if operation.number is not None]
_EXITS = ",".join(f"tracepoint:syscalls:sys_exit_{name}" for name in WATCHED)
_SECONDS = 120
_TRACING = "/sys/kernel/tracing"
_IN_NAMESPACE = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    f'[ -d {_TRACING}/events ] || mount -t tracefs tracefs {_TRACING}; exec "$@"',
    "sh",
)


class CannotStart(Exception):
    """Why a program cannot run here: it is not installed, or does not work."""


class Peer(NamedTuple):
    """`command` is made from the measured command and the file that the output goes to."""

    text: str
    package: str
    command: Callable[[Sequence[str], Path], Sequence[str]]
    reported: Callable[[str], int]  # refusals of mprotect in its output
    batches: int = 20


def _bpftrace(program: str) -> Callable[[Sequence[str], Path], Sequence[str]]:
    return lambda command, output: (
        *("bpftrace", "-o", str(output), "-e", program, "-c", " ".join(command)),
    )


def _perf(command: Sequence[str], output: Path) -> Sequence[str]:
    return (
        *("perf", "trace", "--all-cpus", "--failure", "-e", ",".join(WATCHED)),
        *("-o", str(output), "--", *command),
    )


def _strace(*options: str) -> Callable[[Sequence[str], Path], Sequence[str]]:
    return lambda command, output: (
        *("strace", "-f", *options, "--failed-only", "-e", f"trace={','.join(WATCHED)}"),
        *("-o", str(output), *command),
    )


def _lines(pattern: str) -> Callable[[str], int]:
    return lambda text: len(re.findall(pattern, text, re.MULTILINE))


def _counted(text: str) -> int:
    return sum(map(int, re.findall(r"^@\[-1\]: (\d+)$", text, re.MULTILINE)))


PEERS = {
    "bpftrace_count": Peer(
        "bpftrace, counts by errno",
        "bpftrace",
        _bpftrace(f"{_EXITS} /args->ret < 0/ {{ @[args->ret] = count(); }}"),
        _counted,
    ),
    "bpftrace_printf": Peer(
        "bpftrace, a line a refusal",
        "bpftrace",
        _bpftrace(f'{_EXITS} /args->ret == -1/ {{ printf("%s %d %s\\n", comm, pid, probe); }}'),
        _lines(r"sys_exit_mprotect$"),
    ),
    "perf": Peer(
        "perf trace, failures", "linux-perf", _perf, _lines(r" mprotect\(.*-1 EPERM"), batches=8
    ),
    "strace_seccomp": Peer(
        "strace --seccomp-bpf, failures",
        "strace",
        _strace("--seccomp-bpf"),
        _lines(r" mprotect\(.*-1 EPERM"),
        batches=3,
    ),
    "strace": Peer(
        "strace, failures", "strace", _strace(), _lines(r" mprotect\(.*-1 EPERM"), batches=2
    ),
}


def run(peer: Peer, command: Sequence[str], directory: Path) -> tuple[str, int]:
    """Run the command under the peer: the command's output, and how many refusals were reported.

    Raises CannotStart.
    """
    output = directory / "peer.txt"
    output.unlink(missing_ok=True)
    words = peer.command(command, output)
    if shutil.which(words[0]) is None:
        raise CannotStart(f"not installed: apt-get install {peer.package}")
    process = subprocess.Popen(
        [*_IN_NAMESPACE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        answer, errors = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotStart(f"no end after {_SECONDS} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode or not answer:
        lines = [line for line in errors.splitlines() if line.strip()]
        raise CannotStart(lines[-1].strip() if lines else f"exit code {process.returncode}")
    return answer, peer.reported(output.read_text(errors="replace"))
