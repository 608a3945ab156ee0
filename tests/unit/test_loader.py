"""The loader's parent side, and what it refuses. What it attaches: tests/kernel."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.kernel import attacher, compiler, loader
from monitor.kernel.btf import LayoutError
from monitor.kernel.loader import AttachedProbe, LoadError, LoadRequest, Made
from monitor.kernel.object import Object, serialize


def refuse(error: Exception) -> Callable[..., object]:
    def child(*_: object) -> object:
        raise error

    return child


def children() -> set[str]:
    """Of this process; those of tests before may still be there."""
    threads = Path("/proc/self/task").iterdir()
    return {child for thread in threads for child in (thread / "children").read_text().split()}


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


@pytest.mark.parametrize("error", [LoadError("no, because; do this"), LayoutError("no x")])
def test_error_of_the_child_is_reported_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(attacher, "_load_and_attach", refuse(error))
    with pytest.raises(LoadError, match=f"^{re.escape(str(error))}$"):
        loader.load(LoadRequest())


def test_unexpected_error_of_the_child_comes_with_its_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attacher, "load_and_attach", refuse(RuntimeError("surprise")))
    with pytest.raises(LoadError, match=r"status 1 and said: (?s:.*)RuntimeError: surprise$"):
        loader.load(LoadRequest())


def test_killed_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    monkeypatch.setattr(attacher, "load_and_attach", die)
    with pytest.raises(LoadError, match=r"^the loader ended with status -9 and said: nothing$"):
        loader.load(LoadRequest())


def test_descriptors_come_over_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("counters", "array", "stub", "link", "another")
    for name in names:
        (tmp_path / name).write_text(name)

    def child(*_: object) -> tuple[dict[str, object], list[int]]:
        answer: dict[str, object] = {
            "maps": {"counters": 0},
            "slots": [["tracepoint t exit_munmap", 1, 2, 3]],
            "probes": [
                ["munmap", "tracepoint", "t", "", 2, "refused", [4]],
                ["brk", "tracepoint", "u", "no", -1, "", []],
            ],
            "waiting": [],
            "notes": ["noted"],
            "made": ["/object", "d1", 7.0, "clang 1.0.0", ["a.b"]],
        }
        return answer, [os.open(tmp_path / name, os.O_RDONLY) for name in names]

    monkeypatch.setattr(attacher, "load_and_attach", child)
    before = set(os.listdir("/proc/self/fd"))
    loaded = loader.load(LoadRequest())
    attached, refused = loaded.probes
    assert os.pread(loaded.maps["counters"], 99, 0) == b"counters"
    assert [os.pread(link, 99, 0) for link in loaded.links] == [b"link"]
    assert [slot.key for slot in loaded.slots] == ["tracepoint t exit_munmap"]
    assert os.pread(loaded.slots[0].array, 99, 0) == b"array"
    assert [os.pread(number, 99, 0) for number in attached.programs] == [b"stub", b"another"]
    assert refused.programs == ()
    assert attached.fallback == "refused"
    assert (attached.attached, refused.attached, refused.error) == (True, False, "no")
    assert loaded.notes == ["noted"]
    assert loaded.made == Made("/object", "d1", 7.0, "clang 1.0.0", ("a.b",))
    assert not any(os.get_inheritable(fd) for fd in (*loaded.maps.values(), *loaded.links))

    loaded.detach()
    assert loaded.links == []
    assert os.pread(loaded.maps["counters"], 99, 0) == b"counters"
    loaded.close()
    loaded.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_probe_without_error_is_attached() -> None:
    assert AttachedProbe("munmap", "tracepoint", "t", "", 3).attached
    assert not AttachedProbe("munmap", "tracepoint", "t", "refused", -1).attached


def test_a_refused_object_is_one_line_of_error(tmp_path: Path) -> None:
    """The path has the way out: nothing is compiled in its place."""
    path = tmp_path / "object"
    processor = compiler.digests()["processor"]
    others = dict.fromkeys(compiler.digests(), "another") | {"processor": processor}
    made = Object("clang 1.0.0", others, (), {})
    foreign = replace(made, digests=others | {"processor": "vax"})
    for data, problem in (
        (serialize(foreign), f"is for vax, this machine is {processor}"),
        (serialize(made), "was made from other sources and marks and records"),
        (serialize(made)[:-1] + b"x", "is damaged: its digest does not match"),
    ):
        path.write_bytes(data)
        with pytest.raises(loader.WrongObjectError) as error:
            loader.load(LoadRequest(path=path))
        assert str(error.value) == (
            f"{path} {problem}; run: make setup, in a checkout, or install the package again"
        )


def test_bcc_is_not_imported_here() -> None:
    assert "bcc" not in sys.modules
