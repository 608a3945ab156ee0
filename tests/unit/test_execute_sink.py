from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from monitor.evidence.fingerprint import fingerprint
from monitor.execute import sink as execute_sink
from monitor.execute.sink import CommandSink

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


def denial(module: str | None, offset: int | None, pid: int = 1) -> Event:
    frame = {
        "address": "0x1000",
        "module": module,
        "build_id": "ab" if module else None,
        "offset": offset,
        "symbol": None,
    }
    event = {
        "kind": "denial",
        "operation": "munmap",
        "caller": "0x1000",
        "process": {"pid": pid, "executable": "/bin/x"},
        "sealed": None,
        "stack": [frame],
    }
    return event | {"fingerprint": fingerprint(event).id}


def named(event: Event) -> Event:
    return event | {"stack": [frame | {"symbol": "f+0x1"} for frame in event.get("stack", [])]}


def written(*events: Event) -> tuple[list[Event], list[Event]]:
    """What was stored and what was shown."""
    store = Store()
    shown: list[Event] = []
    sink = CommandSink(store, named, shown.append)
    for event in events:
        sink.write(sink.render(event))
    return [event for batch in store.batches for event in batch], shown


def test_events_are_stored_with_names_and_shown_once() -> None:
    stored, shown = written(denial("a", 16), denial("a", 16, pid=2), denial("a", 32))
    assert {frame["symbol"] for event in stored for frame in event["stack"]} == {"f+0x1"}
    assert [event["process"]["pid"] for event in stored] == [1, 2, 1]
    assert [event["stack"][0]["offset"] for event in shown] == [16, 32]


def test_a_batch_is_one_write() -> None:
    store = Store()
    sink = CommandSink(store, named, lambda _: None)
    sink.write_all([sink.render(denial("known", n)) for n in (1, 2, 3)])
    assert [len(batch) for batch in store.batches] == [3]


def test_suppressions_are_stored_and_not_shown() -> None:
    stored, shown = written({"kind": "suppression", "count": 5})
    assert (len(stored), shown) == (1, [])


def test_no_more_are_shown_than_a_person_reads() -> None:
    more = execute_sink.SHOWN_MOST + 20
    stored, shown = written(*(denial("known", 16 * n) for n in range(more)))
    assert (len(stored), len(shown)) == (more, execute_sink.SHOWN_MOST)
