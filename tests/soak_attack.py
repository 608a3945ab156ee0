"""An attacker beside the daemon: an ordinary user who does everything at once that could delay,
hide or remove what others do, while root makes single violations.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import bcrypt
from attackers import NOBODY, by_nobody, by_nobody_in_cgroup, delegated, http_clients, in_cgroup
from harness import Cell, entered_cgroup, own_cgroup
from soak_life import Life
from soak_report import Check

from monitor.evidence import waiting

__all__ = [
    "ALONE",
    "FILE_BYTES",
    "PASSWORD",
    "PROGRAMS",
    "REST_SECONDS",
    "TIMED",
    "Ground",
    "attack",
    "ground",
    "judge",
    "kept_incidents",
]

TESTS = Path(__file__).parent
# Events cannot say who made how many beside a flood, so this life sees the attacked cgroup alone.
ALONE = (str(TESTS / "apart.py"), "run")
PASSWORD = "correct horse"
SINGLES, FIRST = 100, 4  # so many before them
PROMISED_SECONDS = 2.0
REST_SECONDS = 5.0  # before and after
HEIGHT_SECONDS = 2.0  # from the first attack to when all are at work
END_SECONDS = 60.0  # how long after its time an attack may still be ending
FILE_BYTES = 1 << 20
TIMED = SINGLE, STEPS = "soak-single", "soak-steps"
PROGRAMS = {*TIMED, "flood", "evict", "slow_lock"}  # those whose violations are known
PAGE = 4096
FORKED = 20  # denials of each process
RSS_MIB = 46.0
SERVICE_SERIES = re.compile(
    r'seal_monitor_workload_denials_total\{verdict="sealed",workload=".*/web\.service"\}'
)
OPENED = 4  # files and connections that the rest may still have open
CLIENTS = 6  # that guess; the server has more places than that


class Ground(NamedTuple):
    """The attacker's programs, directory and cgroup; a service's cgroup; the web configuration."""

    folder: Path
    cgroup: Path
    service: Path
    web: Path

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def program(self, name: str) -> Path:
        return self.folder / name


@contextmanager
def ground() -> Iterator[Ground]:
    """This process is in a cgroup of its own meanwhile."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="seal-attack-"))
        folder = Path(name)
        folder.chmod(0o755)  # the attacker may go in
        for program in ("flood", "evict", "slow_lock", "storm"):
            source = TESTS / "assets" / f"{program}.c"
            subprocess.run(["gcc", "-O2", "-pthread", source, "-o", folder / program], check=True)
        (folder / "storm").rename(folder / SINGLE)
        shutil.copy(folder / "flood", folder / STEPS)
        (folder / "files").mkdir()
        shutil.chown(folder / "files", NOBODY, NOBODY)
        web = folder / "web.yml"
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
        web.write_text(f"basic_auth_users:\n  prometheus: {hashed}\n", "utf-8")
        stack.enter_context(entered_cgroup(os.getpid()))
        own = own_cgroup()
        if own is None:
            raise RuntimeError("no cgroup2 is mounted, in which the attacker could make scopes")
        user, service = stack.enter_context(delegated(own))
        yield Ground(folder, user, service, web)


# ---- The attacks ---------------------------------------------------------------------------------


def sealed(denials: int, pages: int = 1) -> Counter[Cell]:
    """What so many refused mprotects on so many sealed pages add to the counters."""
    return Counter(
        {
            ("seal",): pages,
            ("sealed_bytes",): pages * PAGE,
            ("denial", "mprotect", "sealed"): denials,
        }
    )


def handled(faults: int) -> Counter[Cell]:
    return Counter({("fault", "prot_none", "handler"): faults})


class Attack(NamedTuple):
    """`words`: the command. `cells`: what it adds to the counters, by the number that it prints."""

    name: str
    words: Callable[[Ground, int, str], Sequence[object]]  # for so many seconds, of this server
    cells: Callable[[int], Counter[Cell]]


ATTACKS = (
    Attack("callers", lambda g, s, _: (g.program("flood"), "callers", 5000, s), sealed),
    Attack(
        "forks",
        lambda g, s, _: (g.program("flood"), "processes", FORKED, s),
        lambda made: sealed(made, made // FORKED),
    ),
    Attack("scopes", lambda g, _, __: (g.program("flood"), "scopes", 1500, g.cgroup), sealed),
    Attack("renamed files", lambda g, s, _: (g.program("evict"), 10**9, g.files, s), handled),
    Attack("slow locks", lambda g, s, _: (g.program("slow_lock"), 64, 16, s), sealed),
    Attack(
        "bad passwords",
        lambda _, __, url: http_clients(url, f"guess {CLIENTS} 127.0.0.1"),
        lambda _: Counter(),
    ),
)


class Siege:
    """All attacks at once, as long as the block lasts; `made` is what each has printed."""

    def __init__(self, place: Ground, seconds: int, url: str) -> None:
        self._place, self._seconds, self._url = place, seconds, url
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.made: dict[str, int] = {}
        self.problems: list[str] = []

    def __enter__(self) -> Siege:
        for each in ATTACKS:
            words: Sequence[object] = (
                "nice",
                "-n",
                "19",
                *each.words(self._place, self._seconds, self._url),
            )
            user = NOBODY
            if each.name == "scopes":
                words, user = by_nobody_in_cgroup(self._place.cgroup, words), 0
            self._running[each.name] = by_nobody(words, user, stdin=subprocess.PIPE)
        time.sleep(HEIGHT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()

    def wait(self) -> None:
        """Until all have ended by themselves."""
        deadline = time.monotonic() + END_SECONDS
        for name, process in self._running.items():
            try:
                output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.problems.append(f"{name}: did not end {END_SECONDS:.0f} s after its time")
                continue
            self.made[name] = int(output.split()[-1]) if output else 0
            if process.returncode or not self.made[name]:
                self.problems.append(
                    f"{name}: ended with {process.returncode} after {self.made[name]}, "
                    f"and not with 0 after many"
                )

    def cells(self) -> Counter[Cell]:
        """What all of it has added to the counters."""
        return sum((each.cells(self.made.get(each.name, 0)) for each in ATTACKS), Counter())


# ---- Beside them ---------------------------------------------------------------------------------


class Singles:
    """Root's violations, one at a time: of fresh processes, and by fresh callers of one that stays.

    `cells`: what they add to the counters.
    """

    def __init__(self, place: Ground) -> None:
        self.cells = sealed(0)  # of the one that stays
        self._place = place

    def __enter__(self) -> Singles:
        words = in_cgroup(self._place.service, [self._place.program(STEPS), "steps", SINGLES])
        self._steps = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.communicate()

    def make(self, number: int) -> None:
        if number % 4 == 3:  # a process is promised one a second
            assert self._steps.stdin
            self._steps.stdin.write(b"\n")
            self.cells += sealed(1, 0)
        else:
            operation = ("mprotect", "madvise")[number % 2]
            words = [self._place.program(SINGLE), 1, 1, 0, operation]
            command = in_cgroup(self._place.service, words)
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            self.cells += sealed(0)
            self.cells["denial", operation, "sealed"] += 1


def attack(life: Life, place: Ground, seconds: float) -> tuple[Siege, Singles]:
    """All attacks for so long, and a hundred single violations, spread over that time.

    The daemon is sampled before, when it has had some violations, all through it, and after it.
    """
    with ExitStack() as stack:
        singles = stack.enter_context(Singles(place))
        for number in range(FIRST):
            singles.make(number)
        time.sleep(REST_SECONDS)
        life.sample()
        life.printed.delays.clear()
        siege = Siege(place, math.ceil(seconds), life.scraper.url)
        began = time.monotonic() + HEIGHT_SECONDS
        stack.enter_context(siege)
        gap = (seconds - HEIGHT_SECONDS - 1) / SINGLES
        for number in range(SINGLES):
            time.sleep(max(0.0, began + number * gap - time.monotonic()))
            singles.make(number)
            if number % 5 == 0:
                life.sample()
        siege.wait()
    return siege, singles


# ---- What must hold ------------------------------------------------------------------------------


def judge(life: Life, series: dict[str, float], file: Path) -> Iterator[Check]:
    """Of a life after its attack, with its last scrape; the counts are compared elsewhere."""
    delays = life.printed.delays
    in_time = sum(delay <= PROMISED_SECONDS for delay in delays)
    yield (
        "attacked: root's violations, out in time",
        f"{in_time} of {SINGLES}, median {median(delays):.2f} s, worst {max(delays):.2f} s, "
        f"{SINGLES - len(delays)} never",
        f"all within {PROMISED_SECONDS:.0f} s",
        in_time == SINGLES,
    )
    counted = sum(value for name, value in series.items() if SERVICE_SERIES.fullmatch(name))
    yield (
        "attacked: root's violations, in the series of their service",
        f"{counted:g}",
        f"{FIRST + SINGLES}",
        counted == FIRST + SINGLES,
    )
    size = sum(each.stat().st_size for each in file.parent.glob(f"{file.stem}.*"))
    yield (
        "attacked: the events file, in all its parts",
        f"{size / 2**20:.2f} MiB",
        f"at most {FILE_BYTES / 2**20:.2f} MiB",
        0 < size <= FILE_BYTES,
    )
    before, *during, after = life.samples
    most = max(sample.rss for sample in during)
    yield (
        "attacked: RSS before, at most, after",
        f"{before.rss:.1f}, {most:.1f}, {after.rss:.1f} MiB",
        f"at most {RSS_MIB:.0f} MiB",
        most <= RSS_MIB,
    )
    # A guesser has a connection and a thread; reads for events, for snapshots and for looks at what
    # is sealed have threads that stay.
    for what, spare in (("descriptors", OPENED), ("threads", 3 * waiting.THREADS)):
        first, last = getattr(before, what), getattr(after, what)
        most = max(getattr(sample, what) for sample in during)
        yield (
            f"attacked: {what} before, at most, after",
            f"{first}, {most}, {last}",
            f"at most {first + spare + 3 * CLIENTS}, then {first + spare}",
            most <= first + spare + 3 * CLIENTS and last <= first + spare,
        )


def kept_incidents(configuration: Path) -> Check:
    """Of root's, when the daemon has ended."""
    command = [sys.executable, "-m", "monitor", "incidents", "list", "--json"]
    command += ["--executable", "soak-s*", "--config", str(configuration)]
    output = subprocess.run(
        command, cwd=TESTS.parent, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout
    found = json.loads(output)
    count = sum(each["count"] for each in found)
    return (
        "attacked: root's violations, in incidents that were kept",
        f"{count}, in {len(found)}",
        f"{FIRST + SINGLES}",
        count == FIRST + SINGLES,
    )
