"""What a fleet costs Prometheus: `make bench-fleet` measures it and writes docs/fleet-cost.md.

A page of a real daemon is served for each host, with what changes from scrape to scrape; one host
in a hundred has denials. A real Prometheus scrapes them, in turns without rules and with all.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gzip
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench_daemon import Running
from bench_report import Report, Section, Table, markdown, terminal
from harness import why_no_bpf
from panels import ALL, DOCUMENTS, Json
from prometheus import Prometheus, program, running

from monitor.version import revision, version

__all__ = ["BUSY", "TREND", "Fleet", "Panels", "Phase", "fleet", "overview", "phase", "stored"]

JOB = "seal-monitor"
RULES = Path(__file__).parents[1] / "dashboards/rules"
INTERVAL = 15  # seconds from one scrape to the next, and from one evaluation: Debian's own
BUSY = 100  # one host of so many has denials
PER_SERVER = 500  # hosts
TIMES = 3  # of each query, of which the best counts
BARS = 20  # in a panel over time
EXTRAPOLATED = 10_000
BUSY_HOST, QUIET = "host-00000:10462", "host-00001:10462"
TREND = "instance:seal_monitor_guard_faults:deadly"  # of the group that is evaluated last
SLOW_GROUP = 300.0  # seconds by which it was
LOAD = os.getloadavg()

# ---- The hosts -----------------------------------------------------------------------------------

# What changes on a quiet host: the name of a series -> its value at a time of a host.
_CHANGING: Mapping[str, Callable[[float, int], float]] = {
    "process_cpu_seconds_total": lambda at, host: at * 0.0005 + host,
    "process_resident_memory_bytes": lambda at, host: 2**20 * (21 + (host + at // 300) % 4),
    'seal_monitor_canary_runs_total{result="success"}': lambda at, host: (at + host) // 60,
    "seal_monitor_canary_last_success_timestamp_seconds": lambda at, _: time.time() - at % 60,
    "seal_monitor_posture_last_success_timestamp_seconds": lambda at, _: time.time() - at % 300,
    "seal_monitor_seals_total": lambda at, host: (at + 7 * host) // 30,
    "seal_monitor_sealed_bytes_total": lambda at, host: 8192 * ((at + 7 * host) // 30),
}
_SINCE = "seal_monitor_counters_since_timestamp_seconds"
# What a host with denials has besides, or instead.
_DENIALS = (
    'seal_monitor_denials_total{operation="mprotect",verdict="sealed"}',
    'seal_monitor_workload_denials_total{verdict="sealed",workload="web.service"}',
    'seal_monitor_violations_total{kind="denial",severity="critical",workload="web.service"}',
)


# Counters of what the page's own host may have seen.
_SEEN = re.compile(
    r"seal_monitor_(?:denials|unverified_denials|partial_updates|faults|bypasses|violations"
    r"|workload_denials)_total\b|seal_monitor_last_violation_timestamp_seconds\b"
)


class _Hosts:
    """The pages of some hosts, made of a real one."""

    def __init__(self, page: str) -> None:
        self._began = time.time()
        self._lines = [line for line in map(self._resting, page.splitlines()) if line is not None]
        names = {line.rpartition(" ")[0] for line in self._lines if not line.startswith("#")}
        self.size = len(names)
        missing = {*_CHANGING, _DENIALS[0]} - names
        assert not missing, f"the page has no {missing}"

    def _resting(self, line: str) -> str | None:
        """A line as it is where nothing ever happened; None for one that would not be there."""
        name = line.rpartition(" ")[0]
        if name in ("process_start_time_seconds", _SINCE):
            return f"{name} {self._began - 86400}"
        if _SEEN.match(line):
            others = 'workload="' in line and 'workload="other"' not in line
            return None if others else f"{name} 0"
        return line

    def page(self, host: int) -> bytes:
        at = time.time() - self._began
        values = {name: value(at, host) for name, value in _CHANGING.items()}
        more = ""
        if host % BUSY == 0:
            denied = at // 60 + 1
            values[_DENIALS[0]] = denied
            more = "".join(f"{name} {denied:.15g}\n" for name in _DENIALS[1:])
        lines = (
            f"{name} {values[name]:.15g}\n"
            if (name := line.rpartition(" ")[0]) in values
            else f"{line}\n"
            for line in self._lines
        )
        return gzip.compress(("".join(lines) + more).encode(), 6)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                body = self.page(int(request.split(b"/", 2)[1].split(b" ")[0]))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
                    b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _serve(page: str, started: multiprocessing.Queue[int]) -> None:
    async def serve() -> None:
        server = await asyncio.start_server(_Hosts(page).answer, "127.0.0.1", 0, backlog=1000)
        started.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def _servers(page: str, hosts: int) -> Iterator[list[int]]:
    """Ports; a host's is that of its number, divided by PER_SERVER."""
    started: multiprocessing.Queue[int] = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=_serve, args=(page, started), daemon=True)
        for _ in range(0, hosts, PER_SERVER)
    ]
    try:
        for process in processes:
            process.start()
        yield [started.get(timeout=30) for _ in processes]
    finally:
        for process in processes:
            process.terminate()
            process.join()


# ---- Prometheus ----------------------------------------------------------------------------------


class Fleet(NamedTuple):
    """A Prometheus that scrapes `hosts` hosts of `series` series, in pages of `page_bytes`."""

    server: Prometheus
    hosts: int
    series: int
    page_bytes: int
    load_rules: Callable[[bool], None]  # all, or none


@contextmanager
def fleet(folder: Path, page: str, hosts: int, interval: int = INTERVAL) -> Iterator[Fleet]:
    """It has no rules until they are loaded."""
    configuration = folder / "prometheus.yml"
    targets = folder / "targets.json"

    def configure(rules: list[str]) -> None:
        often = {"scrape_interval": f"{interval}s", "evaluation_interval": f"{interval}s"}
        found = {"file_sd_configs": [{"files": [str(targets)]}]}
        jobs = [{"job_name": JOB, **found}]
        written = {"global": often, "rule_files": rules, "scrape_configs": jobs}
        configuration.write_text(json.dumps(written), "utf-8")

    with _servers(page, hosts) as ports:
        groups = [
            {
                "targets": [f"127.0.0.1:{ports[host // PER_SERVER]}"],
                "labels": {"__metrics_path__": f"/{host}", "instance": f"host-{host:05}:10462"},
            }
            for host in range(hosts)
        ]
        targets.write_text(json.dumps(groups), "utf-8")
        configure([])
        command = (
            *(program("prometheus"), f"--config.file={configuration}", "--web.enable-lifecycle"),
            *(f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"),
        )
        with running(folder / "prometheus.log", *command) as url:

            def load_rules(wanted: bool) -> None:
                configure([str(RULES / "*.yml")] if wanted else [])
                asked = urllib.request.Request(f"{url}/-/reload", method="POST")
                with urllib.request.urlopen(asked, timeout=60):
                    pass

            one = _Hosts(page)
            yield Fleet(Prometheus(url), hosts, one.size, len(one.page(1)), load_rules)


def _own(server: Prometheus) -> dict[str, float]:
    """Prometheus's metrics of itself."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in found}


class Phase(NamedTuple):
    """Some minutes: CPU seconds a second, bytes, series in memory, samples a second."""

    cpu: float
    rss: float
    series: int
    samples: float


def phase(server: Prometheus, seconds: float) -> Phase:
    began, before = time.monotonic(), _own(server)
    time.sleep(seconds)
    after, took = _own(server), time.monotonic() - began

    def rate(name: str) -> float:
        return (after[name] - before[name]) / took

    appended = (name for name in after if name.startswith("prometheus_tsdb_head_samples_appended"))
    return Phase(
        rate("process_cpu_seconds_total"),
        after["process_resident_memory_bytes"],
        int(after["prometheus_tsdb_head_series"]),
        sum(map(rate, appended)),
    )


def turns(found: Fleet, rounds: int, seconds: float) -> tuple[Phase, Phase]:
    """Without rules and with them, by turns, since others use this machine too: the means. The
    rules stay."""
    phases: dict[bool, list[Phase]] = {False: [], True: []}
    for _ in range(rounds):
        for wanted, kept in phases.items():
            found.load_rules(wanted)
            time.sleep(2 * INTERVAL)  # until the first evaluation has made its series
            kept.append(phase(found.server, seconds))
    without, with_rules = (
        kept[-1]._replace(cpu=statistics.fmean(each.cpu for each in kept))
        for kept in phases.values()
    )
    return without, with_rules


# ---- The overview --------------------------------------------------------------------------------


class Panels(NamedTuple):
    """CPU seconds of all panels once, and the seconds of each by Prometheus's word."""

    cpu: float
    seconds: Mapping[str, float]


def overview(
    server: Prometheus, seconds: int, document: Json, resting: float, hosts: str = ALL
) -> Panels:
    """The panels of the last so many seconds; `resting` is what Prometheus takes without them."""
    bar = seconds // BARS
    values = {
        "__range_s": str(seconds),
        "__range": f"{seconds}s",
        "__interval_ms": str(bar * 1000),
        "__interval": f"{bar}s",
        "job": JOB,
        "instance": hosts,
        "workload": ".*",
    }

    def took(target: Mapping[str, str], end: float) -> float:
        query = target["expr"]
        for name, value in values.items():
            query = query.replace(f"${name}", value)
        span = {"start": end - seconds, "end": end, "step": bar}
        path, when = ("query", {"time": end}) if target["instant"] else ("query_range", span)
        found = server.get(path, query=query, stats="all", **when)
        return float(found["stats"]["timings"]["execTotalTime"])

    began, before = time.monotonic(), _own(server)["process_cpu_seconds_total"]
    found = {
        str(panel["title"]): min(
            sum(took(target, time.time()) for target in panel["targets"]) for _ in range(TIMES)
        )
        for panel in document["panels"]
        if panel["type"] != "row"
    }
    used = _own(server)["process_cpu_seconds_total"] - before
    return Panels(max(used - resting * (time.monotonic() - began), 0) / TIMES, found)


def stored(server: Prometheus) -> dict[str, list[str]]:
    """The names of the recorded series of each host."""
    names: dict[str, list[str]] = {}
    for series in server.instant('{__name__=~".+:seal_monitor_.+",instance!=""}', time.time()):
        names.setdefault(series["metric"]["instance"], []).append(series["metric"]["__name__"])
    return {host: sorted(found) for host, found in names.items()}


# ---- The page ------------------------------------------------------------------------------------

INTRODUCTION = """\
Made by `make bench-fleet`, which serves the page of a real daemon for every host to a real
Prometheus, lets it scrape for some minutes, by turns with and without the rules, and writes this
page. One host in a hundred has a
denial a minute; the others are quiet."""
WAITED = """\
It was busy with other work: the seconds of the overview are of waiting too, and CPU seconds are
more than on a machine at rest, up to twice as many."""
EXTRAPOLATION = """\
CPU, series and samples grow with the hosts, as one look at each is all there is, and memory with
the series; so the last column is a multiple of the one before. It was not measured, and leaves out
what grows otherwise: days of history in a query, compaction, a start with a long write-ahead log,
and hosts that are all busy at once."""


def report(
    found: Fleet, without: Phase, with_rules: Phase, panels: Panels, of_one: Panels
) -> Report:
    times = EXTRAPOLATED // found.hosts

    def row(what: str, value: float, form: str = ",.0f") -> list[str]:
        return [what, format(value, form), format(value * times, form)]

    kept = stored(found.server)
    quiet = kept[QUIET]
    rules = (with_rules.cpu - without.cpu) * INTERVAL
    header = ("", f"{found.hosts:,} hosts", f"{EXTRAPOLATED:,} hosts, extrapolated")
    costs = Table(
        "Prometheus, scraping and evaluating every 15 s",
        header,
        [
            row("samples a second", with_rules.samples),
            row("series in memory", with_rules.series),
            row("memory, MiB", with_rules.rss / 2**20),
            row("CPU without rules, % of a core", 100 * without.cpu, ",.1f"),
            row("CPU with all rules, % of a core", 100 * with_rules.cpu, ",.1f"),
            row("the rules in 15 s, CPU seconds", rules, ".2f"),
            row("the overview of all hosts, CPU seconds", panels.cpu, ".2f"),
            row("the overview of one host, CPU seconds", of_one.cpu, ".2f"),
        ],
        "The overview is all its panels once, one query after another, for the time of the"
        " measurement. The rules are the difference between phases with and without them.",
    )
    worst = sorted(panels.seconds.items(), key=lambda each: -each[1])[:5]
    host = Table(
        "",
        ("", ""),
        [
            ["series in its page", f"{found.series}"],
            ["bytes of a scrape, in gzip", f"{found.page_bytes:,}"],
            ["series that the rules store", f"{len(quiet)}"],
        ],
        f"Stored: {', '.join(f'`{name}`' for name in quiet)}.",
    )
    slowest = Table(
        "The panels that take most, of all hosts",
        ("", "ms, best of three"),
        [[title, f"{1e3 * took:,.0f}"] for title, took in worst],
    )
    machine = Table(
        "",
        ("", ""),
        [
            ["measured", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"],
            ["seal-monitor", version() + f", commit {revision()}" * bool(revision())],
            ["Prometheus", str(found.server.get("status/buildinfo")["version"])],
            ["CPUs", str(os.cpu_count())],
            ["load average before", f"{LOAD[0]:.1f}"],
        ],
    )
    return Report(
        "What a fleet costs Prometheus",
        (INTRODUCTION,),
        [
            Section("The machine", (WAITED if LOAD[0] > (os.cpu_count() or 1) else "",), [machine]),
            Section("A quiet host", (), [host]),
            Section("A fleet", (EXTRAPOLATION,), [costs, slowest]),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000, help="default: 1000")
    parser.add_argument("--minutes", type=float, default=2, help="of each phase; default: 2")
    parser.add_argument("--rounds", type=int, default=2, help="of two phases; default: 2")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the report as a page")
    arguments = parser.parse_args()
    if problem := why_no_bpf():
        print(f"bench-fleet: no daemon can run here: {problem}", file=sys.stderr)
        return 3
    seconds = 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="seal-monitor-fleet-") as name:
        folder = Path(name)
        with Running(folder) as daemon:
            page = daemon.scrape()
            daemon.stop()
        with fleet(folder, page, arguments.hosts) as found:
            time.sleep(3 * INTERVAL)  # until all are known
            without, with_rules = turns(found, arguments.rounds, seconds)
            shown = int(2 * seconds), DOCUMENTS["overview.json"], with_rules.cpu
            panels = overview(found.server, *shown)
            of_one = overview(found.server, *shown, BUSY_HOST)
            deadline = time.monotonic() + SLOW_GROUP
            while TREND not in stored(found.server)[QUIET] and time.monotonic() < deadline:
                time.sleep(INTERVAL)
            made = report(found, without, with_rules, panels, of_one)
    for section in made.sections:
        print(terminal(section))
    if arguments.write:
        arguments.write.write_text(markdown(made), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
