"""How much the centre stores, and how soon it answers: a million events on the real engines.

    bench_centre.py [--events N] [--write PAGE]

Writes the tables between the marks of docs/fleet.md. ClickHouse gets the events in batches, as from
a collector; it is asked at once, when it has merged only some of them, and when it has merged all.
PostgreSQL, which is for small fleets, gets a tenth of the events.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from centre import Centre, clickhouse, postgresql
from fleet_events import HOSTS, Fleet

TRIES = 5
BUSY = (
    "**The machine did other work (a load of {:.0f}), so that only the CPU times count**: on idle "
    "cores a question takes no longer than that, and mostly half of it on two."
)
BATCH = 4000  # events, 8 MiB: as large as collector.yaml lets them become
MARKS = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
TICK = os.sysconf("SC_CLK_TCK")

Asked = Sequence[tuple[str, str, dict[str, Any]]]
# What the question is for, its best time in ms, and the engine's CPU time in ms where it is known.
Times = Sequence[tuple[str, float, float | None]]


def asked(fleet: Fleet, now: datetime, worst: Sequence[str]) -> Asked:
    """`worst`: the ids of the incidents that the first question finds."""
    ever = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": now}
    day = {"since": now - timedelta(days=1), "until": now}
    some = dict.fromkeys(
        ("host", "executable", "workload", "verdict", "likely", "operation"), ""
    ) | {"kinds": ("denial", "fault", "bypass"), "limit": 50, "fingerprint": "%"}
    of_it = {"fingerprint": fleet.spreading}
    busy, usual = fleet.hosts[97], fleet.hosts[50]
    return (
        ("all incidents, the worst first", "incidents", {**some, **ever, "rank": 0}),
        ("in what these differ", "facets", {"fingerprints": worst, "limit": 100}),
        ("their last events", "last", {"fingerprints": worst, "limit": 4 * len(worst)}),
        ("critical ones of a day", "incidents", {**some, **day, "rank": 2}),
        ("new ones of a day", "new", {"kinds": some["kinds"], "limit": 50, **day}),
        ("the hosts of an incident", "hosts", {**of_it, "limit": HOSTS}),
        ("its blast radius", "radius", of_it),
        ("its spread by hour", "spread", {**of_it, "limit": 1000}),
        ("similar incidents", "similar", {**of_it, "limit": 50}),
        ("the timeline of a host", "timeline", {"host": usual, "limit": 1000, **ever}),
        ("that of the busiest host", "timeline", {"host": busy, "limit": 1000, **ever}),
        ("the trail of a user in a day", "user", {"user": "build", "limit": 1000, **day}),
        (
            "executables by build id",
            "build_id",
            {"build_id": fleet.programs[3].build_id, "limit": 50},
        ),
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def timed(centre: Centre, fleet: Fleet, now: datetime, pid: int | None) -> Times:
    found = []
    _, first, values = asked(fleet, now, ("",))[0]
    worst = tuple(row[0] for row in centre.ask(first, **values))
    for title, name, values in asked(fleet, now, worst):
        times, work = [], []
        for _ in range(TRIES):
            begun, busy = time.perf_counter(), cpu_seconds(pid) if pid else 0.0
            centre.ask(name, **values)
            times.append(time.perf_counter() - begun)
            work.append((cpu_seconds(pid) if pid else 0.0) - busy)
        found.append((title, min(times) * 1000, sum(work) / TRIES * 1000 if pid else None))
    return found


def in_clickhouse(lines: Path, fleet: Fleet, now: datetime) -> tuple[list[str], Times, Times]:
    size = (
        "SELECT sumIf(rows, table = 'records') AS events, sum(bytes_on_disk) / events, count() "
        "FROM system.parts WHERE active AND database = 'seal_monitor'"
    )
    with clickhouse() as centre:
        pid = centre.pid
        begun, busy = time.perf_counter(), cpu_seconds(pid)
        with lines.open(encoding="utf-8") as text:
            while batch := [*itertools.islice(text, BATCH)]:
                centre.load(line.rstrip("\n") for line in batch)
        seconds, work = time.perf_counter() - begun, cpu_seconds(pid) - busy
        centre.execute("SYSTEM STOP MERGES")  # or what is just inserted would not remain so
        ((rows, bytes_fresh, parts),) = centre.rows(size)
        fresh = timed(centre, fleet, now, pid)
        centre.execute("SYSTEM START MERGES")
        for table in ("records", "host_records"):
            centre.execute(f"OPTIMIZE TABLE seal_monitor.{table} FINAL")
        ((_, bytes_merged, merged_parts),) = centre.rows(size)
        merged = timed(centre, fleet, now, pid)
    facts = [
        f"{rows:,} events in {seconds:.0f} s, {work:.0f} s of CPU, in batches of {BATCH:,}",
        f"{bytes_fresh:.0f} bytes an event in {parts} parts, {bytes_merged:.0f} in {merged_parts}",
    ]
    return facts, fresh, merged


def in_postgresql(lines: Path, fleet: Fleet, now: datetime) -> tuple[list[str], Times]:
    with postgresql() as centre, lines.open(encoding="utf-8") as text:
        begun = time.perf_counter()
        centre.load(line.rstrip("\n") for line in text)
        seconds = time.perf_counter() - begun
        centre.rows("VACUUM ANALYZE seal_monitor.records")
        ((rows, size),) = centre.rows(
            "SELECT count(*), pg_total_relation_size('seal_monitor.records') "
            "FROM seal_monitor.records"
        )
        times = timed(centre, fleet, now, None)
    return [f"{rows:,} events in {seconds:.0f} s", f"{size / rows:,.0f} bytes an event"], times


def written(folder: Path, count: int, now: datetime) -> tuple[Path, Fleet]:
    fleet, lines = Fleet(count, now), folder / f"{count}.ndjson"
    with lines.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line, _ in fleet.lines())
    return lines, fleet


def table(rows: Sequence[tuple[str, float, float | None]], *more: Times) -> list[str]:
    found = []
    for row in zip(rows, *more, strict=True):
        cells = [
            f"{ms:,.0f} ms" + (f" ({cpu:,.0f})" if cpu is not None else "") for _, ms, cpu in row
        ]
        found.append(f"| {row[0][0]} | {' | '.join(cells)} |")
    return found


def page(count: int, folder: Path) -> str:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    load = os.getloadavg()[0]
    facts, fresh, merged = in_clickhouse(*written(folder, count, now), now)
    few_facts, few = in_postgresql(*written(folder, count // 10, now), now)
    lines = [
        f"{now:%Y-%m-%d}, {os.cpu_count()} CPUs, Linux {platform.release()}: a week of "
        f"{HOSTS:,} hosts, best of {TRIES}; in brackets the mean of the engine's own CPU time.",
        *((BUSY.format(load),) if load > 1 else ()),
        "",
        f"* ClickHouse's engine: {'; '.join(facts)}.",
        f"* PostgreSQL: {'; '.join(few_facts)}.",
        "",
        f"| | ClickHouse, just inserted | ClickHouse, merged | PostgreSQL, {count // 10:,} |",
        "|---|---:|---:|---:|",
        *table(fresh, merged, few),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = page(arguments.events, Path(folder))
    if arguments.write is None:
        print(text)
        return
    old = arguments.write.read_text("utf-8")
    arguments.write.write_text(MARKS.sub(lambda found: found[1] + text + found[2], old), "utf-8")


if __name__ == "__main__":
    main()
