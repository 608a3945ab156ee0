"""A daemon that is killed every minute, and goes on with what is pinned."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from soak_life import Life
from soak_report import Check

from monitor.incidents.store import FILE

__all__ = ["Kept"]

LEAST_KILLS = 3
COMPARED = 5  # processes at the begin and at the end, or a third of them
GROWTH_MIB = 0.7


class Kept:
    """A Life whose processes are killed. `problems`: of those that did not go on."""

    def __init__(self, folder: Path, configuration: str, pin: Path) -> None:
        """`folder` is new: its configuration and its state are there."""
        folder.mkdir()
        self.state = folder / "state"
        self.state.mkdir(mode=0o750)
        self.pin = pin
        self.problems: list[str] = []
        file = folder / "config.toml"
        file.write_text(configuration, "utf-8")
        self.life = Life(file)

    def revive(self) -> None:
        """A kill in the middle of everything; the next process goes on."""
        self.life.sample()
        self.life.revive()
        started = self.life.started
        if not started["details"]["resumed"] or started["blind_seconds"]:
            self.problems.append(
                f"after a kill: {started['message']}; {started['details']['notes']}"
            )

    def checks(self) -> Iterator[Check]:
        """What the kills have left, after the stop of the last process."""
        kills = self.life.kills
        yield "kills, each of which resumed", str(kills), f">= {LEAST_KILLS}", kills >= LEAST_KILLS
        left = os.listdir(self.pin)
        yield "pins after a stop", str(len(left)), "0", not left
        with contextlib.closing(sqlite3.connect(self.state / FILE)) as database:
            ((said,),) = database.execute("PRAGMA integrity_check")
        yield "database of incidents after kills", said, "ok", said == "ok"
        yield from self._growth()

    def _growth(self) -> Iterator[Check]:
        """Of those that went on, each of the same age: by what they hand on."""
        samples = self.life.samples[1:]
        compared = max(1, min(COMPARED, len(samples) // 3))
        first, last = samples[:compared], samples[-compared:]
        label = f"of the first and last {compared} that were killed"
        before, after = (mean(sample.rss for sample in part) for part in (first, last))
        yield (
            f"RSS {label}",
            f"{before:.2f} -> {after:.2f} MiB",
            f"at most {GROWTH_MIB:+.2f} MiB",
            after - before <= GROWTH_MIB,
        )
        fewest = [min(sample.descriptors for sample in part) for part in (first, last)]
        yield (
            f"descriptors, fewest, {label}",
            f"{fewest[0]} -> {fewest[1]}",
            "no more",
            fewest[1] <= fewest[0],
        )
