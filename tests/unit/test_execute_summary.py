from __future__ import annotations

import json
from typing import Any

import pytest

from monitor.execute.cgroup import Member
from monitor.execute.summary import (
    ROWS_SHOWN,
    Result,
    counts,
    document,
    live,
    summary,
    violations,
)
from monitor.incidents.search import Incident
from monitor.kernel.abi import Cause, Counters, Disposition, Method, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.sinks.console import COLOURS

Event = dict[str, Any]
NAMES = [operation.name for operation in OPERATIONS]


def frame(address: str, module: str | None, offset: int | None, symbol: str | None) -> Event:
    return {
        **{"address": address, "module": module, "build_id": None},
        **{"offset": offset, "symbol": symbol},
    }


DENIAL: Event = {
    "kind": "denial",
    "assessment": {"name": "unmapped", "likely": "leak"},
    "severity": "critical",
    "summary": "munmap of sealed memory refused: worker (pid 7) tried to unmap 0x1000-0x2000 "
    "(sealed r--p, anonymous)",
    "caller": "0x402",
    "instruction_pointer": "0x401",
    "stack": [
        frame("0x401", "libc.so.6", 0x101A37, "munmap+0x7"),
        frame("0x402", "worker", 0x1212, "unload_table+0x16"),
        frame("0x403", None, None, None),
    ],
}
FAULT: Event = {
    "kind": "fault",
    "assessment": {"name": "overrun", "likely": "bug"},
    "severity": "warning",
    "summary": "write to a guard region",
    "instruction_pointer": "0x402",
    "stack": [frame("0x402", "libimages.so.3", 0x11B8, None)],
}


def incident(kind: str, what: str, title: str, severity: str, count: int = 1) -> Incident:
    return Incident(
        id="0123456789ab",
        kind=kind,
        what=what,
        executable="name worker",
        caller="",
        mapping="",
        title=title,
        severity=severity,
        summary="",
        first_ns=1,
        last_ns=2,
        events=count,
        suppressed=0,
        facets={},
    )


DENIED = incident("denial", "munmap", "munmap of sealed memory refused", "critical", 4096)
FAULTED = incident("fault", "guard_region", "write to a guard region", "warning", 2)


def counters(denials: int = 4096, faults: int = 2, others: int = 0) -> Counters:
    found = Counters()
    found.denials[NAMES.index("munmap")][Verdict.SEALED] = denials
    found.denials[NAMES.index("munmap")][Verdict.NOT_SEALED] = others
    found.faults[Cause.GUARD_REGION][Disposition.DEFAULT] = faults
    found.faults[Cause.OTHER][Disposition.DEFAULT] = others
    found.seals, found.sealed_bytes = 2, 8192
    return found


def result(**changes: Any) -> Result:
    usual: dict[str, Any] = {
        **{"words": ["make", "test"], "status": 0, "code": 0, "failed_on": []},
        **{"seconds": 3.21, "counters": counters(), "left": [], "notes": []},
        "incidents": [(FAULTED, [FAULT]), (DENIED, [DENIAL, {"kind": "suppression"}])],
    }
    return Result(**(usual | changes))


# ---- Counts --------------------------------------------------------------------------------------


def test_what_is_a_violation() -> None:
    found = counters(others=9)
    assert counts(found) == {
        "denial": {"munmap": 4096},
        "fault": {"guard_region": 2},
        "bypass": {},
    }
    assert violations(found) == {"denial": 4096, "fault": 2, "bypass": 0}
    found.denials[NAMES.index("brk")][Verdict.UNVERIFIED] = 3
    found.bypasses[Method.PTRACE_POKE] = 1
    assert violations(found) == {"denial": 4099, "fault": 2, "bypass": 1}
    assert violations(Counters()) == {"denial": 0, "fault": 0, "bypass": 0}


# ---- As text -------------------------------------------------------------------------------------


def test_an_incident_as_it_happens() -> None:
    assert live(DENIAL, colours=False) == (
        "seal-monitor: critical: munmap of sealed memory refused: worker (pid 7) tried to unmap "
        "0x1000-0x2000\n"
        "seal-monitor:   (sealed r--p, anonymous)\n"
        "seal-monitor:   #0  munmap+0x7         libc.so.6+0x101a37\n"
        "seal-monitor:   #1  unload_table+0x16  worker+0x1212\n"
        "seal-monitor:   #2  ?                  0x403\n"
    )


def test_colours_are_for_terminals() -> None:
    text = live(DENIAL, colours=True)
    assert f"{COLOURS['critical']}critical: \x1b[0mmunmap" in text
    assert COLOURS["critical"] + "critical\x1b[0m  munmap" in summary(result(), colours=True)
    assert "\x1b" not in live(DENIAL, colours=False) + summary(result(), colours=False)


@pytest.mark.parametrize("text", ["\x1b[31m", "\n", "\u202e"])
def test_no_control_characters_reach_the_terminal(text: str) -> None:
    hostile = json.loads(json.dumps(DENIAL))
    hostile["summary"] = f"munmap{text}"
    hostile["stack"][1] |= {"symbol": f"f{text}", "module": f"m{text}"}
    odd = incident("denial", "munmap", f"t{text}", "critical")
    shown = live(hostile, colours=False) + summary(
        result(incidents=[(odd, [hostile])], left=[Member(1, "x")]), colours=False
    )
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("\n") == 4 + 11


def test_the_summary() -> None:
    assert summary(result(), colours=False) == (
        "seal-monitor: 4,096 denials and 2 faults, in 3.2 s\n"
        "\n"
        "  COUNT  SEVERITY  WHAT                             FUNCTION           PLACE\n"
        "  4,096  critical  munmap of sealed memory refused  unload_table+0x16  worker+0x1212\n"
        "      2  warning   write to a guard region          ?                  "
        "libimages.so.3+0x11b8\n"
        "\n"
        "  overrun: Guard regions lie next to memory that may be used: the pages before or after "
        "belong to\n    the buffer or stack that was overrun.\n"
        "  unmapped: The memory stays mapped until the process ends. An attacker who wants to put "
        "other\n    memory in its place begins like this, too: look at what the process did next.\n"
    )


def test_the_longest_title_of_a_fault_is_whole() -> None:
    title = "write to memory past the end of a stack (inferred)"
    odd = incident("fault", "stack_guard", title, "warning")
    assert f"  {title}  " in summary(result(incidents=[(odd, [])]), colours=False)


def test_no_violations() -> None:
    quiet = counters(0, 0, others=5)
    assert summary(result(counters=quiet, incidents=[]), colours=False) == (
        "seal-monitor: no violations, 2 mseal calls, in 3.2 s\n"
    )


def test_what_is_in_no_incident_has_a_row() -> None:
    text = summary(result(counters=counters(5000, 2)), colours=False)
    assert "\n    904  -         munmap denials that were only counted  -" in text
    text = summary(result(incidents=[], counters=counters(1, 0)), colours=False)
    assert "seal-monitor: 1 denial, in 3.2 s\n" in text
    assert "      1  -         munmap denials that were only counted  -" in text


def test_an_unknown_operation_is_counted_once() -> None:
    shared = incident("denial", "unknown", "denials of unknown callers", "critical", 904)
    text = summary(
        result(incidents=[(DENIED, [DENIAL]), (shared, [])], counters=counters(5000, 0)),
        colours=False,
    )
    assert "unknown callers" not in text
    assert "\n    904  -         munmap denials that were only counted  -" in text


def test_many_places() -> None:
    incidents = [(incident("denial", "munmap", "t", "critical", 2), [DENIAL])] * (ROWS_SHOWN + 3)
    text = summary(
        result(incidents=incidents, counters=counters(2 * len(incidents), 0)), colours=False
    )
    assert text.count("unload_table") == ROWS_SHOWN
    assert "\n      6  -         others, in 3 places" in text


def test_notes_and_processes_that_live_on_are_listed() -> None:
    left = [Member(number, "sleep") for number in range(10, 17)]
    text = summary(
        result(notes=["3 runs missed"], left=left, failed_on=["denial", "fault"], code=4),
        colours=False,
    )
    assert text.endswith(
        "\n\n"
        "seal-monitor: 3 runs missed\n"
        "seal-monitor: 7 processes of the command still running, no longer watched: sleep (10), "
        "sleep (11), sleep (12), sleep (13), sleep (14) and 2 more\n"
        "seal-monitor: exit code 4, for --fail-on denial,fault\n"
    )


# ---- As JSON -------------------------------------------------------------------------------------


def test_the_document() -> None:
    found = document(result(counters=counters(others=9), left=[Member(10, "sleep")], status=3))
    incidents = found.pop("incidents")
    assert found == {
        "schema": 1,
        "command": ["make", "test"],
        "exit_code": 3,
        "signal": None,
        "seconds": 3.21,
        "failed_on": [],
        "violations": {"denial": 4096, "fault": 2, "bypass": 0},
        "denials": {"munmap": {"sealed": 4096, "not_sealed": 9}},
        "faults": {"guard_region": {"default": 2}, "other": {"default": 9}},
        "bypasses": {},
        "seals": 2,
        "sealed_bytes": 8192,
        "notes": [],
        "still_running": [{"pid": 10, "name": "sleep"}],
    }
    assert isinstance(incidents, list)
    assert [(each["operation"], each["count"]) for each in incidents] == [
        (None, 2),
        ("munmap", 4096),
    ]
    assert incidents[1]["events"] == [DENIAL, {"kind": "suppression"}]


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (40, "signal 40")])
def test_a_command_that_a_signal_ended(number: int, name: str) -> None:
    found = document(result(status=-number))
    assert (found["exit_code"], found["signal"]) == (None, name)
