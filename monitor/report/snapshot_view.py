"""The snapshot of a process, in a report. Pure functions; a snapshot may lack any part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitor.report import story
from monitor.report.cases import Case
from monitor.report.story import Extent, extent, value
from monitor.report.text import Fact, flat, text
from monitor.sizes import rounded

__all__ = ["SnapshotView", "of_memory", "of_process", "snapshot_view"]


class MapRow(NamedTuple):
    range: str
    permissions: str
    size: str
    what: str
    marks: str
    is_hit: bool


@dataclass(frozen=True)
class SnapshotView:
    time: str
    pid: str
    is_own: bool
    rows: Sequence[MapRow]
    left_out: int
    is_complete: bool
    facts: Sequence[Fact]
    limits: Sequence[tuple[str, str, str]]
    modules: Sequence[tuple[str, str, str]]
    others: int


_MARKS = {"sealed": "sealed", "guard": "may hold guard pages"}


def _marks(row: object) -> str:
    return ", ".join(text for name, text in _MARKS.items() if value(row, name) is True)


def _map_rows(
    snapshot: Mapping[str, Any], hits: Sequence[Extent], limit: int
) -> tuple[list[MapRow], int]:
    """At most `limit` rows, around those that were hit, and how many rows are left out."""
    found = snapshot.get("memory_map")
    rows: list[MapRow] = []
    first_hit = 0
    for row in found if isinstance(found, list) else ():
        where = extent(row)
        is_hit = where is not None and any(
            h.start < where.end and where.start < h.end for h in hits
        )
        first_hit = first_hit or (len(rows) if is_hit else 0)
        what = story.place(row) if value(row, "file") or value(row, "name") else ""
        rows.append(
            MapRow(
                f"{text(row, 'start')}-{text(row, 'end')}",
                text(row, "permissions"),
                rounded(where.end - where.start) if where else "",
                what,
                _marks(row),
                is_hit,
            )
        )
    begin = max(min(first_hit - limit // 2, len(rows) - limit), 0)
    return rows[begin : begin + limit], max(len(rows) - limit, 0)


_SECCOMP = {
    "disabled": "no filter",
    "strict": "strict mode",
    "filter": "a filter",
}


def _limit(given: object, is_there: bool) -> str:
    return "unlimited" if given is None and is_there else flat(given)


def snapshot_view(case: Case, map_limit: int) -> SnapshotView | None:
    if not case.snapshots:
        return None
    own = of_memory(case) or of_process(case)
    snapshot = own or case.snapshots[-1]
    hits = []
    if own is not None:
        recorded = (extent(case.event.get("sealed")), extent(case.event.get("mapping")))
        hits = [
            part for part in (*recorded, story.changed(case.event), story.asked(case.event)) if part
        ]
    rows, left_out = _map_rows(snapshot, hits, map_limit)
    seccomp, missing = snapshot.get("seccomp"), snapshot.get("missing")
    facts = []
    if isinstance(seccomp, Mapping):
        mode = _SECCOMP.get(text(seccomp, "mode"), text(seccomp, "mode"))
        number = value(seccomp, "filters")
        if mode == "a filter" and isinstance(number, int):
            mode += f", {number} in all"
        privileges = " No new privileges." if value(seccomp, "no_new_privileges") is True else ""
        facts.append(Fact("Seccomp", f"{mode[:1].upper()}{mode[1:]}.{privileges}"))
    if isinstance(missing, Mapping):
        facts += [
            Fact("Not read", f"{str(part).replace('_', ' ')}: {flat(why)}")
            for part, why in missing.items()
        ]
    limits = value(snapshot, "limits")
    modules = value(snapshot, "modules")
    return SnapshotView(
        text(snapshot, "time")[:23].replace("T", " "),
        text(snapshot, "pid"),
        own is not None,
        rows,
        left_out,
        snapshot.get("memory_map_complete") is not False,
        facts,
        [
            (
                str(name).replace("_", " "),
                _limit(value(each, "soft"), isinstance(each, Mapping)),
                _limit(value(each, "hard"), isinstance(each, Mapping)),
            )
            for name, each in (limits if isinstance(limits, Mapping) else {}).items()
        ],
        [
            (text(each, "path"), text(each, "build_id"), text(each, "start"))
            for each in (modules if isinstance(modules, list) else ())
        ],
        len(case.snapshots) - 1,
    )


def of_process(case: Case) -> Mapping[str, Any] | None:
    """The snapshot of the process that made the event; other processes have other addresses."""
    return _of(case, value(case.event, "process"))


def of_memory(case: Case) -> Mapping[str, Any] | None:
    """The snapshot of the process whose memory the event is about."""
    return _of(case, value(case.event, "target") or value(case.event, "process"))


def _of(case: Case, process: object) -> Mapping[str, Any] | None:
    """The last snapshot of a process; preferably the one taken for the event of the case."""
    who = (value(process, "pid"), value(process, "start"))
    found = [each for each in case.snapshots if (each.get("pid"), each.get("start")) == who]
    own = [each for each in found if each.get("event") == case.event.get("id")]
    return next(reversed(own or found), None)
