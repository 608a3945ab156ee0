"""The Debian package: what is in it, and its life on real trees of Debian with systemd as PID 1.

Not part of `make test`: the first run makes the trees. `make test-deb`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from imports import NOT_COMPILED
from machine import Machine, booted
from trees import SUITES, tree

from monitor.version import VERSION

ROOT = Path(__file__).parents[2]
CONFIG = "/etc/seal-monitor/config.toml"
DROP_IN = "/etc/seal-monitor/config.d/10-fleet.toml"
OLD_VERSION = "0.0.1"
VIOLATE = "env PYTHONPATH=/usr/lib/seal-monitor python3 -m monitor.provoke.table mprotect"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(build_directory: Path) -> Path:
    folder = build_directory / "package"
    run(ROOT / "systemd/debian/build-package", folder)
    (built,) = folder.glob("*.deb")
    return built


@pytest.fixture(scope="module")
def packages(package: Path, build_directory: Path) -> Path:
    """A root directory with /root/new.deb, and /root/old.deb: other version, other settings."""
    folder = Path(tempfile.mkdtemp(dir=build_directory))  # each module that takes this has its own
    place, upper = folder / "old", folder / "upper"
    (upper / "root").mkdir(parents=True)
    shutil.copy(package, upper / "root/new.deb")
    run("dpkg-deb", "--raw-extract", package, place)
    control = place / "DEBIAN/control"
    text = re.sub("^Version: .*$", f"Version: {OLD_VERSION}", control.read_text(), flags=re.M)
    control.write_text(text)
    settings = place / CONFIG[1:]
    settings.write_text(settings.read_text() + "# of the older version\n")
    module = place / "usr/lib/seal-monitor/monitor/version.py"
    module.write_text(module.read_text().replace(VERSION, OLD_VERSION))
    sums = place / "DEBIAN/md5sums"
    kept = (line for line in sums.read_text().splitlines() if "monitor/version.py" not in line)
    sums.write_text("\n".join(kept) + "\n")
    run("dpkg-deb", "--root-owner-group", "--build", place, upper / "root/old.deb")
    return upper


# ---- The package itself --------------------------------------------------------------------------


def test_what_is_in_it(package: Path) -> None:
    lines = [line.split() for line in run("dpkg-deb", "--contents", package).splitlines()]
    files = {words[5][1:]: words[0] for words in lines if words[0][0] == "-"}
    assert {words[1] for words in lines} == {"root/root"}
    program = "/usr/lib/seal-monitor/monitor/"
    inside = {name.removeprefix(program) for name in files if name.startswith(program)}
    sources = {
        str(path.relative_to(ROOT / "monitor"))
        for pattern in ("**/*.py", "report/templates/*")
        for path in (ROOT / "monitor").glob(pattern)
    }
    bpf = {str(path.relative_to(ROOT)) for path in ROOT.glob("bpf/**/*.[ch]")}
    questions = {f"fleet/questions/{path.name}" for path in ROOT.glob("dashboards/fleet/*/*.sql")}
    assert inside == {*sources, *bpf, *questions, "events.schema.json", "bpf/seal_monitor.object"}
    rest = {name for name in files if not name.startswith((program, "/usr/share/"))}
    assert rest == {
        "/usr/bin/seal-monitor",
        CONFIG,
        "/etc/logrotate.d/seal-monitor",
        "/lib/systemd/system/seal-monitor.service",
        "/usr/lib/systemd/catalog/seal-monitor.catalog",
        "/usr/lib/sysusers.d/seal-monitor.conf",
        "/usr/lib/tmpfiles.d/seal-monitor.conf",
    }
    assert files["/usr/bin/seal-monitor"] == "-rwxr-xr-x"
    dashboards = {name for name in files if name.startswith("/usr/share/seal-monitor/")}
    shipped = {
        f"/usr/share/seal-monitor/{path.relative_to(ROOT / 'dashboards')}"
        for pattern in (
            *("*.json", "*.yml", "rules/*.yml", "provisioning/*/*.yml"),
            *("fleet/*.sql", "fleet/*.yaml", "fleet/questions/*.sql"),
        )
        for path in ROOT.glob(f"dashboards/{pattern}")
    }
    assert dashboards == shipped
    # Not where Grafana's provisioning finds them: most have neither data source.
    of_fleets = {name for name in files if name.startswith("/usr/share/doc/seal-monitor/fleet/")}
    assert {Path(name).name for name in of_fleets} == {
        "incidents-clickhouse.json",
        "incidents-postgresql.json",
    }


def test_nothing_of_it_names_usr_local(package: Path, tmp_path: Path) -> None:
    """But for the pages, which speak of both ways to install."""
    run("dpkg-deb", "--extract", package, tmp_path)
    run("gunzip", "-r", tmp_path / "usr/share/man")
    named = [
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix != ".md" and b"/usr/local" in path.read_bytes()
    ]
    assert named == []


def test_two_builds_are_the_same(package: Path, tmp_path: Path) -> None:
    run(ROOT / "systemd/debian/build-package", tmp_path)
    (again,) = tmp_path.glob("*.deb")
    assert again.read_bytes() == package.read_bytes()


def test_lintian_finds_no_fault(package: Path) -> None:
    command = ["lintian", "--fail-on=error,warning", "--allow-root", str(package)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


# ---- Its life ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SUITES)
def machine(
    request: pytest.FixtureRequest, packages: Path, build_directory: Path, require_bpf: None
) -> Iterator[Machine]:
    folder = build_directory / request.param
    folder.mkdir()
    with booted(packages, folder, tree(request.param)) as machine:
        yield machine


def must(machine: Machine, *command: str) -> str:
    done = machine.done(*command)
    assert done.returncode == 0, done.stdout + done.stderr + machine.journal()
    return done.stdout.rstrip("\n")


def series(machine: Machine) -> str:
    with urllib.request.urlopen("http://127.0.0.1:10462/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_it_watches_from_its_installation_to_its_removal(machine: Machine) -> None:
    # Installed: it is enabled, and started, as is the custom of Debian.
    # Its modules are compiled, whatever the environment says: the service may not write there.
    # Nothing asks, and what was configured before is in force from the first moment.
    must(machine, "mkdir", "-p", "/etc/seal-monitor/config.d")
    must(machine, "sh", "-c", f"echo 'canary.interval = 30' >{DROP_IN}")
    quietly = ("env", "DEBIAN_FRONTEND=noninteractive", "PYTHONDONTWRITEBYTECODE=1")
    must(machine, *quietly, "dpkg", "--install", "/root/old.deb")
    not_compiled = ("python3", "-c", NOT_COMPILED, "/usr/lib/seal-monitor")
    assert must(machine, *not_compiled) == ""
    assert must(machine, "systemctl", "is-enabled", "seal-monitor.service") == "enabled"
    machine.wait("start", lambda: machine.show("ActiveState") == "active")
    assert machine.health("started") == 1, machine.journal()
    assert must(machine, "seal-monitor", "--version") == f"seal-monitor {OLD_VERSION}"
    assert must(machine, "dpkg", "--verify", "seal-monitor") == ""
    assert must(machine, "seal-monitor", "check-config").splitlines() == [
        f"{CONFIG}: ok",
        f"{DROP_IN}: ok",
        f"  canary.interval = 30 (default: 60; {DROP_IN}:1)",
    ]
    assert "seal_monitor_canary_interval_seconds 30.0" in series(machine)
    assert f'seal_monitor_build_info{{revision="",version="{OLD_VERSION}"}} 1.0' in series(machine)
    user = must(machine, "id", "-u", "seal-monitor")
    pid = machine.show("MainPID")
    run_as = must(machine, "sh", "-c", f"grep ^Uid: /proc/{pid}/status")
    assert run_as.split()[1:] == [user] * 4

    # It reports what happens.
    machine.run("systemd-run", "--quiet", "--wait", "--unit=victim", *VIOLATE.split())
    machine.wait("denial", lambda: machine.denials("victim.service"))
    (denial,) = machine.denials("victim.service")
    assert (denial["operation"], denial["verdict"]) == ("mprotect", "sealed")
    listed = must(machine, "seal-monitor", "incidents", "list")
    assert "mprotect of sealed memory refused" in listed

    # Upgraded: the settings that were changed stay, and it runs again.
    must(machine, "sh", "-c", f"echo '[events]' >{CONFIG}; echo 'seals = true' >>{CONFIG}")
    must(machine, "dpkg", "--force-confold", "--install", "/root/new.deb")
    assert must(machine, "cat", CONFIG) == "[events]\nseals = true"
    shipped = must(machine, "cat", f"{CONFIG}.dpkg-dist")
    assert shipped == (ROOT / "docs/config.example.toml").read_text("utf-8").rstrip("\n")
    machine.wait("restart", lambda: machine.show("MainPID") not in (pid, "0"))
    machine.wait("restart", lambda: machine.show("ActiveState") == "active")
    assert machine.health("stopped") == 1
    assert must(machine, *not_compiled) == ""
    assert must(machine, "seal-monitor", "--version") == f"seal-monitor {VERSION}"
    assert f'version="{VERSION}"' in series(machine)
    started = [each for each in machine.events() if each.get("event") == "started"]
    assert started[1]["details"]["last_run"]["ended"] == "stopped"
    assert "mprotect" in must(machine, "seal-monitor", "incidents", "list")

    # Removed: nothing runs; settings, logs and incidents stay.
    must(machine, "dpkg", "--remove", "seal-monitor")
    assert machine.show("ActiveState") == "inactive"
    assert machine.health("stopped") == 2
    kept = must(machine, "sh", "-c", "ls /etc/seal-monitor /var/lib/seal-monitor")
    assert {"config.toml", "incidents.db"} <= set(kept.split())

    # Purged: nothing is left but the user, as is the custom of Debian.
    must(machine, "dpkg", "--purge", "seal-monitor")
    left = must(machine, "find", "/", "-xdev", "-name", "*seal-monitor*")
    assert left == ""
    assert machine.run("systemctl", "list-unit-files", "--no-legend", "seal-monitor*") == ""


def test_the_unit_tests_with_the_oldest_dependencies(build_directory: Path) -> None:
    """Those of bookworm: Python 3.11, prometheus-client 0.16, structlog 22.3.

    That structlog imports asyncio, for JSON lines: there a daemon that prints them is not lean.
    """
    place = build_directory / "oldest"
    place.mkdir()
    script = """
set -eu
lower=$1 place=$2 sources=$3 without=$4
mount -t tmpfs none $place
mkdir $place/upper $place/work $place/root
mount -t overlay -o lowerdir=$lower,upperdir=$place/upper,workdir=$place/work none $place/root
cd $place/root
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs tmp
echo 5ea1000000000000000000000000cafe >etc/machine-id
mkdir src old
cp -a $sources/. .
# No chroot: some tests make namespaces of users, or read where a file is.
pivot_root . old
cd /src
umount --lazy /old
PYTHONPATH=/tools exec python3 -m pytest -q -p no:cacheprovider \
    --deselect tests/unit/test_version.py::test_version_is_that_of_the_installed_distribution \
    --deselect tests/unit/test_imports.py::test_a_daemon_imports_nothing_heavy \
    $without tests/unit
"""
    # They need packages that bookworm does not have, or git.
    names = ("convert", "ocsf", "opentelemetry", "otlp_rotel", "release")
    without = " ".join(f"--ignore=tests/unit/test_{name}.py" for name in names)
    ignored = shutil.ignore_patterns(".venv", ".git", "build", "__pycache__", ".*_cache")
    sources = build_directory / "sources"
    shutil.copytree(ROOT, sources / "src", ignore=ignored)
    # Of what only tests need, this is newer than bookworm's.
    tools = sources / "tools"
    tools.mkdir()
    packages = Path(hypothesis.__file__).parents[1]
    for each in (*packages.glob("*hypothesis*"), packages / "elftools"):
        run("cp", "-r", each, tools)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"),
            *(str(tree("bookworm")), str(place), str(sources), without),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
