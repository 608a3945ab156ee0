"""What a call costs with each way of watching attached: samples for tests/bench.py.

Every attachment lives in a process of its own, `bench_calls.py NAME`, and ends with it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from monitor import config, loader
from monitor.abi import Kind, Outcome, Verdict
from monitor.daemon import Daemon
from monitor.operations import OPERATIONS
from monitor.probes import PROBES

__all__ = ["CALLS", "CPU", "PROCESS_SIZES", "RANGE_SIZES", "ROWS", "WITH_SIZES", "Costs", "Samples"]

CPU = max(os.sched_getaffinity(0))  # the measured calls run here, everything else elsewhere
PROCESS_SIZES = (1, 24, 500, 5000)
RANGE_SIZES = (1, 2, 8, 64, 256)
CALLS = {
    "getppid": "getppid",
    "mprotect": "mprotect ok",
    "munmap+mmap": "munmap+mmap",
    "madvise": "madvise ok",
    "denied": "mprotect denied",
    "io_uring nop": "io_uring nop",
}


class Measured(NamedTuple):
    """A row of the first table: what is attached, and how its events are limited."""

    text: str
    hold: str  # what HOLDS attaches; empty: nothing
    limit: str = ""


ROWS = {
    "nothing": Measured("nothing attached", ""),
    "empty": Measured("empty program, tracepoints", "empty_tracepoint"),
    "filtered": Measured("seal-monitor, events filtered", "tracepoint", "filtered"),
    "limited": Measured("seal-monitor, default limits", "tracepoint", "limited"),
    "unlimited": Measured("seal-monitor, event a denial", "tracepoint", "unlimited"),
    "compat": Measured("  filtered, watch.compat", "compat", "filtered"),
    "io_uring": Measured("  filtered, watch.io_uring", "io_uring", "filtered"),
    "empty_raw": Measured("empty program, raw sys_exit", "empty_raw_tracepoint"),
    "raw": Measured("seal-monitor raw, filtered", "raw_tracepoint", "filtered"),
}
WITH_SIZES = ("nothing", "empty", "filtered")

Samples = dict[tuple[str, str], list[float]]  # by row and call: ns, a value a batch


# ---- The process that holds an attachment --------------------------------------------------------


def _empty_programs(_request: loader.LoadRequest, _features: object) -> str:
    """For every program that the table of probes names one that does nothing."""
    programs = {hook.program for probe in PROBES for hook in probe.hooks}
    arrays = {"tracepoint_tails", "raw_tails"}
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"BPF_PROG_ARRAY({name}, 1);" for name in arrays),
            *(f"BPF_ARRAY({name}, u64, 1);" for name in loader._MAPS if name not in arrays),
            *(f"int {name}(void *context) {{ return 0; }}" for name in programs),
            *(f"int {name}(void *context) {{ return 0; }}" for name in ("denied", "raw_denied")),
        )
    )


def _hold_empty(attach: str) -> None:
    loader._program_text = _empty_programs  # type: ignore[assignment]
    loaded = loader.load(loader.LoadRequest(attach=attach))
    print("{}", flush=True)
    sys.stdin.read()
    loaded.close()


def _limit(daemon: Daemon, name: str) -> None:
    kernel = daemon.state.config
    if name == "filtered":
        kernel.emit_verdicts = 0
    else:
        kernel.emit_verdicts = (1 << len(Verdict)) - 1
    if name == "unlimited":
        kernel.event_interval_ns = kernel.host_interval_ns = 0


def _hold_monitor(attach: str, **watch: bool) -> None:
    """A line of input names the limit to set, an empty one none; a line of output has counts."""
    settings = config.parse("", "the defaults")
    settings = replace(
        settings,
        attach=attach,
        watch=replace(settings.watch, **watch),
        web=replace(settings.web, listen_address=("127.0.0.1", 0)),
    )
    mprotect = [operation.name for operation in OPERATIONS].index("mprotect")
    with Daemon(settings, []) as daemon:
        daemon.loop(until=lambda: not daemon.not_ready())
        name = ""
        while True:
            counters = daemon.state.counters()
            counts = {
                "sealed": counters.denials[mprotect][Verdict.SEALED],
                "dropped": counters.events[Kind.DENIAL][Outcome.DROPPED],
            }
            print(json.dumps(counts), flush=True)
            # Only this mode needs its ring read; otherwise this process sleeps, as an idle daemon.
            while not select.select([0], [], [], 0.0003 if name == "unlimited" else None)[0]:
                daemon.ring.drain()
            line = os.read(0, 64).decode()
            if not line:
                return
            name = line.strip() or name
            _limit(daemon, name)


HOLDS: dict[str, Callable[[], None]] = {
    "empty_tracepoint": lambda: _hold_empty("tracepoint"),
    "empty_raw_tracepoint": lambda: _hold_empty("raw_tracepoint"),
    "tracepoint": lambda: _hold_monitor("tracepoint"),
    "compat": lambda: _hold_monitor("tracepoint", compat=True),
    "io_uring": lambda: _hold_monitor("tracepoint", io_uring=True),
    "raw_tracepoint": lambda: _hold_monitor("raw_tracepoint"),
}


class Holder:
    """What is attached while the block runs."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = name
        self._counts()

    def _counts(self) -> dict[str, int]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"cannot attach {self._name}: see above")
        counts: dict[str, int] = json.loads(line)
        return counts

    def ask(self, limit: str = "") -> dict[str, int]:
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


# ---- Cost of a call ------------------------------------------------------------------------------


def _measure(program: Path, *arguments: object) -> dict[str, Any]:
    output = subprocess.run(
        [program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {CPU}),
    ).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


class Costs:
    """Samples of all rounds."""

    def __init__(self, program: Path) -> None:
        self.calls: Samples = defaultdict(list)
        self.process: Samples = defaultdict(list)
        self.range: Samples = defaultdict(list)
        self.mappings: dict[str, int] = {}
        self.dropped = 0
        self._program = program
        self.failures: list[str] = []

    def round(self) -> None:
        """Each row once. Rows that one attachment serves follow each other."""
        held: dict[str, list[str]] = defaultdict(list)
        for name, row in ROWS.items():
            held[row.hold].append(name)
        for hold, names in held.items():
            if not hold:
                self._visit(names[0], None)
                continue
            with Holder(hold) as holder:
                for name in names:
                    self._visit(name, holder)

    def _visit(self, name: str, holder: Holder | None) -> None:
        limit = ROWS[name].limit
        watched = holder if limit else None
        before = watched.ask(limit) if watched else {}
        denied = self._calls(name)
        if name in WITH_SIZES:
            denied += self._sizes(name)
        if watched:
            after = watched.ask()
            self.dropped += after["dropped"] - before["dropped"]
            proved = after["sealed"] - before["sealed"]
            if proved < denied:
                self.failures.append(f"{ROWS[name].text}: {denied} denials made, {proved} proved")

    def _calls(self, name: str) -> int:
        answer = _measure(self._program, "calls", 20)
        for call, values in answer["ns"].items():
            self.calls[name, call] += values
        return int(answer["denied"])

    def _sizes(self, name: str) -> int:
        denied = 0
        for size in PROCESS_SIZES:
            answer = _measure(self._program, "process", 10, size)
            self.process[name, str(size)] += answer["ns"][str(size)]
            self.mappings[str(size)] = answer["mappings"]
            denied += answer["denied"]
        answer = _measure(self._program, "range", 10, *RANGE_SIZES)
        for size, values in answer["ns"].items():
            self.range[name, size] += values
        return denied + int(answer["denied"])


if __name__ == "__main__":
    HOLDS[sys.argv[1]]()
