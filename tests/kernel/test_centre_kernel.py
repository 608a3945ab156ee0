"""Twenty hosts, real violations, and all that can go wrong on the way to the centre.

Each host has a network, mounts, a machine id, a name and a cgroup of its own. The right answers are
computed from what the daemons wrote to their standard output, which must be what was done.
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
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from centre import Centre, clickhouse, postgresql
from collector import Collector, Request, answer, until
from fleet_answers import ANY, KINDS, OF_THE_COMMAND, Answers, comparable
from fleet_events import Fact
from harness import new_cgroup
from lan import CENTRE, address, box, own_network
from test_daemon import RUN_APART, Compile, Event, Running

from monitor.evidence.cgroups import workload_name
from monitor.fleet import questions

pytestmark = pytest.mark.host_wide

HOSTS = 20
FULL = range(5)  # hosts whose disk is full
KILLED = range(5, 10)
LATE = range(15, 20)  # where another user does something else at the end
ROUNDS = (7, 11, 13)  # denials of each host: before, while the collector is away, afterwards
MADE = sum(ROUNDS)
LATER = 3  # denials of each of those
USERS = {"root": 0, "nobody": 65534}
IN_TIME = 120.0
DISK = "256k"
ENGINES: dict[str, Callable[[], AbstractContextManager[Centre]]] = {
    "clickhouse": clickhouse,
    "postgresql": postgresql,
}
ENTER = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')


class Did(NamedTuple):
    """What a process did, as its events must have it."""

    host_id: str
    operation: str
    uid: int
    pid: int


class Host:
    """`inside`: words before a command, which runs on the host then."""

    def __init__(
        self, number: int, folder: Path, cgroup: Path, inside: Sequence[str], endpoint: str
    ) -> None:
        self.id, self.name = machine_id(number), name(number)
        self.state = folder / "state"
        self.did: Counter[Did] = Counter()
        self._folder = folder
        self._prefix = (*ENTER, str(cgroup), *inside)
        self._configuration = (
            f'[state]\ndirectory = "{self.state}"\n[otlp]\nendpoint = "{endpoint}"\n'
            "[incidents]\nenabled = false\n"
        )
        self._listen = ("--web.listen-address", f"{address(number)}:0")
        self._lives: list[Running] = []
        self._made = 0

    @property
    def daemon(self) -> Running:
        return self._lives[-1]

    def start(self) -> None:
        folder = self._folder / str(len(self._lives))
        folder.mkdir()
        self._made = 0
        command = (sys.executable, *RUN_APART)
        self._lives.append(
            Running(
                folder, self._configuration, *self._listen, prefix=self._prefix, command=command
            )
        )

    def violate(
        self, program: Path, times: int, operation: str = "mprotect", user: str = "root"
    ) -> None:
        as_user = ("setpriv", f"--reuid={USERS[user]}", f"--regid={USERS[user]}", "--clear-groups")
        storm = (str(program), "1", str(times), "0", operation)
        with subprocess.Popen([*self._prefix, *as_user, *storm], stdout=subprocess.PIPE) as process:
            assert json.loads(process.communicate(timeout=60)[0])["total"] == times
        self.did[Did(self.id, operation, USERS[user], process.pid)] = times
        self._made += times

    def denials(self) -> list[Event]:
        """What its daemons wrote to their standard output."""
        return [event for life in self._lives for event in life.events("denial")]

    def has_stored(self) -> bool:
        """All that was made in this life is in the spool, or sent."""
        delivered = 'seal_monitor_events_total{kind="denial",result="delivered"}'
        return self.daemon.metric(delivered) == self._made

    def has_sent(self) -> bool:
        return self.daemon.metric('seal_monitor_sink_spool_bytes{sink="otlp"}') == 0

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()


def machine_id(number: int) -> str:
    return f"5ea1{number:028x}"


def name(number: int) -> str:
    return f"host-{number:02}"


def fact(event: Event) -> Fact:
    """A denial as a row of the centre."""
    seconds, _, rest = event["time"].removesuffix("Z").partition(".")
    process = event["process"]
    builds = {frame.get("build_id") for frame in event["stack"] or ()}
    return Fact(
        time_us=int(datetime.fromisoformat(f"{seconds}Z").timestamp()) * 10**6 + int(rest[:6]),
        id=event["id"],
        host=event["host"]["name"],
        host_id=event["host"]["id"],
        kind=event["kind"],
        what=event["operation"],
        severity=event["severity"],
        fingerprint=event["fingerprint"],
        events=1,
        suppressed=0,
        verdict=event["verdict"],
        likely=event["assessment"]["likely"],
        workload=workload_name(event["workload"]["cgroup"]),
        executable=process["executable"] or "",
        user_name=process["user_name"] or "",
        build_ids=tuple(sorted(filter(None, {*builds, process["executable_build_id"]}))),
    )


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
def network(require_bpf: None) -> Iterator[None]:
    with own_network():
        yield


@pytest.fixture
def engines(network: None) -> Iterator[dict[str, Centre]]:
    with contextlib.ExitStack() as opened:
        yield {name: opened.enter_context(make()) for name, make in ENGINES.items()}


@pytest.fixture
def hosts(tmp_path: Path, network: None) -> Iterator[Callable[[str], list[Host]]]:
    made: list[Host] = []
    with contextlib.ExitStack() as opened:

        def build(endpoint: str) -> list[Host]:
            for number in range(HOSTS):
                folder = tmp_path / f"host{number}"
                (folder / "state").mkdir(parents=True)
                if number in FULL:
                    opened.enter_context(small_disk(folder / "state"))
                cgroup = opened.enter_context(new_cgroup(f"host{number}"))
                inside = box(folder, machine_id(number), name(number), number)
                made.append(Host(number, folder, cgroup, opened.enter_context(inside), endpoint))
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


def denials(centre: Centre) -> list[str]:
    """Their ids, in order."""
    found = centre.rows("SELECT id FROM seal_monitor.events WHERE kind = 'denial'")
    return sorted(id for (id,) in found)


def is_in_memory(event: Event) -> bool:
    """Whether it reports that the spool's disk is full."""
    return event.get("event") == "state_failed" and "kept in memory" in event["message"]


def has(centre: Centre, number: int) -> bool:
    return len(denials(centre)) >= number


def build_id(program: Path) -> str:
    shown = subprocess.run(["readelf", "-n", program], check=True, capture_output=True, text=True)
    return shown.stdout.partition("Build ID: ")[2].split()[0]


def asked(
    spreading: str, late: str, since: datetime, program: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Each question of an investigation. `late` is new since then."""
    ever = {"since": since - timedelta(days=1), "until": since + timedelta(days=1)}
    before, after = ever | {"until": since}, ever | {"since": since}
    kinds: dict[str, Any] = {"kinds": KINDS, "limit": 50}
    incidents = kinds | ever | ANY | {"rank": 0}
    return [
        ("incidents", incidents),
        ("incidents", incidents | {"host": name(LATE[0] - 1)}),
        ("incidents", incidents | {"operation": "munmap", "rank": 1}),
        ("hosts", {"fingerprint": spreading, "limit": 100}),
        ("hosts", {"fingerprint": late, "limit": 100}),
        ("radius", {"fingerprint": spreading}),
        ("radius", {"fingerprint": late}),
        ("spread", {"fingerprint": spreading, "limit": 24}),
        ("spread", {"fingerprint": late, "limit": 24}),
        ("new", kinds | before),
        ("new", kinds | after),
        ("timeline", ever | {"host": name(FULL[0]), "limit": 1000}),
        ("timeline", after | {"host": name(KILLED[0]), "limit": 1000}),
        ("user", ever | {"user": "root", "limit": 1000}),
        ("user", ever | {"user": "nobody", "limit": 1000}),
        ("build_id", {"build_id": build_id(program), "limit": 10}),
        ("similar", {"fingerprint": spreading, "limit": 10}),
        ("similar", {"fingerprint": late, "limit": 10}),
    ]


def test_every_denial_is_at_the_centre_once(
    hosts: Callable[[str], list[Host]],
    engines: dict[str, Centre],
    compiled: Compile,
) -> None:
    program = compiled("storm")
    stores = Centres(list(engines.values()))
    collector = Collector(address=CENTRE)
    collector.behave = stores
    began = time.monotonic()
    try:
        fleet = hosts(collector.endpoint)
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

        since = datetime.now(UTC)
        collector = Collector(address=CENTRE, port=collector.port)
        collector.behave = stores
        for host in fleet:
            host.violate(program, ROUNDS[2])
        for number in LATE:
            fleet[number].violate(program, LATER, "munmap", "nobody")
        for which, engine in engines.items():
            number = HOSTS * MADE + len(LATE) * LATER
            assert until(partial(has, engine, number), IN_TIME), (which, len(denials(engine)))
        print(f"all there after {time.monotonic() - began:.1f} s")
        assert all(until(host.has_sent, IN_TIME) for host in fleet)
    finally:
        collector.close()

    written = [event for host in fleet for event in host.denials()]
    assert Counter(map(done, written)) == sum((host.did for host in fleet), Counter())
    check_answers([fact(event) for event in written], engines, since, program)


def done(event: Event) -> Did:
    process = event["process"]
    host = event["host"]["id"]
    return Did(host, event["operation"], process["uid"], process["pid"])


def check_answers(
    facts: Sequence[Fact], engines: dict[str, Centre], since: datetime, program: Path
) -> None:
    # Of a process that has ended before it is looked at, the base name alone is known.
    assert {fact.executable for fact in facts} <= {str(program), program.name}
    (spreading,) = {fact.fingerprint for fact in facts if fact.what == "mprotect"}
    (late,) = {fact.fingerprint for fact in facts if fact.what == "munmap"}
    answers = Answers(facts)
    every = asked(spreading, late, since, program)
    assert {question for question, _ in every} == set(questions.names()) - OF_THE_COMMAND
    for which, engine in engines.items():
        assert denials(engine) == sorted(fact.id for fact in facts), which
        for question, values in every:
            found = comparable(question, engine.ask(question, **values))
            if question == "timeline":  # what else a host reports depends on how quick it is
                found = [row for row in found if row[1] == "denial"]
            assert found == answers.ask(question, **values), (which, question, values)
            assert found, (which, question, values)
        ((new, *_, on_hosts, times),) = engine.ask("new", **dict(every)["new"])
        assert (new, on_hosts, times) == (late, len(LATE), len(LATE) * LATER), which
        (radius,) = engine.ask("radius", fingerprint=spreading)
        assert (radius[0], radius[6]) == (HOSTS, HOSTS * MADE), which
