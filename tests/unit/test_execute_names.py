from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitor.execute.files import Nearby
from monitor.execute.names import Names
from monitor.symbols.resolver import Resolver

Event = dict[str, Any]


class Known(Resolver):
    """Names every frame of the module `known`."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked = 0

    def resolve(self, event: Mapping[str, Any]) -> Event:
        self.asked += 1
        stack = [
            frame | {"symbol": f"f+{frame['offset']:#x}" if frame["module"] == "known" else None}
            for frame in event["stack"]
        ]
        return {**event, "stack": stack}


def event(module: str | None, offset: int | None) -> Event:
    frame = {
        "address": "0x1000",
        "module": module,
        "build_id": "ab" if module else None,
        "offset": offset,
        "symbol": None,
    }
    return {"kind": "denial", "stack": [frame]}


def named(top: Path, *events: Event) -> tuple[list[str | None], int, list[Path]]:
    """The symbols, how often the resolver was asked, and where it had to look."""
    resolver = Known()
    search: list[Path] = []
    names = Names(resolver, search, Nearby(top))
    found = [names.named(event) for event in events]
    return [frame["symbol"] for each in found for frame in each["stack"]], resolver.asked, search


def test_a_place_is_asked_for_once(tmp_path: Path) -> None:
    events = [event("known", 16), event("known", 16), event("known", 32)]
    assert named(tmp_path, *events) == (["f+0x10", "f+0x10", "f+0x20"], 2, [])


def test_a_place_without_a_name_is_asked_for_again(tmp_path: Path) -> None:
    """The next process may be there to be looked at."""
    assert named(tmp_path, event("other", 16), event("other", 16)) == ([None, None], 2, [])


def test_code_in_no_file_is_asked_for_each_time(tmp_path: Path) -> None:
    """The same address is other code in each process."""
    assert named(tmp_path, event(None, None), event(None, None))[1] == 2


def test_files_nearby_are_looked_at(tmp_path: Path) -> None:
    for directory in ("a", "b", "c"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / ("other" if directory == "c" else "known")).touch()
    events = [event("known", 16), event("known", 32), event("other", 16)]
    assert named(tmp_path, *events)[2] == [tmp_path / each for each in ("a", "b", "c")]


def test_what_has_no_stack_stays_as_it_is(tmp_path: Path) -> None:
    names = Names(Known(), [], Nearby(tmp_path))
    assert names.named({"kind": "suppression"}) == {"kind": "suppression"}
