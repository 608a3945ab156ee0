"""The loader's parent side, and the text it has compiled. What it attaches: tests/kernel."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitor.kernel import layouts, loader
from monitor.kernel.loader import AttachedProbe, LoadError, LoadRequest
from monitor.kernel.operations import MSEAL_NUMBER

needs_btf = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF"
)


def refuse(error: Exception) -> Callable[..., object]:
    def child(*_: object) -> object:
        raise error

    return child


def children() -> set[str]:
    """Of this process; those of tests before may still be there."""
    listed = ["ps", "-o", "pid=", "--ppid", str(os.getpid())]
    with subprocess.Popen(listed, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    return set(output.split()) - {str(process.pid)}


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


@pytest.mark.parametrize("error", [LoadError("no, because; do this"), layouts.LayoutError("no x")])
def test_error_of_the_child_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(loader, "_load_and_attach", refuse(error))
    with pytest.raises(LoadError, match=f"^{re.escape(str(error))}$"):
        loader.load(LoadRequest())


def test_unexpected_error_of_the_child_is_told_with_its_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "_load_and_attach", refuse(RuntimeError("surprise")))
    with pytest.raises(LoadError, match=r"status 1 and said: (?s:.*)RuntimeError: surprise$"):
        loader.load(LoadRequest())


def test_killed_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    monkeypatch.setattr(loader, "_load_and_attach", die)
    with pytest.raises(LoadError, match=r"^the loader ended with status -9 and said: nothing$"):
        loader.load(LoadRequest())


def test_descriptors_come_over_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("counters", "link", "program", "another")
    for name in names:
        (tmp_path / name).write_text(name)

    def child(*_: object) -> tuple[dict[str, object], list[int]]:
        answer: dict[str, object] = {
            "maps": {"counters": 0},
            "links": [1],
            "probes": [
                ["munmap", "tracepoint", "t", "", 2, "refused", [3]],
                ["brk", "tracepoint", "u", "no", -1, "", []],
            ],
            "notes": ["noted"],
        }
        return answer, [os.open(tmp_path / name, os.O_RDONLY) for name in names]

    monkeypatch.setattr(loader, "_load_and_attach", child)
    before = set(os.listdir("/proc/self/fd"))
    loaded = loader.load(LoadRequest())
    attached, refused = loaded.probes
    assert os.pread(loaded.maps["counters"], 99, 0) == b"counters"
    assert [os.pread(link, 99, 0) for link in loaded.links] == [b"link"]
    assert os.pread(attached.program, 99, 0) == b"program"
    assert [os.pread(number, 99, 0) for number in attached.programs] == [b"program", b"another"]
    assert refused.programs == ()
    assert attached.fallback == "refused"
    assert (attached.attached, refused.attached, refused.error) == (True, False, "no")
    assert loaded.notes == ["noted"]
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


@needs_btf
def test_text_has_no_local_include_left() -> None:
    text = loader._program_text(LoadRequest(), "", ())
    assert not re.search(r'^#include "', text, re.MULTILINE)
    assert re.findall(r"^#include (.*)$", text, re.MULTILINE) == ["<linux/types.h>"]
    for path in (Path(loader.__file__).parent.parent / "bpf").glob("*.[ch]"):
        guard = re.search(r"^#ifndef (SEAL_MONITOR_\w+)$", path.read_text(), re.MULTILINE)
        if guard:
            assert text.count(f"#define {guard[1]}\n") == 1


@needs_btf
def test_text_has_the_sizes_asked_for() -> None:
    request = LoadRequest(ring_size=1 << 18, workloads_max=77)
    text = loader._program_text(request, "", {"WITH_IO_URING"})
    for definition in (
        "PAGE_SIZE 4096",
        "RING_PAGES 64",
        "WORKLOADS_MAX 77",
        "BUCKETS_MAX 4096",
        "WITH_IO_URING 1",
        f"POSSIBLE_CPUS {loader.possible_cpus()}",
        f"NR_MSEAL {MSEAL_NUMBER}",
    ):
        assert f"#define {definition}\n" in text
    assert "#define WITH_RAW_EXITS" not in text


def test_bcc_is_not_imported_here() -> None:
    assert "bcc" not in sys.modules
