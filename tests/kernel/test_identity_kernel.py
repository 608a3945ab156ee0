"""The identity of processes that are gone before anybody can look."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from harness import cgroup_path, new_cgroup

from monitor.configuration import config
from monitor.daemon import Daemon
from monitor.kernel import abi
from monitor.sinks import outputs as sinks

Compile = Callable[[str], Path]
Event = dict[str, Any]
SETTINGS = """
[rate_limit]
per_caller = 1000000
host = 1000000
[ring]
size = 4194304
[canary]
interval = 0
[web]
listen_address = "127.0.0.1:0"
"""
PROCESSES = 1000
AT_A_TIME = 8
PATIENCE = 20.0
MILLISECONDS = 50  # eight in 50 ms: less than the 200 a second that the kernel reports


class Collected:
    """A sink that keeps what it is given."""

    name = "collected"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def render(self, event: Event) -> bytes:
        return sinks.encode(event)

    def write(self, data: bytes) -> None:
        self.events.append(json.loads(data))

    def reopen(self) -> None: ...

    def close(self) -> None: ...

    def denials_of(self, executable: str) -> list[Event]:
        return [
            event
            for event in self.events
            if event["kind"] == "denial" and event["process"]["name"] == executable
        ]


class Learnt:
    """Gives a token each time it has learnt so many more processes of a program."""

    def __init__(self, daemon: Daemon, program: Path, at_a_time: int) -> None:
        self.tokens: SimpleQueue[None] = SimpleQueue()
        self._take = daemon.watcher.pipeline.take
        self._program = os.fsencode(program.name)
        self._at_a_time = at_a_time
        self._count = 0

    def take(self, records: Sequence[abi.Record]) -> None:
        self._take(records)
        for record in records:
            if record.flags & abi.RecordFlag.SEALER and record.executable == self._program:
                self._count += 1
                if self._count % self._at_a_time == 0:
                    self.tokens.put(None)


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def daemon(collected: Collected, require_bpf: None) -> Iterator[Daemon]:
    with Daemon(config.parse(SETTINGS, "test"), [collected]) as daemon:
        daemon.loop(until=lambda: not daemon.not_ready())
        yield daemon


def run_beside(daemon: Daemon, *command: object, learnt: Learnt | None = None) -> Any:
    """What the command printed, run while the daemon watches, and after it was stopped.

    For each token of `learnt` a byte is written to its standard input.
    """
    done: list[str] = []

    def run() -> None:
        with subprocess.Popen(
            [str(word) for word in command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            patience = time.monotonic() + PATIENCE
            while learnt and child.poll() is None and time.monotonic() < patience:
                with suppress(Empty):
                    learnt.tokens.get(timeout=0.1)
                    child.stdin.write(b"x")
                    patience = time.monotonic() + PATIENCE
            done.append(child.communicate()[0].decode())
        assert child.returncode == 0

    thread = threading.Thread(target=run)
    thread.start()
    daemon.loop(until=lambda: not thread.is_alive())
    thread.join()
    daemon.stop()
    return json.loads(done[0])


def test_what_was_learnt_when_it_sealed(
    daemon: Daemon, collected: Collected, compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is gone when its denial is read, and yet known in full."""
    program = compiled("swarm")
    learnt = Learnt(daemon, program, AT_A_TIME)
    monkeypatch.setattr(daemon.watcher.pipeline, "take", learnt.take)
    command = (program, PROCESSES, MILLISECONDS, "--wait")
    assert run_beside(daemon, *command, learnt=learnt) == {"mprotect": PROCESSES}
    events = collected.denials_of(program.name)
    assert len({event["process"]["pid"] for event in events}) == len(events) == PROCESSES
    user = {"uid": os.getuid(), "gid": os.getgid(), "user_name": "root", "group_name": "root"}
    for event in events:
        process = event["process"]
        assert process["executable"] == str(program)
        assert process["command_line"] == f"{program} {PROCESSES} {MILLISECONDS} --wait"
        assert {name: process[name] for name in user} == user
    assert daemon.tally.identity_lookups["complete"] == PROCESSES


def test_what_the_kernel_knew(daemon: Daemon, collected: Collected, compiled: Compile) -> None:
    """Of processes that nobody had the time to look at."""
    program = compiled("swarm")
    assert run_beside(daemon, program, PROCESSES, 0) == {"mprotect": PROCESSES}
    events = collected.denials_of(program.name)
    assert len({event["process"]["pid"] for event in events}) == len(events) == PROCESSES
    for event in events:
        process = event["process"]
        assert process["executable"] in (program.name, str(program))
        assert process["user_name"] == "root"
        assert process["start"]
    lookups = daemon.tally.identity_lookups
    assert lookups["complete"] + lookups["gone"] == PROCESSES


def test_a_container_that_is_gone(
    daemon: Daemon, collected: Collected, compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cgroup is removed as soon as it has ended."""
    pod = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"
    container = "c0ffee" + "0" * 58
    program = compiled("swarm")
    with new_cgroup("kubepods.slice") as top:
        slice_ = top / f"kubepods-pod{pod.replace('-', '_')}.slice"
        scope = slice_ / f"cri-containerd-{container}.scope"
        scope.mkdir(parents=True)
        script = f"echo $$ >{scope}/cgroup.procs; {program} 1 0 --wait; echo $$ >{top}/cgroup.procs"
        command = f"{script}; rmdir {scope} {slice_}"
        learnt = Learnt(daemon, program, 1)
        monkeypatch.setattr(daemon.watcher.pipeline, "take", learnt.take)
        assert run_beside(daemon, "sh", "-c", command, learnt=learnt) == {"mprotect": 1}
        (event,) = collected.denials_of(program.name)
        assert event["workload"] == {
            "unit": None,
            "container_id": container,
            "pod_uid": pod,
            "cgroup": f"{cgroup_path(top)}/{slice_.name}/{scope.name}",
        }
