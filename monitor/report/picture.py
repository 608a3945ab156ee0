"""A picture of the addresses around a violation: bands and their places, for a template to draw.

Pure functions. The picture is not to scale: a page and a terabyte both have to be seen. Addresses
grow downwards, as in /proc/PID/maps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from monitor.kernel.arch import PAGE_SIZE
from monitor.report.story import Extent, asked, changed, extent, found_at, value
from monitor.sizes import rounded

__all__ = ["WIDTH", "Band", "Picture", "picture"]

WIDTH = 340  # of the drawing, in its own units
TOP = 10
BANDS_LIMIT = 15
NEIGHBOURS = 2  # mappings shown on each side
_LABEL = 21  # characters
_HIGHEST = 1 << 64

Event = Mapping[str, Any]


@dataclass(frozen=True)
class _Mapping:
    extent: Extent
    permissions: str
    sealed: bool | None
    label: str
    guard: bool = False


@dataclass(frozen=True)
class Band:
    """`kind`: sealed, mapped (and not sealed), unread (mapped, its seal was not read), guard, free
    (nothing mapped), unknown or many (left out).

    `top` and `height` are in the units of WIDTH.
    """

    start: int
    end: int
    kind: str
    label: str
    detail: str
    asked: bool = False
    changed: bool = False
    top: float = 0
    height: float = 0

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@dataclass(frozen=True)
class Picture:
    """`bars` run beside the bands: (name, top, height). `point`: where an address is, and which."""

    bands: Sequence[Band]
    ticks: Sequence[tuple[float, int]]
    bars: Sequence[tuple[str, float, float]]
    point: tuple[float, int] | None
    height: float
    has_map: bool  # the surroundings come from a map that was read a moment later
    kinds: frozenset[str]


def picture(
    event: Event, memory_map: Sequence[object] = (), is_whole: bool = True
) -> Picture | None:
    """The picture of an event; None if the event has no address.

    `memory_map` is that of a snapshot, read a moment later: all of it, or the part around the
    address.
    """
    recorded = event.get("sealed") or event.get("mapping")
    own, wanted, partial, point = extent(recorded), asked(event), changed(event), found_at(event)
    if point is not None and point >= _HIGHEST:
        point = None
    page = _page(point) if point is not None else None
    focus = [part for part in (own, wanted, partial, page) if part]
    if not focus:
        return None
    around = Extent(min(part.start for part in focus), max(part.end for part in focus))

    known = _known(memory_map, around)
    surveyed = _surveyed(known, is_whole and bool(memory_map))
    has_map = bool(known)
    unmapped = page if event.get("kind") == "fault" and recorded is None else None
    if own:
        is_sealed = bool(event.get("sealed")) or value(recorded, "sealed") is True
        known = _laid_over(known, _of(recorded, own, is_sealed))
    if page and event.get("cause") == "guard_region":
        known = _with_guard(known, page)
    shown = Extent(
        min([around.start, *(each.extent.start for each in known)]),
        max([around.end, *(each.extent.end for each in known)]),
    )

    special = {edge for part in (own, wanted, partial) if part for edge in part}
    cuts = sorted({*special, *shown, *(edge for each in known for edge in each.extent)})
    starts = [each.extent.start for each in known]
    bands = []
    for where in (Extent(*pair) for pair in pairwise(cuts)):
        found = known[max(bisect_right(starts, where.start) - 1, 0)] if known else None
        mapping = found if found and _within(where, found.extent) else None
        is_surveyed = _within(where, surveyed) or _within(where, unmapped)
        bands.append(_band(where, mapping, wanted, partial, is_surveyed))
    if len(bands) > BANDS_LIMIT:
        bands = _fewer(bands, special, point)
    return _placed(bands, point, wanted, partial, has_map)


# ---- What is mapped ------------------------------------------------------------------------------


def _page(point: int) -> Extent:
    start = point - point % PAGE_SIZE
    return Extent(start, start + PAGE_SIZE)


def _of(mapping: object, where: Extent, is_sealed: bool | None) -> _Mapping:
    permissions, path = value(mapping, "permissions"), value(mapping, "file", "path")
    name = path.rpartition("/")[2] if isinstance(path, str) else value(mapping, "name")
    return _Mapping(
        where,
        permissions if isinstance(permissions, str) else "",
        is_sealed,
        name if isinstance(name, str) and name else "anonymous",
    )


def _known(memory_map: Sequence[object], around: Extent) -> list[_Mapping]:
    """The mappings in the range and their neighbours, in order, without overlaps."""
    found = sorted(
        (where, index) for index, row in enumerate(memory_map) if (where := extent(row)) is not None
    )
    kept: list[_Mapping] = []
    for where, index in found:
        if kept and where.start < kept[-1].extent.end:
            continue  # not from a real process, whose mappings never overlap
        sealed = value(memory_map[index], "sealed")
        kept.append(_of(memory_map[index], where, sealed if isinstance(sealed, bool) else None))
    first = bisect_right([each.extent.end for each in kept], around.start)
    last = bisect_right([each.extent.start for each in kept], around.end - 1)
    return kept[max(first - NEIGHBOURS, 0) : last + NEIGHBOURS]


def _surveyed(known: Sequence[_Mapping], is_whole: bool) -> Extent | None:
    """The range in which a gap between mappings means that nothing was mapped."""
    if is_whole:
        return Extent(0, _HIGHEST)
    return Extent(known[0].extent.start, known[-1].extent.end) if known else None


def _laid_over(known: Iterable[_Mapping], over: _Mapping) -> list[_Mapping]:
    """The map with the mapping that was seen at the violation, which overrides the later map."""
    return _sorted([*_without(known, over.extent), over])


def _without(known: Iterable[_Mapping], hole: Extent) -> list[_Mapping]:
    kept = []
    for each in known:
        start, end = each.extent
        for part in (Extent(start, min(end, hole.start)), Extent(max(start, hole.end), end)):
            if part.start < part.end:
                kept.append(replace(each, extent=part))
    return kept


def _with_guard(known: Sequence[_Mapping], page: Extent) -> list[_Mapping]:
    """The map with a guard region of one page: nothing says how many pages it really has."""
    host = next(
        (e for e in known if e.extent.start <= page.start and page.end <= e.extent.end), None
    )
    if host is None:
        return list(known)
    guard = replace(host, extent=page, label="guard region", guard=True)
    return _sorted([*_without(known, page), guard])


def _sorted(known: Iterable[_Mapping]) -> list[_Mapping]:
    return sorted(known, key=lambda each: each.extent)


# ---- Bands ---------------------------------------------------------------------------------------


def _within(part: Extent, whole: Extent | None) -> bool:
    return whole is not None and whole.start <= part.start and part.end <= whole.end


_KINDS = {True: "sealed", False: "mapped", None: "unread"}


def _band(
    where: Extent,
    mapping: _Mapping | None,
    wanted: Extent | None,
    partial: Extent | None,
    is_surveyed: bool,
) -> Band:
    is_changed = _within(where, partial)
    length = rounded(where.end - where.start)
    if mapping is not None:
        kind = "guard" if mapping.guard else _KINDS[mapping.sealed]
        label = mapping.label
        detail = " · ".join(filter(None, (mapping.permissions, length)))
    elif is_changed:
        kind, label, detail = "mapped", "changed", length
    elif is_surveyed:
        kind, label, detail = "free", "nothing mapped", length
    else:
        kind, label, detail = "unknown", "not known", length
    return Band(
        where.start,
        where.end,
        kind,
        _short(label),
        detail,
        asked=_within(where, wanted),
        changed=is_changed,
    )


def _short(text: str) -> str:
    """The text, without its middle if it is too long."""
    if len(text) <= _LABEL:
        return text
    half = (_LABEL - 1) // 2
    return f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def _fewer(bands: Sequence[Band], special: set[int], point: int | None) -> list[Band]:
    """The bands that matter; each run of other bands becomes one."""

    def matters(index: int) -> bool:
        band = bands[index]
        return (
            index in (0, len(bands) - 1)
            or bool({band.start, band.end} & special)
            or (point is not None and band.start <= point < band.end)
        )

    kept: list[Band] = []
    run: list[Band] = []
    for index, band in enumerate(bands):
        same = not run or (run[-1].asked, run[-1].changed) == (band.asked, band.changed)
        if matters(index) or not same:
            kept += _run(run)
            run = []
        if matters(index):
            kept.append(band)
        else:
            run.append(band)
    return kept + _run(run)


def _run(bands: Sequence[Band]) -> list[Band]:
    if len(bands) < 2:
        return list(bands)
    mapped = sum(band.kind not in ("free", "unknown") for band in bands)
    sealed = sum(band.kind == "sealed" for band in bands)
    detail = rounded(bands[-1].end - bands[0].start)
    if sealed:
        detail = f"{sealed:,} sealed · {detail}"
    return [
        replace(
            bands[0],
            end=bands[-1].end,
            kind="many",
            label=f"{mapped:,} more mapping{'s' if mapped != 1 else ''}",
            detail=detail,
        )
    ]


# ---- Places --------------------------------------------------------------------------------------


def _height(band: Band, has_point: bool) -> float:
    """The height grows with the logarithm: from 38 for a page to 86 for 16 GiB and more."""
    if band.kind in ("free", "unknown", "many"):
        return 64 if has_point else 42
    pages = max((band.end - band.start) // PAGE_SIZE, 1)
    return max(38 + 2.2 * min(pages.bit_length() - 1, 22), 64 if has_point else 0)


def _placed(
    bands: Sequence[Band],
    point: int | None,
    wanted: Extent | None,
    partial: Extent | None,
    has_map: bool,
) -> Picture:
    placed: list[Band] = []
    top = float(TOP)
    at: tuple[float, int] | None = None
    for band in bands:
        has_point = point is not None and band.start <= point < band.end
        height = round(_height(band, has_point), 1)
        placed.append(replace(band, top=top, height=height))
        if has_point and point is not None:
            share = (point - band.start) / (band.end - band.start)
            # Away from the edges, which have labels, unless the point is itself an edge.
            share = min(max(share, 0.3), 0.7) if share else 0
            at = (round(top + height * share, 1), point)
        top = round(top + height, 1)
    edges = {band.start: band.top for band in placed} | {placed[-1].end: placed[-1].bottom}
    bars = [
        (name, edges[part.start], round(edges[part.end] - edges[part.start], 1))
        for name, part in (("asked", wanted), ("changed", partial))
        if part and part.start in edges and part.end in edges
    ]
    return Picture(
        placed,
        [(place, edge) for edge, place in edges.items() if edge != point],
        bars,
        at,
        top + TOP,
        has_map,
        frozenset(band.kind for band in placed),
    )
