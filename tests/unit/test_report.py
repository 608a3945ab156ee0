"""The page: what it shows, and that no text of a process can do anything there."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from clocks import at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cases import SNAPSHOT, a_day, case_of
from test_cli import seal_monitor
from test_fingerprint import EVENTS
from test_incidents import KEPT, WEEK_START, Store, denial

from monitor.incidents.search import Filter, Incidents
from monitor.report.cases import Case
from monitor.report.page import page, write

Event = dict[str, Any]
HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)>",
    '" onload="alert(1)" x=\'',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#x3c;b&#x3e;",
    "\x00\x1b[2J\x07\n\r\t",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "]]><!--",
    "\ud800\udcff",
    "javascript:alert(1)",
    "x" * 100_000,
)


class Text(HTMLParser):
    """What a page consists of, by the standard library's idea of HTML."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return a_day(tmp_path_factory.mktemp("state"))


def refused(store: Store, **changes: Any) -> Case:
    """The mprotect of the examples, with a snapshot; its event changed."""
    (found,) = (each for each in store.read() if each.suppressed == 3996)
    case = case_of(store, found.id, [SNAPSHOT])
    events = [event | changes if event["kind"] == "denial" else event for event in case.events]
    return replace(case, events=events)


def facts(data: bytes) -> dict[str, str]:
    """The rows of the page's lists."""
    root = ElementTree.fromstring(data)
    name = "{http://www.w3.org/1999/xhtml}"
    return {
        "".join(row[0].itertext()): "".join(row[1].itertext())
        for row in root.iter(f"{name}div")
        if len(row) == 2 and row[0].tag == f"{name}dt"
    }


# ---- The story -----------------------------------------------------------------------------------


def test_the_story_of_a_denial(store: Store) -> None:
    data = page([refused(store)])
    text = Text(data).text
    for sentence in (
        "On web-3, image-worker (pid 20721) of image-worker.service, run by www-data, called "
        "mprotect on sealed memory (image-worker) and was refused.",
        "It would have made 8 KiB at 0x55eb77215000 readable and writable. Nothing was changed.",
        "Looks like an attack: read-only data was to become writable.",
        "this one was killed by SIGSEGV later, at a guard region.",
        "It has happened 3,997 times, over 10 seconds.",
    ):
        assert sentence in text
    listed = facts(data)
    assert listed["Count"] == "3,997exact; 3,996 of them held back by the rate limit"
    assert listed["What that means"].startswith("Tables of function addresses and constants are")
    assert listed["Asked for"] == (
        "mprotect(addr = 0x55eb77215000, size = 8192, prot = PROT_READ | PROT_WRITE)"
    )
    assert listed["Result"] == "-1, errno EPERM (operation not permitted)"
    assert listed["Called by"] == "image-worker+0x1212"
    assert listed["The seal"] == (
        "0x55eb77215000-0x55eb77217000 r--p (8 KiB)/srv/images/bin/image-worker, from offset "
        "0x5000Sealed at 2026-11-21 17:07:52.580 UTC, 0.001 s after its start, by "
        "image-worker+0x12fe."
    )
    assert listed["How it is known"].startswith("Proved in the kernel: this seal alone")
    assert listed["Started by"] == "/usr/bin/supervisor (pid 20720) ← systemd (pid 1)"
    assert listed["User"] == "www-data (uid 33)"
    assert listed["Seccomp"] == "A filter, 2 in all. No new privileges."
    assert listed["Not read"] == "something: Permission denied"
    # What the story says, nothing else repeats.
    for said in ("Nothing was changed", "It would have made", "Looks like an attack", "later, at"):
        assert text.count(said) == 1
    assert "looks like an attack" not in text.partition("The event")[0]


@pytest.mark.parametrize(
    ("files", "reason", "mark"),
    [
        ("host", None, ""),
        ("host", "not permitted", "partial: not permitted"),
        ("namespace", None, "own mount namespace"),
        (None, "it has executed another program since", None),
    ],
)
def test_whose_program_it_is(
    store: Store, files: str | None, reason: str | None, mark: str | None
) -> None:
    identity = {"result": "partial" if reason else "complete", "reason": reason}
    case = refused(store)
    changed = {"process": case.event["process"] | {"files": files, "identity": identity}}
    data = page([refused(store, **changed)])
    mark = f"not verified: {reason}" if mark is None else mark
    assert facts(data)["Program"] == f"/srv/images/bin/image-worker{mark}"


def test_the_snapshot(store: Store) -> None:
    text = Text(page([refused(store)])).text
    for part in (
        "0x55eb77215000-0x55eb77217000 r--p 8 KiB sealed /srv/images/bin/image-worker",
        "0x7fff00000000-0x7fff00021000 rw-p 132 KiB may hold guard pages [stack]",
        "stack 8388608 unlimited",
        "/srv/images/bin/image-worker e06a8f49 0x55eb77210000",
        "Memory map, 3 mappings",
        "nothing mapped",
    ):
        assert part in text
    without = Text(page([replace(refused(store), snapshots=[])])).text
    assert "The process itself" not in without
    assert facts(page([replace(refused(store), snapshots=[])]))["Started by"] == "pid 20720"


def test_a_part_that_was_changed_and_a_caller_in_no_file(store: Store) -> None:
    (found,) = (each for each in store.read() if each.what == "mprotect" and not each.suppressed)
    data = page([case_of(store, found.id)])
    text = Text(data).text
    assert "The 16 KiB before the seal were changed all the same" in text
    listed = facts(data)
    assert listed["Changed before the refusal"].startswith("0x55eb77211000-0x55eb77215000This part")
    assert "Code in no file" in listed["Called by"]
    assert "code in no file" in text
    assert "the caller" in text


def test_the_story_of_a_fault(store: Store) -> None:
    data = page([case_of(store, "guard_region")])
    assert (
        "On web-3, image-worker (pid 20721) of image-worker.service, run by www-data, wrote to a "
        "guard region and was killed by SIGSEGV." in Text(data).text
    )
    listed = facts(data)
    assert "What became of the process" not in listed  # the story says it
    assert listed["Wrote to"].startswith("0x7f4d2e419000A guard region: ")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("seal", "sealed 8 KiB of memory (image-worker) for the rest of its life."),
        (
            "unknown",
            "denials were counted while the rate limit held back their events: none is kept.",
        ),
        ("started", "ready after 1.17 s, attached by raw_tracepoint, tracepoint"),
    ],
)
def test_other_kinds(store: Store, what: str, sentence: str) -> None:
    assert sentence in Text(page([case_of(store, what)])).text


def test_the_story_of_a_bypass(store: Store) -> None:
    event = EVENTS["bypass"]
    data = page([replace(refused(store), events=[event])])
    assert (
        "changed sealed memory (image-worker) by madvise, which dropped its own copy of the pages: "
        "the bytes of the file came back. 8 KiB at 0x55eb77215000 were changed. Nothing refused "
        "it: a seal protects the mapping, not its bytes." in Text(data).text
    )
    listed = facts(data)
    assert listed["What that means"].startswith("The bytes of the file come back")
    assert "Whose memory" not in listed
    assert listed["Changed"] == "0x55eb77215000-0x55eb77217000"
    assert listed["The seal"].startswith("0x55eb77215000-0x55eb77217000 r--p (8 KiB)")
    assert "changed in spite of the seal" in Text(data).text
    target = {"pid": 7, "start": None, "name": "victim", "executable": "/bin/victim"}
    other = event | {"method": "ptrace_poke", "target": target}
    data = page([replace(refused(store), events=[other])])
    assert (
        "changed sealed memory (image-worker) of victim (pid 7) as a debugger does it, by ptrace."
        in Text(data).text
    )
    assert facts(data)["Whose memory"].startswith("/bin/victim")
    # The snapshot is of the process that did it, and no map of the other's memory.
    assert "The surroundings are as they were" not in Text(data).text


def test_a_snapshot_of_another_process(store: Store) -> None:
    """Its addresses are others: they are no part of the picture."""
    case = replace(refused(store), snapshots=[SNAPSHOT | {"pid": 8}])
    found = Text(page([case])).text
    assert "Pid 8 at 2026-11-21 17:07:52.899 UTC: another process of this incident" in found
    assert "The surroundings are as they were" not in found
    assert facts(page([case]))["Started by"] == "pid 20720"
    own = Text(page([replace(case, snapshots=[SNAPSHOT, SNAPSHOT | {"pid": 8}])])).text
    assert "Pid 20721 at 2026-11-21 17:07:52.899 UTC. 1 more of this incident are kept" in own
    assert "The surroundings are as they were" in own


def test_an_unknown_kind(store: Store) -> None:
    event = {
        **{key: EVENTS["denial"][key] for key in ("id", "time", "host", "process", "workload")},
        **{"kind": "coming", "severity": "critical", "summary": "something new"},
        **{"method": "ptrace", "target": {"pid": 7, "name": "victim"}},
        **{"range": {"start": "0x5000", "end": "0x7000"}, "sealed": EVENTS["denial"]["sealed"]},
        **{"assessment": {"name": "new", "likely": "attack"}},
        **{"nested": {"a": [1, {"b": None}]}},
    }
    case = replace(refused(store), events=[event])
    listed = facts(page([case]))
    assert listed["What it probably is"] == "name new, likely attack"
    assert listed["Method"] == "ptrace"
    assert listed["Target"] == "pid 7, name victim"
    assert json.loads(listed["Nested"].replace("\\x22", '"')) == {"a": [1, {"b": None}]}
    for broken in ({}, {"kind": None}, {"kind": "denial"}, {"kind": "fault"}, {"kind": "seal"}):
        assert page([replace(case, events=[broken])])
    assert page([replace(case, events=[])])


def test_several_have_an_overview(store: Store) -> None:
    with Incidents(store.path) as incidents:
        chosen = incidents.search(Filter(), 100)
        out = io.BytesIO()
        write(incidents, chosen, out)
    found = Text(out.getvalue())
    linked = [tag["href"] for name, tag in found.tags if name == "a"]
    ids = [tag["id"] for name, tag in found.tags if name == "article"]
    assert ids == [f"i{incident.id}" for incident in chosen]
    assert linked[: len(chosen)] == [f"#{each}" for each in ids]
    assert {str(href)[1:] for href in linked} <= set(ids)
    assert "5 incidents" in found.text
    assert b"No incident matches" in page([])


# ---- Nothing of a process does anything ----------------------------------------------------------


def hostile(value: object, text: str) -> object:
    """The same shape with this text in every place where there is one."""
    if isinstance(value, dict):
        return {key: hostile(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, text) for item in value]
    return text if isinstance(value, str) else value


KEPT_AS_THEY_ARE = {"kind", "operation", "verdict", "cause", "disposition", "address", "start"}


def cases_with(store: Store, text: str) -> Iterator[Case]:
    """Every kind with this text in every field: in some also in those that are looked at."""
    for what in ("guard_region", "seal", "unknown", "started", refused(store).incident.id):
        case = case_of(store, what, [SNAPSHOT])
        for kept in (KEPT_AS_THEY_ARE, set()):
            events = [
                {
                    key: value if key in kept else hostile(value, text)
                    for key, value in event.items()
                }
                | {"more": {text: text}, text: text}
                for event in case.events
            ]
            texts: Any = dict.fromkeys(("kind", "what", "title", "severity", "summary"), text)
            facets = {name: {text: 1} for name in case.incident.facets}
            incident = replace(case.incident, facets=facets, **texts)
            snapshot: Any = hostile(SNAPSHOT, text) if not kept else SNAPSHOT
            yield Case(
                incident,
                events,
                [snapshot | {"limits": {text: text}, "missing": {text: text}}],
                [(event, incident.id) for event in events],
                [(incident, text)],
            )


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text[:24]) for text in HOSTILE])
def test_hostile_text_stays_text(store: Store, text: str) -> None:
    harmless = list(cases_with(store, "harmless"))
    for case, plain in zip(cases_with(store, text), harmless, strict=True):
        data = page([case])
        ElementTree.fromstring(data)
        found, wanted = Text(data), Text(page([plain]))
        # The same elements and attributes, except for attributes with the text as value.
        assert [(tag, set(values)) for tag, values in found.tags] == [
            (tag, set(values)) for tag, values in wanted.tags
        ]
        assert_harmless(found)
        for piece in found.texts:
            assert all(c.isprintable() or c == "\n" for c in piece)
        assert len(data) < 1_000_000


def assert_harmless(found: Text) -> None:
    for tag, values in found.tags:
        assert tag not in ("script", "img", "iframe", "link", "object", "embed", "form", "base")
        assert not any(name.startswith("on") or name == "style" for name in values)
        assert not set(values) & {"src", "srcset", "action", "data"}
        href = values.get("href")
        assert href is None or re.fullmatch("#i[0-9a-f]{12}", href)
        fill = values.get("fill")
        assert fill is None or re.fullmatch(r"url\(#(sealed|changed|guard)\)", fill)


def test_the_policy_permits_only_the_style(store: Store) -> None:
    data = page([refused(store)])
    found = Text(data)
    (policy,) = (v["content"] for t, v in found.tags if v.get("http-equiv"))
    (style,) = re.findall(rb"<style>(.*?)</style>", data, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert b"url(" not in style
    assert b"@import" not in style
    addresses = set(re.findall(rb"https?://[^\"<\s]+", data))
    assert addresses == {b"http://www.w3.org/1999/xhtml"}  # the name of HTML, nothing to fetch


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> Event:
    """An event of any kind, some of its fields gone or something else altogether."""
    event = copy.deepcopy(EVENTS[draw(st.sampled_from(sorted(EVENTS)))])
    for _ in range(draw(st.integers(1, 4))):
        place: Any = event
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                place[key] = draw(JSON)
                break
            place = place[key]
    return event


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(damaged(), max_size=3), data=st.data())
def test_whatever_a_database_holds(store: Store, events: list[Event], data: st.DataObject) -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    snapshot[data.draw(st.sampled_from(sorted(snapshot)))] = data.draw(JSON)
    case = replace(
        refused(store),
        events=events,
        snapshots=[snapshot],
        timeline=[(event, "0123456789ab") for event in events],
    )
    ElementTree.fromstring(page([case]))


# ---- A lot of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 events of 400 incidents."""
    store = Store(tmp_path_factory.mktemp("week"), KEPT, WEEK_START)
    chance = random.Random(3)
    for begin in range(0, 12_000, 500):
        batch = []
        for second in range(begin, begin + 500):
            caller = chance.randrange(400)
            batch.append(
                denial(
                    WEEK_START + 50 * second,
                    caller=caller,
                    pid=chance.randrange(1000, 1400),
                    executable=f"/srv/bin/worker-{caller % 20}",
                )
            )
        store.take(*batch)
    store.sink.close()
    return store.path


def test_a_week_of_history(week: Path) -> None:
    with Incidents(week) as incidents:
        every = incidents.search(Filter(), 1000)
        assert (len(every), sum(each.count for each in every)) == (400, 12_000)
        one, fifty, all_of_them = io.BytesIO(), io.BytesIO(), io.BytesIO()
        with at_most(2, "one incident, and not the whole week", time.process_time):
            write(incidents, every[:1], one)
        with at_most(30, "400 incidents", time.process_time):
            write(incidents, every[:50], fifty)
            write(incidents, every, all_of_them)
    assert len(one.getvalue()) < 200_000
    assert len(fifty.getvalue()) < 2_000_000
    assert len(all_of_them.getvalue()) < 12_000_000


# ---- The command ---------------------------------------------------------------------------------


def test_the_command(store: Store, tmp_path: Path) -> None:
    path, several = tmp_path / "page.html", tmp_path / "several.html"
    incident = refused(store).incident
    begin = ("incidents", "report")
    end = ("--database", store.path)
    shown = seal_monitor(*begin, incident.id[:8], "-o", path, *end)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    assert incident.title in Text(path.read_bytes()).text
    assert path.stat().st_mode & 0o777 == 0o600
    shown = seal_monitor(*begin, "--operation", "munmap", "--kind", "all", "-o", several, *end)
    assert Text(several.read_bytes()).text.count("munmap of sealed memory refused") > 0
    assert "shows more" not in Text(several.read_bytes()).text
    shown = seal_monitor(*begin, "--limit", "2", "-o", several, *end)
    assert "2 incidents" in Text(several.read_bytes()).text
    assert "2 of 5; --limit shows more." in Text(several.read_bytes()).text
    shown = seal_monitor(*begin, incident.id, "--since", "7d", "-o", path, *end)
    assert "--since chooses incidents; leave it or the ID out" in shown.stderr
    assert shown.returncode == 2
    again = subprocess.run(
        [sys.executable, "-m", "monitor", *map(str, (*begin, incident.id, "-o", "-", *end))],
        capture_output=True,
        check=True,
    ).stdout
    assert again == path.read_bytes()
    shown = seal_monitor(*begin, "0123", "-o", path, *end)
    assert shown.stderr.startswith("seal-monitor: no incident has an id that begins with 0123; ")
    assert shown.returncode == 1
    shown = seal_monitor(*begin, incident.id, "-o", tmp_path, *end)
    assert f"{tmp_path}: not a regular file; name another" in shown.stderr
    assert shown.returncode == 1
    assert "the following arguments are required: -o" in seal_monitor(*begin, *end).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_reads_as_the_owner_and_writes_as_root(store: Store, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        copied = Path(shutil.copy(store.path, Path(name) / "incidents.db"))
        for path in (copied.parent, copied):
            os.chown(path, 12345, 12345)
        identifier = refused(store).incident.id
        for verb in ("report", "export"):
            file = tmp_path / verb
            shown = seal_monitor(*("incidents", verb, identifier, "-o", file, "--database", copied))
            assert (shown.returncode, shown.stderr) == (0, "")
            assert file.stat().st_uid == 0


def test_a_wheel_has_every_file() -> None:
    root = Path(__file__).parents[2]
    tables = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in tables["package-data"].items()
        for pattern in patterns
    ]
    files = {path for path in (root / "monitor").rglob("*") if path.is_file()}
    kept = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert kept == {path for pattern in patterns for path in root.glob(pattern)}
    packages = {path.parent for path in files if path.suffix == ".py"}
    named = {root / package.replace(".", "/") for package in tables["packages"]}
    assert named == packages | {root / "monitor/bpf", root / "monitor/fleet/questions"}
