"""What is stored of an event in its incident: pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from monitor.evidence.cgroups import alerted_workload, workload_name
from monitor.evidence.doubts import facet_of
from monitor.evidence.events import nanoseconds
from monitor.evidence.fingerprint import Event, Fingerprint, what_of
from monitor.evidence.memory_map import DELETED
from monitor.evidence.owner import Owner
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import plural

__all__ = [
    "ALERTED",
    "CRITICAL",
    "TEXT_LIMIT",
    "event_rank",
    "facets_of",
    "incident_of",
    "many_places",
    "nanoseconds",
    "rank_of",
    "severity_of",
]

TEXT_LIMIT = 4096
ALERTED = "alerted_workload"  # the facet of a user's slice: alerts name it, events what is in it
_SEVERITIES = ("info", "warning", "critical")
_VERDICTS = (None, "not_sealed", "unverified", "sealed")
CRITICAL = _SEVERITIES.index("critical") * len(_VERDICTS)  # the least rank of a critical one


def rank_of(severity: str, verdict: str | None) -> int:
    """How much an event matters: by severity, then by what is proved. It grows with both."""
    by_verdict = _VERDICTS.index(verdict) if verdict in _VERDICTS else 0
    by_severity = _SEVERITIES.index(severity) if severity in _SEVERITIES else 0
    return by_severity * len(_VERDICTS) + by_verdict


def event_rank(event: Event) -> int:
    """The same of an event; a suppression, which shows nothing, is below all others."""
    if event.get("kind") == "suppression":
        return -1
    return rank_of(str(event.get("severity")), event.get("verdict"))


def severity_of(rank: int) -> str:
    return _SEVERITIES[min(rank // len(_VERDICTS), len(_SEVERITIES) - 1)]


def many_places(event: Event, owner: Owner) -> Fingerprint:
    """The incident for all violations of an owner who makes too many new ones.

    One for each severity: what is critical does not get lost among what is not.
    """
    what = str(what_of(event) or event["kind"])
    return Fingerprint(event["kind"], what, owner.words, "many places", str(event["severity"]))


def incident_of(place: Fingerprint, event: Event, owner: Owner | None = None) -> dict[str, object]:
    """The values of its columns; with an `owner` it is the one for many places."""
    now, number = nanoseconds(event["time"]), event.get("count")
    title = _title(event) if owner is None else f"{_title(event)}: many places, {owner.words}"
    return {
        "id": place.id,
        **{name: printable(text, TEXT_LIMIT) for name, text in place._asdict().items()},
        "title": printable(title, TEXT_LIMIT),
        "severity": event["severity"],
        "summary": printable(event["summary"], TEXT_LIMIT),
        "first_ns": now if number is None else nanoseconds(event["first"]),
        "last_ns": now if number is None else nanoseconds(event["last"]),
        "events": 1 if number is None else 0,
        "suppressed": number or 0,
    }


def _title(event: Event) -> str:
    """What happened in a few words, without what differs from one event to the next."""
    if event["kind"] == "suppression":
        what = what_of(event) or ""
        return f"{what} {plural(event['of'])} of unknown callers".strip()
    if event["kind"] == "seal":
        return "mseal"
    return str(event["summary"]).partition(" at 0x" if event["kind"] == "fault" else ": ")[0]


def facets_of(event: Event) -> Iterator[tuple[str, str]]:
    """Names and values of what an incident counts of its events."""
    process, workload = event["process"] or {}, event["workload"] or {}
    path, cgroup = process.get("executable"), workload.get("cgroup")
    name = workload_name(cgroup) if cgroup else None
    alerted = alerted_workload(cgroup) if cgroup else None
    values = {
        "host": event["host"]["name"],
        "verdict": event.get("verdict"),
        "disposition": event.get("disposition"),
        "likely": (event.get("assessment") or {}).get("likely"),
        "workload": name,
        ALERTED: None if alerted == name else alerted,
        "executable": path,
        "program": path.removesuffix(DELETED).rpartition("/")[2] if path else None,
        "user": process.get("user_name"),
    }
    if doubt := facet_of(process):
        values[doubt] = path
    for facet, value in values.items():
        if value:
            yield facet, printable(value, TEXT_LIMIT)
