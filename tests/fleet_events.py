"""Events of a made-up fleet: 10,000 hosts for a week, as lines of JSON, and what each line says.

Seeded: the same arguments give the same events. They have the form of those in docs/events.md. Some
programs violate on many hosts, most on few; one new incident begins on one host and spreads. What a
question must answer is computed from the facts here, in Python, and never by a database.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from monitor.evidence.cgroups import workload_name
from monitor.evidence.fingerprint import fingerprint

__all__ = ["Fact", "Fleet", "example"]

PAGE = Path(__file__).parents[1] / "docs/events.md"
HOSTS = 10_000
PROGRAMS = 400
DAYS = 7
SPREADING = "gateway"  # the program whose new incident spreads
TWICE = 50  # one line in so many is sent again

_KINDS = {"denial": 55, "fault": 30, "suppression": 8, "bypass": 1, "health": 5, "seal": 1}
# Severity, row of the table of assessments, and what it probably is, of a denial.
_LIKELY = {
    "mprotect": ("critical", "read_only_data", "attack"),
    "munmap": ("warning", "unmapped", "leak"),
    "madvise": ("warning", "discarded", "bug"),
}
_USERS = (("www-data", 33), ("postgres", 105), ("build", 1001), ("root", 0))


class Fact(NamedTuple):
    """What an event says, as the columns of the centre have it. `time_us`: Unix time."""

    time_us: int
    id: str
    host: str
    host_id: str
    kind: str
    what: str
    severity: str
    fingerprint: str
    events: int
    suppressed: int
    verdict: str
    likely: str
    workload: str
    executable: str
    user_name: str
    build_ids: tuple[str, ...]

    @property
    def violations(self) -> int:
        return self.events + self.suppressed


def example(kind: str) -> dict[str, Any]:
    """The event of this kind in docs/events.md."""
    for block in re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        event: dict[str, Any] = json.loads(block)
        if event.get("kind") == kind:
            return event
    raise LookupError(f"{PAGE} has no {kind}")


class _Template(NamedTuple):
    """A line with places for what differs from event to event, and the facts that do not."""

    line: str
    fact: Fact


class _Program(NamedTuple):
    name: str
    path: str
    build_id: str
    user: tuple[str, int]


# Each stands in a template where a value of the single event goes; no other text has a NUL.
_PLACES = (
    *("id", "time", "boot_ns", "host", "host_id", "boot_id", "pid", "start", "count"),
    *("program_base", "library_base"),
)
# Where the kernel put the program and its libraries in docs/events.md: elsewhere in every process.
_BASES = {"0x55eb77": "program_base", "0x7f4d2e": "library_base"}


def _place(name: str) -> str:
    return f"\0{name}\0"


def _text(template: dict[str, Any]) -> str:
    """JSON with %(name)s in each place; numbers lose their quotes."""
    text = json.dumps(template, separators=(",", ":")).replace("%", "%%")
    for address, name in _BASES.items():
        text = text.replace(address, f"%({name})s")
    for name in _PLACES:
        given = json.dumps(_place(name))[1:-1]
        if name in ("boot_ns", "pid", "count"):
            text = text.replace(f'"{given}"', f"%({name})s")
        text = text.replace(given, f"%({name})s")
    return text


def _template(kind: str, program: _Program, site: int, what: str) -> _Template:
    event = example(kind)
    severity, name, likely = _LIKELY.get(what, (event["severity"], "", ""))
    event |= {
        "schema": 2,
        **{"id": _place("id"), "time": _place("time"), "time_boot_ns": _place("boot_ns")},
        "host": {
            "name": _place("host"),
            "boot_id": _place("boot_id"),
            "kernel_release": "6.18.44",
            "id": _place("host_id"),
        },
    }
    if event["process"]:
        event["process"] |= {
            **{"pid": _place("pid"), "tid": _place("pid"), "name": program.name[:15]},
            "start": _place("start"),
            **{"executable": program.path, "executable_build_id": program.build_id},
            "command_line": f"{program.path} --shard {_place('pid')} --token=[redacted]",
            **{"user_name": program.user[0], "uid": program.user[1]},
        }
        unit = f"{program.name}.service"
        event["workload"] |= {"unit": unit, "cgroup": f"/system.slice/{unit}"}
    of = event.get("of", kind)
    if of in ("denial", "fault"):
        event["operation" if of == "denial" else "cause"] = what
    for number, frame in enumerate(event.get("stack") or ()):
        if frame["module"] == "image-worker":
            frame |= {"module": program.name, "build_id": program.build_id, "offset": site + number}
    if kind == "denial":
        event |= {"severity": severity, "assessment": {"name": name, "likely": likely}}
        event["summary"] = (
            f"{what} of sealed memory refused: {program.name} (pid {_place('pid')}) asked for "
            f"0x55eb77215000-0x55eb77217000 (sealed r--p, {program.name}); looks like {likely}"
        )
    if kind == "suppression":
        event["count"] = _place("count")
    place = fingerprint(event)
    if kind != "suppression":
        event["fingerprint"] = place.id
    process, workload = event["process"] or {}, event["workload"] or {}
    stack = [frame["build_id"] for frame in event.get("stack") or ()]
    builds = {*stack, process.get("executable_build_id")} - {None}
    return _Template(
        _text(event),
        Fact(
            time_us=0,
            id="",
            host="",
            host_id="",
            kind=place.kind,
            what=place.what,
            severity=event["severity"],
            fingerprint=place.id,
            events=int(kind != "suppression"),
            suppressed=0,
            verdict=event.get("verdict") or "",
            likely=(event.get("assessment") or {}).get("likely") or "",
            workload=workload_name(workload["cgroup"]) if workload else "",
            executable=process.get("executable") or "",
            user_name=process.get("user_name") or "",
            build_ids=tuple(sorted(builds)),
        ),
    )


class Fleet:
    """`count` events that end at `end`, in the order of their time; some lines come twice."""

    def __init__(self, count: int, end: datetime, seed: int = 1) -> None:
        self.count = count
        self.start = end - timedelta(days=DAYS)
        self._random = random.Random(seed)
        self.hosts = [f"node-{number:05}.dc{number % 8}.example" for number in range(HOSTS)]
        self.host_ids = [f"{self._random.getrandbits(128):032x}" for _ in range(HOSTS)]
        self._templates: dict[object, _Template] = {}
        self.programs = [self._program(f"svc-{number:03}", number) for number in range(PROGRAMS)]
        self.gateway = self._program(SPREADING, 0)
        self.spreading = self._of("denial", self.gateway, 0x4242, "mprotect").fact.fingerprint

    def _program(self, name: str, number: int) -> _Program:
        build_id = hashlib.sha1(name.encode()).hexdigest()
        return _Program(name, f"/srv/{name}/bin/{name}", build_id, _USERS[number % len(_USERS)])

    def _of(self, kind: str, program: _Program, site: int, what: str) -> _Template:
        key = (kind, program.name, site, what)
        if key not in self._templates:
            self._templates[key] = _template(kind, program, site, what)
        return self._templates[key]

    def lines(self) -> Iterator[tuple[str, Fact]]:
        """Each line with its facts."""
        choose = self._random
        kinds = choose.choices(list(_KINDS), list(_KINDS.values()), k=self.count)
        programs = choose.choices(
            self.programs, [1 / (number + 1) for number in range(PROGRAMS)], k=self.count
        )
        hosts = choose.choices(
            range(HOSTS), [1 / (1 + number % 97) for number in range(HOSTS)], k=self.count
        )
        begin, span = int(self.start.timestamp()), DAYS * 86_400
        times = sorted(begin * 10**9 + choose.randrange(span * 10**9) for _ in range(self.count))
        outbreak = begin * 10**9 + int(span * 0.6) * 10**9
        for number, (kind, program, host, time_ns) in enumerate(
            zip(kinds, programs, hosts, times, strict=True)
        ):
            site, what = 0x1000 + choose.randrange(4), choose.choice(list(_LIKELY))
            if number % 400 == 0 and time_ns > outbreak:
                kind, program, site, what = "denial", self.gateway, 0x4242, "mprotect"  # noqa: PLW2901
            elif kind in ("fault", "bypass", "seal", "health"):
                what = "guard_region" if kind == "fault" else ""
            if kind in ("suppression", "health"):
                site = 0
            template = self._of(kind, program, site, what)
            line, fact = self._event(template, kind, number, host, time_ns)
            yield line, fact
            if number % TWICE == 0:
                yield line, fact

    def _event(
        self, template: _Template, kind: str, number: int, host: int, time_ns: int
    ) -> tuple[str, Fact]:
        choose = self._random
        boot_ns = time_ns - int(self.start.timestamp() - 86_400) * 10**9
        seconds, rest = divmod(time_ns, 10**9)
        boot = self.host_ids[host][:8]
        id = f"{boot}-{boot_ns:016x}-{number:08x}"
        count = choose.randrange(1, 5000) if kind == "suppression" else 0
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        values = {
            **{"id": id, "time": f"{moment}.{rest:09}Z", "boot_ns": boot_ns, "count": count},
            **{"host": self.hosts[host], "host_id": self.host_ids[host], "boot_id": f"{boot}-0-0"},
            **{"pid": choose.randrange(2, 4_000_000), "start": f"{moment}.{boot_ns % 10**9:09}Z"},
            "program_base": f"0x5{choose.getrandbits(20):05x}",
            "library_base": f"0x7{choose.getrandbits(20):05x}",
        }
        return template.line % values, template.fact._replace(
            time_us=time_ns // 1000,
            id=id,
            suppressed=count,
            host=self.hosts[host],
            host_id=self.host_ids[host],
        )
