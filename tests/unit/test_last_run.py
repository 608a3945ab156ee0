from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.life import last_run
from monitor.life.last_run import (
    FILE,
    LastRun,
    Run,
    as_details,
    blind_seconds,
    ended,
    state_directory,
)

BOOT = "0f4bcab1-f4fc-4546-a292-69bfec02ebb7"
OTHER_BOOT = "11111111-f4fc-4546-a292-69bfec02ebb7"
PAST = Run(BOOT, "aa", 1000.0, 2000.0, 500.0, None, {"denial": 3})
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o750)
    return folder


def live(folder: Path, reason: str | None = None) -> None:
    """A run that comes, counts seven denials and goes; with a reason it was stopped."""
    run = LastRun(folder, BOOT)
    assert run.problems == []
    run.alive({"denial": 7})
    if reason:
        run.end(reason, {"denial": 8})
    else:
        until((folder / FILE).exists)
        run.close()


def test_the_first_run_knows_of_none(folder: Path) -> None:
    run = LastRun(folder, BOOT)
    assert (run.past, run.problems, run.is_kept) == (None, [], True)
    run.close()
    assert list(folder.iterdir()) == []


def test_a_run_that_was_stopped(folder: Path) -> None:
    before = time.time()
    live(folder, "stopped by SIGTERM")
    run = LastRun(folder, BOOT)
    past = run.past
    run.close()
    assert past is not None
    assert ended(past, BOOT) == ended(past, OTHER_BOOT) == "stopped"
    assert (past.reason, past.counts) == ("stopped by SIGTERM", {"denial": 8})
    assert before <= past.started <= past.alive <= time.time()
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o640 & ~os.umask(os.umask(0))
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_run_that_left_no_last_word(folder: Path) -> None:
    live(folder)
    run = LastRun(folder, OTHER_BOOT)
    past = run.past
    run.close()
    assert past is not None
    assert past.counts == {"denial": 7}
    assert (ended(past, BOOT), ended(past, OTHER_BOOT)) == ("killed", "host rebooted")
    assert as_details(past, BOOT)["ended"] == "killed"
    assert as_details(past, BOOT)["reason"] is None


@pytest.mark.parametrize(
    ("boot_id", "boot", "unix", "expected"),
    [
        (BOOT, 530.0, 9999.0, 30.0),
        (BOOT, 400.0, 9999.0, 0.0),
        (OTHER_BOOT, 10.0, 2060.0, 60.0),
        (OTHER_BOOT, 10.0, 1000.0, 0.0),
    ],
)
def test_blind_seconds(boot_id: str, boot: float, unix: float, expected: float) -> None:
    assert blind_seconds(PAST, boot_id, boot, unix) == expected


def test_no_thread_before_the_first_word(folder: Path) -> None:
    """Until then the daemon forks its loader."""
    before = threading.active_count()
    run = LastRun(folder, BOOT)
    assert threading.active_count() == before
    run.alive({})
    run.alive({})
    assert threading.active_count() == before + 1
    run.close()
    assert threading.active_count() == before


def test_no_thread_left_is_reported_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        run = LastRun(folder, BOOT)
        run.alive({})
        run.alive({})
    assert run.problems == [
        f"cannot start a thread that writes {FILE}: can't start new thread; "
        "the next start will not know of this run"
    ]
    run.alive({})  # there is one again
    run.end("stopped", {})
    assert (folder / FILE).exists()


def test_two_runs_at_once(folder: Path) -> None:
    first = LastRun(folder, BOOT)
    second = LastRun(folder, BOOT)
    assert second.problems == [
        f"cannot use {folder}: another instance uses it; the next start will not know of this run"
    ]
    assert not second.is_kept
    second.alive({})
    second.end("stopped", {})
    first.end("stopped", {"seal": 1})
    third = LastRun(folder, BOOT)
    assert third.past is not None
    assert third.past.counts == {"seal": 1}
    third.close()


def test_without_a_directory() -> None:
    run = LastRun(None, BOOT)
    run.alive({"denial": 1})
    run.end("stopped", {})
    assert (run.past, run.problems, run.is_kept) == (None, [], False)


VALID: dict[str, Any] = {
    "version": 1,
    "boot_id": BOOT,
    "run_id": "aa",
    "started": 1.0,
    "alive": 2.5,
    "alive_boot": 3,
    "reason": None,
    "counts": {"denial": 1},
}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{\xff}", "'utf-8' codec can't decode byte"),
        (b"[" * 10000, "nested too deeply"),
        (b"[]", "not of version 1"),
        (b"x" * 20000, "larger than 16384 bytes"),
        (json.dumps(VALID | {"version": 2}).encode(), "not of version 1"),
        (json.dumps(VALID | {"alive": float("nan")}).encode(), "a time is missing"),
        (json.dumps(VALID | {"alive": "now"}).encode(), "a time is missing or out of range"),
        (json.dumps(VALID | {"alive_boot": -1}).encode(), "a time is missing or out of range"),
        (json.dumps(VALID | {"started": True}).encode(), "a time is missing or out of range"),
        (json.dumps(VALID | {"boot_id": 1}).encode(), "a text is missing"),
        (json.dumps(VALID | {"reason": []}).encode(), "a text is missing"),
        (json.dumps(VALID | {"counts": {"denial": -1}}).encode(), "a count is out of range"),
        (json.dumps(VALID | {"counts": {"denial": 0.5}}).encode(), "a count is out of range"),
        (json.dumps(VALID | {"counts": dict.fromkeys(map(str, range(99)), 1)}).encode(), "no co"),
    ],
)
def test_a_file_that_is_wrong_is_set_aside(folder: Path, content: bytes, reason: str) -> None:
    (folder / FILE).write_bytes(content)
    run = LastRun(folder, BOOT)
    assert run.past is None
    (problem,) = run.problems
    assert problem.startswith(f"{folder / FILE} says nothing of the last run: {reason}")
    assert problem.endswith("; set aside as last_run.json.bad")
    assert (folder / "last_run.json.bad").read_bytes() == content
    run.end("stopped", {"fault": 2})
    following = LastRun(folder, BOOT)
    assert following.past is not None
    assert following.past.counts == {"fault": 2}
    following.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*VALID]) | st.text(), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_content_is_read_or_refused(folder: Path, content: bytes) -> None:
    try:
        past = last_run._parse(content)
    except ValueError:
        return
    assert isinstance(past, Run)


def test_text_of_the_file_is_made_printable() -> None:
    content = json.dumps(VALID | {"reason": "\x1b[31m" + "a" * 999}).encode()
    reason = last_run._parse(content).reason
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) <= 210


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "open to all"])
def test_what_is_no_file_of_ours(folder: Path, tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text(json.dumps(VALID))
    place = folder / FILE
    match kind:
        case "link":
            place.symlink_to(victim)
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "open to all":
            place.write_text(json.dumps(VALID))
            place.chmod(0o666)
    run = LastRun(folder, BOOT)
    assert run.past is None
    assert len(run.problems) == 1
    run.end("stopped", {})
    assert victim.read_text() == json.dumps(VALID)
    following = LastRun(folder, BOOT)
    assert following.past is not None
    following.close()


def test_the_new_file_is_never_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / f".{FILE}.new").symlink_to(victim)
    live(folder, "stopped")
    assert victim.read_text() == "precious"
    assert not (folder / FILE).is_symlink()


@root
def test_a_file_of_another_user_is_not_believed(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(VALID))
    os.chown(folder / FILE, 65534, 65534)
    run = LastRun(folder, BOOT)
    assert run.past is None
    assert "others may write to it; set aside" in run.problems[0]
    run.close()


@root
@pytest.mark.parametrize("kind", ["owner", "mode"])
def test_a_directory_of_others_is_not_used(folder: Path, kind: str) -> None:
    if kind == "owner":
        os.chown(folder, 65534, 65534)
    else:
        folder.chmod(0o777)
    run = LastRun(folder, BOOT)
    assert run.problems == [
        f"cannot use {folder}: others may write to it; the next start will not know of this run"
    ]
    run.end("stopped", {})
    assert list(folder.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    run = LastRun(tmp_path / "no", BOOT)
    assert run.problems == [
        f"cannot use {tmp_path / 'no'}: No such file or directory; "
        "the next start will not know of this run"
    ]


def test_a_directory_that_goes_away_is_reported_once(folder: Path) -> None:
    run = LastRun(folder, BOOT)
    folder.rmdir()
    run.alive({})
    until(lambda: run.problems)
    assert run.problems == [
        f"cannot write {FILE}: No such file or directory; the next start will not know of this run"
    ]
    run.alive({})
    run.end("stopped", {})
    assert len(run.problems) == 1


def test_nothing_stays_open(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        live(folder, "stopped")
    (folder / FILE).write_bytes(b"?")
    LastRun(folder, BOOT).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_run, "DEFAULT_DIRECTORY", tmp_path / "default")
    monkeypatch.setenv("STATE_DIRECTORY", "/run/one:/run/two")
    assert state_directory(Path("/configured")) == Path("/configured")
    assert state_directory(None) == Path("/run/one")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert state_directory(None) is None
    (tmp_path / "default").mkdir()
    assert state_directory(None) == tmp_path / "default"
