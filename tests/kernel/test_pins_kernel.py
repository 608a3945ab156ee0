"""What a directory in bpffs keeps while the daemon is started again, without systemd."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import own_programs
from test_daemon import READY_SECONDS, RUN_APART, Event, Running
from test_privileges_kernel import NOBODY, with_only

from monitor.host import doctor
from monitor.keep import memory
from monitor.keep.handed import Handed
from monitor.keep.identify import program_id
from monitor.keep.keeper import choose
from monitor.keep.ledger import Ledger
from monitor.keep.pins import MOST, PinError, Pins, look
from monitor.keep.store import Store
from monitor.kernel import bpf
from monitor.provoke import table as provoke

ROOT = Path(__file__).parents[2]
KILLS = 10
UPDATES = 6
OTHER_VERSION = f"""
import runpy, sys
from monitor import version
version.VERSION = sys.argv.pop(1)
runpy.run_path({str(ROOT / RUN_APART[0])!r}, run_name="__main__")
"""
ARRAY = 2  # enum bpf_map_type
Start = Callable[..., Running]


@pytest.fixture
def bpffs(tmp_path: Path, require_bpf: None) -> Iterator[Path]:
    folder = tmp_path / "bpffs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def pin(bpffs: Path) -> Path:
    folder = bpffs / "seal-monitor"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def start(tmp_path: Path, pin: Path) -> Iterator[Start]:
    """Starts a life, and waits until it is ready, if it is to."""
    lives: list[Running] = []
    (tmp_path / "state").mkdir(mode=0o750)

    def _start(wait: bool = True, on_stop: str = "remove", version: str = "") -> Running:
        folder = tmp_path / str(len(lives))
        folder.mkdir()
        state = f'[state]\ndirectory = "{tmp_path}/state"\npin = "{pin}"\n'
        state += f'pin_on_stop = "{on_stop}"\n'
        command = (sys.executable, "-c", OTHER_VERSION, version, "run") if version else ()
        lives.append(Running(folder, state, command=command))
        if wait:
            lives[-1].health("started", READY_SECONDS)
        return lives[-1]

    yield _start
    for daemon in lives:
        if daemon.process.poll() is None:
            kill(daemon)
    for each in pin.iterdir():
        each.rmdir() if each.is_dir() else each.unlink()


def whole_lines(daemon: Running) -> list[str]:
    text = (daemon.configuration.parent / "events.jsonl").read_text("utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def kill(daemon: Running) -> None:
    daemon.process.kill()
    daemon.process.wait()


def details(daemon: Running) -> Event:
    found: Event = daemon.health("started")["details"]
    return found


def violate(*names: str) -> None:
    assert provoke.run(*names).wait(30) == 0


def array() -> int:
    return bpf.create_map(ARRAY, "stranger", key=4, value=8, entries=1, flags=0)


def pinned_programs(folder: Path) -> set[int]:
    found = set()
    for path in folder.glob("program:*"):
        descriptor = bpf.pinned(str(path))
        found.add(program_id(descriptor))
        os.close(descriptor)
    assert found <= own_programs().keys()
    return found


def are_gone(programs: set[int]) -> bool:
    """The kernel frees a program a grace period after its end."""
    deadline = time.monotonic() + 20
    while (left := programs & own_programs().keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def test_a_killed_daemon_resumes_and_all_was_counted(start: Start, pin: Path) -> None:
    first = start()
    violate("munmap")
    first.wait_for(lambda event: event.get("operation") == "munmap")
    kinds = Counter(path.name.partition(":")[0] for path in pin.iterdir())
    assert {"map", "program", "link", "ledger", "record"} == kinds.keys()
    assert kinds["ledger"] == kinds["record"] == 1
    programs = pinned_programs(pin)
    kill(first)
    violate(*["mprotect", "munmap"] * 5)  # while nobody runs
    second = start()
    resumed = details(second)["resumed"]
    assert (resumed["records_found"] >= 10, resumed["events_dropped"]) == (True, 0)
    assert second.health("started")["blind_seconds"] == 0
    name = 'seal_monitor_denials_total{operation="%s",verdict="sealed"}'
    assert (second.metric(name % "munmap"), second.metric(name % "mprotect")) == (6, 5)
    assert second.metric('seal_monitor_starts_total{kind="resumed"}') == 1
    events = second.events()
    assert [event["kind"] for event in events[:11]] == ["denial"] * 10 + ["health"]
    ids = [event["id"] for event in (*first.events(), *events)]
    assert len(ids) == len(set(ids))
    kill(second)

    # A stop leaves nothing, and says so; what it counted is all there was.
    third = start()
    violate("munmap")
    stopped = third.stop()
    assert stopped["message"].endswith("nothing is seen from now on")
    became = stopped["details"]["denial"]
    assert became["counted"] == became["delivered"] + became["failed"] == 12
    assert became["failed"] <= 2  # written, but not counted as delivered when it was killed
    assert list(pin.iterdir()) == []
    assert are_gone(programs)
    fourth = start()
    assert details(fourth)["resumed"] is None
    assert fourth.metric('seal_monitor_starts_total{kind="fresh"}') == 1
    fourth.stop()


class Made(NamedTuple):
    denials: int
    faults: int


def ended(storm: subprocess.Popen[bytes]) -> Made:
    storm.terminate()
    output, _ = storm.communicate(timeout=30)
    if storm.returncode == -signal.SIGABRT:
        pytest.skip("this kernel has no guard regions")
    return Made(*map(int, output.split()[:2]))


def assert_all_is_counted(last: Running, made: Made, since: float) -> None:
    """By the last life, as if there had been one."""
    assert last.metric("seal_monitor_counters_since_timestamp_seconds") == since
    denials = last.metric('seal_monitor_denials_total{operation="mprotect",verdict="sealed"}')
    faults = last.metric('seal_monitor_faults_total{cause="guard_region",disposition="handler"}')
    assert (denials, faults) == made
    assert made.denials > 1000
    assert last.metric('seal_monitor_starts_total{kind="fresh"}') == 1


def test_kills_in_a_storm_lose_no_count_and_repeat_no_event(
    start: Start, pin: Path, compiled: Callable[[str], Path]
) -> None:
    """From 8 threads; each second kill comes before the daemon is ready."""
    dice, lives = random.Random(15), [start()]
    since = lives[0].metric("seal_monitor_counters_since_timestamp_seconds")
    with subprocess.Popen([compiled("kept_storm"), "2000"], stdout=subprocess.PIPE) as storm:
        for number in range(KILLS):
            time.sleep(dice.uniform(0, 0.5))
            kill(lives[-1])
            lives.append(start(wait=number % 2 == 0))
        kill(lives[-1])
        made = ended(storm)
    last = start()
    lives.append(last)
    assert_all_is_counted(last, made, since)
    lines = [line for life in lives for line in whole_lines(life)]
    ids = Counter(json.loads(line)["id"] for line in lines)
    assert [each for each, count in ids.items() if count > 1] == []

    # A stop in the middle of another storm: what was counted then became of something.
    with subprocess.Popen([compiled("kept_storm"), "2000"], stdout=subprocess.DEVNULL) as storm:
        time.sleep(1)
        stopped = last.stop()
        storm.terminate()
    for kind in ("denial", "fault"):
        figures = stopped["details"][kind]
        assert figures["counted"] == sum(figures.values()) - figures["counted"]
    assert stopped["details"]["denial"]["counted"] > made.denials
    assert list(pin.iterdir()) == []


def test_updates_in_a_storm_lose_no_count_and_repeat_no_event(
    start: Start, pin: Path, compiled: Callable[[str], Path]
) -> None:
    """As a DaemonSet's: SIGTERM, nobody for a moment, another version."""
    dice, lives = random.Random(15), [start(on_stop="keep", version="0.1.0")]
    since = lives[0].metric("seal_monitor_counters_since_timestamp_seconds")
    assert details(lives[0])["kept_by"] == str(pin)
    with subprocess.Popen([compiled("kept_storm"), "2000"], stdout=subprocess.PIPE) as storm:
        for number in range(UPDATES):
            time.sleep(dice.uniform(0, 0.5))
            stopped = lives[-1].stop()
            assert stopped["message"].endswith(
                "; the programs count until the next start, or seal-monitor detach"
            )
            for kind in ("denial", "fault"):
                figures = stopped["details"][kind]
                assert figures["counted"] == sum(figures.values()) - figures["counted"]
            time.sleep(dice.uniform(0, 0.5))
            on_stop = "keep" if number < UPDATES - 1 else "remove"
            lives.append(start(on_stop=on_stop, version=f"0.{1 + (number + 1) % 2}.0"))
            started = lives[-1].health("started")
            assert started["blind_seconds"] == 0
            assert started["details"]["resumed"]["replaced"] == "another version"
            assert started["details"]["resumed"]["handover_seconds"] == 0
            assert started["details"]["resumed"]["events_interrupted"] == 0
        made = ended(storm)
    last = lives[-1]
    assert_all_is_counted(last, made, since)
    assert last.metric('seal_monitor_starts_total{kind="replaced"}') == UPDATES
    stopped = last.stop()
    assert stopped["message"].endswith("; nothing is seen from now on")
    assert list(pin.iterdir()) == []
    lines = [json.loads(line) for life in lives for line in whole_lines(life)]
    ids = Counter(event["id"] for event in lines)
    assert [each for each, count in ids.items() if count > 1] == []
    # Every event that was made in any of the lives was written by one.
    became = stopped["details"]["denial"]
    assert (became["failed"], became["counted"]) == (0, made.denials)
    assert became["delivered"] == sum(event["kind"] == "denial" for event in lines)


def test_what_a_stop_has_kept_until_it_is_detached(start: Start, pin: Path) -> None:
    command = [sys.executable, "-m", "monitor", "detach"]

    def detach(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *words], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    daemon = start(on_stop="keep")
    configured = ("--config", str(daemon.configuration))
    count, programs = len(os.listdir(pin)), pinned_programs(pin)
    assert doctor.left_rows(pin) == []
    assert doctor.pin_row(pin).status == "ok"
    assert detach(*configured) == (
        1,
        "",
        f"seal-monitor: a monitor uses {pin}; stop it first\n",
    )
    daemon.stop()
    assert pinned_programs(pin) == programs
    row = doctor.pin_row(pin)
    found = f"{count} maps, programs and links in {pin} are attached and counting, and no monitor"
    assert row.status == "degraded"
    assert re.fullmatch(rf"{re.escape(found)} has read them for 0:00:[0-5]\d", row.finding)
    assert row.remedy.endswith(f"goes on with it, or run: seal-monitor detach {pin}")
    (left,) = doctor.left_rows(pin)
    assert left.remedy == f"run: seal-monitor detach {pin}"
    violate("munmap")
    code, output, errors = detach(*configured)
    assert (code, errors) == (0, "")
    said = f"{count} maps, programs and links are let go, last read 0:00:[0-5][0-9] ago"
    assert re.fullmatch(f"{said}: nothing is attached by {re.escape(str(pin))}\n", output)
    assert list(pin.iterdir()) == []
    assert are_gone(programs)
    assert detach(*configured) == (0, f"{pin} is empty: nothing is attached by it\n", "")
    missing = f"{pin}-missing"
    assert detach(missing) == (0, f"{missing} is not there: nothing is attached by it\n", "")
    assert not os.path.lexists(missing)
    (pin / "other").mkdir()
    code, _, errors = detach(str(pin))
    assert (code, "which is not the monitor's" in errors) == (1, True)


def test_a_failed_or_ended_start_keeps_what_an_update_left(
    start: Start, pin: Path, tmp_path: Path
) -> None:
    """A roll-out that fails can be rolled back, and has lost nothing."""
    daemon = start(on_stop="keep")
    violate("munmap")
    daemon.wait_for(lambda event: event.get("operation") == "munmap")
    daemon.stop()
    programs = pinned_programs(pin)
    command = [sys.executable, *RUN_APART, "--config", str(daemon.configuration)]
    web = tmp_path / "web.yml"
    web.write_text("wrong: 1\n")
    for _ in range(3):
        done = subprocess.run(
            [*command, "--web.config.file", str(web)], check=False, cwd=ROOT, timeout=60
        )
        assert done.returncode == 2
        violate("munmap")
    for seconds in (0.1, 0.3, 0.5):
        with subprocess.Popen(
            [*command, "--web.listen-address", "127.0.0.1:0", "--output", "json"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as process:
            time.sleep(seconds)
            process.terminate()
            assert process.wait(30) in (0, -signal.SIGTERM)
    assert pinned_programs(pin) == programs
    last = start()
    assert details(last)["resumed"] is not None
    assert last.metric('seal_monitor_denials_total{operation="munmap",verdict="sealed"}') == 4
    assert last.metric('seal_monitor_starts_total{kind="fresh"}') == 1
    last.stop()
    assert list(pin.iterdir()) == []


def test_what_is_odd_is_let_go_and_replaced(start: Start, pin: Path) -> None:
    daemon = start()

    def without_a_link() -> None:
        next(pin.glob("link:*")).unlink()

    def without_its_record() -> None:
        next(pin.glob("record:*")).unlink()

    def with_a_map_of_somebody_else() -> None:
        made = array()
        name = next(pin.glob("map:[0-9]*")).name.partition("-")[0]
        bpf.pin(made, f"{pin}/{name}-900")
        os.close(made)

    def with_a_map_for_a_link() -> None:
        place = next(pin.glob("link:*"))
        place.unlink()
        made = array()
        bpf.pin(made, str(place))
        os.close(made)

    def with_another_ledger() -> None:
        place = next(pin.glob("ledger:*"))
        place.unlink()
        other = Ledger.shared(memory.pinnable)
        bpf.pin(other.descriptor, str(place))

    for change, why in (
        (without_a_link, "it has no link"),
        (without_its_record, "it has no record"),
        (with_a_map_of_somebody_else, "it has a map of somebody else"),
        (with_a_map_for_a_link, "a bpf_link is something else"),
        (with_another_ledger, "it is of another set"),
    ):
        programs = pinned_programs(pin)
        kill(daemon)
        change()
        daemon = start()
        assert details(daemon)["resumed"] is None
        (note,) = (note for note in details(daemon)["notes"] if "let go" in note)
        assert f"what {pin} had kept is let go: {why}" in note
        assert are_gone(programs)
        assert pinned_programs(pin)  # the new ones
    daemon.stop()
    assert list(pin.iterdir()) == []


def test_a_second_daemon_watches_and_leaves_the_first_its_pins(start: Start, pin: Path) -> None:
    first = start()
    names = sorted(os.listdir(pin))
    second = start()
    (note,) = (note for note in details(second)["notes"] if "state.pin" in note)
    assert f"state.pin is not used: another monitor uses {pin}" in note
    violate("munmap")
    for daemon in (second, first):
        daemon.wait_for(lambda event: event.get("operation") == "munmap")
    second.stop()
    assert sorted(os.listdir(pin)) == names
    first.stop()
    assert list(pin.iterdir()) == []


def test_a_start_that_fails_for_good_leaves_nothing(
    start: Start, pin: Path, tmp_path: Path
) -> None:
    daemon = start()
    programs = pinned_programs(pin)
    kill(daemon)
    web = tmp_path / "web.yml"
    web.write_text("wrong: 1\n")
    command = [sys.executable, *RUN_APART, "--config", str(daemon.configuration)]
    command += ["--web.config.file", str(web)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert list(pin.iterdir()) == []
    assert are_gone(programs)


def test_a_start_that_is_ended_leaves_nothing(start: Start, pin: Path) -> None:
    """It was handed a set, or has just given one over; or it is not so far yet."""
    daemon = start()
    command = [sys.executable, *RUN_APART, "--config", str(daemon.configuration)]
    for seconds in (0.1, 0.4, 0.8, 1.2):
        kill(daemon)
        programs = pinned_programs(pin)
        with subprocess.Popen(
            [*command, "--web.listen-address", "127.0.0.1:0", "--output", "json"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            time.sleep(seconds)
            were_there = bool(list(pin.glob("record:*")))
            process.terminate()
            _, errors = process.communicate(timeout=30)
        # Earlier it has not read its configuration, and is killed like any process.
        assert (process.returncode in (0, -signal.SIGTERM), errors) == (True, b"")
        if list(pin.iterdir()):
            assert were_there
            assert pinned_programs(pin) == programs
        else:
            assert are_gone(programs)
        daemon = start()
    daemon.stop()
    assert list(pin.iterdir()) == []


def test_pins_come_before_systemd_and_systemd_where_there_can_be_none(
    pin: Path, tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(write)
    choice = choose(tmp_path / "no" / "such", Handed({"map": [read]}))
    assert isinstance(choice.keeper, Store)
    assert choice.given.descriptors == {"map": [read]}
    assert choice.notes[0].startswith(f"state.pin is not used: {tmp_path}/no cannot be opened")
    choice = choose(pin, choice.given)
    assert isinstance(choice.keeper, Pins)
    assert choice.given == ({}, "")
    assert choice.notes[0] == "what systemd had kept is let go: state.pin is used now"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


# ---- The directory -------------------------------------------------------------------------------


def _others_may_enter(folder: Path) -> Path:
    folder.chmod(0o750)
    return folder


def _of_another_user(folder: Path) -> Path:
    os.chown(folder, NOBODY, NOBODY)
    return folder


def _on_a_disk(folder: Path) -> Path:
    made = folder.parents[1] / "disk"
    made.mkdir(mode=0o700)
    os.mkfifo(made / "map-0")
    return made


def _missing_on_a_disk(folder: Path) -> Path:
    return folder.parents[1] / "missing"


def _missing_without_a_parent(folder: Path) -> Path:
    return folder / "no" / "such"


def _by_a_link(folder: Path) -> Path:
    link = folder.parents[1] / "link"
    link.symlink_to(folder)
    return link


def _a_file(folder: Path) -> Path:
    made = array()
    bpf.pin(made, str(folder / "map-0"))
    os.close(made)
    return folder / "map-0"


def _read_only(folder: Path) -> Path:
    subprocess.run(["mount", "-o", "remount,bind,ro", folder.parent], check=True)
    return folder


def _with(name: str, make: Callable[[Path], None]) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        make(folder / name)
        return folder

    return change


def _pin_array(path: Path) -> None:
    made = array()
    bpf.pin(made, str(path))
    os.close(made)


def _crowded(folder: Path) -> Path:
    made = array()
    for number in range(MOST + 1):
        bpf.pin(made, f"{folder}/map-{number}")
    os.close(made)
    return folder


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_others_may_enter, "others may enter .*; run: chmod 700 "),
        (_of_another_user, "belongs to user 65534; "),
        (_on_a_disk, "is in no bpffs; run: mount -t bpf bpf /sys/fs/bpf"),
        (_missing_on_a_disk, "is no bpffs; run: mount -t bpf bpf /sys/fs/bpf"),
        (_missing_without_a_parent, r"cannot be opened \(No such file or directory\)"),
        (_by_a_link, r"cannot be opened \((Not a directory|Too many levels of symbolic links)\)"),
        (_a_file, r"cannot be opened \(Not a directory\)"),
        (_read_only, "is mounted read-only"),
        (_with("cilium_map", _pin_array), "has 'cilium_map', which is not the monitor's"),
        (_with("map-0x", _pin_array), "has 'map-0x', which is not the monitor's"),
        (_with("map-5", Path.mkdir), "has 'map-5', which is not the monitor's"),
        (_with("map-5", lambda path: path.symlink_to("x")), "has 'map-5', which is not the"),
        (_with("map-5", lambda path: path.symlink_to("/dev/zero")), "has 'map-5', which is not"),
        (_crowded, "has more than 1024 files"),
    ],
)
def test_a_directory_that_is_not_used(pin: Path, change: Callable[[Path], Path], why: str) -> None:
    """What is in it is left alone."""
    folder = change(pin)
    before = sorted(os.listdir(pin))
    with pytest.raises(PinError, match=why):
        Pins(folder)
    assert sorted(os.listdir(pin)) == before
    if change is not _of_another_user:  # the daemon's own, which doctor may not be
        with pytest.raises(PinError, match=why):
            look(folder)
        row = doctor.pin_row(folder)
        assert (row.status, "is blind until then" in row.finding) == ("degraded", True)
        assert row.remedy


def test_it_is_made_for_its_owner_alone_and_doctor_makes_nothing(bpffs: Path) -> None:
    folder = bpffs / "new"
    row = doctor.pin_row(folder)
    assert (row.status, folder.exists()) == ("ok", False)
    assert row.finding == f"{folder} keeps what is attached: 0 maps, programs and links now"
    pins = Pins(folder)
    assert (folder.stat().st_mode & 0o777, pins.given()) == (0o700, ({}, ""))
    made = array()
    pins.keep([("map", [made, made]), ("record", [made])])
    assert doctor.pin_row(folder).finding.endswith(": 3 maps, programs and links now")
    assert (folder / "record-2").stat().st_mode & 0o777 == 0o600
    os.close(made)
    command = [*with_only([], NOBODY), "flock", "-n", str(folder), "true"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Permission denied" in done.stderr  # so that nobody else can take the lock


def test_names_of_generations_and_their_order(pin: Path) -> None:
    first = Pins(pin)
    made = [array() for _ in range(3)]
    first.keep([("map", made[:2]), ("link.2", made[2:]), ("record", made[:1])])
    os.close(first._descriptor)  # as when it was killed
    second = Pins(pin, seconds=0)
    given = second.given()
    assert {name: len(numbers) for name, numbers in given.descriptors.items()} == {
        "map": 2,
        "link.2": 1,
        "record": 1,
    }
    given.close()
    second.keep([("map", made[:1])])
    assert sorted(os.listdir(pin)) == ["link:2-2", "map-0", "map-1", "map-4", "record-3"]
    second.forget(["record", "map"])
    assert os.listdir(pin) == ["link:2-2"]
    second.stop()
    assert os.listdir(pin) == []
    for each in made:
        os.close(each)


def test_the_lock_ends_with_its_holder(pin: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from typing import NamedTuple
from monitor.keep.pins import Pins
held = Pins(Path({str(pin)!r}))
if not os.fork():
    os.execvp("sleep", ["sleep", "30"])
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(PinError, match="another monitor uses"):
            Pins(pin, seconds=0.1)
        holder.kill()
    Pins(pin, seconds=1)


def test_another_user_needs_only_its_own_files(pin: Path) -> None:
    """At its stop a daemon has given up the capabilities that load; resumed, it may lack them."""
    made = array()
    bpf.pin(made, f"{pin}/map-0")
    os.close(made)
    for each in (pin, pin / "map-0"):
        os.chown(each, NOBODY, NOBODY)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.chdir(pin.parent)  # others cannot pass through what is above
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            pins = Pins(Path(pin.name))
            assert len(pins.given().descriptors["map"]) == 1
            pins.stop()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(pin.iterdir()) == []
