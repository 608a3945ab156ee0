"""Records become events in sinks, and every one of them is counted once."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from monitor.configuration import config
from monitor.configuration.mutes import Mute
from monitor.evidence import events
from monitor.evidence.attribution import Attribution
from monitor.evidence.cgroups import Cgroups
from monitor.evidence.identity import TICK_NS, Identities
from monitor.evidence.image import ProgramFile, build_id
from monitor.evidence.severities import Severities
from monitor.evidence.suppression import Gap
from monitor.kernel import abi
from monitor.kernel.abi import Bucket, BucketKey, Cause, Kind, Method, Record, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.metrics.tally import Tally
from monitor.sinks.delivery import Delivery
from monitor.sinks.outputs import encode
from monitor.watch.pipeline import Pipeline

VALIDATOR = jsonschema.Draft202012Validator(events.schema())
HOST = events.Host("web-1", "1b4e28ba-2fa1-4d2e-883f-0016d3cca427", "6.18.44")
SEALED_BIT = 1 << 42
START = 0x7F0000001000
MUNMAP = [operation.name for operation in OPERATIONS].index("munmap")
DEAD = 4_194_305  # beyond the largest pid
Event = dict[str, Any]


class Sink:
    """Takes events, unless it has an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[Event] = []
        self.error: OSError | None = None

    def render(self, event: dict[str, object]) -> bytes:
        VALIDATOR.validate(event)
        return encode(event)

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.events.append(json.loads(data))

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Setting:
    """A pipeline and its sinks."""

    def __init__(self, folder: Path, *sinks: str, **options: Any) -> None:
        self.sinks = [Sink(name) for name in sinks or ("json",)]
        self.tally = Tally(sink.name for sink in self.sinks)
        self.delivery = Delivery(self.sinks, self.tally)
        attribution = Attribution(
            options.pop("identities", Identities(proc=folder)),
            Cgroups(proc=folder),
            proc=options.pop("proc", folder),
            start_offset=0,
        )
        self.pipeline = Pipeline(
            HOST,
            SEALED_BIT,
            attribution=attribution,
            delivery=self.delivery,
            tally=self.tally,
            **options,
        )

    @property
    def events(self) -> list[Event]:
        assert self.delivery.wait(10)
        return self.sinks[0].events

    def results(self) -> dict[tuple[str, str], int]:
        assert self.delivery.wait(10)
        return {key: count for key, count in self.tally.events.items() if count}


Make = Callable[..., Setting]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Setting] = []

    def _make(*sinks: str, **options: Any) -> Setting:
        made.append(Setting(tmp_path, *sinks, **options))
        return made[-1]

    yield _make
    for setting in made:
        setting.delivery.close()


def record(kind: Kind = Kind.DENIAL, **values: Any) -> Record:
    facts: dict[str, Any] = {
        "kind": kind,
        "time_boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "start_boot_ns": 5_000_000_000,
        "pid": DEAD,
        "tid": DEAD,
        "parent_pid": 1,
        "vpid": 7,
        "operation": MUNMAP,
        "address": START,
        "length": 0x1000,
        "task_name": b"worker",
        "executable": b"python3",
        "mapping": abi.Mapping(start=START, end=START + 0x1000, flags=1 | SEALED_BIT),
    }
    return Record(**{**facts, **values})


def gap(**values: Any) -> Gap:
    bucket = Bucket(
        suppressed=3,
        first_suppressed_ns=10_000_000_000,
        last_suppressed_ns=12_000_000_000,
        task_name=b"worker",
    )
    key = {"pid": DEAD, "start_boot_ns": 5_000_000_000, "kind": Kind.DENIAL, "what": MUNMAP}
    return Gap(BucketKey(**{**key, **values}), bucket, "warning")


def mute(**asked: Any) -> Mute:
    return Mute(reason="known", **asked)


# ---- Events --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_record(make: Make, kind: Kind) -> None:
    setting = make()
    setting.pipeline.take([record(kind)])
    (event,) = setting.events
    assert event["kind"] == kind.label
    assert event["host"] == {
        "name": "web-1",
        "boot_id": HOST.boot_id,
        "kernel_release": "6.18.44",
        "id": None,
    }
    assert setting.results() == {(kind.label, "delivered"): 1}
    assert sum(setting.tally.delays) == 1


def test_suppression(make: Make) -> None:
    setting = make()
    setting.pipeline.suppression(gap())
    setting.pipeline.suppression(Gap(BucketKey(), gap().bucket, "critical"))
    one, many = setting.events
    assert (one["kind"], one["of"], one["operation"], one["count"]) == (
        "suppression",
        "denial",
        "munmap",
        3,
    )
    assert (one["process"]["pid"], one["process"]["name"]) == (DEAD, "worker")
    assert (one["severity"], many["severity"]) == ("warning", "critical")
    assert many["process"] is None
    assert setting.results() == {("suppression", "delivered"): 2}


def test_every_violation_is_counted_by_severity(make: Make, tmp_path: Path) -> None:
    """Whatever becomes of its event: muted, not delivered, not understood or held back."""
    severities = Severities(Cgroups(proc=tmp_path), 1024)
    setting = make(severities=severities, mutes=(mute(operation="munmap"),))
    setting.sinks[0].error = OSError(errno.ENOSPC, "full")
    madvise = [operation.name for operation in OPERATIONS].index("madvise")
    setting.pipeline.take(
        [
            record(cgroup_id=7),  # muted
            record(cgroup_id=7, operation=madvise),
            record(cgroup_id=7, operation=255),
            record(cgroup_id=8, verdict=Verdict.NOT_SEALED),  # no violation
            record(Kind.SEAL, cgroup_id=8),
            record(Kind.BYPASS, cgroup_id=8, bypass=abi.Bypass(method=0, pid=1)),
        ]
    )
    setting.pipeline.suppression(gap())
    setting.pipeline.suppression(gap(what=madvise)._replace(severity="critical"))
    setting.pipeline.suppression(Gap(BucketKey(kind=Kind.FAULT), gap().bucket, "critical"))
    assert severities.counts() == {
        ("cgroup:7", "denial", "warning"): 1,
        ("cgroup:7", "denial", "critical"): 2,
        ("cgroup:8", "bypass", "critical"): 1,
        ("cgroup:0", "denial", "warning"): 3,
        ("cgroup:0", "denial", "critical"): 3,
        ("other", "fault", "critical"): 3,
    }


@pytest.mark.parametrize(
    ("executable", "name"),
    [(b"engine", "engine"), (b"", "worker-3"), (b"engine (deleted)", "engine")],
)
def test_a_suppression_names_the_program(make: Make, executable: bytes, name: str) -> None:
    """And not the thread that was first, nor the one that was last."""
    setting = make()
    setting.pipeline.take([record(task_name=b"worker-3", executable=executable, tid=DEAD + 1)])
    setting.pipeline.suppression(gap())
    _, event = setting.events
    process = event["process"]
    assert (process["name"], process["tid"], process["pid"]) == (name, None, DEAD)
    assert process["executable"] == (executable.decode() or None)
    assert process["start"] == "1970-01-01T00:00:05.000000000Z"
    assert f" of {name} (pid {DEAD}) in 2.0 s" in event["summary"]


@pytest.mark.parametrize("name", events.HEALTH_SEVERITY)
def test_health(make: Make, name: str) -> None:
    setting = make()
    setting.pipeline.health(name, "what happened", 1.5, {"more": [1, "two"]})
    (event,) = setting.events
    assert event["event"] == name
    assert event["summary"] == f"{name.replace('_', ' ')}: what happened"
    assert event["severity"] == events.HEALTH_SEVERITY[name]
    assert (event["blind_seconds"], event["details"]) == (1.5, {"more": [1, "two"]})
    assert setting.results() == {("health", "delivered"): 1}


def test_ids_are_unique_in_one_nanosecond(make: Make) -> None:
    setting = make()
    for _ in range(3):
        setting.pipeline.take([record(time_boot_ns=255)])
    assert [event["id"] for event in setting.events] == [
        "1b4e28ba-00000000000000ff-00000001",
        "1b4e28ba-00000000000000ff-00000002",
        "1b4e28ba-00000000000000ff-00000003",
    ]


def test_times_follow_the_clock_and_a_process_starts_once(make: Make) -> None:
    hour = 3600 * 1_000_000_000
    offsets = iter([0, hour, 2 * hour])  # at the start, and then the clock was set twice
    setting = make(offset=lambda: next(offsets))
    violation = record(time_boot_ns=7_000_000_000)
    setting.pipeline.take([violation, violation])
    setting.pipeline.take([violation])
    assert [(event["time"], event["process"]["start"]) for event in setting.events] == [
        ("1970-01-01T01:00:07.000000000Z", "1970-01-01T00:00:05.000000000Z"),
        ("1970-01-01T01:00:07.000000000Z", "1970-01-01T00:00:05.000000000Z"),
        ("1970-01-01T02:00:07.000000000Z", "1970-01-01T00:00:05.000000000Z"),
    ]


def test_a_renamed_host_has_its_new_name(make: Make) -> None:
    names = iter(["one", "two", "two"])
    setting = make(host_name=lambda: next(names))
    for _ in range(3):
        setting.pipeline.health("started", "")
    assert [event["host"]["name"] for event in setting.events] == ["one", "two", "two"]


def test_clock_offset() -> None:
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert events.clock_offset() / 1e9 == pytest.approx(time.time() - boot, abs=1)


# ---- Processes -----------------------------------------------------------------------------------


def ourselves(**values: Any) -> Record:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    own = {"pid": os.getpid(), "start_boot_ns": ticks * TICK_NS, "executable": b""}
    return record(**{**own, **values})


def test_a_reload_turns_command_lines_off_at_once(make: Make) -> None:
    setting = make(identities=Identities())
    setting.pipeline.take([ourselves()])
    setting.pipeline.reconfigure(config.parse('events.command_line = "off"', "test"))
    setting.pipeline.take([ourselves()])
    assert [bool(event["process"]["command_line"]) for event in setting.events] == [True, False]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a\nb", "a\\x0ab"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b'"quoted"', "\\x22quoted\\x22"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_hostile_names(make: Make, raw: bytes, shown: str) -> None:
    setting = make()
    mapping = abi.Mapping(start=START, end=START + 0x1000, flags=SEALED_BIT, file=raw, name=raw)
    setting.pipeline.take([record(task_name=raw, executable=raw, mapping=mapping)])
    (event,) = setting.events
    assert event["process"]["name"] == event["process"]["executable"] == shown
    assert event["sealed"]["file"]["path"] == event["sealed"]["name"] == shown
    assert event["summary"].isprintable()
    bucket = gap().bucket
    bucket.task_name = raw
    setting.pipeline.suppression(Gap(gap().key, bucket, "warning"))
    assert setting.events[1]["process"]["name"] == shown


# ---- What becomes of an event --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "muted"),
    [
        (mute(operation="munmap"), True),
        (mute(operation="mprotect"), False),
        (mute(cause="sealed"), False),
        (mute(executable="python3"), True),
        (mute(executable="python*", operation="munmap"), True),
        (mute(executable="perl"), False),
        (mute(operation="munmap", until=datetime.now(UTC) - timedelta(1)), False),
        (mute(operation="munmap", until=datetime.now(UTC) + timedelta(1)), True),
    ],
)
def test_mute(make: Make, entry: Mute, muted: bool) -> None:
    setting = make(mutes=[mute(cause="pkey"), entry])
    setting.pipeline.take([record()])
    assert setting.results() == {("denial", "filtered" if muted else "delivered"): 1}
    assert len(setting.events) == (not muted)
    assert setting.tally.events["denial", "filtered"] == muted


def test_a_reload_mutes_from_the_next_record_on(make: Make) -> None:
    setting = make()
    muted = '[[mute]]\nexecutable = "python3"\nreason = "known"\n'
    for text in ("", muted, muted, ""):
        setting.pipeline.reconfigure(config.parse(text, "test"))
        setting.pipeline.take([record()])
    assert setting.results() == {("denial", "delivered"): 2, ("denial", "filtered"): 2}


def test_mute_of_a_fault(make: Make) -> None:
    setting = make(mutes=[mute(cause="guard_region")])
    setting.pipeline.take([record(Kind.FAULT, cause=Cause.GUARD_REGION)])
    setting.pipeline.take([record(Kind.FAULT, cause=Cause.SEALED)])
    assert setting.results() == {("fault", "filtered"): 1, ("fault", "delivered"): 1}


def test_mute_of_a_bypass(make: Make) -> None:
    setting = make(mutes=[mute(method="ptrace_poke")])
    for method in (Method.PTRACE_POKE, Method.PROC_MEM_WRITE):
        setting.pipeline.take([record(Kind.BYPASS, bypass=abi.Bypass(method=method))])
    assert setting.results() == {("bypass", "filtered"): 1, ("bypass", "delivered"): 1}


@pytest.mark.parametrize(
    ("entry", "muted"),
    [
        (mute(operation="munmap"), True),
        (mute(operation="mprotect"), False),
        (mute(executable=os.path.basename(os.readlink("/proc/self/exe"))), True),
        (mute(executable="perl"), False),
    ],
)
def test_mute_of_a_gap(make: Make, entry: Mute, muted: bool) -> None:
    setting = make(mutes=[entry], identities=Identities())
    own = ourselves(flags=abi.RecordFlag.SEALER)  # it is known since it sealed
    setting.pipeline.take([own])
    setting.pipeline.suppression(gap(pid=own.pid, start_boot_ns=own.start_boot_ns))
    assert setting.results() == {("suppression", "filtered" if muted else "delivered"): 1}


def test_no_mute_hides_a_gap_of_a_process_that_was_never_known(make: Make) -> None:
    """What it runs now may be another program."""
    setting = make(
        mutes=[mute(executable=os.path.basename(os.readlink("/proc/self/exe")))],
        identities=Identities(),
    )
    own = ourselves()
    setting.pipeline.suppression(gap(pid=own.pid, start_boot_ns=own.start_boot_ns))
    assert setting.results() == {("suppression", "delivered"): 1}


@pytest.mark.parametrize(
    ("proc", "result"), [(Path("/proc"), "filtered"), (Path("/nowhere"), "delivered")]
)
def test_a_path_mutes_the_hosts_file_alone(make: Make, proc: Path, result: str) -> None:
    path = os.path.realpath("/proc/self/exe")
    setting = make(mutes=[mute(executable=path)], identities=Identities())
    violation = ourselves() if proc == Path("/proc") else record(executable=os.fsencode(path))
    setting.pipeline.take([violation])
    assert setting.results() == {("denial", result): 1}


OWN_BUILD_ID = build_id(
    Path("/proc/self/exe"),
    ProgramFile(os.stat("/proc/self/exe").st_dev, os.stat("/proc/self/exe").st_ino, 0),
)


@pytest.mark.parametrize(
    ("asked", "muted"),
    [
        ({"owner": os.stat("/proc/self/exe").st_uid}, True),
        ({"owner": 12345}, False),
        ({"user": "root"}, True),
        ({"user": 0, "owner": 12345}, False),
        ({"user": 1}, False),
        ({"build_id": OWN_BUILD_ID}, True),
        ({"build_id": "00ff"}, False),
        ({"unit": "*.service"}, False),
    ],
)
@pytest.mark.parametrize("kind", ["denial", "suppression"])
def test_mute_of_what_is_known(make: Make, asked: dict[str, Any], muted: bool, kind: str) -> None:
    setting = make(mutes=[mute(**asked)], identities=Identities())
    own = ourselves(uid=0)
    setting.pipeline.take([own])
    if kind == "suppression":
        setting.pipeline.suppression(gap(pid=own.pid, start_boot_ns=own.start_boot_ns))
    assert setting.results()[kind, "filtered" if muted else "delivered"] == 1


@pytest.mark.parametrize("user", ["root", 0])
def test_the_user_is_known_of_a_process_that_is_gone(make: Make, user: int | str) -> None:
    setting = make(mutes=[mute(user=user)])
    setting.pipeline.take([record(uid=0), record(uid=1)])
    assert setting.results() == {("denial", "filtered"): 1, ("denial", "delivered"): 1}


def test_no_mute_hides_what_many_share(make: Make) -> None:
    setting = make(mutes=[mute(executable="*")])
    setting.pipeline.suppression(Gap(BucketKey(), gap().bucket, "critical"))
    assert setting.results() == {("suppression", "delivered"): 1}


def test_an_event_that_no_sink_takes_has_failed(make: Make) -> None:
    setting = make("json", "file")
    for sink in setting.sinks:
        sink.error = OSError(errno.EPIPE, "broken pipe")
    setting.pipeline.take([record()])
    setting.pipeline.suppression(gap())
    setting.pipeline.health("started", "ready")
    assert setting.results() == {
        ("denial", "failed"): 1,
        ("suppression", "failed"): 1,
        ("health", "failed"): 1,
    }
    assert sum(setting.tally.delays) == 0


@pytest.mark.parametrize(
    ("broken", "results"),
    [
        ({"operation": 99}, {("denial", "failed"): 1}),
        ({"verdict": 9}, {("denial", "failed"): 1}),
        ({"kind": Kind.FAULT, "cause": 9}, {("fault", "failed"): 1}),
        ({"stack": abi.Stack(depth=17)}, {("denial", "failed"): 1}),
        ({"kind": 9}, {}),
    ],
)
def test_a_corrupt_record(
    make: Make, broken: dict[str, Any], results: Mapping[tuple[str, str], int]
) -> None:
    setting = make()
    setting.pipeline.take([record(**broken)])
    assert setting.tally.decode_errors == 1
    assert setting.results() == results
    assert setting.events == []


@pytest.mark.parametrize("broken", [{"kind": 9}, {"what": 99}, {"kind": Kind.FAULT, "what": 9}])
def test_a_corrupt_bucket(make: Make, broken: dict[str, int]) -> None:
    setting = make()
    setting.pipeline.suppression(gap(**broken))
    assert setting.tally.decode_errors == 1
    assert setting.results() == {("suppression", "failed"): 1}


def test_every_record_is_counted_once(make: Make) -> None:
    setting = make(mutes=[mute(operation="munmap"), mute(cause="other")])
    (sink,) = setting.sinks
    taken = dict.fromkeys(Kind, 0)
    for number in range(400):
        sink.error = OSError(errno.ENOSPC, "disk full") if number % 5 == 0 else None
        violation = record(
            Kind(number % len(Kind)),
            operation=number % (len(OPERATIONS) + 1),
            cause=number % (len(Cause) + 1),
            verdict=number % (len(Verdict) + 1),
            bypass=abi.Bypass(method=number % (len(abi.Method) + 1)),
        )
        taken[Kind(number % len(Kind))] += 1
        setting.pipeline.take([violation])
        assert setting.delivery.wait(10)
    made = setting.tally.events
    for kind in Kind:
        results = [made[kind.label, name] for name in ("delivered", "failed", "filtered")]
        assert sum(results) == taken[kind] == 100
    assert len(sink.events) == sum(made[kind.label, "delivered"] for kind in Kind)
    assert len({event["id"] for event in sink.events}) == len(sink.events)
