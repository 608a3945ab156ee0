"""The list of incidents on terminals of any width, with names that others chose."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from test_incidents import KEPT, WEEK_START, Store, denial

from monitor.commands.incident_list import Listing, listed
from monitor.incidents.search import Filter, Incident
from monitor.untrusted.terminal import places

TITLE = "munmap of sealed memory refused"
NAMES = (
    "/srv/images/bin/image-worker",
    "/usr/lib/\u65e5\u672c\u8a9e\u65e5\u672c\u8a9e/\u30d7\u30ed\u30b0\u30e9\u30e0",
    "/opt/\u05d0\u05d1/\u05d3",
    "/opt/e\u0301e\u0301/caf\u00e9",
    "/opt/\x1b[31mred\u202e",
    "/" + "x" * 300 + "/end",
    "/nix/store/" + "a" * 60 + "/bin/attack",
)
HOSTS = ("web-0.example.net", "web-1.example.net")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """70 incidents of seven programs; every tenth has two workloads."""
    made = Store(tmp_path_factory.mktemp("state"), KEPT, WEEK_START)
    for number in range(70):
        path, own = NAMES[number % 7], f"quite-a-long-name-of-a-service-{number}.service"
        for unit in (own, "other.service")[: 1 if number % 10 else 2]:
            event: Any = denial(
                *(WEEK_START + 60 * number,), caller=number, executable=path, unit=unit
            )
            event["severity"] = "warning" if number % 3 else "critical"
            event["host"] = event["host"] | {"name": HOSTS[number % 2]}
            made.take(event)
    made.sink.close()
    return made


def on_terminal(columns: int, *arguments: object) -> list[str]:
    """The lines that the command prints on a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "monitor", "incidents", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=theirs, env=environment | {"PYTHONUTF8": "1"}, stdin=subprocess.DEVNULL
    ) as child:
        os.close(theirs)
        shown = bytearray()
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        assert child.wait() == 0
    return shown.decode().splitlines()


def unwrapped(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 100, 160, 250])
def test_no_line_is_wider_than_the_terminal(store: Store, columns: int) -> None:
    lines = on_terminal(columns, "list", "--database", store.path)
    assert max(map(places, lines)) <= columns
    shown = unwrapped(lines)
    # What happened is never cut, and how many others there are is always seen.
    assert shown.count(TITLE) == 50
    assert shown.count(" +1") >= 5
    assert shown.count("web-0.example.net") == shown.count("web-1.example.net") == 25
    assert shown.endswith(
        "50 of 70 incidents (24 critical, 46 warning), worst first; --limit 70 shows the rest"
    )
    severities = [word for word in shown.split() if word in ("critical", "warning")]
    assert severities[:50] == ["critical"] * 24 + ["warning"] * 26


@pytest.mark.parametrize(("columns", "is_table"), [(80, False), (100, False), (160, True)])
def test_a_table_where_it_fits(store: Store, columns: int, is_table: bool) -> None:
    lines = on_terminal(columns, "list", "--limit", 5, "--database", store.path)
    assert ("WHAT" in lines[0]) == is_table
    if is_table:
        assert len(lines) == 1 + 5 + 2
        place = lines[0].index("WHAT")
        assert {line[place : place + len(TITLE)] for line in lines[1:6]} == {TITLE}


def test_nothing_is_cut_where_no_terminal_is(store: Store) -> None:
    found = store.read(Filter())
    lines = listed(Listing(found, {"warning": len(found)}, "last", "", len(found)), None)
    assert len(lines) == 1 + len(found) + 2
    assert sum("/nix/store/" + "a" * 60 + "/bin/attack" in line for line in lines) == 10
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


def test_one_host_is_not_repeated(store: Store) -> None:
    found = [each for each in store.read(Filter()) if HOSTS[0] in each.facets["host"]]

    def titles(incidents: list[Incident]) -> str:
        return listed(Listing(incidents, {"warning": 1}, "last", "", 1), None)[0]

    assert "HOST" not in titles(found)
    assert titles(store.read(Filter())).endswith("HOST")


def test_nothing_at_all() -> None:
    assert listed(Listing([], {}, "worst", "--kind violation", 0), 80) == ["no incident is kept"]


def test_show_on_a_terminal(store: Store) -> None:
    for incident in store.read(Filter())[:8]:
        lines = on_terminal(80, "show", incident.id, "--database", store.path)
        assert max(map(places, lines)) <= 80


def test_equal_events_are_one_line(tmp_path: Path) -> None:
    made = Store(tmp_path, KEPT, WEEK_START)
    made.take(*(denial(WEEK_START + 0.25 * number, pid=7) for number in range(8)))
    made.take(denial(WEEK_START + 60, pid=8), denial(WEEK_START + 61, pid=7))
    made.sink.close()
    (incident,) = made.read(Filter())
    shown = on_terminal(300, "show", incident.id, "--database", made.path)
    kept = shown[shown.index("events that are kept: 10") + 1 :]
    assert [line[2:25] for line in kept] == [
        *("2026-11-18 11:07:41.000", "2026-11-18 11:07:40.000", "2026-11-18 11:06:40.000"),
    ]
    assert kept[2].endswith("  (8 times, the last at 11:06:41.750)")
    assert not kept[0].endswith(")")
