"""The Ansible role, by Ansible itself, on a booted tree of Debian: package, files and service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, booted
from trees import tree

from monitor.version import VERSION

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "systemd/ansible"
PACKAGES = ("ansible-core", "python3-apt", "sudo", "curl", "openssl")
OLD_VERSION = "0.0.1"
PASSWORD = "a password of this test"
HASH = "$2b$04$aqA/N4bX7P1xhu5a7uHVLOlfpnKPUpKMhLnkW2BgHUEoMN8QVuy1."
ADDRESS, OTHER_ADDRESS = "127.0.0.1:10462", "127.0.0.1:10463"
MUTE = {"executable": "/opt/engine/*", "operation": "munmap", "reason": "unmaps at exit"}
Values = dict[str, object]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(build_directory: Path) -> Path:
    """A root directory with the playbook, the package of an older version, and the new one in a
    repository.
    """
    upper = build_directory / "ansible"
    play, repository = upper / "root/play", upper / "root/repository"
    repository.mkdir(parents=True)
    shutil.copytree(ROLE, play)
    (play / "inventory").write_text("[seal_monitor]\nhost ansible_connection=local\n")
    run(ROOT / "systemd/debian/build-package", repository)
    run(ROOT / "systemd/debian/build-package", play, OLD_VERSION)
    listed = subprocess.run(
        ["dpkg-scanpackages", "."], cwd=repository, capture_output=True, check=True
    )
    (repository / "Packages").write_bytes(listed.stdout)
    sources = upper / "etc/apt/sources.list"
    sources.parent.mkdir(parents=True)
    sources.write_text("deb [trusted=yes] file:/root/repository ./\n")
    return upper


@pytest.fixture(scope="module")
def machine(files: Path, build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    folder = build_directory / "ansible-machine"
    folder.mkdir()
    lower = tree("trixie", "ansible", PACKAGES)
    with booted(files, folder, lower, own_network=True) as machine:
        key, certificate = "/etc/ssl/private/seal-monitor.key", "/etc/ssl/certs/seal-monitor.pem"
        made = machine.done(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=host", "-days", "2"),
            *("-keyout", key, "-out", certificate),
        )
        assert made.returncode == 0, made.stderr
        yield machine


def play(machine: Machine, **values: object) -> tuple[dict[str, int], list[str]]:
    """How many tasks ended how, and the names of those that changed something."""
    given: Values = {
        "seal_monitor_package": f"/root/play/{package_name()}",
        "seal_monitor_listen_address": ADDRESS,
        "seal_monitor_scrape_password_hash": HASH,
        **values,
    }
    machine.write("/root/values.json", json.dumps(given))
    done = machine.done(
        *("env", "-C", "/root/play", "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "HOME=/root"),
        *("ansible-playbook", "-i", "inventory", "-e", "@/root/values.json", "seal-monitor.yml"),
        seconds=300,
    )
    recap = re.search(r"^host +: (.*)$", done.stdout, re.MULTILINE)
    assert recap, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap[1])}
    assert (done.returncode == 0) == (counts["failed"] == 0), done.stdout + done.stderr
    tasks = re.split(
        r"^(?:TASK|RUNNING HANDLER) \[seal_monitor : (.*?)\].*$", done.stdout, flags=re.M
    )
    changed = [
        name
        for name, text in zip(tasks[1::2], tasks[2::2], strict=True)
        if re.search("^changed:", text, re.MULTILINE)
    ]
    return counts, changed


def package_name() -> str:
    architecture = run("dpkg", "--print-architecture").strip()
    return f"seal-monitor_{OLD_VERSION}_{architecture}.deb"


def status(machine: Machine, *credentials: str, address: str = ADDRESS) -> str:
    return machine.run(
        *("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *credentials),
        f"https://{address}/metrics",
    )


KNOWN = ("-u", f"prometheus:{PASSWORD}")


def test_from_a_package_to_the_next_version(machine: Machine) -> None:
    counts, changed = play(machine)
    assert (counts["failed"], counts["unreachable"]) == (0, 0), changed
    assert "Install it" in changed
    assert machine.show("ActiveState") == "active"
    assert machine.run("systemctl", "is-enabled", "seal-monitor.service") == "enabled"
    assert (status(machine, *KNOWN), status(machine)) == ("200", "401")
    pid = machine.show("MainPID")
    assert machine.health("started") == 1  # by the package, with all that it should have

    # Again: nothing is changed, and nothing begins again.
    counts, changed = play(machine)
    assert (counts["changed"], counts["failed"], changed) == (0, 0, [])
    assert machine.show("MainPID") == pid

    # A mute comes and goes by a reload.
    counts, changed = play(machine, seal_monitor_mutes={"engine": [MUTE]})
    assert (counts["failed"], changed) == (0, ["Mutes of the fleet", "Reload"])
    assert 'operation = "munmap"' in machine.run("cat", "/etc/seal-monitor/config.d/50-engine.toml")
    counts, changed = play(machine)
    assert (counts["failed"], changed) == (0, ["Mutes that ended", "Reload"])
    assert machine.run("ls", "/etc/seal-monitor/config.d") == "10-fleet.toml"
    assert machine.show("MainPID") == pid
    assert machine.health("reloaded") == 2

    # A mistake stops here: what runs goes on, also after a restart.
    counts, changed = play(machine, seal_monitor_mutes={"engine": [MUTE | {"operation": "mseal"}]})
    assert counts["failed"] == 1
    assert machine.show("MainPID") == pid
    assert machine.run("ls", "/etc/seal-monitor/config.d") == "10-fleet.toml"

    # An address is taken over by a restart.
    counts, changed = play(machine, seal_monitor_listen_address=OTHER_ADDRESS)
    assert (counts["failed"], changed) == (0, ["Settings of the fleet", "Restart"])
    assert status(machine, *KNOWN, address=OTHER_ADDRESS) == "200"
    assert machine.show("MainPID") != pid

    # From a repository, the next version.
    newer = f"seal-monitor={VERSION}"
    counts, changed = play(
        machine, seal_monitor_package=newer, seal_monitor_listen_address=OTHER_ADDRESS
    )
    assert (counts["failed"], changed) == (0, ["Install it"])
    assert machine.run("dpkg-query", "-W", "-f", "${Version}", "seal-monitor") == VERSION
    assert machine.show("ActiveState") == "active"
    counts, changed = play(
        machine, seal_monitor_package=newer, seal_monitor_listen_address=OTHER_ADDRESS
    )
    assert (counts["changed"], counts["failed"]) == (0, 0), changed
