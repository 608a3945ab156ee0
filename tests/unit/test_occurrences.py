"""Which occurrence a page is about, and what it says of the others."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from test_cases import a_day, case_of
from test_fingerprint import EVENTS
from test_report import Text, facts

from monitor.report.occurrences import Others, others, whole, worst
from monitor.report.page import page

Event = dict[str, Any]
DENIAL, FAULT = EVENTS["denial"], EVENTS["fault"]
GAP = EVENTS["suppression"]


def denial(second: int, **changes: Any) -> Event:
    """The example's denial, by another process at another address each time."""
    event = copy.deepcopy(DENIAL) | {"time": f"2026-11-21T17:08:{second:02}.000000000Z"}
    event["process"] |= {"pid": 1000 + second}
    event["arguments"] = {"addr": hex(0x7F0000000000 + second * 4096)} | {
        name: each for name, each in event["arguments"].items() if name != "addr"
    }
    return event | changes


UNPROVED = {"verdict": "unverified", "reason": "traced", "severity": "warning"}
CHANGED = {"partial_update": {"start": "0x55eb77211000", "end": "0x55eb77215000"}}


def test_the_worst_is_by_severity_proof_and_change() -> None:
    events = [denial(1), denial(2, **CHANGED), denial(3), denial(4, **UNPROVED), GAP]
    assert worst(events) == events[1]
    assert worst([events[0], *events[2:]]) == events[2]  # of equal ones the last
    assert worst([*events[3:]]) == events[3]
    assert worst([GAP]) == GAP
    assert worst([]) is None
    handled = FAULT | {"disposition": "handler"}
    assert worst([FAULT, handled, handled]) == FAULT


def test_addresses_and_pids_make_no_difference() -> None:
    events = [denial(second) for second in range(8)]
    assert others([*events, GAP]) == Others(kept=8, alike=8, most=0, differences=())
    assert others(events[:1]) is None
    assert others([GAP, GAP]) is None
    assert whole([*events, GAP]) == events


def test_how_the_others_differ() -> None:
    other_user = denial(9)
    other_user["process"] |= {"user_name": "nobody"}
    usually = [denial(second, **UNPROVED) for second in range(6)]
    found = others([denial(7, **CHANGED), *usually, other_user])
    assert found == Others(
        kept=8,
        alike=1,
        most=6,
        differences=[
            ("Severity", "warning", "critical"),
            ("Verdict", "unverified traced", "sealed"),
            ("Changed", "nothing", "a part of it"),
        ],
    )


def test_a_page_shows_the_worst_and_the_usual_one(tmp_path: Path) -> None:
    store = a_day(tmp_path)
    (incident,) = (each for each in store.read() if each.suppressed == 3996)
    case = case_of(store, incident.id, [])
    events = [denial(1, **CHANGED), *(denial(second, **UNPROVED) for second in range(2, 9))]
    data = page([replace(case, events=events)])
    text = Text(data).text
    assert "pid 1001" in text.partition("What happened, at its worst")[0]
    assert "At 2026-11-21 17:08:01.000 UTC." in text
    assert "How it usually is In 7 of the 8 events that are kept; the rest is alike." in text
    assert "Severity warning critical Verdict unverified traced sealed" in text
    alike = page([replace(case, events=events[1:])])
    assert "What happened, the last time" in Text(alike).text
    assert "At 2026-11-21 17:08:08.000 UTC. All 7 events that are kept are alike." in (
        Text(alike).text
    )
    assert "usually" not in Text(alike).text
    once = Text(page([replace(case, events=events[:1])])).text
    assert "What happened Since" not in once
    assert "at its worst" not in once
    assert "the last time" not in once


def test_equal_steps_are_one_row(tmp_path: Path) -> None:
    store = a_day(tmp_path)
    (incident,) = (each for each in store.read() if each.suppressed == 3996)
    case = case_of(store, incident.id, [])
    again = [case.event | {"time": f"2026-11-21T17:07:52.{n}00000000Z"} for n in range(1, 9)]
    data = page([replace(case, timeline=[(event, incident.id) for event in again])])
    text = Text(data).text.partition("What the process did")[2]
    text = text.partition("Where it has been seen")[0].partition("The event")[0]
    assert "8 times , until 17:07:52.800: mprotect of sealed memory refused" in text
    assert text.count("asked for rw-") == 1
    alone = page([replace(case, timeline=[(case.event, incident.id)])])
    assert "What the process did" not in Text(alone).text  # the story says it


def test_a_picture_only_where_it_shows_something(tmp_path: Path) -> None:
    """All of the only mapping that is known is one band; a part of it, or a neighbour, is more."""
    store = a_day(tmp_path)
    (incident,) = (each for each in store.read() if each.suppressed == 3996)
    case = case_of(store, incident.id, [])
    start, end = case.event["sealed"]["start"], case.event["sealed"]["end"]
    assert case.event["arguments"]["addr"] == start
    assert int(end, 16) - int(start, 16) == case.event["arguments"]["size"] == 8192
    assert "Where in its memory" not in Text(page([case])).text
    part = case.event | {"arguments": {"addr": start, "size": 4096, "prot": "rw-"}}
    assert "Where in its memory" in Text(page([replace(case, events=[part])])).text
    beyond = case.event | {"arguments": {"addr": start, "size": 12288, "prot": "rw-"}}
    assert "Where in its memory" in Text(page([replace(case, events=[beyond])])).text


def test_a_single_value_is_not_repeated(tmp_path: Path) -> None:
    store = a_day(tmp_path)
    data = page([case_of(store, "guard_region")])
    assert "Where it has been seen" not in Text(data).text
    assert facts(data)["User"] == "www-data (uid 33)"
    several = next(each for each in store.read() if len(each.facets["workload"]) > 1)
    text = Text(page([case_of(store, several.id)])).text
    assert "Where it has been seen Workloads w5.service 1 w6.service 1 w7.service 1" in text
