from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.execute.command import (
    CannotStart,
    Command,
    Signals,
    Start,
    UserError,
    environment,
    user_named,
)


@pytest.fixture
def entry() -> Iterator[int]:
    """Takes what is written to a cgroup's `cgroup.procs`."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def ended(entry: int, *words: str, mask: set[int | signal.Signals] | None = None) -> int:
    return Command(Start(list(words), environment(None), None, mask or set()), entry).wait()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)]
)
def test_how_it_ended(entry: int, script: str, status: int) -> None:
    assert ended(entry, "sh", "-c", script) == status


def test_it_enters_the_cgroup_first(tmp_path: Path) -> None:
    procs = tmp_path / "cgroup.procs"
    descriptor = os.open(procs, os.O_WRONLY | os.O_CREAT)
    try:
        assert ended(descriptor, "grep", "-qx", "0", str(procs)) == 0
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 127, "{}: command not found"),
        ("#!/bin/sh\n", 126, "cannot execute {}: Permission denied"),
        ("#!/no/such/shell\n", 127, "cannot execute {}: its interpreter is missing"),
        ("no format of any program", 126, "cannot execute {}: Exec format error"),
    ],
)
def test_what_cannot_be_started(
    tmp_path: Path, entry: int, content: str | None, code: int, message: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(0o644 if code == 126 and content.startswith("#!") else 0o755)
    with pytest.raises(CannotStart) as raised:
        ended(entry, str(program))
    assert (raised.value.code, str(raised.value)) == (code, message.format(program))


def test_no_cgroup() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(CannotStart) as raised:
        ended(full, "true")
    os.close(full)
    assert raised.value.code == 125
    assert str(raised.value) == ("cannot enter its cgroup: No space left on device; run as root")


def test_signals_are_as_the_caller_had_them(entry: int) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    masks = (
        "import signal, sys; "
        "sys.exit(sum(1 << n for n, s in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) "
        "if s in signal.pthread_sigmask(signal.SIG_BLOCK, ())"
        " or signal.getsignal(s) == signal.SIG_IGN))"
    )
    try:
        assert ended(entry, sys.executable, "-c", masks) == 4  # only SIGHUP
        pipe = "set -o pipefail; yes | head -1 >/dev/null"
        assert ended(entry, "bash", "-c", pipe) == 128 + signal.SIGPIPE
    finally:
        signals.close()
        signal.signal(signal.SIGHUP, ignored)


# In a process of one thread, as `exec` is: of several, another one would take the signal.
SENT_TO_ITSELF = """
import os, signal
from monitor.execute.command import FORWARDED, Signals
signals = Signals()
print(signals.take())
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGINT)
print(sorted(map(int, signals.take())))
os.kill(os.getpid(), signal.SIGTERM)  # what comes too late is dropped
signals.close()
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(FORWARDED))
"""


def test_signals_that_a_process_sent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SENT_TO_ITSELF], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "[]",
        f"[{signal.SIGINT:d}, {signal.SIGUSR1:d}]",
        "set()",
    ]


def test_a_signal_is_sent_on(entry: int) -> None:
    command = Command(Start(["sleep", "100"], environment(None), None, set()), entry)
    command.send(signal.SIGUSR1)
    assert command.wait() == -signal.SIGUSR1


def test_environment(tmp_path: Path) -> None:
    """The one that the process was started with, whatever Python has made of it since."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/environ").write_bytes(b"A=1\0B=x=y\0\xff=\xfe\0E=\0HOME=/root\0")
    own = {b"A": b"1", b"B": b"x=y", b"\xff": b"\xfe", b"E": b"", b"HOME": b"/root"}
    assert environment(None, tmp_path) == own
    user = user_named("nobody")
    home = os.fsencode(pwd.getpwnam("nobody").pw_dir)
    added = {b"HOME": home, b"USER": b"nobody", b"LOGNAME": b"nobody"}
    assert environment(user, tmp_path) == own | added


def test_users() -> None:
    found = user_named("nobody")
    assert (found.name, found.uid) == ("nobody", 65534)
    assert found.gid in found.groups
    with pytest.raises(UserError, match=r"^there is no user no such user\\x1b$"):
        user_named("no such user\x1b")
