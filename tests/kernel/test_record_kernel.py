"""A set of descriptors is taken over only if it is whole and what its record says."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.attach.attached import Attached, Replacing, Resumed, configure
from monitor.configuration.config import parse
from monitor.keep import memory, record
from monitor.keep.identify import describe_link, program_id
from monitor.keep.ledger import Ledger
from monitor.kernel import bpf
from monitor.kernel.abi import WORKLOADS_MAX, Kind
from monitor.kernel.compiler import OBJECT
from monitor.kernel.loaded import LoadRequest

Handed = dict[str, list[int]]
REQUEST = LoadRequest()
ARRAY = 2  # enum bpf_map_type


def ids(attached: Attached) -> set[int]:
    return {program_id(slot.stub) for slot in attached.loaded.slots}


@pytest.fixture(scope="module")
def attached(require_bpf: None) -> Iterator[tuple[Attached, Ledger, list[tuple[str, list[int]]]]]:
    ledger = Ledger.shared()
    with Attached(REQUEST, ledger=ledger) as attached:
        findings = attached.calibrate()
        facts = record.Facts(*findings, frozenset(), 123.5)
        written = record.write(attached.loaded, ledger, REQUEST, facts, generation=1)
        yield attached, ledger, written.groups


@pytest.fixture
def handed(attached: tuple[Attached, Ledger, list[tuple[str, list[int]]]]) -> Iterator[Handed]:
    """The set as systemd hands it over: in another order, at other numbers."""
    _, ledger, groups = attached
    given = {name: [os.dup(each) for each in reversed(numbers)] for name, numbers in groups}
    yield given
    ledger.survived()
    for each in {each for numbers in given.values() for each in numbers}:
        with contextlib.suppress(OSError):  # a case has closed it
            os.close(each)


def test_a_whole_set_is_taken_over(
    attached: tuple[Attached, Ledger, list[tuple[str, list[int]]]], handed: Handed
) -> None:
    first, ledger, _ = attached
    found = record.check(handed, REQUEST, OBJECT)
    assert (found.facts.since, found.changed, found.leftovers) == (123.5, "", {})
    assert [row[:4] for row in found.loaded.probes] == [row[:4] for row in first.loaded.probes]
    assert found.loaded.maps.keys() == first.loaded.maps.keys()
    assert found.loaded.made == first.loaded.made
    assert ledger.number("attempts") == 0
    first.state.config.canary_pid = 77
    with Attached(REQUEST, Resumed(found), ledger=found.ledger) as second:
        assert second.calibrate().guard_regions == found.facts.guard_regions
        assert second.state.config.sealed_mask == first.state.config.sealed_mask != 0
        assert first.state.config.canary_pid == 0


@pytest.mark.parametrize(
    ("mode", "target"),
    [
        ("tracepoint", "type 7, .* at 5 sys_exit_munmap"),
        ("raw_tracepoint", "type 1, .* at sys_exit"),
    ],
)
def test_a_link_names_its_tracepoint(mode: str, target: str, require_bpf: None) -> None:
    """Fexit links, where a kernel takes them, are in the set of the other tests."""
    wanted, ledger = LoadRequest(attach=mode), Ledger.shared()
    with Attached(wanted, ledger=ledger) as attached:
        facts = record.Facts(True, {}, frozenset(), 1.0)
        groups = record.write(attached.loaded, ledger, wanted, facts, generation=1).groups
        given = {name: [os.dup(each) for each in numbers] for name, numbers in groups}
        links = [describe_link(each, ids(attached)) for each in attached.loaded.links]
        assert len([each for each in links if re.fullmatch(rf"link \d+: {target}", each)]) == 1
        found = record.check(given, wanted, OBJECT)
        assert len(found.loaded.links) == len(attached.loaded.links)
        os.close(given["record.1"][0])
        os.close(groups[-1][1][0])
        found.loaded.close()


def _closed(handed: Handed, name: str) -> None:
    os.close(handed[name].pop())


def _other(handed: Handed, name: str) -> None:
    os.close(handed[name].pop())
    shape = {"key": 4, "value": 8, "entries": 1, "flags": 0}
    handed[name].append(bpf.create_map(ARRAY, "counters", **shape))


def _pipe(handed: Handed, name: str) -> None:
    read, write = os.pipe()
    os.close(write)
    os.close(handed[name].pop())
    handed[name].append(read)


def _twice(handed: Handed, name: str) -> None:
    handed[name].append(os.dup(handed[name][0]))


def _without(handed: Handed, name: str) -> None:
    for each in handed.pop(name):
        os.close(each)


def _unknown(handed: Handed, name: str) -> None:
    handed["stranger\n"] = [handed[name].pop()]


def _ledger_of_another(handed: Handed, name: str) -> None:
    _without(handed, name)
    handed[name] = [Ledger.shared().descriptor]


def _forged(data: bytes) -> Callable[[Handed, str], None]:
    def forge(handed: Handed, name: str) -> None:
        _without(handed, name)
        handed[name] = [memory.frozen(data)]

    return forge


def _not_frozen(handed: Handed, name: str) -> None:
    _without(handed, name)
    shape = {"key": 4, "value": 8, "entries": 1, "flags": 1 << 7}
    handed[name] = [bpf.create_map(ARRAY, "record", **shape)]


def _memory_of_another_size(handed: Handed, name: str) -> None:
    _without(handed, name)
    handed[name] = [memory.pinnable(1 << 20)]


@pytest.mark.parametrize(
    ("change", "name", "why"),
    [
        (_closed, "map", "it misses map "),
        (_closed, "program", "it misses program |a link is of a program"),
        (_closed, "link", "it misses link "),
        (_other, "map", "it misses map "),
        (_other, "program", "a bpf-prog is something else"),
        (_other, "link", "a bpf_link is something else"),
        (_pipe, "map", "a bpf-map is something else"),
        (_pipe, "ledger", "of its counts, it is no memory"),
        (_pipe, "record", "a bpf-map is something else"),
        (_twice, "map", "it has a map of somebody else"),
        (_twice, "program", "it has a program of somebody else"),
        (_twice, "link", "it has a link of somebody else"),
        (_twice, "record", "it has more than one record"),
        (_without, "link", "it has no link"),
        (_without, "ledger", "it has no ledger"),
        (_without, "record", "it has no record"),
        (_unknown, "map", r"it has a descriptor named 'stranger\\n'"),
        (_ledger_of_another, "ledger", "it is of another set"),
        (_not_frozen, "record", "its record could have been changed"),
        (_memory_of_another_size, "ledger", "of its counts, its size is another or not fixed"),
        (_forged(b"{}"), "record", "its record cannot be understood"),
        (_forged(b"[]"), "record", "its record is no object"),
        (_forged(b"\0" * 64), "record", "its record cannot be understood"),
        (_forged(b"[" * 100_000), "record", "its record cannot be understood"),
    ],
)
def test_what_is_odd_is_not_taken_over(
    handed: Handed, change: Callable[[Handed, str], None], name: str, why: str
) -> None:
    change(handed, next(each for each in handed if each.partition(".")[0] == name))
    with pytest.raises(record.SetError, match=why):
        record.check(handed, REQUEST, OBJECT)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (replace(REQUEST, buckets_max=77), "buckets max"),
    ],
)
def test_other_maps_are_let_go(handed: Handed, request_: LoadRequest, why: str) -> None:
    with pytest.raises(record.SetError, match=f"it is of another {why}"):
        record.check(handed, request_, OBJECT)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (replace(REQUEST, workloads_max=77), ""),
        (replace(REQUEST, workloads_max=WORKLOADS_MAX), ""),
        (replace(REQUEST, ring_size=1 << 20), "another ring size"),
        (replace(REQUEST, attach="raw_tracepoint"), "another attach"),
        (replace(REQUEST, switches=frozenset({"watch.compat"})), "another switches"),
    ],
)
def test_programs_of_another_configuration_are_replaced(
    handed: Handed, request_: LoadRequest, why: str
) -> None:
    assert record.check(handed, request_, OBJECT).changed == why


def test_programs_of_another_object_are_replaced(handed: Handed, tmp_path: Path) -> None:
    other = tmp_path / "object"
    data = bytearray(OBJECT.read_bytes())
    data[40] ^= 1  # of the digest
    other.write_bytes(data)
    for path in (other, tmp_path / "none"):
        assert record.check(handed, REQUEST, path).changed == "another object"


def test_a_set_that_ends_starts_is_let_go_by_the_third(
    attached: tuple[Attached, Ledger, list[tuple[str, list[int]]]], handed: Handed
) -> None:
    _, ledger, _ = attached
    for _ in range(record.ATTEMPTS):
        record.check(handed, REQUEST, OBJECT)
        ledger.risk().__enter__()  # and there it ends
    with pytest.raises(record.SetError, match="2 starts ended while they looked at it"):
        record.check(handed, REQUEST, OBJECT)


@pytest.mark.parametrize(
    ("bit", "why"),
    [
        (record.CANARY_FAILED, "the canary had failed"),
        (record.RECORDS_CORRUPT, "in its ring was what is no record"),
    ],
)
def test_a_doubted_set_is_let_go(
    attached: tuple[Attached, Ledger, list[tuple[str, list[int]]]],
    handed: Handed,
    bit: int,
    why: str,
) -> None:
    _, ledger, _ = attached
    ledger.doubt(bit, True)
    with pytest.raises(record.SetError, match=why):
        record.check(handed, REQUEST, OBJECT)
    ledger.doubt(bit, False)
    record.check(handed, REQUEST, OBJECT)


def test_counts_in_a_map_go_on(require_bpf: None) -> None:
    """Where the set is pinned they are in one, which a record can be of as well."""
    first = Ledger.shared(memory.pinnable)
    first.words("starts")[1] = 7
    first.table("sinks")[b"stdout"] = (3,)
    second = Ledger.found(os.dup(first.descriptor))
    assert (second.words("starts")[1], second.table("sinks")[b"stdout"]) == (7, (3,))


def test_a_ring_that_somebody_else_has_read_is_let_go(
    attached: tuple[Attached, Ledger, list[tuple[str, list[int]]]], handed: Handed
) -> None:
    first, _, _ = attached
    before = first.ring._consumed[0]
    first.ring._consumed[0] = before + 8
    try:
        with pytest.raises(record.SetError, match="its ring was read by somebody else"):
            record.check(handed, REQUEST, OBJECT)
    finally:
        first.ring._consumed[0] = before


def denied(name: str) -> int:
    """The pid of a process that was refused."""
    with subprocess.Popen([sys.executable, "-m", "monitor.provoke.table", name]) as process:
        assert process.wait(30) == 0
    return process.pid


def denied_of(attached: Attached, pids: list[int]) -> list[int]:
    """The pids of all denials up to the end, of these processes, in their order."""
    found: list[int] = []
    while attached.ring.used_bytes or attached.ring.older:
        records = attached.ring.drain().records
        found += [each.pid for each in records if each.pid in pids and each.kind == Kind.DENIAL]
    return found


def test_rings_of_lives_that_were_killed_are_read_one_after_the_other(require_bpf: None) -> None:
    """The first is killed while it reads, the second before it replaces the programs, the third
    when it has, and the last one reads all.
    """
    kept: Handed = {}
    sizes = (1 << 20, 1 << 16, 1 << 18)
    with contextlib.ExitStack() as lives:
        lives.callback(close_all, kept)
        ledger = Ledger.shared()
        first = lives.enter_context(Attached(REQUEST, ledger=ledger))
        facts = record.Facts(*first.calibrate(), frozenset(), 1.0)
        keep(kept, record.write(first.loaded, ledger, REQUEST, facts, generation=1))
        configure(first.state.config, parse("", ""))
        read = [denied("mprotect")]
        assert denied_of(first, read) == read
        pids = [denied("munmap")]
        for generation, size in enumerate(sizes, 2):
            wanted = replace(REQUEST, ring_size=size)
            found = record.check(copied(kept), wanted, OBJECT)
            assert "another ring size" in found.changed
            assert [each.name for each in found.unread] == [
                f"map.r{each}" for each in range(1, generation - 1)
            ]
            lives.callback(close_all, found.leftovers)
            replacing = Replacing(found, wanted)
            lives.callback(replacing.close)
            life = lives.enter_context(Attached(wanted, replacing, ledger=found.ledger))
            set_of = (life.loaded, found.ledger, wanted, facts)
            keep(kept, record.write(*set_of, generation=generation, before=found))
            if size != sizes[0]:
                assert life.hand_over() == 0.0
            pids.append(denied("mremap_source"))
        assert len(life.ring.older) == 3
        assert denied_of(life, pids) == pids
        assert life.ring.older == []
        assert life.ring.taken()[Kind.DENIAL] >= len(read + pids)
        assert sorted(life.read_out()) == ["map.r1", "map.r2", "map.r3"]
        again = record.check(copied(kept), wanted, OBJECT)
        assert (again.changed, again.unread) == ("", [])
        assert {"map.r1", "map.r2", "map.r3"} <= again.leftovers.keys()
        again.close()
        close_all(again.leftovers)


def close_all(handed: Handed) -> None:
    for each in {each for group in handed.values() for each in group}:
        os.close(each)


def keep(kept: Handed, written: record.Written) -> None:
    """As a manager does."""
    for name, group in written.groups:
        kept.setdefault(name, []).extend(os.dup(each) for each in group)
    os.close(written.groups[-1][1][0])


def copied(kept: Handed) -> Handed:
    return {name: [os.dup(each) for each in group] for name, group in kept.items()}
