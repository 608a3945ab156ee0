from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import at_most

from monitor.sinks.outputs import Sink, SinkError, json_file, json_lines, pretty

HOST = {"name": "web-1", "boot_id": "1b4e28ba", "kernel_release": "6.18.44"}
COMMON: dict[str, Any] = {
    "schema": 1,
    "id": "1b4e28ba-00000000000003e8-00000001",
    "time": "2025-01-02T03:04:05.678000006Z",
    "time_boot_ns": 1000,
}
HEALTH: dict[str, Any] = {
    **COMMON,
    "kind": "health",
    "severity": "critical",
    "summary": "the probe of munmap is gone",
    "host": HOST,
    "process": None,
    "workload": None,
    "event": "probe_lost",
    "message": "the probe of munmap is gone",
    "blind_seconds": 2.5,
    "details": {"probe": "munmap", "runs": 3},
}


def emit(sink: Sink, event: dict[str, Any]) -> None:
    sink.write(sink.render(event))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017 - the test closed it itself


def test_the_json_line_is_the_contract_object(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    emit(json_lines(writer), HEALTH)
    line = os.read(reader, 65536).decode()
    assert line == json.dumps(HEALTH, separators=(",", ":")) + "\n"
    assert list(json.loads(line)) == list(HEALTH)


@pytest.mark.parametrize("text", ["Käse", "a\nb", "\udcff", "\u2028"])
def test_any_text_is_one_json_line(text: str, tmp_path: Path) -> None:
    sink = json_file(tmp_path / "events.jsonl")
    emit(sink, {"summary": text})
    sink.close()
    raw = (tmp_path / "events.jsonl").read_bytes()
    assert raw.count(b"\n") == 1
    assert json.loads(raw) == {"summary": text}


def test_a_closed_reader_is_a_sink_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = json_lines(writer)
    for _ in range(2):
        with pytest.raises(SinkError, match="Broken pipe"):
            emit(sink, HEALTH)


def test_a_half_line_in_a_stream_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb") as file:
        sink = json_lines(file.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
        try:
            with pytest.raises(SinkError, match="File too large; event not written"):
                emit(sink, {"n": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        emit(sink, {"n": 2})
        emit(sink, {"n": 3})
    assert path.read_bytes() == b'{"n"\n{"n":2}\n{"n":3}\n'


@pytest.mark.parametrize("length", [100, 5000, 300_000])
def test_a_full_descriptor_is_waited_for_if_non_blocking(
    pipe: tuple[int, int], length: int
) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = json_lines(writer)
    events = [{"n": number, "text": "x" * length} for number in range(600_000 // length)]

    def write() -> None:
        for event in events:
            emit(sink, event)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.2)  # the pipe is full, and nobody reads
    with at_most(0.1, "the thread would try again and again", time.process_time):
        time.sleep(0.3)
    assert thread.is_alive()
    with open(reader, closefd=False) as file:
        assert [json.loads(line) for line in file] == events
    thread.join()


def test_a_reader_that_goes_while_a_full_pipe_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = json_lines(writer)
    threading.Timer(0.1, os.close, (reader,)).start()
    with pytest.raises(SinkError, match="Broken pipe"):
        emit(sink, {"text": "x" * 1_000_000})


def test_file_mode(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = os.umask(0o022)
    try:
        json_file(path).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o640


def test_file_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in (1, 2):
        sink = json_file(path)
        emit(sink, {"n": number})
        sink.close()
    assert path.read_text() == '{"n":1}\n{"n":2}\n'


def test_half_a_line_of_an_earlier_life_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"n":1}\n{"n"')
    sink = json_file(path)
    emit(sink, {"n": 2})
    sink.close()
    assert path.read_text() == '{"n":1}\n{"n"\n{"n":2}\n'


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "truncated"])
def test_file_follows_rotation(how: str, tmp_path: Path) -> None:
    path, old = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    sink = json_file(path)
    emit(sink, {"n": 1})
    match how:
        case "moved":
            path.rename(old)
        case "removed":
            path.unlink()
        case "replaced":
            path.rename(old)
            path.touch()
        case "truncated":
            os.truncate(path, 0)
    emit(sink, {"n": 2})
    sink.close()
    assert path.read_text() == '{"n":2}\n'
    if old.exists():
        assert old.read_text() == '{"n":1}\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_no_new_file_may_be_made_the_old_one_goes_on(build_directory: Path) -> None:
    """As where root started it, gave up its rights and then the log was rotated."""
    path, old = build_directory / "events.jsonl", build_directory / "events.jsonl.1"
    sink = json_file(path)
    path.rename(old)
    os.seteuid(65534)
    try:
        emit(sink, {"n": 1})
        with pytest.raises(SinkError, match="cannot open it: Permission denied"):
            sink.reopen()
        emit(sink, {"n": 2})
    finally:
        os.seteuid(0)
    emit(sink, {"n": 3})
    sink.close()
    assert old.read_text() == '{"n":1}\n{"n":2}\n'
    assert path.read_text() == '{"n":3}\n'


def test_rotation_leaks_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = json_file(path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        path.unlink()
        emit(sink, {"n": number})
    assert len(os.listdir("/proc/self/fd")) == before
    sink.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/events.jsonl", "cannot open it: No such file or directory"),
        (".", "cannot open it: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_opened(name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(SinkError, match=re.escape(f"events file {path}: {message}")):
        json_file(path)


def test_file_recovers_when_its_directory_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    sink = json_file(directory / "events.jsonl")
    directory.rename(tmp_path / "gone")
    with pytest.raises(SinkError, match="cannot open it"):
        emit(sink, {"n": 1})
    directory.mkdir()
    emit(sink, {"n": 2})
    sink.close()
    assert (directory / "events.jsonl").read_text() == '{"n":2}\n'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(sink: Sink) -> None:
    for number in range(1000):
        emit(sink, {"n": number, "text": "x" * 1000})


def test_a_full_disk_leaves_no_half_line(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    sink = json_file(path)
    with pytest.raises(SinkError) as failure:
        fill(sink)
    assert str(failure.value) == f"events file {path}: event not written: No space left on device"
    lines = path.read_text().splitlines(keepends=True)
    taken = len(lines)
    assert [json.loads(line)["n"] for line in lines] == list(range(taken))
    assert all(line.endswith("\n") for line in lines)
    assert taken > 50

    with pytest.raises(SinkError):
        emit(sink, {"n": taken, "text": "x" * 1000})
    os.truncate(path, 0)
    emit(sink, {"n": taken})
    sink.close()
    assert path.read_text() == json.dumps({"n": taken}, separators=(",", ":")) + "\n"


def test_a_half_line_that_cannot_be_taken_back_is_ended() -> None:
    memory = os.memfd_create("events", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    sink = json_file(Path(f"/proc/self/fd/{memory}"))
    emit(sink, {"n": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
    try:
        with pytest.raises(SinkError, match="event not written: File too large"):
            emit(sink, {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    emit(sink, {"n": 3})
    emit(sink, {"n": 4})
    sink.close()
    assert os.pread(memory, 100, 0) == b'{"n":1}\n{"n"\n{"n":3}\n{"n":4}\n'
    os.close(memory)


def test_a_full_device() -> None:
    sink = json_file(Path("/dev/full"))
    for _ in range(2):
        with pytest.raises(SinkError, match="No space left on device"):
            emit(sink, HEALTH)
    sink.close()


def test_a_file_is_opened_again_when_asked(tmp_path: Path) -> None:
    path, old = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    sink = json_file(path)
    emit(sink, {"n": 1})
    path.rename(old)
    sink.reopen()
    assert path.read_bytes() == b""  # at once, not at the next event
    emit(sink, {"n": 2})
    assert (old.read_text(), path.read_text()) == ('{"n":1}\n', '{"n":2}\n')

    tmp_path.joinpath("moved").mkdir()
    path.rename(tmp_path / "moved/events.jsonl")
    path.mkdir()
    with pytest.raises(SinkError, match="cannot open it: Is a directory"):
        sink.reopen()
    path.rmdir()
    emit(sink, {"n": 3})
    sink.close()
    assert path.read_text() == '{"n":3}\n'


def test_names(pipe: tuple[int, int], tmp_path: Path) -> None:
    sinks = (pretty(pipe[1], colours=False), json_lines(pipe[1]), json_file(tmp_path / "events"))
    assert [sink.name for sink in sinks] == ["pretty", "json", "file"]
    for sink in sinks:
        sink.close()
