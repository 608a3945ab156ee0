"""The picture of a process's addresses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fingerprint import EVENTS

from monitor.report.picture import BANDS_LIMIT, TOP, WIDTH, Picture, picture

Event = dict[str, Any]
PAGE = 4096


def row(start: int, end: int, permissions: str = "rw-p", **fields: Any) -> dict[str, Any]:
    mapping = {"start": hex(start), "end": hex(end), "permissions": permissions, "sealed": False}
    return mapping | {"file": None, "name": None, "guard": False} | fields


def denial(
    sealed: tuple[int, int], asked: tuple[int, int], partial: tuple[int, int] | None = None
) -> Event:
    arguments = {"addr": hex(asked[0]), "size": asked[1] - asked[0], "prot": "rw-"}
    changed = {"start": hex(partial[0]), "end": hex(partial[1])} if partial else None
    seal = row(*sealed, "r--p", file={"path": "/bin/table", "offset": 0})
    return EVENTS["denial"] | {
        **{"operation": "mprotect", "arguments": arguments},
        **{"sealed": seal, "partial_update": changed},
    }


def drawn(event: Event, memory_map: Sequence[Any] = (), is_whole: bool = True) -> Picture:
    found = picture(event, memory_map, is_whole)
    assert found is not None
    assert_sound(found)
    return found


def assert_sound(found: Picture) -> None:
    """Nothing overlaps, nothing is missing, and two lines of text have room in each band."""
    assert len(found.bands) <= BANDS_LIMIT + 12
    assert found.bands[0].top == TOP
    for upper, lower in pairwise(found.bands):
        assert upper.end == lower.start
        assert upper.bottom == pytest.approx(lower.top, abs=0.2)
    assert all(band.height >= 38 and band.start < band.end for band in found.bands)
    assert found.bands[-1].bottom + TOP == pytest.approx(found.height, abs=0.2)
    for _, top, height in found.bars:
        assert height > 0
        assert TOP <= top <= top + height <= found.height - TOP + 0.3
    if found.point:
        assert TOP <= found.point[0] <= found.height - TOP


def kinds(found: Picture) -> list[tuple[str, int, int]]:
    return [(band.kind, band.start, band.end) for band in found.bands]


def test_one_page() -> None:
    found = drawn(denial((0x5000, 0x6000), (0x5000, 0x6000)))
    assert kinds(found) == [("sealed", 0x5000, 0x6000)]
    assert [edge for _, edge in found.ticks] == [0x5000, 0x6000]
    assert [name for name, *_ in found.bars] == ["asked"]
    assert (found.bands[0].label, found.bands[0].detail) == ("table", "r--p · 4 KiB")


def test_part_changed_before_the_refusal() -> None:
    """[changed][sealed][also asked for], as mprotect leaves it."""
    found = drawn(denial((0x7000, 0x9000), (0x5000, 0xB000), (0x5000, 0x7000)))
    assert kinds(found) == [
        ("mapped", 0x5000, 0x7000),
        ("sealed", 0x7000, 0x9000),
        ("unknown", 0x9000, 0xB000),
    ]
    assert [band.changed for band in found.bands] == [True, False, False]
    assert all(band.asked for band in found.bands)
    (asked, changed) = found.bars
    assert (asked[0], changed[0]) == ("asked", "changed")
    assert asked[2] == sum(band.height for band in found.bands)
    assert changed[1:] == (found.bands[0].top, found.bands[0].height)


def test_neighbours_and_gaps_from_the_memory_map() -> None:
    rows = [
        row(0x400000, 0x401000, "r-xp", file={"path": "/bin/worker", "offset": 0}),
        row(0x7F0000000000, 0x7F0000001000, name="[anon:near]"),
        row(0x7F0000005000, 0x7F0000006000, "r--p", sealed=True),
        row(0x7F0000006000, 0x7F0000008000),
        row(0x7FFF00000000, 0x7FFF00021000, name="[stack]"),
    ]
    found = drawn(denial((0x7F0000005000, 0x7F0000006000), (0x7F0000005000, 0x7F0000007000)), rows)
    assert [(band.kind, band.label) for band in found.bands] == [
        ("mapped", "worker"),
        ("free", "nothing mapped"),
        ("mapped", "[anon:near]"),
        ("free", "nothing mapped"),
        ("sealed", "table"),
        ("mapped", "anonymous"),
        ("mapped", "anonymous"),
        ("free", "nothing mapped"),
        ("mapped", "[stack]"),
    ]
    assert found.bands[1].detail == "127.0 TiB"
    # A gap of 127 TiB takes no more room than one of 16 KiB.
    assert found.bands[1].height == found.bands[3].height
    assert [band.asked for band in found.bands][4:7] == [True, True, False]
    assert found.has_map


def test_ten_gigabytes_of_mappings_become_one_band() -> None:
    """Every second page is sealed: too many to draw, but the ends are."""
    start, pages = 0x7F0000000000, 4000
    rows = [
        row(start + n * PAGE, start + (n + 1) * PAGE, sealed=n % 2 == 1) for n in range(pages)
    ] + [row(start + pages * PAGE, start + (10 << 30))]
    end = start + (10 << 30)
    found = drawn(
        denial((start + PAGE, start + 2 * PAGE), (start, end), (start, start + PAGE)), rows
    )
    assert kinds(found)[:2] == [
        ("mapped", start, start + PAGE),
        ("sealed", start + PAGE, start + 2 * PAGE),
    ]
    (many,) = (band for band in found.bands if band.kind == "many")
    assert many.label == "3,997 more mappings"
    assert many.detail.startswith("1,999 sealed · ")
    assert found.bands[-1].end == end
    assert found.bars[0][0] == "asked"
    assert found.bars[0][2] == pytest.approx(sum(band.height for band in found.bands), abs=0.2)


def test_what_was_seen_at_the_violation_holds() -> None:
    """The map of a moment later may have lost the seal, or have something else there."""
    later = [row(0x4000, 0x8000, name="later")]
    found = drawn(denial((0x5000, 0x6000), (0x5000, 0x6000)), later)
    assert [(band.kind, band.label) for band in found.bands] == [
        ("mapped", "later"),
        ("sealed", "table"),
        ("mapped", "later"),
    ]


def test_a_part_of_a_map_says_nothing_of_the_rest() -> None:
    rows = [row(0x4000, 0x5000), row(0x6000, 0x7000, sealed=None)]
    event = denial((0x4000, 0x5000), (0x4000, 0x9000))
    assert [band.kind for band in drawn(event, rows).bands] == ["sealed", "free", "unread", "free"]
    part = drawn(event, rows, is_whole=False)
    assert [band.kind for band in part.bands] == ["sealed", "free", "unread", "unknown"]


def test_fault_in_a_guard_region() -> None:
    event = EVENTS["fault"]
    found = drawn(event)
    point = int(event["address"], 16)
    assert kinds(found) == [
        ("mapped", 0x7F4D2E415000, point),
        ("guard", point, point + PAGE),
        ("mapped", point + PAGE, 0x7F4D2E42C000),
    ]
    assert found.point == (found.bands[1].top, point)  # it is the first byte
    assert point not in [edge for _, edge in found.ticks]  # labelled once
    inside = drawn(event | {"address": hex(point + 8)})
    assert inside.point is not None
    assert found.bands[1].top + 10 < inside.point[0] < found.bands[1].bottom - 10


def test_fault_where_nothing_is_mapped() -> None:
    stack = row(0x7FFF00100000, 0x7FFF00200000, name="[stack]")
    event = EVENTS["fault"] | {
        **{"cause": "stack_guard", "mapping": None, "address": "0x7fff000ffff8"},
    }
    found = drawn(event, [stack])
    assert [(band.kind, band.label) for band in found.bands] == [
        ("free", "nothing mapped"),
        ("mapped", "[stack]"),
    ]
    assert kinds(drawn(event)) == [("free", 0x7FFF000FF000, 0x7FFF00100000)]


def test_the_end_of_the_address_space() -> None:
    top = 1 << 64
    found = drawn(denial((top - PAGE, top), (top - 2 * PAGE, top)))
    assert kinds(found) == [("unknown", top - 2 * PAGE, top - PAGE), ("sealed", top - PAGE, top)]
    assert kinds(drawn(denial((0, PAGE), (0, PAGE))))[0] == ("sealed", 0, PAGE)


@pytest.mark.parametrize("kind", ["health", "suppression"])
def test_no_place_no_picture(kind: str) -> None:
    assert picture(EVENTS[kind]) is None


def test_labels_have_room() -> None:
    """At 7 units a character, a wide font's, from where the template begins them."""
    long = {"path": "/x/" + "W" * 300, "offset": 0}
    event = denial((0x5000, 0x6000), (0x5000, 0x6000))
    event["sealed"]["file"] = long
    found = drawn(event)
    assert 192 + 7 * len(found.bands[0].label) <= WIDTH
    assert found.bands[0].label == "WWWWWWWWWW…WWWWWWWWWW"


ADDRESSES = st.integers(0, 1 << 64)
ROWS = st.builds(
    lambda start, length, sealed: {
        **{"start": hex(start), "end": hex(start + length), "permissions": "rw-p"},
        **{"sealed": sealed, "file": None, "name": None},
    },
    st.integers(0, 64).map(lambda n: n * PAGE) | ADDRESSES,
    st.integers(0, 64).map(lambda n: n * PAGE) | ADDRESSES,
    st.none() | st.booleans(),
)


@settings(deadline=None)
@given(
    rows=st.lists(ROWS | st.none(), max_size=60), parts=st.tuples(ROWS, ROWS, ROWS), at=ADDRESSES
)
def test_whatever_the_map_says(rows: list[Any], parts: tuple[Any, ...], at: int) -> None:
    sealed, asked, changed = parts
    start = int(asked["start"], 16)
    arguments = {"addr": asked["start"], "size": int(asked["end"], 16) - start}
    for event in (
        EVENTS["denial"] | {"sealed": sealed, "arguments": arguments, "partial_update": changed},
        EVENTS["fault"] | {"mapping": sealed, "address": hex(at)},
    ):
        found = picture(event, rows)
        if found is not None:
            assert_sound(found)
