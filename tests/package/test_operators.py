"""A new operator's first day, by the pages' words alone: package, Prometheus and Alertmanager on a
booted tree of Debian. A day's work pages nobody; an attack pages once.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, booted
from operators import ATTACK, MOVE_VDSO, PACKAGES, RECEIVER, WORK, blocks, indented
from runtimes import LOADS, compile_java
from trees import tree

ROOT = Path(__file__).parents[2]
SECONDS = 20  # of each load
MINUTES = float(os.environ.get("SEAL_MONITOR_WORK_MINUTES", "0"))  # all of it again, for so long
# A scrape, an evaluation, and Alertmanager's wait for others of the group.
ROUND_SECONDS = 15 + 15 + 10 + 5
Message = dict[str, Any]


def run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def files(build_directory: Path, compiled: Callable[[str], Path]) -> Path:
    """A root directory with the package, and what the work needs, in /root."""
    upper = build_directory / "operator"
    home = upper / "root"
    (home / "build").mkdir(parents=True)
    run(ROOT / "systemd/debian/build-package", home / "build")
    (home / "receiver.py").write_text(RECEIVER)
    compile_java(home)
    (home / "move_vdso.c").write_text(MOVE_VDSO)
    run("gcc", "-static", home / "move_vdso.c", "-o", home / "move_vdso")
    run("gcc", "-static", ROOT / "tests/assets/sealed_code.c", "-o", home / "sealed_code")
    return upper


@pytest.fixture(scope="module")
def machine(files: Path, build_directory: Path, require_bpf: None) -> Iterator[Machine]:
    folder = build_directory / "operators"
    folder.mkdir()
    lower = tree("trixie", "operators", PACKAGES)
    with booted(files, folder, lower, own_network=True) as machine:
        yield machine


def shell(machine: Machine, script: str) -> str:
    # Without the runtime directory of the tests, or doctor would announce its trials to nobody.
    done = machine.done("env", "-u", "SEAL_MONITOR_RUNTIME_DIRECTORY", "sh", "-ec", script)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}{machine.journal()}"
    return done.stdout


def messages(machine: Machine, receiver: str) -> list[Message]:
    """What Alertmanager has sent there; but not of what happens beside the container on this host,
    such as other tests.
    """
    lines = machine.run("cat", "/root/messages.jsonl").splitlines()
    others = bool(strangers(machine))

    def is_of_others(body: Message) -> bool:
        workload = body["groupLabels"].get("workload")
        return workload.startswith("cgroup:") if workload else others

    return [
        body
        for path, body in map(json.loads, lines)
        if path == f"/{receiver}" and not is_of_others(body)
    ]


def strangers(machine: Machine) -> list[str]:
    """Violations beside the container: the cgroups of that have no name in there."""
    return [
        event["summary"]
        for event in machine.events()
        if event["kind"] != "health" and not (event["workload"] or {}).get("unit")
    ]


def alerts(found: list[Message]) -> list[tuple[str, ...]]:
    names = ("alertname", "workload", "severity")
    return [
        (message["status"], *(alert["labels"].get(name, "") for name in names))
        for message in found
        for alert in message["alerts"]
    ]


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """By the pages: install.md, then what monitoring.md says for Debian."""
    shell(machine, "systemd-run --quiet --unit=receiver python3 /root/receiver.py")
    _, install, doctor = indented("install.md", "## From a package")
    shell(machine, f"cd /root; {install}; {doctor}")
    machine.wait("start", lambda: machine.show("ActiveState") == "active")
    prometheus = blocks("monitoring.md", "### On Debian")[0].splitlines()
    assert prometheus[0] == "apt install prometheus prometheus-alertmanager"  # in the tree already
    shell(machine, "systemctl start prometheus prometheus-alertmanager")
    shell(machine, "\n".join(prometheus[1:]))
    shell(machine, blocks("monitoring.md", "## Alertmanager")[0])
    shell(machine, "systemctl is-active prometheus prometheus-alertmanager")
    machine.wait("scrape", lambda: up(machine) == ["1"], 60.0)
    return machine


def up(machine: Machine) -> list[str]:
    """What Prometheus says of the job."""
    url = "http://127.0.0.1:9090/api/v1/query?query=up%7Bjob%3D%22seal-monitor%22%7D"
    try:
        answer = json.loads(machine.run("curl", "-s", url))
    except json.JSONDecodeError:
        return []
    return [each["value"][1] for each in answer["data"]["result"]]


def work(machine: Machine) -> None:
    for name, command in WORK.items():
        script = command.replace("SECONDS", str(SECONDS))
        done = machine.done(
            *("systemd-run", "--quiet", "--wait", "--pipe", f"--unit=work-{name}"),
            *("sh", "-c", script),
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def worked(installed: Machine) -> Machine:
    """A day's work is done, and Alertmanager has had time to send what there is to send."""
    end = time.monotonic() + 60 * MINUTES
    work(installed)
    while time.monotonic() < end:
        work(installed)
    time.sleep(ROUND_SECONDS)
    return installed


def test_a_days_work_pages_nobody(worked: Machine) -> None:
    assert alerts(messages(worked, "phone")) == []


def test_runtimes_make_no_event(worked: Machine) -> None:
    """They have had thousands of faults, and handled them."""
    of_runtimes = [
        event["summary"]
        for event in worked.events()
        if event["workload"]
        and event["workload"]["unit"] in {f"work-{name}.service" for name in LOADS}
    ]
    assert of_runtimes == []
    metrics = worked.run("curl", "-s", "http://127.0.0.1:10462/metrics")
    handled = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("seal_monitor_faults_total") and 'disposition="handler"' in line
    ]
    assert sum(handled) > 10_000


def test_an_attack_pages_once(worked: Machine) -> None:
    worked.run("systemd-run", "--quiet", "--wait", "--unit=web", *ATTACK.split())
    worked.wait("page", lambda: messages(worked, "phone"), 2 * ROUND_SECONDS)
    time.sleep(ROUND_SECONDS)
    (message,) = messages(worked, "phone")
    (alert,) = message["alerts"]
    assert alerts([message]) == [("firing", "SealDenialNewWorkload", "web.service", "critical")]
    assert alert["labels"]["instance"] == worked.run("uname", "-n")
    assert alert["annotations"]["runbook_url"].endswith("runbooks.md#sealdenialnewworkload")
    program = Path(worked.run("readlink", "-f", "/usr/bin/python3")).name
    assert alert["annotations"]["description"].endswith(f" Programs in the last hour: {program}.")
    listed = shell(worked, "seal-monitor incidents list --severity critical")
    assert "mprotect of sealed memory refused" in listed
