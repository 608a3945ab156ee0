"""`seal-monitor fleet` on ClickHouse's engine, on PostgreSQL, and with servers that are neither."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
import unicodedata
import xml.dom.minidom
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from centre import Centre, PostgreSQL, clickhouse, postgresql
from clocks import at_most
from fleet_answers import Answers
from fleet_events import Fleet

from monitor import cli
from monitor.fleet.answer import CentreError
from monitor.fleet.clickhouse import ClickHouse
from monitor.fleet.incidents import EVENTS
from monitor.incidents.search import Incident
from monitor.report.cases import Hour, SeenOn, Spread
from monitor.report.spread import spread_view

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
ENGINES: dict[str, Callable[[], AbstractContextManager[Centre]]] = {
    "clickhouse": clickhouse,
    "postgresql": postgresql,
}
EVER = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": NOW}
ANY = dict.fromkeys(("host", "executable", "workload", "verdict", "likely", "operation"), "")
KINDS = ("denial", "fault", "bypass")
EVIL = "web-\x1b[31m\x9b1m\u202e\u2066\r\nforged line <script>alert(1)</script>'\"&"
FLEET = Fleet(4000, NOW)
SENT = [*FLEET.lines()]
ANSWERS = Answers(fact for _, fact in SENT)


@pytest.fixture(scope="module", params=list(ENGINES))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A centre with the events of a fleet."""
    with ENGINES[request.param]() as found:
        found.load(line for line, _ in SENT)
        yield found.url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], url: str) -> Callable[..., str]:
    def run(*words: str) -> str:
        assert cli.main(["fleet", *words, "--from", url]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


def expected(**changes: Any) -> list[tuple[Any, ...]]:
    values = {"kinds": KINDS, "rank": 0, **EVER, **ANY, **changes}
    return ANSWERS.ask("incidents", **values)


# ---- What it prints ------------------------------------------------------------------------------


def test_the_list_is_that_of_all_hosts(run: Callable[..., str]) -> None:
    rows = expected()
    lines = run("list", "--limit", "7").splitlines()
    assert lines[0].split()[:6] == ["ID", "LAST", "SEEN", "(UTC)", "COUNT", "HOSTS"]
    assert [line.split()[0] for line in lines[1:8]] == [row[0] for row in rows[:7]]
    assert [int(line.split()[4].replace(",", "")) for line in lines[1:8]] == [
        row[8] for row in rows[:7]
    ]
    critical = sum(row[3] == 2 for row in rows)
    by = f"({critical:,} critical, {len(rows) - critical:,} warning)"
    assert lines[-1] == (
        f"7 of {len(rows):,} incidents {by}, worst first; --limit {len(rows)} shows the rest"
    )


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (("--severity", "critical"), {"rank": 2}),
        (("--workload", "svc-00[1]*"), {"workload": "svc-001.service"}),
        (("--executable", "/srv/svc-002/*"), {"executable": "/srv/svc-002/bin/svc-002"}),
        (("--executable", "svc-002"), {"executable": "/srv/svc-002/bin/svc-002"}),
        (
            ("--operation", "munmap", "--kind", "denial"),
            {"operation": "munmap", "kinds": ["denial"]},
        ),
        (("--likely", "attack"), {"likely": "attack"}),
        (("--host", SENT[0][1].host), {"host": SENT[0][1].host}),
    ],
)
def test_filters_are_those_of_one_host(
    run: Callable[..., str], flags: tuple[str, ...], changes: dict[str, Any]
) -> None:
    found = json.loads(run("list", "--json", "--sort", "worst", "--limit", "100000", *flags))
    rows = expected(**changes)
    assert rows
    assert [incident["id"] for incident in found] == [row[0] for row in rows]
    assert [(each["delivered"], each["suppressed"], each["hosts"]) for each in found] == [
        row[6:9] for row in rows
    ]


def test_an_incident_says_the_same_as_on_its_host(run: Callable[..., str]) -> None:
    (incident,) = json.loads(run("list", "--json", "--workload", "gateway.service"))
    (row,) = expected(workload="gateway.service")
    assert incident["title"] == "mprotect of sealed memory refused"
    assert incident["program"] == f"build-id {FLEET.gateway.build_id}"
    assert incident["caller"] == f"gateway {FLEET.gateway.build_id}+0x4243"
    assert incident["mapping"] == "file image-worker"
    assert incident["facets"]["likely"] == {"attack": row[6]}
    assert incident["facets"]["user"] == {"www-data": row[6]}
    assert sum(incident["facets"]["host"].values()) == row[6]
    assert incident["first_seen"][:26] == row[4].strftime("%Y-%m-%dT%H:%M:%S.%f")


def test_show_has_the_last_events(run: Callable[..., str]) -> None:
    (row,) = expected(workload="gateway.service")
    found = json.loads(run("show", FLEET.spreading[:7], "--json"))
    ids = [fact.id for fact in ANSWERS.facts if fact.fingerprint == FLEET.spreading]
    assert sorted(event["id"] for event in found["events"]) == sorted(ids)
    text = run("show", FLEET.spreading[:7])
    assert f"  hosts         {row[8]}\n" in text
    assert f"the last events: {min(len(ids), EVENTS)}\n" in text
    assert all(event["host"]["name"] in text for event in found["events"])


def test_hosts_of_an_incident(run: Callable[..., str]) -> None:
    rows = ANSWERS.ask("hosts", fingerprint=FLEET.spreading)
    lines = run("hosts", FLEET.spreading, "--limit", "3").splitlines()
    assert [line.split()[5] for line in lines[1:4]] == [row[0] for row in rows[:3]]
    assert lines[-1] == (
        f"3 of {len(rows)} hosts, the first one first; --limit {len(rows)} shows the rest"
    )
    found = json.loads(run("hosts", FLEET.spreading, "--json"))
    assert [(each["host"], each["host_id"], each["count"]) for each in found["on"]] == [
        (row[0], row[1], row[4] + row[5]) for row in rows
    ]


def test_the_timeline_of_a_host(run: Callable[..., str]) -> None:
    host = SENT[0][1].host
    rows = ANSWERS.ask("timeline", host=host, **EVER)
    found = json.loads(run("timeline", host, "--json"))
    assert [(each["kind"], each["incident"]) for each in found] == [row[1:3] for row in rows]
    lines = [line.split()[2:5] for line in run("timeline", host).splitlines()]
    assert lines == [[each["severity"], each["kind"], each["incident"]] for each in found]


def test_the_page_has_hosts_and_spread(run: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    run("report", FLEET.spreading, "-o", str(file))
    text = file.read_text("utf-8")
    xml.dom.minidom.parseString(text)
    rows = ANSWERS.ask("hosts", fingerprint=FLEET.spreading)
    assert f"First on {rows[0][0]}, at {rows[0][2]:%Y-%m-%d %H:%M:%S} UTC" in text
    assert f"by now on {len(rows)} hosts." in text
    assert f"All {len(rows)} events that are kept are alike." in text  # whatever the host
    new = sum(row[2] for row in ANSWERS.ask("spread", fingerprint=FLEET.spreading))
    titles = [int(each.split()[-3]) for each in text.split("</title></rect>")[:-1]]
    assert sum(titles) == new == len(rows)
    run("report", "--limit", "3", "-o", str(file))
    assert f"3 of {len(expected()):,}; <code>--limit</code> shows more." in file.read_text("utf-8")


@pytest.mark.parametrize(("new_hosts", "bars"), [((0, 0), 0), ((2, 0), 1), ((1, 3), 2)])
def test_a_bar_for_each_hour_with_new_hosts(new_hosts: tuple[int, ...], bars: int) -> None:
    """No empty chart where all hosts were new before the hours that are shown."""
    hour_ns = 3600 * 10**9
    hours = [Hour(n * hour_ns, 5, number, 9) for n, number in enumerate(new_hosts)]
    seen = SeenOn("web-3", "abc", 0, hour_ns, 18)
    values: dict[str, Any] = {"id": "0123456789ab", "kind": "denial", "severity": "critical"}
    values |= dict.fromkeys(("what", "executable", "caller", "mapping", "title", "summary"), "")
    values |= {"first_ns": 0, "last_ns": hour_ns, "events": 18, "suppressed": 0, "facets": {}}
    found = spread_view(Incident(**values, hosts=5), Spread([seen], hours))
    assert found is not None
    assert len(found.bars) == bars
    assert found.most == str(max(new_hosts))


def test_no_such_incident(capsys: pytest.CaptureFixture[str], url: str) -> None:
    for id in ("0123456789ab", "%", "zz", "' OR 1=1"):
        assert cli.main(["fleet", "show", id, "--from", url]) == 1
        assert "no incident has an id that begins with" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ENGINES)
def test_a_user_is_found_by_the_name_that_alerts_have(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user = "/user.slice/user-1000.slice"
    cgroups = {
        "session-4.scope": f"{user}/session-4.scope",
        "app.service": f"{user}/user@1000.service/app.slice/app.service",
        "session-5.scope": "/user.slice/user-1001.slice/session-5.scope",
        "image-worker.service": "/system.slice/image-worker.service",
    }
    event = json.loads(SENT[0][0])
    lines = [
        json.dumps(
            event
            | {"id": f"event-{number}", "fingerprint": f"{number:012x}"}
            | {"kind": "denial", "operation": "munmap", "workload": {"unit": unit, "cgroup": path}}
        )
        for number, (unit, path) in enumerate(cgroups.items())
    ]
    expected = {
        "user-1000.slice": {0, 1},
        "user-100?.slice": {0, 1, 2},
        "user-100.slice": set(),
        "session-4.scope": {0},
        "user@1000.service/app.service": {1},
        "image-worker.service": {3},
        "": set(),
    }
    with ENGINES[engine]() as centre:
        centre.load(lines)
        for workload, numbers in expected.items():
            words = ["fleet", "list", "--json", "--workload", workload, "--from", centre.url]
            assert cli.main(words) == 0
            found = json.loads(capsys.readouterr().out)
            assert {int(incident["id"], 16) for incident in found} == numbers, workload


# ---- Hostile events ------------------------------------------------------------------------------


def unsafe(text: str) -> set[str]:
    """Characters that a terminal or a browser obeys."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_host_says_is_only_shown(
    engine: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Control characters, line breaks and markup are escaped; what is no event stops nothing."""
    evil = json.loads(SENT[0][0]) | {"summary": f"{EVIL}: x", "severity": EVIL, "id": "evil"}
    evil["host"] |= {"name": EVIL, "id": EVIL}
    evil["process"] = {"executable": f"/{EVIL}", "user_name": EVIL, "files": EVIL}
    evil |= {"verdict": EVIL, "disposition": EVIL, "assessment": {"likely": EVIL, "name": EVIL}}
    evil["workload"] = {"unit": EVIL, "pod_uid": EVIL, "container_id": EVIL, "cgroup": f"/{EVIL}"}
    nowhere = evil | {"id": "nowhere", "fingerprint": EVIL}
    nothing = evil | {"id": "nothing", "fingerprint": "0123456789ab", "operation": EVIL}
    broken = evil | {"id": "broken", "process": 7, "stack": "none", "kind": "denial"}
    with ENGINES[engine]() as centre:
        evils = (evil, broken, nowhere, nothing)
        centre.load([*map(json.dumps, evils), "nonsense", SENT[1][0]])
        fingerprint = evil["fingerprint"] or ANSWERS.facts[0].fingerprint
        for words in (
            ("list", "--kind", "all"),
            ("list", "--kind", "all", "--json"),
            ("list", "--host", EVIL),
            ("hosts", fingerprint),
            ("hosts", fingerprint, "--json"),
            ("show", fingerprint),
            ("show", fingerprint, "--json"),
            ("show", "0123456789ab"),
            ("timeline", EVIL),
            ("timeline", EVIL, "--json"),
            ("report", "--kind", "all", "-o", str(tmp_path / "page.html")),
            ("report", fingerprint, "-o", str(tmp_path / "one.html")),
            ("report", "0123456789ab", "-o", str(tmp_path / "other.html")),
        ):
            code = cli.main(["fleet", *words, "--from", centre.url])
            printed = capsys.readouterr()
            assert (code, printed.err) == (0, ""), words
            assert not unsafe(printed.out), words
            assert not [line for line in printed.out.splitlines() if line.startswith("forged")]
        assert cli.main(["fleet", "timeline", f"{EVIL}x", "--from", centre.url]) == 1
        assert not unsafe(capsys.readouterr().err)
        for page in tmp_path.iterdir():
            text = page.read_text("utf-8")
            xml.dom.minidom.parseString(text)
            assert "<script>" not in text
            assert not unsafe(text)


def test_a_reader_is_enough(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with postgresql() as centre:
        assert isinstance(centre, PostgreSQL)
        centre.load(line for line, _ in SENT[:50])
        centre.rows("CREATE ROLE analyst LOGIN IN ROLE seal_monitor_reader")
        url = centre.url.replace("//owner@", "//analyst@")
        for words in (
            ("list",),
            ("hosts", SENT[0][1].fingerprint),
            ("show", SENT[0][1].fingerprint),
        ):
            assert cli.main(["fleet", *words, "--from", url]) == 0
            capsys.readouterr()


# ---- Passwords, and other servers ----------------------------------------------------------------

Answering = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(answering: Answering) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with contextlib.suppress(OSError):  # the client has had enough
                self.rfile.read(int(self.headers["Content-Length"]))
                answering(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_password_comes_from_a_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = []

    def answering(handler: http.server.BaseHTTPRequestHandler) -> None:
        given.append(base64.b64decode(handler.headers["Authorization"].split()[1]).decode())
        handler.send_error(403, "no")

    file = tmp_path / "password"
    file.write_text("from-file\nanother line\n")
    with serving(answering) as port:
        url = f"http://analyst@127.0.0.1:{port}/"
        words = ["fleet", "list", "--from", url]
        assert cli.main([*words, "--password-file", str(file)]) == 1
        monkeypatch.setenv("SEAL_MONITOR_FLEET_PASSWORD", "from-environment")
        assert cli.main(words) == 1
        monkeypatch.delenv("SEAL_MONITOR_FLEET_PASSWORD")
        monkeypatch.setenv("SEAL_MONITOR_FLEET", f"http://analyst:of%2Furl@127.0.0.1:{port}/")
        assert cli.main(["fleet", "list"]) == 1
    assert given == ["analyst:from-file", "analyst:from-environment", "analyst:of/url"]
    printed = capsys.readouterr().err
    assert printed.count("answered with 403") == 3
    assert not any(word in printed for word in ("from-file", "from-environment", "of/url", "of%2F"))


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_a_password_on_the_command_line_is_refused(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{scheme}://analyst:secret@centre.example/seal"
    assert cli.main(["fleet", "list", "--from", url]) == cli.WRONG_USAGE
    printed = capsys.readouterr().err
    assert "everybody on this host can read the password" in printed
    assert "secret" not in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no database is named; write --from URL, or set SEAL_MONITOR_FLEET"),
        (("--from", "ftp://x/"), "ftp is no scheme of such a database"),
        (("--from", "http://"), "write https://USER@HOST:8443/"),
        (("--from", "http://x:port/"), "Port could not be cast"),
    ],
)
def test_a_wrong_url_is_wrong_usage(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fleet", "list", *words]) == cli.WRONG_USAGE
    assert says in capsys.readouterr().err


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * (1 << 20))


def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
    for _ in range(600):  # never an end of the headers
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: y\r\n")
        time.sleep(0.1)


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b"[")
        time.sleep(0.1)


def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:1/")
    handler.end_headers()


def body(text: str) -> Answering:
    def answering(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(text.encode())

    return answering


@pytest.mark.parametrize(
    ("answering", "says"),
    [
        (endless, "answers with over 67,108,864 bytes"),
        (slow, "no whole answer in 1.5 s"),
        (drip, "no whole answer in 1.5 s"),
        (elsewhere, "answered with 307"),
        (body("<html>a proxy\x1b[31m</html>"), "does not answer as ClickHouse does"),
        (body('["a"]\n["String"]\n[' + "[" * 100_000), "does not answer as ClickHouse does"),
        (body('["a"]\n["String"]\n["x", "y"]'), "does not answer as ClickHouse does"),
    ],
)
def test_a_server_that_is_none(answering: Answering, says: str) -> None:
    with serving(answering) as port, at_most(30, "of 64 MiB, or of 1.5 s"):
        place = ("127.0.0.1", port, "/")
        database = ClickHouse(place, user="u", password="p", tls=False, seconds=1.5)
        with pytest.raises(CentreError) as error:
            database.ask("SELECT 1", {})
    assert says in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("row", ['["a"]', "[1,2,3,4,5,6,7,8,9]", "[null,null,null,{},[],1,1,1,1]"])
def test_rows_of_another_table(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns = json.loads(row)
    head = f"{json.dumps(['c'] * len(columns))}\n{json.dumps(['String'] * len(columns))}\n"
    with serving(body(head + row)) as port:
        assert cli.main(["fleet", "list", "--from", f"http://127.0.0.1:{port}/"]) == 1
    assert "its tables are not those of dashboards/fleet" in capsys.readouterr().err


def test_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL or psycopg is not installed; run: make test")
    for url in ("http://127.0.0.1:1/", "postgresql://u@127.0.0.1:1/x"):
        assert cli.main(["fleet", "list", "--from", url]) == 1
        assert "onnection refused" in capsys.readouterr().err


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    """As where the package is installed without it."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('none')")
    done = subprocess.run(
        [sys.executable, "-m", "monitor", "fleet", "list", "--from", "postgresql://x/y"],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install python3-psycopg, or: pip install 'seal-monitor[fleet]'" in done.stderr
