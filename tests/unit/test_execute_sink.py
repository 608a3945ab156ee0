from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from monitor import execute_sink
from monitor.execute_sink import CommandSink
from monitor.symbols import Resolver

Event = dict[str, Any]


class Store:
    name = "store"

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []

    def render(self, event: dict[str, object]) -> bytes:
        return json.dumps(event).encode()

    def write(self, data: bytes) -> None:
        self.write_all([data])

    def write_all(self, batch: Sequence[bytes]) -> None:
        self.batches.append([json.loads(data) for data in batch])

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Names(Resolver):
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


def denial(module: str | None, offset: int | None, pid: int = 1) -> Event:
    frame = {
        "address": "0x1000",
        "module": module,
        "build_id": "ab" if module else None,
        "offset": offset,
        "symbol": None,
    }
    return {
        "kind": "denial",
        "operation": "munmap",
        "caller": "0x1000",
        "process": {"pid": pid, "executable": "/bin/x"},
        "sealed": None,
        "stack": [frame],
    }


def written(*events: Event) -> tuple[list[Event], list[Event], int]:
    """What was stored, what was shown, how often the resolver was asked."""
    store, names = Store(), Names()
    shown: list[Event] = []
    sink = CommandSink(store, names, shown.append)
    for event in events:
        sink.write(sink.render(event))
    return [event for batch in store.batches for event in batch], shown, names.asked


def symbols(events: Sequence[Event]) -> list[str | None]:
    return [frame["symbol"] for event in events for frame in event["stack"]]


def test_events_are_stored_with_names_and_shown_once() -> None:
    stored, shown, asked = written(
        denial("known", 16), denial("known", 16, pid=2), denial("known", 32), denial("other", 16)
    )
    assert symbols(stored) == ["f+0x10", "f+0x10", "f+0x20", None]
    assert [event["process"]["pid"] for event in stored] == [1, 2, 1, 1]
    assert symbols(shown) == ["f+0x10", "f+0x20", None]
    assert asked == 3


def test_a_place_without_a_name_is_not_asked_for_again() -> None:
    stored, _, asked = written(denial("other", 16), denial("other", 16))
    assert (symbols(stored), asked) == ([None, None], 1)


def test_code_in_no_file_is_asked_for_each_time() -> None:
    """Its address means something else in each process."""
    assert written(denial(None, None), denial(None, None, pid=2))[2] == 2


def test_a_batch_is_one_write() -> None:
    store = Store()
    sink = CommandSink(store, Names(), lambda _: None)
    sink.write_all([sink.render(denial("known", n)) for n in (1, 2, 3)])
    assert [len(batch) for batch in store.batches] == [3]


def test_suppressions_are_stored_and_not_shown() -> None:
    stored, shown, asked = written({"kind": "suppression", "count": 5})
    assert (len(stored), shown, asked) == (1, [], 0)


def test_no_more_are_shown_than_a_person_reads() -> None:
    more = execute_sink.SHOWN_MOST + 20
    stored, shown, _ = written(*(denial("known", 16 * n) for n in range(more)))
    assert (len(stored), len(shown)) == (more, execute_sink.SHOWN_MOST)
