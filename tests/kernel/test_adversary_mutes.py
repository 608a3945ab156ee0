"""What an ordinary user tries so that an operator's mute hides him."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import cgroup_root, remove_cgroup
from test_daemon import Compile, Running, Start, start

from monitor.untrusted.segments import read_segments

__all__ = ["start"]  # a fixture

NOBODY = 65534
FILTERED = 'seal_monitor_events_total{kind="denial",result="filtered"}'
AS_ROOT = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
SECONDS = 20.0


class Places(NamedTuple):
    """`engine` is what the operator mutes, `own` the user's copy of it."""

    engine: Path
    own: Path


@pytest.fixture
def places(compiled: Compile) -> Iterator[Places]:
    """In a directory that any user can go into."""
    folder = Path("/var/tmp") / f"seal-monitor-test-{os.getpid()}"
    (folder / "engine").mkdir(mode=0o755, parents=True)
    folder.chmod(0o755)
    found = Places(folder / "engine/engine", folder / "own")
    for place, uid in zip(found, (0, NOBODY), strict=True):
        shutil.copy(compiled("pretend"), place)
        place.chmod(0o755)
        os.chown(place, uid, uid)
    yield found
    shutil.rmtree(folder)


def build_id(program: Path) -> str:
    with program.open("rb") as file:
        found = read_segments(file).build_id
    assert found
    return found


@contextmanager
def process(words: Sequence[object], user: int, cgroup: Path | None = None) -> Iterator[int]:
    """The pid of a command that makes a denial and waits."""
    enter = f'echo 0 >{cgroup}/cgroup.procs; exec "$@"' if cgroup else 'exec "$@"'
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    with subprocess.Popen(
        ["sh", "-c", enter, "sh", "setpriv", *ids, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def is_muted(
    daemon: Running, words: Sequence[object], user: int, cgroup: Path | None = None
) -> bool:
    """Whether the denial of the command makes no event."""
    before = daemon.metric(FILTERED)
    with process(words, user, cgroup) as pid:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = daemon.events("denial")
            if any(event["process"]["pid"] == pid for event in found):
                return False
            if daemon.metric(FILTERED) > before:
                return True
            time.sleep(0.05)
    raise AssertionError(f"{words} made no denial")


def attacks(places: Places) -> dict[str, Sequence[object]]:
    engine, own = places
    run = f"exec {engine}"
    folder = engine.parent
    overlay = f"lowerdir={folder},upperdir=/mnt/upper,workdir=/mnt/work,userxattr"
    return {
        "copy": [own],
        "tmpfs": [*AS_ROOT, f"mount -t tmpfs none {folder} && cp {own} {engine} && {run}"],
        "bind": [*AS_ROOT, f"mount --bind {own} {engine} && {run}"],
        # Here his file system says that the file is root's, which it is.
        "overlay": [
            *AS_ROOT,
            "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work && "
            f"mount -t overlay -o {overlay} none {folder} && {run}",
        ],
        "pretend": [*AS_ROOT, f"exec {own} {engine}"],
        "run": [engine],
    }


EVERYTHING = {"copy", "tmpfs", "bind", "overlay", "pretend", "run"}

# What an entry asks for, and who is muted by it. The last two columns of docs/mutes.md.
ENTRIES = [
    ('executable = "{engine}"', {"pretend", "run"}),
    ('executable = "{engine}"\nowner = "root"', {"pretend", "run"}),
    ('build_id = "{build_id}"', EVERYTHING),
    ('build_id = "{build_id}"\nowner = 0', {"pretend", "run"}),
    ('executable = "{engine}"\nbuild_id = "{build_id}"\nuser = "root"', set()),
    ('executable = "engine"\nowner = "root"\nuser = 0', set()),
]


@pytest.mark.parametrize(("entry", "muted"), ENTRIES)
def test_who_is_muted(start: Start, places: Places, entry: str, muted: set[str]) -> None:
    text = entry.format(engine=places.engine, build_id=build_id(places.engine))
    daemon = start(f'[[mute]]\n{text}\nreason = "known"\n')
    assert is_muted(daemon, [places.engine], 0)  # the program that is meant
    found = {name for name, words in attacks(places).items() if is_muted(daemon, words, NOBODY)}
    assert found == muted


LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def test_who_is_muted_as_what_the_loader_runs(start: Start, places: Places) -> None:
    engine, own = places
    daemon = start(f'[[mute]]\nprogram = "{engine}"\nreason = "known"\n')
    assert is_muted(daemon, [LOADER, engine], 0)
    tmpfs = f"mount -t tmpfs none {engine.parent} && cp {own} {engine} && exec {LOADER} {engine}"
    others: dict[str, Sequence[object]] = {
        "copy": [LOADER, own],
        "name": [LOADER, "--argv0", engine, own],
        "tmpfs": [*AS_ROOT, tmpfs],
        "itself": [engine],
    }
    assert {name for name, words in others.items() if is_muted(daemon, words, NOBODY)} == set()


@pytest.mark.host_wide
def test_a_user_names_no_unit_of_the_system(start: Start, places: Places) -> None:
    root = cgroup_root()
    if root is None:
        pytest.skip("the root of the cgroup2 hierarchy is not mounted")
    base = root / f"seal-monitor-test-{os.getpid()}.slice"
    units = [
        base / "engine.service",
        base / "user@65534.service/app.slice/engine.service",
        base / "delegated.scope/engine.service",
    ]
    with ExitStack() as cleanup:
        for unit in units:
            for each in (base, *reversed(unit.relative_to(base).parents), unit):
                path = base / each
                if not path.exists():
                    path.mkdir()
                    cleanup.callback(remove_cgroup, path)
        daemon = start('[[mute]]\nunit = "engine.service"\nreason = "known"\n', whole_host=True)
        words = [places.own]
        assert [is_muted(daemon, words, NOBODY, unit) for unit in units] == [True, False, False]
        units_seen = {
            (event["workload"]["unit"], event["process"]["executable_owner"])
            for event in daemon.events("denial")
        }
        assert units_seen == {("engine.service", NOBODY), ("delegated.scope", NOBODY)}
