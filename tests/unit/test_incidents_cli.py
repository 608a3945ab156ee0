"""What a person sees of incidents, and a program."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from test_cli import seal_monitor
from test_fingerprint import EVENTS
from test_incidents import KEPT, NOW, WEEK_START, Event, Store, at, denial, suppression

from monitor.commands.incident_list import Listing, listed
from monitor.commands.incidents import moment
from monitor.configuration.config import ConfigError
from monitor.evidence.fingerprint import fingerprint
from monitor.incidents.search import Incident
from monitor.incidents.store import snapshot_data
from monitor.sinks.outputs import encode


def snapshot_of(event: Event, number: int) -> Event:
    start = int(event["sealed"]["start"], 16)
    mappings = [
        {
            **{"start": hex(start + n * 8192), "end": hex(start + n * 8192 + 4096)},
            **{"permissions": "r--p", "sealed": n % 2 == 0, "guard": None, "rss_kib": 4},
            "file": {"path": "/lib/\x1b[31m", "device": "254:0", "inode": 7, "offset": 0},
            "name": None,
        }
        for n in range(-30, 30)
    ]
    parent = {"name": "sh\n", "executable": None, "start": None}
    return {
        "time": event["time"].replace("52.898", "52.901"),
        "event": event["id"],
        "pid": event["process"]["pid"],
        "start": event["process"]["start"],
        "memory_map": mappings,
        "memory_map_complete": False,
        "limits": {"stack": {"soft": 8 << 20, "hard": None}, "as": {"soft": None, "hard": None}},
        "seccomp": {"mode": "filter", "filters": number, "no_new_privileges": True},
        "modules": None,
        "parents": [parent | {"pid": 811}, parent | {"pid": 1}],
        "missing": {"modules": "Permission denied\x07"},
        "duration_ms": 1.5,
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a worker did that day, and what others did later."""
    store = Store(tmp_path_factory.mktemp("state"), KEPT, WEEK_START)
    refused, fault, seal = (copy.deepcopy(EVENTS[kind]) for kind in ("denial", "fault", "seal"))
    seal |= {"process": refused["process"], "host": refused["host"]}
    seal["time"] = "2026-11-21T17:07:52.580900000Z"
    gap = suppression(3996, refused)
    for name in ("time", "first", "last"):
        gap[name] = "2026-11-21T17:08:03.000000000Z"
    store.take(seal, refused, fault, gap)
    for number in (1, 2):
        text = encode(snapshot_of(refused, number))
        store.sink.write(snapshot_data(fingerprint(refused).id, NOW, text))
    store.take(
        *(denial(WEEK_START + 86_400 * n, unit=f"w{n}.service", pid=77) for n in range(5, 8))
    )
    again = denial(WEEK_START + 86_400 * 8, unit="w8.service", pid=77)
    again["process"]["start"] = at(WEEK_START + 86_400 * 8 - 0.25)
    store.take(again)
    store.sink.close()
    return store.path


def command(database: Path, *arguments: str) -> str:
    shown = seal_monitor("incidents", *arguments, "--database", database)
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout


def test_list(database: Path) -> None:
    lines = command(database, "list").splitlines()
    titles = (
        "ID",
        "LAST SEEN (UTC)",
        "COUNT",
        "SEVERITY",
        "LIKELY",
        "WHAT",
        "EXECUTABLE",
        "WORKLOAD",
    )
    assert tuple(re.split(r"  +", lines[0])) == titles
    assert lines[4:] == ["", "3 incidents (2 critical, 1 warning), worst first"]
    assert [tuple(re.split(r"  +", line))[1:] for line in lines[1:4]] == [
        (
            *("2026-11-26 11:06:40", "4", "critical", "attack", "munmap of sealed memory refused"),
            *("/srv/images/bin/image-worker", "w5.service +3"),
        ),
        (
            *(
                "2026-11-21 17:08:03",
                "3,997",
                "critical",
                "attack",
                "mprotect of sealed memory refused",
            ),
            *("/srv/images/bin/image-worker", "image-worker.service"),
        ),
        (
            *("2026-11-21 17:07:53", "1", "warning", "bug", "write to a guard region"),
            *("/srv/images/bin/image-worker", "image-worker.service"),
        ),
    ]
    starts = {line.index("critical") for line in lines[1:3]}
    assert starts == {lines[0].index("SEVERITY")}


def test_list_with_filters(database: Path) -> None:
    def whats(*arguments: str) -> list[str]:
        found = json.loads(command(database, "list", "--json", *arguments))
        return [each["operation"] or each["cause"] or each["kind"] for each in found]

    assert whats() == ["munmap", "mprotect", "guard_region"]
    assert whats("--kind", "all") == ["munmap", "mprotect", "guard_region", "seal"]
    assert whats("--kind", "fault") == ["guard_region"]
    assert whats("--until", "2026-11-21T18:00:00Z") == ["mprotect", "guard_region"]
    assert whats("--since", "2026-11-22") == ["munmap"]
    assert whats("--workload", "w*.service", "--verdict", "sealed") == ["munmap"]
    assert whats("--executable", "image-w*", "--operation", "guard_region") == ["guard_region"]
    assert whats("--verdict", "unverified") == []
    assert whats("--limit", "1") == ["munmap"]
    assert whats("--host", "web-?") == ["munmap", "mprotect", "guard_region"]
    assert whats("--host", "db-*") == []
    assert whats("--severity", "critical") == ["munmap", "mprotect"]
    assert whats("--severity", "info", "--kind", "all") == whats("--kind", "all")
    # A program gets those last seen first, as ever; a person the worst.
    assert whats("--until", "2026-11-22", "--limit", "1") == ["mprotect"]
    assert whats("--sort", "count") == ["mprotect", "munmap", "guard_region"]
    assert whats("--sort", "worst", "--kind", "all")[-1] == "seal"


def test_list_reports_what_it_leaves_out(database: Path) -> None:
    last = command(database, "list", "--limit", "1").splitlines()[-1]
    assert last == "1 of 3 incidents (2 critical, 1 warning), worst first; --limit 3 shows the rest"
    last = command(database, "list", "--severity", "critical", "--sort", "count").splitlines()[-1]
    assert last == "2 incidents, most frequent first"
    shown = command(database, "list", "--workload", "none", "--severity", "warning", "--host", "*")
    assert shown == (
        "no incident matches --kind violation --workload none --host * --severity warning; "
        "4 of all kinds are kept\n"
    )
    assert command(database, "list", "--kind", "bypass", "--json") == "[]\n"


@pytest.mark.parametrize("verb", ["report", "export", "backup"])
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_no_command_writes_over_its_own_database(
    database: Path, tmp_path: Path, verb: str, suffix: str
) -> None:
    """A daemon would go on writing to the file that was replaced, and lose all that it writes."""
    copied = tmp_path / "incidents.db"
    shutil.copy(database, copied)
    before = copied.read_bytes()
    file = tmp_path / "x" / ".." / f"incidents.db{suffix}"
    (tmp_path / "x").mkdir()
    chosen = ["413d"] if verb == "export" else []
    shown = seal_monitor("incidents", verb, *chosen, "--database", copied, "-o", file)
    assert shown.returncode == 2
    assert shown.stderr == (
        f"seal-monitor: command line: -o: {file} is of the database that is read; "
        "name another file\n"
    )
    assert copied.read_bytes() == before


def test_show(database: Path) -> None:
    (found,) = json.loads(command(database, "list", "--json", "--operation", "mprotect"))
    assert (found["count"], found["delivered"], found["suppressed"]) == (3997, 1, 3996)
    assert found["told"] == 1  # the old name of `delivered`, until 1.0
    story = command(database, "show", found["id"][:6].upper())
    for line in (
        f"incident {found['id']}: mprotect of sealed memory refused",
        "  count         3,997 (1 reported singly, 3,996 suppressed)",
        "  first seen    2026-11-21 17:07:52 UTC",
        "  last seen     2026-11-21 17:08:03 UTC",
        "  likely        attack 1",
        "  verdicts      sealed 1",
        "  workloads     image-worker.service 1",
        "  hosts         web-3 1",
        "  caller        image-worker e06a8f49bf8d070c908e216c55a291776d2f33af+0x1212",
        f"  {EVENTS['denial']['summary']}",
        "the last of 2 snapshots",
        "  of pid 20721 at 2026-11-21 17:07:52.901 UTC, 3.0 ms after the violation",
        "  sealed      30 of 60 mappings around the violation",
        "              and 22 further away",
        "  limits      stack 8,192 KiB, as unlimited",
        "  seccomp     filter (2), no new privileges",
        r"  parents     sh\x0a 811 < sh\x0a 1",
        r"  missing     modules: Permission denied\x07",
        "  ...",
        "events that are kept: 2",
        f"  2026-11-21 17:07:52.898  pid 20721  {EVENTS['denial']['summary']}",
    ):
        assert line in story.splitlines()
    sealed = [line for line in story.splitlines() if line.startswith(" " * 14 + "0x")]
    assert len(sealed) == 8
    (touched,) = (line for line in sealed if line.endswith(r" r--p /lib/\x1b[31m <- touched"))
    assert EVENTS["denial"]["sealed"]["start"] in touched
    # The function's name comes before it where this host has that very build.
    assert re.search(r"^  #0  (\S+ \()?libc\.so\.6\+0x101a37\)?$", story, re.MULTILINE)
    assert re.search(r"^  #1  (\S+ \()?image-worker\+0x1212\)?$", story, re.MULTILINE)
    document = json.loads(command(database, "show", found["id"], "--json"))
    assert [event["kind"] for event in document.pop("events")] == ["denial", "suppression"]
    assert document.pop("snapshots") == [snapshot_of(EVENTS["denial"], n) for n in (1, 2)]
    assert document == found


def test_a_path_that_is_not_the_hosts_is_marked(tmp_path: Path) -> None:
    store = Store(tmp_path, KEPT, WEEK_START)
    event = denial(WEEK_START, pid=77, executable="/usr/bin/sleep")
    event["process"]["files"] = "namespace"
    store.take(event)
    store.sink.close()
    mark = "/usr/bin/sleep (own mount namespace)"
    assert f"  {mark}  " in command(store.path, "list")
    (found,) = json.loads(command(store.path, "list", "--json"))
    assert found["facets"]["in_namespace"] == {"/usr/bin/sleep": 1}
    assert f"  executables   {mark} 1" in command(store.path, "show", found["id"]).splitlines()
    assert f"  program: {mark}" in command(store.path, "show", found["id"]).splitlines()
    assert f"  executable    {mark}" in command(store.path, "timeline", "77").splitlines()


def test_timeline(database: Path) -> None:
    lines = command(database, "timeline", "20721").splitlines()
    assert lines[0] == "process 20721, image-worker"
    assert "  started       2026-11-21 17:07:52.580 UTC" in lines
    assert "  workload      image-worker.service" in lines
    steps = [tuple(re.split(r"  +", line))[:3] for line in lines if line.startswith("2026")]
    assert steps == [
        ("2026-11-21 17:07:52.580", "+0.001 s", "seal"),
        ("2026-11-21 17:07:52.898", "+0.318 s", "denial"),
        ("2026-11-21 17:07:53.198", "+0.619 s", "fault"),
        ("2026-11-21 17:08:03.000", "+10.420 s", "suppression"),
    ]
    document = json.loads(command(database, "timeline", "20721", "--json"))
    assert document["start"] == EVENTS["denial"]["process"]["start"]
    assert [entry["event"] for entry in document["events"][1:3]] == [
        *(EVENTS["denial"], EVENTS["fault"])
    ]


def test_timeline_of_one_of_several(database: Path) -> None:
    start = at(WEEK_START + 86_400 * 8 - 0.25)[:19]
    document = json.loads(command(database, "timeline", "77", start, "--json"))
    assert len(document["events"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "0123"), "no incident has an id that begins with 0123; 'seal-monitor incidents"),
        (("show", "%"), "no incident has an id that begins with %; 'seal-monitor incidents list'"),
        (("show", "\x1b[2J"), r"no incident has an id that begins with \x1b[2j; 'seal-monitor"),
        (("timeline", "99"), "no event is kept of a process 99"),
        (
            ("timeline", "20721", "2026-11-20"),
            "no event is kept of a process 20721 that started then",
        ),
        (
            ("timeline", "77"),
            "2 processes had the pid 77; name the start of one: 2026-11-18T11:05:23.000, "
            "2026-11-26T11:06:39.750",
        ),
    ],
)
def test_not_found(database: Path, arguments: tuple[str, ...], message: str) -> None:
    shown = seal_monitor("incidents", *arguments, "--database", database)
    assert shown.stderr.startswith(f"seal-monitor: {message}")
    assert (shown.returncode, shown.stdout) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "seal-monitor incidents: error: the following arguments are required: COMMAND"),
        (("list", "--since", "noon"), "seal-monitor: command line: --since: noon is not a time; "),
        (("timeline", "1", "x"), "seal-monitor: command line: START: x is not a time; "),
        (("timeline", "0"), "argument PID: '0' is not a number from 1 to 2147483647"),
        (("list", "--limit", "-1"), "argument --limit: '-1' is not a number from 1 to 2147483647"),
        (("list", "--kind", "x"), "argument --kind: invalid choice: 'x'"),
        (("list", "--attach", "auto"), "unrecognized arguments: --attach auto"),
    ],
)
def test_wrong_usage(database: Path, arguments: tuple[str, ...], message: str) -> None:
    options = ("--database", str(database)) if arguments else ()
    shown = seal_monitor("incidents", *arguments, *options)
    assert message in shown.stderr.splitlines()[-1]
    assert (shown.returncode, shown.stdout) == (2, "")


def test_where_the_configuration_says(database: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[state]\ndirectory = "{database.parent}"\n')
    shown = seal_monitor("incidents", "list", "--config", file)
    assert shown.stdout == command(database, "list")
    file.write_text(f'[state]\ndirectory = "{tmp_path}"\n')
    shown = seal_monitor("incidents", "list", "--config", file)
    assert shown.returncode == 1
    assert f"there are no incidents: no {tmp_path}/incidents.db; " in shown.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_reads_as_the_owner(database: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied = Path(shutil.copy(database, folder / "incidents.db"))
        for path in (folder, copied):
            os.chown(path, 12345, 12345)
        assert command(copied, "list") == command(database, "list")
        assert {path.stat().st_uid for path in folder.iterdir()} == {12345}
        folder.chmod(0o500)
        os.chown(folder, 0, 0)
        shown = seal_monitor("incidents", "list", "--database", copied)
        assert f"cannot read {copied}: " in shown.stderr
        assert shown.returncode == 1


# ---- A stranger's database -----------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;x\x07\u202e\n"
SHOWN = r"\x1b[2J\x1b]0;x\x07\u202e\x0a"


@pytest.fixture
def stranger(database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(database, tmp_path / "stranger.db"))


def change(database: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(database)) as changed, changed:
        changed.execute(statement, values)


def id_of(database: Path, what: str) -> str:
    with contextlib.closing(sqlite3.connect(database)) as read:
        ((found,),) = read.execute("SELECT id FROM incidents WHERE what = ?", (what,)).fetchall()
    return str(found)


def test_no_control_characters_reach_the_terminal() -> None:
    facets = {name: {HOSTILE: 1} for name in ("likely", "executable", "workload")}
    texts = (HOSTILE,) * 9
    incident = Incident(*texts, 0, 0, 1, 0, facets | {"host": {HOSTILE: 1, "a": 1}})
    listing = Listing([incident], {"critical": 1}, "worst", "", 1)
    for width in (None, 40, 80, 200):
        assert "".join(listed(listing, width)).isprintable()


@pytest.mark.parametrize(
    "path", ["kind", "time", "summary", "process.pid", "process.name", "stack.0.address"]
)
def test_no_text_of_an_event_reaches_the_terminal_raw(stranger: Path, path: str) -> None:
    event = copy.deepcopy(EVENTS["denial"])
    *way, last = (int(name) if name.isdigit() else name for name in path.split("."))
    part: Any = event
    for name in way:
        part = part[name]
    part[last] = event["time"] + HOSTILE if path == "time" else HOSTILE
    if path.startswith("stack"):
        part["module"] = None
    change(stranger, "UPDATE events SET event = ? WHERE pid = 20721", json.dumps(event))
    change(stranger, "UPDATE incidents SET severity = ?, title = ?", HOSTILE, HOSTILE)
    found = id_of(stranger, "mprotect")
    texts = [command(stranger, "list"), command(stranger, "show", found)]
    texts.append(command(stranger, "timeline", "20721"))
    assert all(line.isprintable() for text in texts for line in text.splitlines())
    assert SHOWN in texts[1]


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ("no JSON", ""),
        ("[" * 100_000, ""),
        ("[]", ""),
        (b"{}", ""),
        ("{}", " (KeyError: \\x27process\\x27)"),
        ({"summary": None, "time": 7}, " (TypeError: "),
        ({"process": "x"}, " (TypeError: "),
    ],
)
@pytest.mark.parametrize("verb", ["show", "timeline"])
def test_an_event_of_another_shape(
    stranger: Path, verb: str, event: str | bytes | Event, why: str
) -> None:
    text = json.dumps(EVENTS["denial"] | event) if isinstance(event, dict) else event
    change(stranger, "UPDATE events SET event = ?", text)
    chosen = id_of(stranger, "mprotect") if verb == "show" else "20721"
    shown = seal_monitor("incidents", verb, chosen, "--database", stranger)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert re.search(r"\bevent (\d+|of)\b.* is not one of seal-monitor's", shown.stderr)
    if verb == "show":
        assert why in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize("snapshot", ["{", "[]", "{}", '{"memory_map": 7}'])
def test_a_snapshot_of_another_shape(stranger: Path, snapshot: str) -> None:
    change(stranger, "UPDATE snapshots SET snapshot = ?", snapshot)
    found = id_of(stranger, "mprotect")
    shown = seal_monitor("incidents", "show", found, "--database", stranger)
    assert shown.returncode == 1
    assert re.search(r"snapshot.* is not one of seal-monitor's", shown.stderr)


@pytest.mark.parametrize(
    ("statement", "values", "what"),
    [
        ("UPDATE incidents SET severity = ?", [b"\x1b"], "incident 4"),
        ("UPDATE incidents SET first_ns = ?", ["then"], "incident 4"),
        ("UPDATE incidents SET id = number || ?", ["/../../etc"], "incident 4"),
        ("UPDATE facets SET count = ?", [HOSTILE], "a facet of incident 4"),
    ],
)
def test_an_incident_of_another_shape(
    stranger: Path, statement: str, values: list[object], what: str
) -> None:
    change(stranger, statement, *values)
    shown = seal_monitor("incidents", "list", "--database", stranger)
    assert shown.stderr == f"seal-monitor: {stranger}: {what} is not one of seal-monitor's\n"
    assert (shown.returncode, shown.stdout) == (1, "")


def test_no_advice_to_remove_what_is_not_ours(tmp_path: Path, stranger: Path) -> None:
    def why(path: Path) -> str:
        shown = seal_monitor("incidents", "show", "abc", "--database", path)
        assert (shown.returncode, shown.stdout) == (1, "")
        return shown.stderr.removeprefix("seal-monitor: ").rstrip("\n")

    text = tmp_path / "passwd"
    text.write_text("root:x:0:0:root:/root:/bin/bash\n" * 100)
    assert why(text) == f"{text} is not an incidents database: file is not a database"
    assert why(tmp_path) == f"{tmp_path} is not an incidents database: not a regular file"
    assert why(tmp_path / "none") == f"there is no {tmp_path / 'none'}"
    others = tmp_path / "others.db"
    for version in (0, 2, 70):
        change(others, "CREATE TABLE IF NOT EXISTS bookmarks (url)")
        change(others, f"PRAGMA user_version = {version}")
        assert why(others) == f"{others} is not an incidents database: it has other tables"
    with stranger.open("r+b") as file:
        file.truncate(stranger.stat().st_size // 2)
    assert why(stranger).startswith(f"cannot read {stranger}: database disk image is malformed; if")


# ---- A copy --------------------------------------------------------------------------------------


def test_a_copy_of_a_database_that_is_written_to(tmp_path: Path) -> None:
    store = Store(tmp_path, KEPT, WEEK_START)
    store.take(denial(), denial(caller=7))
    alone = Path(shutil.copy(store.path, tmp_path / "alone.db"))
    shown = seal_monitor("incidents", "list", "--database", alone)
    assert shown.stderr == (
        f"seal-monitor: there are no incidents in {alone} yet; if it is a copy, also copy "
        "alone.db-wal, or use 'incidents backup'\n"
    )
    copied = tmp_path / "copied.db"
    assert command(store.path, "backup", "-o", str(copied)) == ""
    assert copied.stat().st_mode & 0o777 == 0o600
    store.take(denial(caller=8))
    assert len(json.loads(command(copied, "list", "--json"))) == 2
    assert len(json.loads(command(store.path, "list", "--json"))) == 3
    store.sink.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("90s", NOW - 90 * 10**9),
        ("24h", NOW - 86_400 * 10**9),
        ("2w", NOW - 14 * 86_400 * 10**9),
        ("2026-11-21T17:07:52Z", 1795280872 * 10**9),
        ("2026-11-21T17:07:52.25", 1795280872_250000000),
        ("2026-11-21 18:07:52+01:00", 1795280872 * 10**9),
        ("2026-11-21", (1795280872 - 17 * 3600 - 7 * 60 - 52) * 10**9),
    ],
)
def test_moment(text: str | None, expected: int | None) -> None:
    assert moment("--since", text, NOW) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 d", "yesterday", "2026-13-01", "٣d"])
def test_no_moment(text: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: --since: .* is not a time; write a date"):
        moment("--since", text, NOW)
