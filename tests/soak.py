"""`make soak MINUTES=60`: a real daemon under steady violations of every kind, for long, and then
beside an attacker.

Processes that live for milliseconds make one violation after another, some are killed half-way;
meanwhile there is a scrape a second, the configuration is read again, good and bad, the disk of the
events file fills up and is rotated, and the daemon is stopped, killed and started again. Beside it
runs another one, which is killed every minute and goes on with what is pinned (state.pin); it sees
all of the load. At the end every count of both must be exact, and nothing may have grown. Needs
root and a host that is otherwise quiet: events show which violations are another process's, but
seals make no event.

The steady load lasts for MINUTES, with a little more than a minute of rest in it, in which the
kernel's maps must become empty. Then an ordinary user does for 40 seconds, or a sixth of MINUTES,
all that could delay, hide or remove what others do; beside that a hundred single violations of
root's must be out within two seconds, and every count must be exact (soak_attack.py).

Prints a table; the exit code is 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from harness import Cell, own_programs, why_no_bpf
from soak_attack import (
    ALONE,
    FILE_BYTES,
    PASSWORD,
    PROGRAMS,
    REST_SECONDS,
    TIMED,
    attack,
    ground,
    judge,
    kept_incidents,
)
from soak_kept import Kept
from soak_life import EventsFile, Life, Printed
from soak_load import EXECUTABLE, Load, Provoked
from soak_report import Check, Row, checks, lives

from monitor.kernel.abi import COUNTED_AGAIN, Kind
from monitor.metrics.accounts import RESULTS
from monitor.web.scrape import KEPT_SECONDS

DISK = "4m"
EVENTS_FILE_BYTES = 1 << 28  # more than the disk has
CANARY_SECONDS = 5
RELOAD_SECONDS = 20.0
ROTATE_SECONDS = 45.0
FULL_SECONDS = 8.0
SAMPLE_SECONDS = 10.0
WINDOW_SECONDS = 600.0
EVENT_SECONDS = 10.0
IDLE_SECONDS = 100.0  # a bucket is given back after 60
ALIVE_SECONDS = 13.0  # how old the last report of a killed run may be
DETACH_SECONDS = 3.0  # from when nothing is seen any more to the end of the process
GROWTH = 0.02
GROWTH_MIB = 0.7
# Of the last 1,024 processes, 512 callers and 4,096 cgroups something is kept, with whose it is,
# and a minute after the start comes the first look at what is sealed. A long run is looked at
# after that; in a short one it fills up: by 1.4 to 2.1 MiB.
FILLING_MIB, FILLING_SECONDS = 1.9, 300.0
ATTACK_SECONDS = 40.0
OWN = {EXECUTABLE, *PROGRAMS}  # programs whose violations are known
TWICE = tuple(each.label for each in COUNTED_AGAIN)
USUAL_EVENTS = {"started", "stopped", "reloaded", "reload_failed", "sink_failed", "sink_recovered"}
GAPS_FAILED = 'seal_monitor_events_total{kind="suppression",result="failed"}'
KILL_SECONDS = 60.0
FLOODED_EVENTS = {"events_file_full", "events_dropped"}

OUTPUT = """
[output]
events_file = "{folder}/disk/events.jsonl"
events_file_max_size = {most}
"""
CONFIGURATION = """
[state]
directory = "{state}"
pin = "{pin}"
[events]
denials = ["sealed", "not_sealed", "unverified"]
faults = ["guard_region", "prot_none", "stack_guard", "sealed", "pkey", "other"]
handled_faults = ["guard_region", "prot_none", "stack_guard", "sealed", "pkey", "other"]
seals = {seals}
[canary]
interval = {canary}
[workloads]
maximum = 1024
[watch]
compat = true
io_uring = true
[[mute]]
operation = "munmap"
executable = "{executable}"
reason = "the soak's own"
"""


class Reload(NamedTuple):
    """A configuration to be read again, and the message that must come of it."""

    seals: bool
    more: str
    event: str
    refused: tuple[str, ...]
    successful: int


RELOADS = (
    Reload(True, "", "reloaded", (), 1),
    Reload(True, "[ring]\nsize = 65536\n", "reloaded", ("ring.size",), 0),
    Reload(False, "[rate_limit]\nburst = 0\n", "reload_failed", (), 0),
    Reload(False, "", "reloaded", (), 1),
)


@dataclass
class Chore:
    """Something to do every so many seconds while a daemon lives."""

    interval: float
    do: Callable[[], object]
    due: float = 0.0


def configuration(state: Path, pin: Path | str = "", *, seals: bool = False) -> str:
    """`state` and `pin` are directories."""
    return CONFIGURATION.format(
        state=state,
        pin=pin,
        executable=EXECUTABLE,
        seals=str(seals).lower(),
        canary=CANARY_SECONDS,
    )


@dataclass
class Soak:
    folder: Path
    minutes: float
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    reloads: int = 0
    full_disks: int = 0
    strangers: int = 0
    course: list[float] = field(default_factory=list)  # RSS of the long life, MiB
    siege: dict[str, int] = field(default_factory=dict)  # how often each attack was made

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.configuration = self.folder / "config.toml"
        self.configure(RELOADS[-1])
        self.file = EventsFile(self.folder / "disk" / "events.jsonl")
        self.load = Load(self.folder)
        self.life: Life | None = None
        self.kept: Kept | None = None
        self.beside: list[Chore] = []  # those that go on from one life to the next

    def configure(self, wanted: Reload, most: int = EVENTS_FILE_BYTES) -> None:
        text = OUTPUT.format(folder=self.folder, most=most)
        text += configuration(self.folder / "state", seals=wanted.seals) + wanted.more
        new = self.configuration.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.replace(self.configuration)

    def check(self, what: str, found: object, wanted: str, is_well: bool) -> None:
        self.checks.append((what, str(found), wanted, is_well))

    def problem(self, text: str) -> None:
        self.problems.append(text)
        if len(self.problems) <= 20:
            self.say(f"PROBLEM: {text}")

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.0f} s  {text}", flush=True)

    # ---- Chores ----------------------------------------------------------------------------------

    def reload(self, life: Life) -> None:
        wanted = RELOADS[self.reloads % len(RELOADS)]
        self.reloads += 1
        self.configure(wanted)
        before = len(life.reports(wanted.event))
        life.hangup()
        try:
            event = life.wait_for(wanted.event, before, EVENT_SECONDS)
        except TimeoutError as error:
            self.problem(str(error))
            return
        refused = tuple(event["details"].get("refused", ()))
        time.sleep(KEPT_SECONDS)  # a scrape may be as old
        metric = life.scraper.scrape()["seal_monitor_config_last_reload_successful"]
        if (refused, metric) != (wanted.refused, wanted.successful):
            self.problem(f"reload: refused {refused}, metric {metric:g}, not as in {wanted}")

    def fill_disk(self, life: Life) -> None:
        """For a while there is no room for the events file; then there is again."""
        if self.file.path.with_suffix(".old").exists():
            return
        filler = self.folder / "disk" / "filler"
        failed, recovered = (len(life.reports(name)) for name in ("sink_failed", "sink_recovered"))
        self.full_disks += 1
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            life.wait_for("sink_failed", failed, EVENT_SECONDS)
            time.sleep(FULL_SECONDS)
            filler.unlink()
            life.wait_for("sink_recovered", recovered, EVENT_SECONDS)
        except TimeoutError as error:
            self.problem(f"full disk: {error}")
        finally:
            filler.unlink(missing_ok=True)

    def live(self, life: Life, seconds: float) -> None:
        """Let it live under the load for so long."""
        now = time.monotonic()
        end = now + seconds
        chores = [
            Chore(1.0, self.file.follow),
            Chore(min(SAMPLE_SECONDS, seconds / 24), life.sample),
            Chore(min(RELOAD_SECONDS, seconds / 6), lambda: self.reload(life)),
            Chore(min(ROTATE_SECONDS, seconds / 4), self.rotate),
            Chore(min(300.0, seconds / 3), lambda: self.fill_disk(life)),
            Chore(60.0, lambda: self.progress(life)),
        ]
        for chore in chores:
            chore.due = now + chore.interval
        chores += self.beside
        while (now := time.monotonic()) < end:
            for chore in chores:
                if now >= chore.due:
                    chore.due = now + chore.interval
                    self.attempt(chore)
            time.sleep(0.2)

    def attempt(self, chore: Chore) -> None:
        try:
            chore.do()
        except OSError as error:
            self.problem(f"{type(error).__name__}: {error}")

    def rotate(self) -> None:
        if not self.file.path.with_suffix(".old").exists():
            self.file.rotate()

    def progress(self, life: Life) -> None:
        sample = life.samples[-1]
        self.say(
            f"{sum(life.printed.lines.values())} events, {sum(self.load.made.values())} processes, "
            f"RSS {sample.rss:.2f} MiB, {len(self.problems)} problems"
        )

    # ---- Lives -----------------------------------------------------------------------------------

    def start(
        self, ended: str | None, down_since: float | None, *flags: str, **options: Any
    ) -> Life:
        """Another life, which must know how the one before it ended and for how long it was."""
        self.life = life = Life(self.configuration, *flags, **options)
        probes = life.started["details"]["probes"]
        self.load.probes = set(probes)
        self.load.at_seal = {name for name, mode in probes.items() if mode == "fexit"}
        blind, past = life.started["blind_seconds"], life.started["details"]["last_run"]
        if ended is None:
            return life
        assert down_since is not None
        down = time.monotonic() - down_since
        known = past["ended"] if past else "nothing"
        most = down + (ALIVE_SECONDS if ended == "killed" else DETACH_SECONDS)
        is_well = known == ended and 0 < blind < most
        found = f"{known}, {blind:.1f} s" if past else known
        wanted = f"{ended}, at most {most:.1f} s"
        self.check("blind window reported at the start", found, wanted, is_well)
        return life

    def settle(self, life: Life) -> dict[str, float]:
        """The last scrape, when nothing happens any more."""
        self.load.pause()
        deadline = time.monotonic() + 10
        series = life.scraper.scrape()
        while time.monotonic() < deadline:
            time.sleep(1.2)  # longer than a gap in events stays open
            before, series = series, life.scraper.scrape()
            if counted(before) == counted(series):
                break
        self.file.follow()
        return series

    def finish(
        self,
        name: str,
        life: Life,
        series: dict[str, float] | None,
        provoked: Provoked | None = None,
        *,
        is_flooded: bool = False,
    ) -> None:
        """Stop it; `series` is the last scrape where the load had come to rest before.

        `provoked`: in its life, where that is not since the load last began from 0. `is_flooded`:
        there were more events than the events file and the queues had room for.
        """
        cpu, seconds = life.cpu_seconds(), time.monotonic() - life.began
        last = life.scraper.scrape()
        stopped = life.stop()
        life.kill()  # gives back what was opened for it
        self.file.follow()
        printed = life.printed
        lost = losses(life, stopped)
        for kind, numbers in by_kind(stopped).items():
            results = sum(numbers[result] for result in RESULTS)
            if numbers["counted"] != results:
                self.problem(
                    f"{name}: {kind}: counted {numbers['counted']}, accounted for {results}"
                )
            # One that came, and was not yet known to have come at a kill, counts as failed.
            if not 0 <= printed.lines[kind] - numbers["delivered"] <= lost[kind]:
                self.problem(
                    f"{name}: {kind}: delivered {numbers['delivered']}, came {printed.lines[kind]}"
                )
            is_gap_lost = life.kills and last[GAPS_FAILED]
            if numbers["suppressed"] != printed.suppressed[kind] and not is_gap_lost:
                self.problem(
                    f"{name}: {kind}: suppressed {numbers['suppressed']}, reported "
                    f"{printed.suppressed[kind]}"
                )
        if last['seal_monitor_canary_runs_total{result="failure"}']:
            self.problem(f"{name}: a canary failed")
        self.strangers += len(strangers(life))
        unusual = {event["event"] for event in printed.health} - USUAL_EVENTS
        unusual -= FLOODED_EVENTS if is_flooded else set()
        if unusual:
            self.problem(f"{name}: health events {', '.join(sorted(unusual))}")
        self.problems += [f"{name}: {text}" for text in (*printed.problems, *life.scraper.problems)]
        matched = "-"
        if series is not None:
            mismatches = [
                *differences(life, series, lost, provoked or self.load.provoked),
                *at_stop(life, stopped, series, lost, provoked or self.load.provoked),
            ]
            for text in mismatches:
                self.problem(f"{name}: {text}")
            matched = "no" if mismatches else "yes"
            if not is_flooded and not life.kills:
                self.compare_file(name, printed, series)
        details = by_kind(stopped)
        self.rows.append(
            Row(
                name,
                seconds,
                {kind: numbers["counted"] for kind, numbers in details.items()},
                sum((Counter({r: n[r] for r in RESULTS}) for n in details.values()), Counter()),
                matched,
                life.scraper.scrapes,
                life.scraper.slowest,
                len(life.reports("reloaded")) + len(life.reports("reload_failed")),
                int(last['seal_monitor_canary_runs_total{result="success"}']),
                100 * cpu / seconds,
                life.ready,
            )
        )
        self.say(f"{name}: {stopped['summary']}")

    def compare_file(self, name: str, printed: Printed, series: dict[str, float]) -> None:
        errors = int(series['seal_monitor_sink_errors_total{sink="file"}'])
        ids, came = self.file.ids[self.lines_before :], sum(printed.lines.values())
        if len(ids) + errors != came:
            self.problem(
                f"{name}: {len(ids)} events in the file and {errors} errors, but {came} came"
            )
        if not set(ids) <= printed.ids:
            self.problem(f"{name}: the events file has events that never came")

    def begin(self) -> None:
        """The load of another life."""
        self.configure(RELOADS[-1])
        self.load.forget()
        self.lines_before = len(self.file.ids)

    def close(self) -> None:
        self.load.close()
        self.file.close()
        for life in (self.life, self.kept and self.kept.life):
            if life:
                life.kill()

    def run(self) -> None:
        total = self.minutes * 60
        short = min(60.0, total / 9)

        pin = self.folder / "bpffs" / "seal-monitor"
        folder = self.folder / "kept"
        self.kept = kept = Kept(folder, configuration(folder / "state", pin=pin), pin)
        every = min(KILL_SECONDS, total / 15)
        self.beside.append(Chore(every, kept.revive, time.monotonic() + every))

        self.begin()
        life = self.start(None, None)
        self.load.resume()
        self.live(life, short)
        self.finish("stopped under load", life, None)
        down = time.monotonic()
        self.load.pause()

        self.begin()
        life = self.start("stopped", down)
        self.load.resume()
        self.live(life, short)
        life.kill()
        down = time.monotonic()
        self.say("killed")
        self.load.pause()
        self.file.follow()

        self.begin()
        life = self.start("killed", down)
        self.load.resume()
        self.live(life, total - 3 * short)
        series = self.settle(life)
        self.growth(life)
        self.rest(life)
        self.finish("the long one", life, series | life.scraper.scrape())
        down = time.monotonic()

        self.begin()
        life = self.start("stopped", down)
        self.load.resume()
        self.live(life, short)
        self.finish("after it", life, self.settle(life))
        down = time.monotonic()
        self.end_kept(kept)

        self.attacked(max(ATTACK_SECONDS, total / 6), down)
        self.problems += self.load.problems

    def end_kept(self, kept: Kept) -> None:
        provoked = self.load.before + self.load.provoked
        self.finish("killed every minute", kept.life, self.settle(kept.life), provoked)
        self.checks += kept.checks()
        self.problems += kept.problems
        self.beside.clear()

    # ---- An attacker beside it -------------------------------------------------------------------

    def attacked(self, seconds: float, down: float) -> None:
        """A life without the steady load."""
        self.begin()
        self.configure(RELOADS[-1], FILE_BYTES)
        file = self.folder / "disk" / "attacked.jsonl"
        with ground() as place:
            flags = ("--web.config.file", str(place.web), "--events-file", str(file))
            life = self.start(
                "stopped", down, *flags, command=ALONE, timed=TIMED, password=PASSWORD
            )
            siege, singles = attack(life, place, seconds)
            self.load.provoked.expected += siege.cells() + singles.cells
            self.siege = siege.made
            self.problems += [f"under attack: {text}" for text in siege.problems]
            series = self.settle(life)
            time.sleep(REST_SECONDS)
            life.sample()
            self.checks += judge(life, series, file)
            self.finish("under attack", life, series, is_flooded=True)
            self.checks.append(kept_incidents(self.configuration))

    # ---- What must not grow ----------------------------------------------------------------------

    def growth(self, life: Life) -> None:
        began, ended = life.samples[0].at, life.samples[-1].at
        is_long = ended - began > 4 * FILLING_SECONDS
        if is_long:
            began += FILLING_SECONDS
        window = min(WINDOW_SECONDS, (ended - began) / 3)
        samples = [sample for sample in life.samples if sample.at >= began]
        first = [s for s in samples if s.at <= began + window]
        last = [s for s in samples if s.at >= ended - window]
        label = f"first and last {window / 60:.1f} minutes"
        if is_long:
            label = f"{label} after {FILLING_SECONDS / 60:.0f}"
        for name, of in (("RSS", "rss"), ("anonymous memory", "anonymous")):
            before, after = (mean(getattr(s, of) for s in part) for part in (first, last))
            limit = max(GROWTH * before, GROWTH_MIB)
            limit += 0 if is_long else FILLING_MIB
            self.check(
                f"{name}, {label}",
                f"{before:.2f} -> {after:.2f} MiB",
                f"at most {limit:+.2f} MiB",
                after - before <= limit,
            )
        self.course = [s.rss for s in life.samples[:: max(1, len(life.samples) // 12)]]
        for name in ("descriptors", "threads"):
            before, after = (min(int(getattr(s, name)) for s in part) for part in (first, last))
            self.check(
                f"{name}, fewest, {label}", f"{before} -> {after}", "no more", after <= before
            )

    def rest(self, life: Life) -> None:
        """Without violations, what the kernel holds for them is given back."""
        busy = self.own_buckets(life)
        deadline = time.monotonic() + IDLE_SECONDS
        while (left := self.own_buckets(life)) and time.monotonic() < deadline:
            time.sleep(2)
        self.check(
            "buckets of the rate limit, at work and after a rest",
            f"{busy} -> {left}",
            "0",
            not left,
        )
        allowed = self.load.cgroups + 1 + len(strangers(life))
        workloads = life.map_entries().workloads
        self.check(
            f"workloads, for {self.load.cgroups} cgroups that came and went",
            workloads,
            f"at most {allowed}, each for an hour",
            workloads <= allowed,
        )

    def own_buckets(self, life: Life) -> int:
        """How many buckets there are, without those of other processes."""
        others = strangers(life)
        return sum(1 for pid in life.map_entries().buckets if pid not in others)


def differences(
    life: Life, series: dict[str, float], lost: Counter[str], provoked: Provoked
) -> Iterator[str]:
    """A line for each counter that is not what was provoked. `lost`: events, by kind, that a
    kill may have kept from coming; only by its events is known what a process did that is
    another's, or was killed itself.
    """
    others, by_killed = of_others(life, provoked.killed)
    found, expected = counted(series), provoked.expected
    for cause in {cell[1] for cell in others if cell[0] == "fault"}:
        # Of another's that ended in its handler no event says so, as one said before that it was
        # handled (bpf/endings.c).
        handled, ended = ("fault", cause, "handler"), ("fault", cause, "handler_ended")
        moved = min(others[handled], max(found[ended] - expected[ended] - others[ended], 0))
        others[handled] -= moved
        others[ended] += moved
    are_others = bool(strangers(life))
    for cell in sorted({*found, *expected, *others}):
        # What others sealed makes no event most of the time.
        if are_others and cell[0] in ("seal", "sealed_bytes") and found[cell] > expected[cell]:
            continue
        if not 0 <= found[cell] - others[cell] - expected[cell] <= lost[cell[0]]:
            yield (
                f"{' '.join(cell)}: counted {found[cell]}, {others[cell]} of them of others, "
                f"but provoked {expected[cell]}"
            )
    for pid, reported in provoked.killed.items():
        if not reported - lost["denial"] <= by_killed[pid] <= reported + 1:
            yield f"killed process {pid}: denials {reported}, events {by_killed[pid]}"


def at_stop(
    life: Life,
    stopped: dict[str, Any],
    series: dict[str, float],
    lost: Counter[str],
    provoked: Provoked,
) -> Iterator[str]:
    """A line for each final count that is not that of the last scrape."""
    found = counted(series)
    are_others = bool(strangers(life))
    twice = sum(n for c, n in found.items() if c[-1] in TWICE)
    for kind, numbers in by_kind(stopped).items():
        total = sum(number for cell, number in found.items() if cell[0] == kind)
        total += twice if kind == Kind.FAULT.label else 0
        if are_others and kind == Kind.SEAL.label and numbers["counted"] > total:
            continue  # others have sealed since
        if numbers["counted"] != total:
            yield f"{kind}: counted {numbers['counted']} at the end, {total} at the last scrape"
        for result in RESULTS:
            name = f'seal_monitor_events_total{{kind="{kind}",result="{result}"}}'
            if numbers[result] != series[name]:
                yield f"{name} was {series[name]:g}, but {numbers[result]} at the end"
    muted = sum(n for c, n in provoked.expected.items() if c[:2] == ("denial", "munmap"))
    filtered = stopped["details"]["denial"]["filtered"]
    if not 0 <= muted - filtered <= lost["denial"]:
        yield f"{filtered} denials were filtered, but {muted} muted ones provoked"


def by_kind(stopped: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The final counts."""
    details = stopped["details"]
    return {kind.label: details[kind.label] for kind in Kind if kind.label in details}


def losses(life: Life, stopped: dict[str, Any]) -> Counter[str]:
    """How many events, by kind, may not have come because a process was killed."""
    if not life.kills:
        return Counter()
    return Counter({kind: row["failed"] for kind, row in by_kind(stopped).items()})


def counted(series: dict[str, float]) -> Counter[Cell]:
    """The kernel's counters, in a scrape."""
    cells: Counter[Cell] = Counter()
    for name, value in series.items():
        base, _, labels = name.partition("{")
        values = tuple(labels.split('"')[1::2])
        match base:
            case "seal_monitor_denials_total":
                cells["denial", *values] = int(value)
            case "seal_monitor_faults_total":
                cells["fault", *values] = int(value)
            case "seal_monitor_bypasses_total":
                cells["bypass", *values] = int(value)
            case "seal_monitor_seals_total":
                cells["seal",] = int(value)
            case "seal_monitor_sealed_bytes_total":
                cells["sealed_bytes",] = int(value)
    return cells


def strangers(life: Life) -> set[int]:
    """Pids of processes that made violations and are not the load's."""
    return {pid for name, pid, _ in life.printed.by_process if name not in OWN}


def of_others(life: Life, killed: Collection[int]) -> tuple[Counter[Cell], Counter[int]]:
    """What events say of processes that are not the load's or are `killed`, and how many events
    each of those that are has.
    """
    others: Counter[Cell] = Counter()
    by_killed: Counter[int] = Counter()
    for (name, pid, cell), number in life.printed.by_process.items():
        if cell[0] == "seal":
            continue
        is_killed = name == EXECUTABLE and pid in killed
        if is_killed:
            by_killed[pid] += number
        if name in OWN and not is_killed:
            continue
        others[cell] += number
        if cell[-1] in TWICE:  # two events, counted once
            others["fault", cell[1], "handler"] -= number
    return others, by_killed


# ---- The whole ----------------------------------------------------------------------------------


def report(soak: Soak) -> str:
    made = ", ".join(f"{number} {kind}" for kind, number in sorted(soak.load.made.items()))
    attacks = ", ".join(f"{name} {number}" for name, number in soak.siege.items())
    unsupported = ", ".join(f"{name} ({why})" for name, why in soak.load.unsupported.items())
    return "\n".join(
        [
            "",
            lives(soak.rows),
            "",
            checks(soak.checks),
            "",
            f"provoked: {made}; not possible here: {unsupported or 'nothing'}",
            f"the attacker made: {attacks or 'nothing'}",
            f"RSS over the long one, MiB: {' '.join(f'{rss:.2f}' for rss in soak.course)}",
            f"processes of others, known by their events: {soak.strangers}",
            f"events file: {len(soak.file.ids)} events, {soak.file.rotations} rotations, "
            f"{soak.full_disks} full disks",
            *(f"PROBLEM: {text}" for text in soak.problems),
            "all well" if is_well(soak) else "NOT WELL",
        ]
    )


def is_well(soak: Soak) -> bool:
    return not soak.problems and all(ok for *_, ok in soak.checks)


def programs_left(before: dict[int, str]) -> list[str]:
    """Names of the BPF programs that were not there before; the kernel frees them late."""
    deadline = time.monotonic() + 30
    while (left := own_programs().items() - before.items()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return sorted(name for _, name in left)


@contextlib.contextmanager
def mounted(folder: Path, kind: str, *options: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, *options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    if problem := why_no_bpf():
        print(f"soak: cannot run here: {problem}", file=sys.stderr)
        return 2
    programs = own_programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends what was started
    with tempfile.TemporaryDirectory(prefix="seal-soak-") as name:
        folder = Path(name)
        (folder / "state").mkdir(mode=0o750)
        disk = mounted(folder / "disk", "tmpfs", "-o", f"size={DISK}")
        with disk, mounted(folder / "bpffs", "bpf"):
            soak = Soak(folder, minutes)
            try:
                soak.run()
            except (OSError, RuntimeError) as error:
                soak.problem(f"given up: {type(error).__name__}: {error}")
            finally:
                soak.close()
    left = programs_left(programs)
    soak.check("BPF programs left", ", ".join(left) or "none", "none", not left)
    print(report(soak))
    return 0 if is_well(soak) else 1


if __name__ == "__main__":
    os.environ.pop("STATE_DIRECTORY", None)
    sys.exit(main())
