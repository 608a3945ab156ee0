"""What a call costs, in nanoseconds, under each observer: samples for tests/bench.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_peers
from bench_attach import CannotAttach
from bench_hold import Holder
from bench_peers import PEERS, CannotStart

__all__ = [
    "CPU",
    "PROCESS_SIZES",
    "RANGE_LIMIT",
    "RANGE_SIZES",
    "ROWS",
    "WITH_SIZES",
    "Costs",
    "Samples",
]

CPU = max(os.sched_getaffinity(0))  # the measured calls run here, everything else elsewhere
PROCESS_SIZES = (1, 3, 6, 12, 24, 500, 5000, 50_000)
RANGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANGE_LIMIT = 256  # the longest one
BATCHES = 20


class Row(NamedTuple):
    """An observer: what bench_attach.py holds and how its events are limited, or a peer."""

    text: str
    hold: str = ""
    limit: str = ""
    peer: str = ""


ROWS = {
    "nothing": Row("nothing"),
    "empty": Row("empty programs, tracepoint", "empty_tracepoint"),
    "filtered": Row("seal-monitor, tracepoint", "tracepoint", "filtered"),
    "held_back": Row("seal-monitor, tracepoint, event held back", "tracepoint", "held_back"),
    "unlimited": Row("seal-monitor, tracepoint, with its event", "tracepoint", "unlimited"),
    "compat": Row("seal-monitor, tracepoint, watch.compat", "compat", "filtered"),
    "io_uring": Row("seal-monitor, tracepoint, watch.io_uring", "io_uring", "filtered"),
    "empty_raw": Row("empty programs, raw_tracepoint", "empty_raw_tracepoint"),
    "raw": Row("seal-monitor, raw_tracepoint", "raw_tracepoint", "filtered"),
    "empty_fexit": Row("empty programs, fexit", "empty_fexit"),
    "fexit": Row("seal-monitor, fexit", "fexit", "filtered"),
    **{name: Row(peer.text, peer=name) for name, peer in PEERS.items()},
}
WITH_SIZES = ("nothing", "empty", "filtered")

Samples = dict[tuple[str, str], list[float]]  # by row and call: ns, a value a batch


class Costs:
    """Samples of all rounds; why rows have none; refusals made and reported, by row."""

    def __init__(self, bench: Path, bare: Path) -> None:
        self.calls: Samples = defaultdict(list)
        self.process: Samples = defaultdict(list)
        self.range: Samples = defaultdict(list)
        self.absent: dict[str, str] = {}
        self.made: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()
        self.dropped = 0
        self.failures: list[str] = []
        self._bench = bench
        self._bare = bare

    def round(self) -> None:
        """Each row once. Rows with the same attachment follow each other."""
        held: dict[str, list[str]] = defaultdict(list)
        for name, row in ROWS.items():
            held[row.hold or row.peer].append(name)
        for hold, names in held.items():
            first = ROWS[names[0]]
            if names[0] in self.absent:
                continue
            try:
                if first.peer:
                    self._visit_peer(first.peer)
                elif hold:
                    with Holder(hold) as holder:
                        for name in names:
                            self._visit(name, holder)
                else:
                    self._visit(names[0], None)
            except (CannotAttach, CannotStart) as error:
                self.absent |= dict.fromkeys(names, str(error))

    def _visit_peer(self, name: str) -> None:
        peer = PEERS[name]
        command = self._command(self._bench, "calls", peer.batches)
        output, reported = bench_peers.run(peer, command, self._bench.parent)
        self.reported[name] += reported
        self.made[name] += self._take(name, json.loads(output))

    def _visit(self, name: str, holder: Holder | None) -> None:
        limit = ROWS[name].limit
        watched = holder if limit else None
        before = watched.ask(limit) if watched else {}
        made = self._take(name, self._measure(self._bench, "calls", BATCHES))
        if name in WITH_SIZES:
            made += self._sizes(name)
        if not watched:
            return
        after = watched.ask()
        self.made[name] += made
        self.reported[name] += after["sealed"] - before["sealed"]
        self.dropped += after["dropped"] - before["dropped"]
        gained = after["sealed"] - before["sealed"]
        if gained < made:
            self.failures.append(f"{ROWS[name].text}: {made} denials made, {gained} counted")

    @staticmethod
    def _command(program: Path, *arguments: object) -> Sequence[str]:
        taskset = shutil.which("taskset")
        assert taskset, "taskset is part of util-linux"
        return [taskset, "--cpu-list", str(CPU), str(program), *map(str, arguments)]

    def _measure(self, program: Path, *arguments: object) -> dict[str, Any]:
        command = self._command(program, *arguments)
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        answer: dict[str, Any] = json.loads(output)
        return answer

    def _take(self, name: str, answer: dict[str, Any]) -> int:
        """Keeps the samples; how many calls were refused."""
        for call, values in answer["ns"].items():
            self.calls[name, call] += values
        return int(answer["denied"])

    def _sizes(self, name: str) -> int:
        """How many calls were refused."""
        denied = 0
        for size in PROCESS_SIZES:
            answer = self._measure(self._bare, 10, 400, size)
            if answer["mappings"] != size:
                self.failures.append(
                    f"{answer['mappings']} mappings in a process instead of {size}"
                )
            self.process[name, str(size)] += answer["ns"]
            denied += answer["denied"]
        for size in RANGE_SIZES:
            answer = self._measure(self._bench, "range", 10, size)
            self.range[name, str(size)] += answer["ns"][str(size)]
            denied += answer["denied"]
        return denied
