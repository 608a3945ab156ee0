from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from monitor.evidence.fingerprint import Fingerprint, fingerprint, unattributed

Event = dict[str, Any]

PAGE = (Path(__file__).parents[2] / "docs/events.md").read_text("utf-8")
EVENTS: dict[str, Event] = {
    event["kind"]: event
    for event in map(json.loads, re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S))
}


def changed(kind: str, path: str, value: object) -> Event:
    """The example of that kind, with another value at a dotted path."""
    event = copy.deepcopy(EVENTS[kind])
    *parents, last = path.split(".")
    place: Any = event
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[int(last) if isinstance(place, list) else last] = value
    return event | {"fingerprint": fingerprint(event).id}


def test_parts() -> None:
    build = "e06a8f49bf8d070c908e216c55a291776d2f33af"
    assert fingerprint(EVENTS["denial"]) == (
        "denial",
        "mprotect",
        f"build-id {build}",
        f"image-worker {build}+0x1212",
        "file image-worker",
    )
    fault = fingerprint(EVENTS["fault"])
    assert (fault.kind, fault.what, fault.mapping) == ("fault", "guard_region", "anonymous")
    assert fault.caller == f"image-worker {build}+0x{EVENTS['fault']['stack'][0]['offset']:x}"
    assert fingerprint(EVENTS["seal"]).what == "seal"
    assert fingerprint(EVENTS["bypass"]) == (
        "bypass",
        "madvise_discard",
        f"build-id {build}",
        f"image-worker {build}+0x12a4",
        "file image-worker",
    )
    assert fingerprint(EVENTS["health"]) == ("health", EVENTS["health"]["event"], "", "", "")
    assert fingerprint(EVENTS["suppression"]) == unattributed("denial", "munmap")
    assert fingerprint(
        EVENTS["suppression"] | {"of": "bypass", "operation": None, "method": "ptrace_poke"}
    ) == unattributed("bypass", "ptrace_poke")
    assert unattributed("denial", None).what == "unknown"


def test_text_and_id_stay_as_they_are() -> None:
    """A week's incidents go on under the same ids after an upgrade."""
    place = Fingerprint("denial", "mprotect", "path /bin/a", "a 12ab+0x10", "anonymous")
    assert place.text == '["denial","mprotect","path /bin/a","a 12ab+0x10","anonymous"]'
    assert place.id == "de25569c4686"


def test_parts_cannot_pass_for_others() -> None:
    one = Fingerprint("denial", "mprotect", 'a","b', "c", "d")
    other = Fingerprint("denial", "mprotect", "a", 'b","c', "d")
    assert one.id != other.id


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("denial", "id", "another"),
        ("denial", "time", "2026-11-28T17:07:52.898441250Z"),
        ("denial", "time_boot_ns", 1),
        ("denial", "host", {"name": "web-4", "boot_id": "b", "kernel_release": "7.0"}),
        ("denial", "workload", None),
        ("denial", "process.pid", 1),
        ("denial", "process.start", "2026-11-28T17:07:52.898441250Z"),
        ("denial", "process.uid", 0),
        ("denial", "process.command_line", "x"),
        ("denial", "process.name", "thread-17"),
        ("denial", "process.executable", "/elsewhere/image-worker"),  # of the same build
        ("denial", "process.executable", "/srv/images/bin/image-worker (deleted)"),
        ("denial", "arguments", {"addr": "0x1", "size": 4096, "prot": "rwx"}),
        ("denial", "verdict", "unverified"),
        ("denial", "sealed.start", "0x1000"),
        ("denial", "sealed.permissions", "r-xp"),
        ("denial", "sealed.file.path", "/elsewhere/image-worker"),
        ("denial", "sealed.file.inode", 7),
        ("denial", "stack.2.offset", 7),  # who called the caller
        ("denial", "stack.0.offset", 7),  # another libc
        ("denial", "stack.1.symbol", "protect"),
        ("denial", "process.user_name", "root"),
        ("denial", "process.files", "namespace"),
        ("denial", "process.executable_owner", 33),
        ("denial", "process.identity", {"result": "gone", "reason": "it has exited"}),
        ("denial", "process.executable", "image-worker"),  # of a process that has ended
        ("denial", "sealed.file.device", "0:87"),  # an overlay
        ("denial", "sealed.file.offset", 4096),
        ("denial", "stack.1.address", "0x55eb77210212"),
        ("fault", "address", "0x1000"),
        ("fault", "disposition", "handler"),
        ("fault", "stack.1.offset", 7),
    ],
)
def test_the_same(kind: str, path: str, value: object) -> None:
    assert fingerprint(changed(kind, path, value)) == fingerprint(EVENTS[kind])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("denial", "operation", "munmap"),
        ("denial", "stack.1.offset", 7),
        ("denial", "stack.1.module", "liba.so"),
        ("denial", "stack.1.build_id", "ab"),
        ("denial", "stack", []),
        ("denial", "caller", "0x1"),
        ("denial", "sealed", None),
        ("denial", "sealed.file", None),
        ("denial", "sealed.file.path", "/srv/images/bin/liba.so"),
        ("denial", "process.executable", "/srv/images/bin/other"),
        ("denial", "process.executable", None),
        ("fault", "cause", "prot_none"),
        ("fault", "stack.0.offset", 7),
        ("fault", "stack", []),
        ("fault", "mapping", None),
        ("fault", "mapping.name", "arena"),
    ],
)
def test_not_the_same(kind: str, path: str, value: object) -> None:
    other = fingerprint(changed(kind, path, value))
    assert other != fingerprint(EVENTS[kind])
    assert other.id != fingerprint(EVENTS[kind]).id


DIGEST = "3f1e" * 16


@pytest.mark.parametrize(
    ("kind", "path", "one", "other"),
    [
        ("fault", "mapping.name", "glibc: pthread stack: 4711", "glibc: pthread stack: 9"),
        ("fault", "mapping.name", "arena 1", "arena 27"),
        ("denial", "sealed.file.path", "/dev/shm/psm_12345", "/dev/shm/psm_67890"),
        ("denial", "sealed.file.path", f"/memfd:{DIGEST} (deleted)", f"/memfd:{DIGEST[::-1]}"),
        (
            *("denial", "sealed.file.path"),
            "/tmp/a-1b4e28ba-2fa1-4d2e-883f-0016d3cca427.so",
            "/tmp/a-9f4e28ba-2fa1-4d2e-883f-0016d3cca400.so",
        ),
    ],
)
def test_names_that_differ_in_every_process(kind: str, path: str, one: str, other: str) -> None:
    found = [changed(kind, path, name)["fingerprint"] for name in (one, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("sealed.file.path", "/lib/libc.so.6", "/lib/libc.so.7"),
        ("sealed.file.path", "/lib/libssl.so.1.1", "/lib/libssl.so.1.0.2"),
        ("stack.1.build_id", "ab" * 20, "cd" * 20),
        ("stack.1.offset", 0x1212_0000_0000, 0x1212_0000_1000),
    ],
)
def test_versions_differ(path: str, one: str, other: str) -> None:
    assert (
        changed("denial", path, one)["fingerprint"] != changed("denial", path, other)["fingerprint"]
    )


def test_code_of_a_jit_compiler_in_files() -> None:
    """Such files have no build id, and the process's number in their names."""
    found = set()
    for pid in (41234, 57):
        event = changed("denial", "stack.1.build_id", None)
        event["stack"][1]["module"] = f"jit-{pid:05}.so"
        found.add(fingerprint(event).caller)
    assert found == {"jit-*.so+0x1212"}


def test_by_base_name_without_a_build_id() -> None:
    """A process that was gone before the look-up has no path."""
    one = changed("denial", "stack", [])
    assert fingerprint(one).executable == "name image-worker"
    for path in ("image-worker", "/srv/images/bin/image-worker (deleted)"):
        other = copy.deepcopy(one)
        other["process"]["executable"] = path
        assert fingerprint(other) == fingerprint(one)
    other["process"]["executable"] = "/srv/images/bin/other"
    assert fingerprint(other) != fingerprint(one)


def test_code_in_no_file_has_no_address() -> None:
    """A JIT compiler's code lies elsewhere in every process."""
    frame = {"module": None, "build_id": None, "offset": None, "symbol": None}
    places = []
    for address in ("0x7f0000001000", "0x7f0000002000"):
        event = changed("denial", "stack", [{"address": address, **frame}])
        event["caller"] = address
        places.append(fingerprint(event))
    assert places[0] == places[1]
    assert places[0].caller == "anonymous"


@pytest.mark.parametrize("name", ["", "bin", "ü", "a" * 5000])
def test_the_id_is_of_sha256(name: str) -> None:
    """Of hashlib's, whatever computes it: ids are the same on every host."""
    found = Fingerprint("denial", "mprotect", name, "unknown", "heap")
    assert found.id == hashlib.sha256(found.text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("command_line", "runs"),
    [
        ("python3 /srv/a.py --port 80", " script /srv/a.py"),
        ("python3 -u -W error /srv/a.py", " script /srv/a.py"),
        ("python3 -m http.server 80", " script http.server"),
        ("java -Xmx1g -cp /a:/b -jar /srv/a.jar", " script /srv/a.jar"),
        ("python3 -c 'import x'", " unit image-worker.service"),
        ("python3 --token [redacted]", " unit image-worker.service"),
        ("python3 -", " unit image-worker.service"),
        ("python3", " unit image-worker.service"),
        (None, " unit image-worker.service"),
        (f"python3 {'x' * 500}", f" script {'x' * 200}"),
        (f"python3 /var/lib/app/{DIGEST}/a.py", " script /var/lib/app/*/a.py"),
        ("python3 /tmp/build-48213/a.py", " script /tmp/build-*/a.py"),
    ],
)
def test_an_interpreters_incidents_are_its_programs(command_line: str | None, runs: str) -> None:
    """All Python programs were one."""
    event = changed("denial", "process.executable", "/usr/bin/python3.11")
    event["process"]["command_line"] = command_line
    event["workload"] |= {
        "unit": "image-worker.service",
        "cgroup": "/system.slice/image-worker.service",
    }
    assert fingerprint(event).executable == f"name python3.11{runs}"
    event["process"]["executable"] = "/usr/bin/pythonic"
    assert fingerprint(event).executable == "name pythonic"


@pytest.mark.parametrize(
    ("unit", "cgroup", "runs"),
    [
        ("a@7.service", "/system.slice/system-a.slice/a@7.service", " unit a@.service"),
        ("user@7.service", "/user.slice/user-7.slice/user@7.service/a.service", ""),
        ("run-u17.service", "/system.slice/run-u17.service", ""),
        ("run-r0a1b.service", "/system.slice/run-r0a1b.service", ""),
        ("run-p12-i13.service", "/system.slice/run-p12-i13.service", ""),
        ("run-tests.service", "/system.slice/run-tests.service", " unit run-tests.service"),
        (f"job-{DIGEST}.service", f"/system.slice/job-{DIGEST}.service", " unit job-*.service"),
        (None, None, ""),
    ],
)
def test_units_that_run_the_same(unit: str | None, cgroup: str | None, runs: str) -> None:
    event = changed("denial", "process.executable", "/usr/bin/perl")
    event["process"]["command_line"] = None
    event["workload"] = {"unit": unit, "cgroup": cgroup}
    assert fingerprint(event).executable == f"name perl{runs}"
