"""`seal-monitor demo`: provokes one of every violation, and shows what the monitor says of it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from monitor.configuration.config import Config, Watch, parse
from monitor.daemon import Daemon
from monitor.kernel.abi import Cause, Counters, Method, Verdict
from monitor.kernel.probes import AT_SEAL
from monitor.provoke import table as provoke
from monitor.provoke.announce import Announcer
from monitor.provoke.provocation import Provocation
from monitor.provoke.refusal import as_seen
from monitor.sinks import outputs as sinks

__all__ = ["counted", "not_shown", "run"]

WIDTHS = (60, 120)  # the least and the greatest width of the output
READY_SECONDS = 10.0
EVENT_SECONDS = 2.0
_UNBROKEN = "\N{NO-BREAK SPACE}"  # textwrap does not break a line here
_TITLES = {
    "denial": "Refused by a seal",
    "fault": "Stopped by a guard page, a seal or a protection",
    "bypass": "Changed around a seal",
    "seal": "Sealed",
    "other": "Looks like one, and is not or may not be",
}


class _Collected:
    """A sink that keeps the events."""

    name = "demo"

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def render(self, event: dict[str, object]) -> bytes:
        return sinks.encode(event)

    def write(self, data: bytes) -> None:
        self.events.append(json.loads(data))

    def reopen(self) -> None: ...

    def close(self) -> None:
        self.events.clear()

    def take(self, pid: int) -> list[dict[str, Any]]:
        """The events of this process and its children, which are removed here."""
        found = [
            event
            for event in self.events
            if event["process"] and pid in (event["process"]["pid"], event["process"]["parent_pid"])
        ]
        self.events = [event for event in self.events if event not in found]
        return found


def _is_as_expected(facts: dict[str, Any], events: list[dict[str, Any]]) -> bool:
    """Whether the last event says what the provocation did or, without events, none is due."""
    cause = facts.get("cause")
    verdict = facts.get("verdict")
    if not _expects_event(facts):
        return not events
    if not events:
        return False
    last = events[-1]
    if facts["kind"] == "bypass":
        return bool(
            last.get("method") == facts["method"]
            and int(last["changed"]["start"], 16) == facts["address"]
        )
    if cause is not None:
        return bool(
            (last.get("cause"), last.get("disposition")) == (cause, facts["disposition"])
            and int(last["address"], 16) == facts["address"]
        )
    return (last.get("operation"), last.get("verdict")) == (facts["operation"], verdict)


def _expects_event(facts: dict[str, Any]) -> bool:
    if facts["kind"] == "seal":
        return False
    if facts["kind"] == "bypass":
        return True
    return facts.get("verdict", "not_sealed") != "not_sealed" or facts.get("cause") not in (
        None,
        "other",
    )


def _show(text: str = "") -> None:
    print(text, flush=True)


def _item(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="* ", subsequent_indent="  ")


def _due(daemon: Daemon, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that should be reported with the hooks that are attached."""
    probes = daemon.watcher.loaded.probes
    method = facts.get("method")
    if method and not any(p.probe == method and p.attached for p in probes):
        return facts | {"unsupported": "it is provoked, but nothing attached here sees it"}
    at_seal = any(p.probe == facts.get("operation") and p.target in AT_SEAL for p in probes)
    seen = as_seen(facts, at_seal)
    if seen is None and facts["kind"] == "denial":
        return facts | {"unsupported": "it is provoked, but hidden; only fexit sees it"}
    return seen or facts | {"verdict": "not_sealed"}


def _provoke(
    daemon: Daemon,
    collected: _Collected,
    provocation: Provocation,
    announce: Callable[[int], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    child = provoke.run(provocation.name, wait=True)
    with child:
        announce(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None  # communicate() would flush it
        while child.poll() is None:  # its few lines fit into the pipes
            daemon.turn()
            time.sleep(0.001)
        output, errors = child.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    if not lines:
        raise RuntimeError(f"{provocation.name} did nothing: {errors.strip()}")
    facts = _due(daemon, lines[-1])
    deadline = time.monotonic() + EVENT_SECONDS
    events: list[dict[str, Any]] = []
    while True:
        daemon.turn()
        daemon.delivery.wait(EVENT_SECONDS)
        events += collected.take(child.pid)
        is_late = time.monotonic() > deadline
        if "unsupported" in facts or not _expects_event(facts) or is_late:
            return facts, events
        if _is_as_expected(facts, events):
            return facts, events
        time.sleep(0.002)


def run(config: Config) -> int:
    """Show every violation that this host can provoke; 1 if one was reported wrongly or not at all,
    else 0.

    Raises what starting the daemon raises.
    """
    began = time.monotonic()
    defaults = parse("", "")
    config = replace(
        config,
        events=replace(defaults.events, handled_faults=tuple(cause.label for cause in Cause)),
        rate_limit=defaults.rate_limit,
        mutes=(),
        watch=Watch(compat=True, io_uring=True),
        canary=replace(config.canary, interval=0),  # at start alone: one process at a time
        web=replace(defaults.web, listen_address=("127.0.0.1", 0)),  # nobody asks for metrics
    )
    narrowest, widest = WIDTHS
    width = max(narrowest, min(shutil.get_terminal_size((100, 24)).columns, widest))
    collected = _Collected()
    with (
        Announcer("demo") as announcer,
        Daemon(config, [collected], announce=announcer.process) as daemon,
    ):
        deadline = time.monotonic() + READY_SECONDS
        daemon.loop(until=lambda: not daemon.not_ready() or time.monotonic() > deadline)
        problems = daemon.not_ready()
        if problems:
            _show("the monitor did not become ready: " + "; ".join(problems))
            return 1
        _show(f"seal-monitor is ready after {time.monotonic() - began:.2f} s.")
        text = "Each violation below is real, in a process of its own; then what the monitor says."
        _show(textwrap.fill(text, width))
        collected.events.clear()
        view = sinks.pretty(colours=sys.stdout.isatty(), width=width)
        wrong, skipped, made = _show_all(daemon, collected, view, width, announcer.process)
        verdict = "all reported correctly" if not wrong else f"reported wrongly: {', '.join(wrong)}"
        _show(f"\n{made} violations in {time.monotonic() - began:.1f} s, {verdict}.")
        counters = daemon.watcher.state.counters()
        daemon.stop()
    for lines in filter(None, (not_shown(skipped, width), counted(counters, width))):
        _show("\n".join(["", *lines]))
    return 1 if wrong else 0


def _show_all(
    daemon: Daemon,
    collected: _Collected,
    view: sinks.Sink,
    width: int,
    announce: Callable[[int], None],
) -> tuple[list[str], list[tuple[Provocation, str]], int]:
    wrong: list[str] = []
    skipped: list[tuple[Provocation, str]] = []
    made = 0
    kind = ""
    kinds = list(_TITLES)
    for provocation in sorted(provoke.PROVOCATIONS, key=lambda row: kinds.index(row.kind)):
        facts, events = _provoke(daemon, collected, provocation, announce)
        if "unsupported" in facts:
            skipped.append((provocation, facts["unsupported"]))
            continue
        if provocation.kind != kind:
            kind = provocation.kind
            _show(f"\n== {_TITLES[kind]} ==")
        made += 1
        _show()
        _show("\n".join(_item(provocation.description, width)))
        for event in events:
            view.write(view.render(event))
        if not _is_as_expected(facts, events):
            wrong.append(provocation.name)
            _show(f"  WRONG: expected {facts}")
        elif not events:
            _show("  counted; no event, as configured" if kind != "other" else "  no event")
    return wrong, skipped, made


# ---- After the last one --------------------------------------------------------------------------


def not_shown(skipped: Sequence[tuple[Provocation, str]], width: int) -> list[str]:
    """The violations that could not be shown on this host, by reason; lines of `width` at most."""
    by_reason: dict[str, list[str]] = {}
    for provocation, reason in skipped:
        by_reason.setdefault(reason, []).append(provocation.description)
    lines = [f"{len(skipped)} more cannot be shown on this host:"] if skipped else []
    for reason, descriptions in by_reason.items():
        lines += textwrap.wrap(reason, width, initial_indent="  ", subsequent_indent="  ")
        for text in descriptions:
            lines += [f"    {line}" for line in _item(text, width - 4)]
    return lines


def _moved(counters: Counters) -> dict[str, dict[str, int]]:
    """Counts by metric, then by its most informative label."""
    verdicts = zip(*counters.denials, strict=True)  # of all operations
    return {
        "seal_monitor_denials_total": {
            verdict.label: sum(row) for verdict, row in zip(Verdict, verdicts, strict=True)
        },
        "seal_monitor_faults_total": {cause.label: sum(counters.faults[cause]) for cause in Cause},
        "seal_monitor_bypasses_total": {
            method.label: counters.bypasses[method] for method in Method
        },
        "seal_monitor_seals_total": {"": counters.seals},
    }


def counted(counters: Counters, width: int) -> list[str]:
    """What the kernel counted meanwhile, without zeros; lines of `width` at most."""
    moved = _moved(counters)
    indent = 2 + max(map(len, moved)) + 2
    lines = ["The kernel counted meanwhile, on the whole host:"]
    for metric, values in moved.items():
        numbers = (f"{n}{_UNBROKEN}{label}".rstrip() for label, n in values.items() if n)
        wrapped = textwrap.wrap(
            ", ".join(numbers) or "0",
            width,
            initial_indent=f"  {metric}".ljust(indent),
            subsequent_indent=" " * indent,
        )
        lines += [line.replace(_UNBROKEN, " ") for line in wrapped]
    address, port = parse("", "").web.listen_address
    lines.append(f"All metrics: http://{address}:{port}/metrics while 'seal-monitor run' runs.")
    return lines
