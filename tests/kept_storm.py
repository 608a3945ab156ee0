"""A storm of violations in a booted machine, and whether all of it was counted and reported."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from machine import Event, Machine

__all__ = [
    "Storm",
    "became",
    "build",
    "counted",
    "counters",
    "nothing_is_lost",
    "repeated",
    "scraped",
    "settled",
]

SOURCE = Path(__file__).parent / "assets/kept_storm.c"
PROGRAM = "usr/local/bin/kept_storm"
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:10462/metrics", timeout=5).read().decode())
"""
DATABASE = """
import json, sqlite3
database = sqlite3.connect("file:/var/lib/seal-monitor/incidents.db?mode=ro", uri=True)
(state,) = database.execute("PRAGMA integrity_check").fetchone()
sums = dict(database.execute("SELECT kind, sum(events) FROM incidents GROUP BY kind"))
kept = database.execute("SELECT json_extract(event, '$.id') FROM events").fetchall()
print(json.dumps([state, sums, [name for (name,) in kept]]))
"""
KINDS = ("denial", "fault", "bypass")
STARTS = ("fresh", "resumed", "replaced")


def build(root: Path) -> None:
    """The program, in a directory that becomes a machine's root; it runs whatever libc is there."""
    program = root / PROGRAM
    program.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-O1", "-static", "-pthread", "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)


def scraped(machine: Machine) -> dict[str, float]:
    """Every series of the monitor's own; empty while it does not answer."""
    found = re.findall(
        r"^(seal_monitor_\S+) (\S+)$", machine.run("/usr/bin/python3", "-c", SCRAPE), re.M
    )
    return {name: float(value) for name, value in found}


def counters(series: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in series.items() if "_total" in name}


def became(series: dict[str, float]) -> dict[str, float]:
    """By kind: the events whose result is counted."""
    name = 'seal_monitor_events_total{kind="%s",'
    return {
        kind: sum(value for each, value in series.items() if each.startswith(name % kind))
        for kind in KINDS
    }


def counted(series: dict[str, float]) -> dict[str, float]:
    """The same as the kernel counted. A fault whose handler's frame did not fit, or which ended
    the process all the same, is counted twice there, and exported once as handled.
    """
    again = re.compile(r'seal_monitor_faults_total\{.*disposition="handler_(failed|ended)"')
    names = re.compile(r"seal_monitor_(denials|faults|bypasses)_total\{")
    kinds = dict(zip(("denials", "faults", "bypasses"), KINDS, strict=True))
    sums = dict.fromkeys(KINDS, 0.0)
    for each, value in series.items():
        if name := names.match(each):
            sums[kinds[name[1]]] += value * (2 if again.match(each) else 1)
    return sums


def settled(machine: Machine) -> dict[str, float]:
    """A scrape when no event is on its way, if there is such a moment soon."""
    deadline = time.monotonic() + 30
    while True:
        series = scraped(machine)
        if became(series) == counted(series) or time.monotonic() > deadline:
            return series
        time.sleep(0.5)


class Storm:
    """A unit that violates; at its end, `made` is how many of each series its program made."""

    SERIES = (
        'seal_monitor_workload_denials_total{verdict="sealed",workload="storm.service"}',
        'seal_monitor_faults_total{cause="guard_region",disposition="handler"}',
        'seal_monitor_bypasses_total{method="madvise_discard"}',
        'seal_monitor_bypasses_total{method="ptrace_poke"}',
    )

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._first = scraped(machine)
        self._seen, self.down = counters(self._first), Counter[str]()
        self._since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._stored, _ = in_store(machine)
        self.made: dict[str, float] = {}
        self.last: dict[str, float] = {}
        machine.run("systemd-run", "--quiet", "--unit=storm", f"/{PROGRAM}", "4000")

    def look(self) -> None:
        """Scrape, and note which counters are less than before."""
        now = counters(scraped(self._machine))
        self.down.update(name for name, value in now.items() if value < self._seen.get(name, 0))
        self._seen.update(now)

    def end(self) -> None:
        machine = self._machine
        machine.wait("start", lambda: machine.show("ActiveState") == "active", 60)
        self.look()
        machine.run("systemctl", "kill", "-s", "TERM", "storm.service")
        machine.wait("quiet", lambda: scraped(machine).get("seal_monitor_ring_used_bytes") == 0, 60)
        unit = ("is-active", "storm.service")
        machine.wait("end of the storm", lambda: machine.run("systemctl", *unit) != "active")
        machine.run("journalctl", "--sync")
        pattern = "^[0-9]+ [0-9]+ [0-9]+ [0-9]+$"
        said = machine.run("journalctl", "-u", "storm", "-o", "cat", "-g", pattern)
        numbers = map(float, said.splitlines()[-1].split())
        self.made = dict(zip(self.SERIES, numbers, strict=True))
        self.last = settled(machine)
        self.look()

    def gained(self, name: str) -> float:
        return self.last[name] - self._first.get(name, 0)

    def events(self, kinds: Collection[str] = KINDS) -> list[Event]:
        """In the journal, since it began."""
        lines = self._machine.run(
            *("journalctl", "-u", "seal-monitor", "-o", "cat"),
            "--output-fields=SEAL_MONITOR_EVENT",
        ).splitlines()
        found = [json.loads(line) for line in lines if line[:1] == "{"]
        return [
            event
            for event in found
            if event["kind"] in kinds and event["time_boot_ns"] >= self._since_ns
        ]

    def seconds_to_ready(self) -> list[float]:
        """Of each start that came so far."""
        events = self.events(("health",))
        ready = [each["details"]["ready_seconds"] for each in events if each["event"] == "started"]
        return sorted(ready)

    def stored(self) -> tuple[dict[str, int], list[str]]:
        """Events in incidents, by kind, and the ids of those that are kept."""
        found, kept = in_store(self._machine)
        return {kind: found.get(kind, 0) - self._stored.get(kind, 0) for kind in KINDS}, kept


def in_store(machine: Machine) -> tuple[dict[str, int], list[str]]:
    state, sums, kept = json.loads(machine.run("/usr/bin/python3", "-c", DATABASE))
    assert state == "ok"
    return sums, kept


def nothing_is_lost(storm: Storm) -> None:
    """All is counted, once, and no event is lost or repeated."""
    last, events = storm.last, storm.events()
    stored, kept = storm.stored()
    starts = {kind: last.get(f'seal_monitor_starts_total{{kind="{kind}"}}') for kind in STARTS}
    print(starts, last["seal_monitor_unread_seconds_total"], storm.made)
    ready = storm.seconds_to_ready()
    print("seconds to ready:", *ready)
    assert {name: storm.gained(name) for name in storm.SERIES} == storm.made
    assert all(storm.made.values())
    assert starts["fresh"] == 1
    assert became(last) == counted(last)
    assert storm.down == {}
    assert repeated(event["id"] for event in events) == []
    assert repeated(kept) == []

    # An event on its way to the sinks when the daemon was killed counts as failed; it may be in one
    # of them all the same.
    of = Counter(event["kind"] for event in events)
    result = 'seal_monitor_events_total{kind="%s",result="%s"}'
    for kind in KINDS:
        delivered = storm.gained(result % (kind, "delivered"))
        failed = storm.gained(result % (kind, "failed"))
        print(kind, delivered, failed, of[kind], stored[kind])
        assert delivered <= of[kind] <= delivered + failed
        # What the journal took is delivered: a kill may come before the incidents have it.
        assert delivered - len(ready) <= stored[kind] <= delivered + failed


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
