"""Steady violations of every kind by short-lived processes, and what must come of them."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Cell, cgroup_root, remove_cgroup
from warm import Warm, WarmProcess

from monitor.provoke import table as provoke
from monitor.provoke.refusal import as_seen

__all__ = ["BURST", "EXECUTABLE", "Load", "Provoked", "cells"]

PAUSE_SECONDS = 0.2  # from one process to the next
SECONDS_A_PROCESS = 20.0
BURST = 400  # denials at once: more than the rate limit lets pass
SEED = 1
EXECUTABLE = "soak-python"

# It also reports how many seals it took to lay out its memory.
_PROVOKE = """
from monitor.provoke import provocation, table
made = []
unwatched = provocation.call
def watched(name, *arguments):
    result = unwatched(name, *arguments)
    if name == "mseal" and not result:
        made.append(arguments[1])
    return result
provocation.call = watched
printed = table._print
table._print = lambda p, **facts: printed(p, seals=len(made), sealed_bytes=sum(made), **facts)
raise SystemExit(table.main())
"""
_SEALED_PAGE = """
import os, sys, time
from monitor.provoke.provocation import PAGE, lay
from monitor.kernel.syscalls import call
page = lay("S").start
os.read(0, 1)
"""
_BURST = f"""{_SEALED_PAGE}
for _ in range(int(sys.argv[1])):
    call("mprotect", page, PAGE, 3)
"""
_UNTIL_KILLED = f"""{_SEALED_PAGE}
while True:
    call("mprotect", page, PAGE, 3)
    os.write(1, b".")
    time.sleep(0.01)
"""


def cells(facts: dict[str, Any]) -> Counter[Cell]:
    """What one provocation adds to the counters, by what it says of itself as seen."""
    if "disposition" in facts:
        if facts["cause"] is None:
            return Counter()
        # Its handler is _exit().
        became = {"handler": "handler_ended"}.get(facts["disposition"], facts["disposition"])
        return Counter({("fault", facts["cause"], became): 1})
    if "method" in facts:
        return Counter({("bypass", facts["method"]): 1})
    if "verdict" in facts:
        return Counter({("denial", facts["operation"], facts["verdict"]): 1})
    return Counter()


@dataclass
class Provoked:
    """`expected`: the exact counts of all processes but those that were killed half-way. `killed`:
    how many denials each of these reported; it may have made one more.
    """

    expected: Counter[Cell] = field(default_factory=Counter)
    killed: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: Provoked) -> Provoked:
        return Provoked(self.expected + other.expected, self.killed | other.killed)


class Load:
    """A thread that starts one process after another; `problems` are what went wrong in it.

    `provoked` is what it has made since the last forget(), `before` what it had made until then.
    `at_seal` are the operations whose denials the daemon sees in the function in which a seal
    refuses, `probes` all that are attached: one for each way around a seal.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is where its interpreter is put, under the name that a mute knows."""
        self.provoked, self.before = Provoked(), Provoked()
        self._pids: set[int] = set()
        self.made: Counter[str] = Counter()
        self.unsupported: dict[str, str] = {}
        self.problems: list[str] = []
        self.at_seal: set[str] = set()
        self.probes: set[str] = set()
        self.cgroups = 0
        self._random = random.Random(SEED)
        executable = shutil.copy(Path(sys.executable).resolve(), folder / EXECUTABLE)
        self._warm = Warm(provoke.environment() | {"PYTHONHOME": sys.base_prefix}, str(executable))
        self._root = cgroup_root()
        self._may_run = threading.Event()
        self._is_idle = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()

    def forget(self) -> None:
        """Count from 0 again, for another life of the daemon. Only while paused."""
        self.before += self.provoked
        self.provoked = Provoked()
        self.cgroups = 0

    def resume(self) -> None:
        self._is_idle.clear()
        self._may_run.set()

    def pause(self) -> None:
        """Returns when no process of it is left."""
        self._may_run.clear()
        self._is_idle.wait()

    def close(self) -> None:
        self._ends = True
        self._may_run.set()
        self._thread.join()
        self._warm.close()

    # ---- The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        turn = 0
        while True:
            if not self._may_run.is_set():
                self._is_idle.set()
                self._may_run.wait()
            if self._ends:
                return
            try:
                self._turn(turn)
            except (OSError, RuntimeError, ValueError, TimeoutError) as error:
                self.problems.append(f"load: {type(error).__name__}: {error}")
            turn += 1
            time.sleep(PAUSE_SECONDS)

    def _turn(self, turn: int) -> None:
        if turn % 300 == 150:
            self._burst()
        elif turn % 10 == 5:
            self._kill_half_way()
        elif turn % 300 == 31:
            self._in_a_cgroup()
        else:
            index = turn % len(provoke.PROVOCATIONS)
            self._provoke(provoke.PROVOCATIONS[index].name)

    def _finish(self, process: WarmProcess) -> str:
        """Let it go and wait for its end; its output."""
        try:
            process.stdin.write("\n")
            process.stdin.close()
            output = process.stdout.read()
            process.wait(SECONDS_A_PROCESS)
        finally:
            process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()
            process.stdout.close()
        return output

    def _start(self, code: str, *arguments: str) -> WarmProcess:
        """A process with a pid that no other had."""
        while (process := self._warm.start(code, *arguments)).pid in self._pids:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self._pids.add(process.pid)
        return process

    def _provoke(self, name: str, cgroup: Path | None = None) -> None:
        if name in self.unsupported:
            return
        process = self._start(_PROVOKE, "--wait", name)
        if cgroup:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
        lines = [json.loads(line) for line in self._finish(process).splitlines()]
        if len(lines) != 1:
            raise RuntimeError(f"{name} printed {len(lines)} lines, status {process.returncode}")
        (facts,) = lines
        expected = self.provoked.expected
        expected["seal",] += facts["seals"]
        expected["sealed_bytes",] += facts["sealed_bytes"]
        if "unsupported" in facts:
            self.unsupported[name] = facts["unsupported"]
            return
        self.made[facts["kind"]] += 1
        seen = as_seen(facts, facts.get("operation") in self.at_seal)
        if seen is not None and facts.get("method") in (None, *self.probes):
            expected += cells(seen)

    def _one_page(self, denials: int) -> None:
        expected = self.provoked.expected
        expected["seal",] += 1
        expected["sealed_bytes",] += 4096
        expected["denial", "mprotect", "sealed"] += denials
        self.made["denial"] += denials

    def _burst(self) -> None:
        self._finish(self._start(_BURST, str(BURST)))
        self._one_page(BURST)

    def _kill_half_way(self) -> None:
        process = self._start(_UNTIL_KILLED)
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            reported = len(process.stdout.read(1))  # it has begun
            time.sleep(self._random.uniform(0.02, 0.2))
            process.kill()
            process.wait()
            reported += len(process.stdout.read())
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self.provoked.killed[process.pid] = reported
        self.made["killed half-way"] += 1
        self._one_page(0)

    def _in_a_cgroup(self) -> None:
        """A workload that comes, makes a denial, and goes."""
        if self._root is None:
            return
        path = self._root / f"seal-soak-{time.monotonic_ns()}"
        path.mkdir()
        try:
            self._provoke("mprotect", path)
            self.cgroups += 1
        finally:
            remove_cgroup(path)
