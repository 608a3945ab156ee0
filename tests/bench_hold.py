"""A process that holds an attachment while calls are measured: it ends with the process.

Run as `bench_hold.py NAME`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench_attach import CannotAttach, attach_empty, limit, require_mode

from monitor.configuration import config
from monitor.daemon import Daemon
from monitor.kernel.abi import Kind, Outcome, Verdict
from monitor.kernel.loader import LoadError
from monitor.kernel.operations import OPERATIONS

__all__ = ["Holder"]

MPROTECT = [operation.name for operation in OPERATIONS].index("mprotect")


def _hold_empty(mode: str) -> None:
    loaded = attach_empty(mode)
    print("{}", flush=True)
    sys.stdin.read()
    loaded.close()


def _hold_monitor(mode: str, **watch: bool) -> None:
    """Each line of input names a limit to set, or is empty; each line of output has the counts."""
    settings = config.parse("", "the defaults")
    settings = replace(
        settings,
        attach=mode,
        watch=replace(settings.watch, **watch),
        web=replace(settings.web, listen_address=("127.0.0.1", 0)),
    )
    with Daemon(settings, []) as daemon:
        require_mode(daemon.watcher.loaded, mode)
        daemon.loop(until=lambda: not daemon.not_ready())
        name = ""
        while True:
            counters = daemon.watcher.state.counters()
            counts = {
                **{verdict.label: counters.denials[MPROTECT][verdict] for verdict in Verdict},
                "dropped": counters.events[Kind.DENIAL][Outcome.DROPPED],
            }
            print(json.dumps(counts), flush=True)
            # Only this mode needs its ring read; otherwise this process sleeps, as an idle daemon.
            while not select.select([0], [], [], 0.0003 if name == "unlimited" else None)[0]:
                daemon.watcher.ring.drain()
            line = os.read(0, 64).decode()
            if not line:
                return
            name = line.strip() or name
            limit(daemon.watcher.state.config, name)


HOLDS: dict[str, Callable[[], None]] = {
    "empty_fexit": lambda: _hold_empty("fexit"),
    "empty_tracepoint": lambda: _hold_empty("tracepoint"),
    "empty_raw_tracepoint": lambda: _hold_empty("raw_tracepoint"),
    "fexit": lambda: _hold_monitor("fexit"),
    "tracepoint": lambda: _hold_monitor("tracepoint"),
    "compat": lambda: _hold_monitor("tracepoint", compat=True),
    "io_uring": lambda: _hold_monitor("tracepoint", io_uring=True),
    "raw_tracepoint": lambda: _hold_monitor("raw_tracepoint"),
}


def _hold(name: str) -> int:
    try:
        HOLDS[name]()
    except (CannotAttach, LoadError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 3
    return 0


class Holder:
    """What is attached while the block runs. Raises CannotAttach."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = name
        try:
            self._counts()
        except BaseException:
            self.__exit__()
            raise

    def _counts(self) -> dict[str, int]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"cannot attach {self._name}: see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CannotAttach(answer["error"])
        return answer

    def ask(self, limit: str = "") -> dict[str, int]:
        """Sets the limit, if one is named; the counts so far, by verdict and `dropped`."""
        assert self._process.stdin
        self._process.stdin.write(f"{limit}\n")
        self._process.stdin.flush()
        return self._counts()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    sys.exit(_hold(sys.argv[1]))
