from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.posture import drift as posture_drift
from monitor.posture.drift import (
    FILE,
    FORGET_SECONDS,
    FORGET_STOPPED_SECONDS,
    Change,
    Known,
    Program,
    Sighting,
    load,
    look,
    save,
    see,
)
from monitor.posture.scan import Process, State

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z
APP = Program("/usr/bin/app", "app.service")
SEALING = Known(True, NOW - 3600, "aa")
STOPPED = Known(False, NOW - 3600, "aa")


def seen(*processes: tuple[State, float], **values: str | None) -> dict[Program, Sighting]:
    """Processes of one executable, by state and age."""
    facts: dict[str, Any] = {
        "executable": "/usr/bin/app",
        "build_id": "aa",
        "workload": "app.service",
    } | values
    sightings: dict[Program, Sighting] = {}
    for state, age in processes:
        process = Process(
            *(1, 1, "app", age, facts["executable"], facts["build_id"], facts["workload"]),
            *(state, None, ()),
        )
        see(sightings, process, 60.0)
    return sightings


@pytest.mark.parametrize(
    ("executable", "workload", "expected"),
    [
        ("/usr/bin/app", "app.service", APP),
        (
            "/usr/bin/app",
            "user@1000.service/x.service",
            Program(APP[0], "user@1000.service/x.service"),
        ),
        # Names that do not last are left out.
        ("/usr/bin/app", "session-3.scope", Program(APP[0], None)),
        ("/usr/bin/app", "container/4f1c2b7e9a3d", Program(APP[0], None)),
        ("/usr/bin/app", "/", Program(APP[0], None)),
        (None, "app.service", None),
    ],
)
def test_what_a_program_is_known_by(
    executable: str | None, workload: str, expected: Program | None
) -> None:
    found = seen(("sealing", 60.0), executable=executable, workload=workload)
    assert list(found) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("processes", "known", "after", "event"),
    [
        # Never sealed: nothing to know.
        ([("not_sealing", 100.0)], None, None, None),
        ([("sealing", 60.0)], None, Known(True, NOW, "aa"), None),
        ([("sealing", 60.0), ("not_sealing", 100.0)], SEALING, Known(True, NOW, "aa"), None),
        ([("not_sealing", 100.0)], SEALING, STOPPED, "sealing_stopped"),
        ([("not_sealing", 60.0), ("not_sealing", 1.0)], SEALING, STOPPED, "sealing_stopped"),
        # A helper that seals for a moment adds nothing, and is no reason for a report.
        ([("sealing", 59.9)], None, None, None),
        ([("sealing", 59.9), ("not_sealing", 100.0)], SEALING, SEALING, None),
        ([("sealing", 59.9)], STOPPED, STOPPED, None),
        # It may not have sealed yet; it may seal in memory that cannot be read; it does not run.
        ([("not_sealing", 59.9)], SEALING, SEALING, None),
        ([("not_sealing", 100.0), ("too_large", 100.0)], SEALING, SEALING, None),
        ([("not_sealing", 100.0), ("unreadable", 1.0)], SEALING, SEALING, None),
        ([("not_sealing", 100.0), ("timed_out", 100.0)], SEALING, SEALING, None),
        ([("too_large", 100.0)], SEALING, SEALING, None),
        ([], SEALING, SEALING, None),
        # Reported once.
        ([("not_sealing", 100.0)], STOPPED, STOPPED, None),
        ([], STOPPED, STOPPED, None),
        (
            [("sealing", 60.0), ("not_sealing", 9.0)],
            STOPPED,
            Known(True, NOW, "aa"),
            "sealing_resumed",
        ),
    ],
)
def test_a_look(
    processes: list[tuple[State, float]],
    known: Known | None,
    after: Known | None,
    event: str | None,
) -> None:
    found, changes = look({APP: known} if known else {}, seen(*processes), NOW)
    assert found == ({APP: after} if after else {})
    assert [change.event for change in changes] == ([event] if event else [])


def test_words() -> None:
    sightings = seen(("not_sealing", 100.0), ("not_sealing", 200.0), build_id="bb")
    known, (change,) = look({APP: SEALING}, sightings, NOW)
    details = {
        "executable": "/usr/bin/app",
        "service": "app.service",
        "processes": 2,
        "last_sealed": "2026-11-18T10:06:40.000000000Z",
        "build_id": "bb",
        "build_id_before": "aa",
    }
    assert change == Change(
        "sealing_stopped",
        "/usr/bin/app in app.service seals no memory any more: 2 processes; it last did at "
        "2026-11-18T10:06:40Z; it is another build now",
        details,
    )
    _, (change,) = look(known, seen(("sealing", 60.0)), NOW + 60)
    assert change == Change(
        "sealing_resumed",
        "/usr/bin/app in app.service seals memory again: 1 process",
        details | {"processes": 1, "build_id": "aa"},
    )


def test_services_are_distinguished() -> None:
    """One interpreter, two services: each seals or does not."""
    other = Program("/usr/bin/app", "other.service")
    sightings = seen(("sealing", 100.0)) | seen(("not_sealing", 100.0), workload="other.service")
    known, changes = look({APP: SEALING}, sightings, NOW)
    assert (known, changes) == ({APP: Known(True, NOW, "aa")}, [])
    known, changes = look({APP: SEALING, other: SEALING}, sightings, NOW)
    assert [change.details["service"] for change in changes] == ["other.service"]


def test_what_is_forgotten() -> None:
    programs = [Program(f"/bin/{n}", None) for n in range(4)]
    known = dict(
        zip(
            programs,
            (
                Known(True, NOW - FORGET_SECONDS, None),
                Known(True, NOW - FORGET_SECONDS + 1, None),
                Known(False, NOW - FORGET_STOPPED_SECONDS, None),
                Known(False, NOW - FORGET_STOPPED_SECONDS + 1, None),
            ),
            strict=True,
        )
    )
    assert set(look(known, {}, NOW)[0]) == {programs[1], programs[3]}


def test_no_more_than_so_many_are_known() -> None:
    known = {Program(f"/bin/{n}", None): Known(True, NOW - n, None) for n in range(600)}
    found, _ = look(known, seen(("sealing", 60.0)), NOW)
    assert len(found) == 512
    assert APP in found
    assert Program("/bin/511", None) not in found  # those seen the longest ago


# ---- The file ------------------------------------------------------------------------------------


def test_from_one_run_to_the_next(tmp_path: Path) -> None:
    assert load(tmp_path) == ({}, None)
    known = {APP: SEALING, Program("/opt/x\\xff", None): Known(False, 5.25, None)}
    save(tmp_path, known)
    assert load(tmp_path) == (known, None)
    save(tmp_path, {})
    assert load(tmp_path) == ({}, None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 & ~0o640 == 0


VALID = {"executable": "/a", "service": None, "sealing": True, "last_sealed": 1, "build_id": None}


def document(**changes: object) -> bytes:
    return json.dumps({"version": 1, "programs": [VALID | changes]}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "a part is missing or wrong"),
        (b"{}", "a part is missing or wrong ('version')"),
        (b'{"version": 2}', "not of version 1"),
        (b'{"version": 1, "programs": 7}', "a part is missing or wrong"),
        (b'{"version": 1, "programs": [{}]}', "a part is missing or wrong ('executable')"),
        (document(executable=None), "a text is missing"),
        (document(service=7), "a text is missing"),
        (document(sealing=1), "a value is missing"),
        (document(last_sealed=-1), "a value is missing"),
        (document(last_sealed=1e12), "a value is missing"),
        (document(last_sealed="now"), "a value is missing"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (4 << 20) + b"{}", "larger than 4194304 bytes"),
    ],
)
def test_a_file_that_is_wrong_is_set_aside(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / FILE).write_bytes(content)
    known, problem = load(tmp_path)
    assert known == {}
    assert problem is not None
    assert problem.startswith(f"{tmp_path / FILE} does not say what used to seal: {reason}")
    assert problem.endswith("; set aside as posture.json.bad")
    assert (tmp_path / "posture.json.bad").read_bytes() == content
    assert load(tmp_path) == ({}, None)


@pytest.mark.parametrize("kind", ["link", "pipe", "open to all"])
def test_what_is_no_file_of_ours(tmp_path: Path, kind: str) -> None:
    place = tmp_path / FILE
    match kind:
        case "link":
            (tmp_path / "other").write_bytes(document())
            place.symlink_to(tmp_path / "other")
        case "pipe":
            os.mkfifo(place)
        case "open to all":
            place.write_bytes(document())
            place.chmod(0o666)
    known, problem = load(tmp_path)
    assert known == {}
    assert problem is not None


def test_what_the_file_says_is_made_printable(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(document(executable="/\x1b[31m" + "a" * 9999))
    ((program, _),) = load(tmp_path)[0].items()
    assert program.executable.isprintable()
    assert len(program.executable) == 512


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(list(VALID)),
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.none()),
    ).map(lambda changes: document(**changes))
)
def test_any_content_is_read_or_refused(content: bytes) -> None:
    try:
        known = posture_drift._parse(content)
    except ValueError:
        return
    assert all(isinstance(facts, Known) for facts in known.values())


def test_programs_that_somebody_makes_up_have_no_other_forgotten() -> None:
    """512 of them had sshd forgotten."""
    sshd = Program("/usr/sbin/sshd", "ssh.service")
    root = Sighting(sealing=1, owner=("ssh.service", 0))
    known, _ = look({}, {sshd: root}, 1000.0)
    for disguise in (
        lambda n: ("user-65534.slice", 65534),
        lambda n: ("user-65534.slice", 100_000 + n),
    ):
        fakes = {
            Program(f"/tmp/{n}", None): Sighting(sealing=1, owner=disguise(n)) for n in range(2000)
        }
        # He runs sshd, too.
        fakes[sshd] = Sighting(sealing=1, owner=("user-65534.slice", 65534))
        for scan in range(3):
            known, _ = look(known, fakes, 2000.0 + scan)
        assert len(known) == 512
        assert known[sshd].owner == ("ssh.service", 0)
    _, changes = look(known, {sshd: Sighting(without=1, owner=root.owner)}, 3000.0)
    assert [change.event for change in changes] == ["sealing_stopped"]
