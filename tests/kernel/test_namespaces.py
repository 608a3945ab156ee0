"""Pids are those that the monitor's own /proc shows, in whatever pid namespace it runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.host_wide, pytest.mark.usefixtures("require_bpf")]

NEW_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# Attaches, makes a violation two namespaces further down, and prints what its record says beside
# what /proc says of the process.
MONITOR = """
import json, subprocess, sys, time
from monitor.kernel import abi
from monitor.configuration import config
from monitor.attach.attached import Attached, request
from monitor.provoke.table import environment

def only_child(pid):
    while not (children := open(f"/proc/{pid}/task/{pid}/children").read().split()):
        time.sleep(0.01)
    return int(children[0])

with Attached(request(config.parse("", ""))) as attached:
    attached.calibrate()
    attached.state.config.emit_verdicts = 7
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    provoke = [sys.executable, "-S", "-P", "-m", "monitor.provoke.table", "--wait", "mprotect"]
    pipe = subprocess.PIPE
    child = subprocess.Popen(unshare * 2 + provoke, env=environment(), stdin=pipe, stdout=pipe)
    parent = only_child(child.pid)
    pid = only_child(parent)
    child.communicate(b"x")
    records = [r for r in attached.ring.drain().records if r.kind == abi.Kind.DENIAL]
    (own,) = [r for r in records if r.pid == pid]
    print(json.dumps({
        "pid": [own.pid, pid],
        "tid": [own.tid, pid],
        "parent": [own.parent_pid, parent],
        "own": own.vpid,
    }))
"""


def run_in_a_namespace(*arguments: str) -> str:
    command = [*NEW_NAMESPACE, sys.executable, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def test_the_demo_in_a_pid_namespace_of_its_own() -> None:
    """Its canary has another pid there than outside."""
    assert ", all reported correctly.\n" in run_in_a_namespace("-m", "monitor", "demo")


def test_a_violation_in_a_namespace_below_the_monitors() -> None:
    found = json.loads(run_in_a_namespace("-c", MONITOR))
    assert found["own"] == 1
    for recorded, shown in (found["pid"], found["tid"], found["parent"]):
        assert recorded == shown > 1
