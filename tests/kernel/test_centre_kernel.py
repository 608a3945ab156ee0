"""Twenty hosts, real violations, and all that can go wrong on the way to the centre.

Each host is a daemon in a cgroup of its own, with an id and a state directory of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from centre import Centre, clickhouse, postgresql
from collector import Collector, Request, answer, until
from harness import new_cgroup
from test_daemon import RUN_APART, Compile, Event, Running

pytestmark = pytest.mark.host_wide

HOSTS = 20
FULL = range(5)  # hosts whose disk is full
KILLED = range(5, 10)
ROUNDS = (7, 11, 13)  # denials of each host: before, while the collector is away, afterwards
MADE = sum(ROUNDS)
IN_TIME = 120.0
DISK = "256k"
ENGINES: dict[str, Callable[[], AbstractContextManager[Centre]]] = {
    "clickhouse": clickhouse,
    "postgresql": postgresql,
}
ENTER = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')


class Host:
    def __init__(self, number: int, folder: Path, cgroup: Path, port: int) -> None:
        self.id = f"{number:032x}"
        self.state = folder / "state"
        self._folder, self._cgroup = folder, cgroup
        self._configuration = (
            f'[host]\nid = "{self.id}"\n[state]\ndirectory = "{self.state}"\n'
            f'[otlp]\nendpoint = "http://127.0.0.1:{port}"\n[incidents]\nenabled = false\n'
        )
        self._lives = 0
        self.made = 0

    def start(self) -> None:
        folder = self._folder / str(self._lives)
        folder.mkdir()
        self._lives += 1
        self.made = 0
        self.daemon = Running(
            folder,
            self._configuration,
            prefix=(*ENTER, str(self._cgroup)),
            command=(sys.executable, *RUN_APART),
        )

    def violate(self, program: Path, times: int) -> None:
        storm = (str(program), "1", str(times), "0", "mprotect")
        done = subprocess.run(
            [*ENTER, str(self._cgroup), *storm], check=True, capture_output=True, timeout=60
        )
        assert json.loads(done.stdout)["total"] == times
        self.made += times

    def has_stored(self) -> bool:
        """All that was made in this life is in the spool, or sent."""
        delivered = 'seal_monitor_events_total{kind="denial",result="delivered"}'
        return self.daemon.metric(delivered) == self.made

    def has_sent(self) -> bool:
        return self.daemon.metric('seal_monitor_sink_spool_bytes{sink="otlp"}') == 0

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()


class Centres:
    """A receiver that stores before it answers, in both databases."""

    def __init__(self, engines: Sequence[Centre]) -> None:
        self._engines = engines
        self._one_at_a_time = threading.Lock()

    def __call__(self, collector: Collector, connection: Any, request: Request) -> None:
        lines = [record["body"]["stringValue"] for record in request.records]
        with self._one_at_a_time:
            for engine in self._engines:
                engine.load(lines)
        answer()(collector, connection, request)


@pytest.fixture
def engines() -> Iterator[dict[str, Centre]]:
    with contextlib.ExitStack() as opened:
        yield {name: opened.enter_context(make()) for name, make in ENGINES.items()}


@pytest.fixture
def hosts(tmp_path: Path, require_bpf: None) -> Iterator[Callable[[int], list[Host]]]:
    made: list[Host] = []
    with contextlib.ExitStack() as opened:

        def build(port: int) -> list[Host]:
            for number in range(HOSTS):
                folder = tmp_path / f"host{number}"
                (folder / "state").mkdir(parents=True)
                if number in FULL:
                    opened.enter_context(small_disk(folder / "state"))
                cgroup = opened.enter_context(new_cgroup(f"host{number}"))
                made.append(Host(number, folder, cgroup, port))
                opened.callback(made[-1].kill)
                made[-1].start()
            for host in made:
                host.daemon.health("started", IN_TIME)
            return made

        yield build


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    options = ("-t", "tmpfs", "-o", f"size={DISK},mode=750", "tmpfs")
    subprocess.run(["mount", *options, str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def denials(centre: Centre) -> tuple[dict[str, int], int]:
    """How many each host has, by the ids; and how many have an id that is there twice."""
    query = "SELECT host_id, id FROM seal_monitor.events WHERE kind = 'denial'"
    found = centre.rows(query)
    return Counter(host for host, _ in found), len(found) - len({number for _, number in found})


def is_in_memory(event: Event) -> bool:
    """Whether it reports that the spool's disk is full."""
    return event.get("event") == "state_failed" and "kept in memory" in event["message"]


def has_all(centre: Centre, expected: dict[str, int]) -> bool:
    return denials(centre)[0] == expected


def test_every_denial_is_at_the_centre_once(
    hosts: Callable[[int], list[Host]],
    engines: dict[str, Centre],
    compiled: Compile,
) -> None:
    program = compiled("storm")
    stores = Centres(list(engines.values()))
    collector = Collector()
    collector.behave = stores
    began = time.monotonic()
    try:
        fleet = hosts(collector.port)
        print(f"{HOSTS} daemons ready after {time.monotonic() - began:.1f} s")
        for host in fleet:
            host.violate(program, ROUNDS[0])
        assert all(until(host.has_stored, IN_TIME) for host in fleet)

        collector.close()
        for number in FULL:
            fill(fleet[number].state)
        for host in fleet:
            host.violate(program, ROUNDS[1])
        assert all(until(host.has_stored, IN_TIME) for host in fleet)
        for number in FULL:
            fleet[number].daemon.wait_for(is_in_memory, IN_TIME)
        for number in KILLED:
            assert list((fleet[number].state / "otlp").iterdir())
            fleet[number].kill()
        for number in KILLED:
            fleet[number].start()
        for number in KILLED:
            fleet[number].daemon.health("started", IN_TIME)

        collector = Collector(port=collector.port)
        collector.behave = stores
        for host in fleet:
            host.violate(program, ROUNDS[2])
        expected = {host.id: MADE for host in fleet}
        for name, engine in engines.items():
            assert until(partial(has_all, engine, expected), IN_TIME), (name, denials(engine)[0])
        print(f"all there after {time.monotonic() - began:.1f} s")
        assert all(until(host.has_sent, IN_TIME) for host in fleet)
    finally:
        collector.close()
    for name, engine in engines.items():
        assert denials(engine) == (expected, 0), name
        fingerprints = engine.rows(
            "SELECT DISTINCT fingerprint FROM seal_monitor.events WHERE kind = 'denial'"
        )
        ((fingerprint,),) = fingerprints
        found = engine.ask("hosts", fingerprint=fingerprint, limit=100)
        assert {row[1]: (row[4], row[5]) for row in found} == {host.id: (MADE, 0) for host in fleet}
        (radius,) = engine.ask("radius", fingerprint=fingerprint)
        assert (radius[0], radius[6]) == (HOSTS, HOSTS * MADE)
