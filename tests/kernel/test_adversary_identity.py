"""What an ordinary user makes of the look-ups: he delays them, or has them find another program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attackers import NOBODY, by_nobody
from clocks import at_most
from test_daemon import Compile, Running, Start, start

__all__ = ["start"]  # a fixture

Event = dict[str, Any]
SINGLES = 10
RACES = 100
SECONDS = 60


@contextmanager
def until_the_end(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """An ordinary user's process, as long as the block lasts."""
    with by_nobody(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def single_denial(storm: Path) -> int:
    with subprocess.Popen([storm, "1", "1", "0", "mprotect"], stdout=subprocess.DEVNULL) as child:
        assert child.wait() == 0
    return child.pid


def test_a_slow_lock_delays_nobody_else(start: Start, compiled: Compile) -> None:
    daemon = start()
    storm = compiled("storm")
    with until_the_end(compiled("slow_lock"), 128, 32, SECONDS) as locker:
        daemon.wait_for(is_given_up, SECONDS / 2)
        for _ in range(SINGLES):
            pid = single_denial(storm)
            with at_most(2.0, "promised, whatever others do"):
                event = daemon.wait_for(of(pid))
            assert event["process"]["identity"]["result"] in ("complete", "gone")
            time.sleep(0.2)
        assert locker.poll() is None  # else it would prove nothing


def of(pid: int) -> Callable[[Event], bool]:
    def is_its_denial(event: Event) -> bool:
        return bool(event["kind"] == "denial" and event["process"]["pid"] == pid)

    return is_its_denial


def is_given_up(event: Event) -> bool:
    """Of an ordinary user, whose process kept a look-up waiting."""
    if event["kind"] != "denial" or event["process"]["uid"] != NOBODY:
        return False
    reason = event["process"]["identity"]["reason"]
    return bool(reason == "the look-up took longer than 50 ms")


def race(daemon: Running, command: list[object], races: int) -> list[Event]:
    """The processes of the denials of so many runs by an ordinary user."""
    pids = []
    for _ in range(races):
        with until_the_end(*command) as process:
            pids.append(process.pid)
            daemon.wait_for(of(process.pid))
    found = [event["process"] for event in daemon.events("denial")]
    return [process for process in found if process["pid"] in pids]


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that any user can go into."""
    folder = Path("/var/tmp") / f"seal-monitor-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_exec_gives_no_other_program_the_blame(
    start: Start, compiled: Compile, public: Path
) -> None:
    """A user's own file `sleep`, which executes the host's at once."""
    own = public / "sleep"
    shutil.copy(compiled("rename"), own)
    own.chmod(0o755)
    daemon = start()
    processes = race(daemon, [own, "/usr/bin/sleep", "60"], RACES)
    assert len(processes) == RACES
    assert {process["executable"] for process in processes} <= {str(own), "sleep"}
    for process in processes:
        assert process["command_line"] != "/usr/bin/sleep 60", json.dumps(process)


def test_a_path_of_another_namespace_is_marked(
    start: Start, compiled: Compile, public: Path
) -> None:
    """In a mount namespace of his own his file is at a path of the host's."""
    own = public / "own"
    shutil.copy(compiled("rename"), own)
    own.chmod(0o755)
    daemon = start()
    mounted = f"mount --bind {own} /usr/bin/sleep && exec /usr/bin/sleep /bin/true"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted]
    processes = race(daemon, [*command], 3)
    assert len(processes) == 3
    for process in processes:
        assert process["executable"] in ("/usr/bin/sleep", "own", "sleep")
        assert process["files"] in ("namespace", None)
    host = race(daemon, [own, "/bin/true"], 1)
    assert [process["files"] for process in host] in (["host"], [None])
