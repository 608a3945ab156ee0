"""The archive of an incident, made for somebody else."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cases import SNAPSHOT, a_day, case_of
from test_cli import seal_monitor
from test_fingerprint import EVENTS
from test_incidents import Store
from test_report import HOSTILE, Text, cases_with, refused

from monitor.incidents.search import IncidentError, Incidents, as_object
from monitor.report import export
from monitor.version import version

NAMES = (
    *("README.txt", "report.html", "incident.json", "events.jsonl", "timeline.jsonl"),
    *("snapshots.json", "modules.json", "incidents.db", "SHA256SUMS"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    folder = tmp_path / "state"
    folder.mkdir()
    store = a_day(folder)
    yield store
    store.sink.close()


def exported(store: Store, identifier: str) -> bytes:
    return subprocess.run(
        [
            *(sys.executable, "-m", "monitor", "incidents", "export", identifier, "-o", "-"),
            *("--database", store.path),
        ],
        capture_output=True,
        check=True,
    ).stdout


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        members = tar.getmembers()
        assert {(each.mode, each.uid, each.gid, each.type) for each in members} == {
            (0o600, 0, 0, tarfile.REGTYPE)
        }
        found = {}
        for member in members:
            file = tar.extractfile(member)
            assert file
            found[member.name.partition("/")[2]] = file.read()
    return found


def test_what_is_in_it(store: Store, tmp_path: Path) -> None:
    incident = refused(store).incident
    path = tmp_path / "incident.tar.gz"
    shown = seal_monitor(
        *("incidents", "export", incident.id[:6], "-o", path, "--database", store.path)
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    assert path.stat().st_mode & 0o777 == 0o600
    files = unpacked(path.read_bytes())
    assert tuple(files) == NAMES
    assert b"    program       /srv/images/bin/image-worker\n" in files["README.txt"]
    assert json.loads(files["incident.json"]) == as_object(incident)
    kinds = [json.loads(line)["kind"] for line in files["events.jsonl"].splitlines()]
    assert kinds == ["denial", "suppression"]
    timeline = [json.loads(line)["kind"] for line in files["timeline.jsonl"].splitlines()]
    assert timeline == ["seal", "denial", "fault", "suppression"]
    assert json.loads(files["snapshots.json"]) == [SNAPSHOT]
    modules = json.loads(files["modules.json"])
    builds = {frame["build_id"] for frame in EVENTS["denial"]["stack"]}
    assert {each["build_id"] for each in modules} == builds
    readme = files["README.txt"].decode()
    for line in (
        f"Incident {incident.id} of seal-monitor",
        "    host          web-3",
        "    kernel        6.18.44",
        "    count         3,997 (1 delivered, 3,996 held back by the rate limit)",
        f"    seal-monitor  {version()}",
    ):
        assert line in readme.splitlines()
    assert incident.title in Text(files["report.html"]).text


def test_its_sums(store: Store, tmp_path: Path) -> None:
    files = unpacked(exported(store, refused(store).incident.id))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stdout.splitlines() == [f"{name}: OK" for name in NAMES[:-1]]


def test_the_receiver_reads_it(store: Store, tmp_path: Path) -> None:
    """Its database shows the same as the one it comes from."""
    incident = refused(store).incident
    copied = tmp_path / "incidents.db"
    copied.write_bytes(unpacked(exported(store, incident.id))["incidents.db"])
    here, there = (
        seal_monitor("incidents", "show", incident.id, "--json", "--database", path).stdout
        for path in (store.path, copied)
    )
    assert json.loads(there) == json.loads(here)
    listed = json.loads(
        seal_monitor("incidents", "list", "--json", "--kind", "all", "--database", copied).stdout
    )
    assert [each["id"] for each in listed] == [incident.id]
    timeline = seal_monitor("incidents", "timeline", "20721", "--database", copied)
    assert timeline.stdout.startswith("process 20721, image-worker\n")


def test_the_same_bytes_each_time(store: Store) -> None:
    identifier = refused(store).incident.id
    first = exported(store, identifier)
    assert hashlib.sha256(first).digest() == hashlib.sha256(exported(store, identifier)).digest()
    # Whatever else has happened meanwhile.
    other = EVENTS["denial"] | {"operation": "brk", "id": "another"}
    other |= {"process": other["process"] | {"pid": 99}}
    store.take(other)
    assert exported(store, identifier) == first


def test_no_other_incident_is_in_it(store: Store) -> None:
    (munmap,) = (each for each in store.read() if each.what == "munmap")
    whole = gzip.decompress(exported(store, munmap.id))
    for other in store.read():
        if other.id != munmap.id:
            assert other.id.encode() not in whole
    assert b"--token" in whole  # this shows that command lines are searched as well


def test_an_older_database_has_no_snapshots(store: Store) -> None:
    incident = refused(store).incident
    with Incidents(store.path) as incidents:
        assert incidents.stored("nothing_of_the_kind", incident) == []
        assert len(incidents.stored("events", incident)) == 2


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text[:24]) for text in HOSTILE])
def test_hostile_text(store: Store, text: str) -> None:
    for case in cases_with(store, text):
        facts: dict[str, Any] = {"facets": {text: 1}}
        files = unpacked(export.archive(case, facts, b""))
        assert tuple(files) == NAMES
        readme = files["README.txt"].decode()
        assert all(c.isprintable() or c == "\n" for c in readme)
        for name in ("events.jsonl", "incident.json", "snapshots.json", "SHA256SUMS"):
            assert files[name].isascii()
        assert len(files["events.jsonl"].splitlines()) == len(case.events)


def test_too_large(store: Store) -> None:
    case = case_of(store, "guard_region", [SNAPSHOT])
    with pytest.raises(IncidentError, match="more than the 1000 bytes of an archive; copy"):
        export.archive(case, {}, b"", limit=1000)


def test_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    identifier = refused(store).incident.id
    shown = seal_monitor(*("incidents", "export", identifier, "-o", link, "--database", store.path))
    assert f"{link}: not a regular file" in shown.stderr
    assert (shown.returncode, target.exists()) == (1, False)
