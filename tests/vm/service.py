"""The package's life under systemd on another processor, from its installation to its removal.

Runs as root in a guest that matrix.py boots, with nothing but Python and /root/new.deb. Its last
line is JSON, as that of inside.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "/root/new.deb"
UNIT = "seal-monitor.service"
METRICS = "http://127.0.0.1:10462/metrics"
VIOLATE = "env PYTHONPATH=/usr/lib/seal-monitor python3 -m monitor.provoke.table"
# include/uapi/linux/bpf.h: tracepoint, raw tracepoint, tracing. systemd's own are of other types.
PROGRAM_TYPES = {5, 17, 26}
# include/uapi/linux/capability.h: CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.
KEPT_CAPABILITIES = 1 << 2 | 1 << 19


def must(*command: str) -> str:
    """Standard output; AssertionError with all that it printed where the command fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}{journal()}"
    return done.stdout.rstrip("\n")


def journal() -> str:
    command = ("journalctl", "-u", UNIT, "--no-pager", "-o", "cat")
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def events() -> list[dict[str, Any]]:
    """Its events in the journal, where standard output goes."""
    output = must(
        *("journalctl", "-u", UNIT, "--no-pager", "-o", "cat"),
        "--output-fields=SEAL_MONITOR_EVENT",
    )
    return [json.loads(line) for line in output.splitlines() if line[:1] == "{"]


def show(name: str) -> str:
    return must("systemctl", "show", "--value", "-p", name, UNIT)


def series() -> dict[str, float]:
    with urllib.request.urlopen(METRICS, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line[:1] != "#")
    return {name: float(value) for name, _, value in pairs}


def wait(what: str, until: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"{what}: {journal()}"
        time.sleep(0.2)


def programs() -> list[int]:
    """Ids of the BPF programs in the kernel that may be ours."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    found = []
    number = ctypes.c_uint32(0)
    while not library.bpf_prog_get_next_id(number, ctypes.byref(number)):
        descriptor = library.bpf_prog_get_fd_by_id(number)
        if descriptor < 0:
            continue
        info = (ctypes.c_uint32 * 64)()  # struct bpf_prog_info: the type comes first
        size = ctypes.c_uint32(ctypes.sizeof(info))
        library.bpf_obj_get_info_by_fd(descriptor, info, ctypes.byref(size))
        os.close(descriptor)
        if info[0] in PROGRAM_TYPES:
            found.append(number.value)
    return found


def denials(unit: str) -> list[dict[str, Any]]:
    return [
        event
        for event in events()
        if event["kind"] == "denial" and event["workload"]["unit"] == unit
    ]


def violate(name: str, unit: str) -> dict[str, Any]:
    """The one event of this violation, made in a unit that is there until the event is, too."""
    script = f"{VIOLATE} {name}; sleep 600"
    must("systemd-run", "--quiet", f"--unit={unit}", "sh", "-c", script)
    wait("denial", lambda: denials(f"{unit}.service"))
    must("systemctl", "stop", f"{unit}.service")
    (denial,) = denials(f"{unit}.service")
    return denial


# ---- Its life, in this order ---------------------------------------------------------------------


def it_installs_and_starts() -> None:
    """Its own scripts have made the user and started the service, as is the custom of Debian."""
    assert programs() == []
    must("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--install", PACKAGE)
    assert must("dpkg-query", "-W", "-f", "${db:Status-Abbrev}", "seal-monitor") == "ii "
    assert must("dpkg", "--verify", "seal-monitor") == ""
    assert must("systemctl", "is-enabled", UNIT) == "enabled"
    wait("start", lambda: show("ActiveState") == "active")
    assert (show("Type"), show("User"), show("NRestarts")) == ("notify", "seal-monitor", "0")
    (started,) = (event for event in events() if event.get("event") == "started")
    assert started["details"]["probes"]["munmap"] == "fexit"


def it_is_as_confined_as_its_unit_says() -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{show('MainPID')}/status").read_text().splitlines()
    )
    user = must("id", "-u", "seal-monitor")
    assert status["Uid"].split() == [user] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == KEPT_CAPABILITIES
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mounts = Path(f"/proc/{show('MainPID')}/mountinfo").read_text().splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}  # the last counts
    assert "ro" in options["/"]
    assert {"rw", "noexec"} <= set(options["/var/lib/seal-monitor"])


def it_answers_on_loopback_alone() -> None:
    found = series()
    assert found['seal_monitor_starts_total{kind="fresh"}'] == 1
    assert [name for name in found if re.match("seal_monitor_build_info{", name)]
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    addresses = re.findall(rf"^ *\d+: ([0-9A-F]+):{10462:04X} .* 0A ", listening, re.M)
    assert addresses == ["0100007F"]


def it_reports_a_denial() -> None:
    denial = violate("mprotect", "victim")
    assert (denial["operation"], denial["verdict"]) == ("mprotect", "sealed")
    assert "mprotect of sealed memory refused" in must("seal-monitor", "incidents", "list")


def a_restart_resumes() -> None:
    """Nothing is let go: the counts go on, and the seconds without programs are none."""
    before = programs()
    pid, counted = show("MainPID"), series()
    must("systemctl", "restart", UNIT)
    assert show("MainPID") != pid
    started = [event for event in events() if event.get("event") == "started"][-1]
    assert started["details"]["resumed"] is not None
    assert started["blind_seconds"] == 0
    assert programs() == before
    violate("munmap", "again")
    found = series()
    assert found['seal_monitor_starts_total{kind="resumed"}'] == 1
    name = 'seal_monitor_denials_total{operation="mprotect",verdict="sealed"}'
    assert found[name] >= counted[name] >= 1


def a_stop_leaves_nothing_attached() -> None:
    must("systemctl", "stop", UNIT)
    assert show("ActiveState") == "inactive"
    wait("programs are let go", lambda: programs() == [])


def purged_it_leaves_nothing() -> None:
    """But its user, as is the custom of Debian."""
    must("dpkg", "--purge", "seal-monitor")
    assert must("find", "/", "-xdev", "-name", "*seal-monitor*") == ""
    assert "seal-monitor" not in must("systemctl", "list-unit-files", "--no-legend")


STEPS = (
    it_installs_and_starts,
    it_is_as_confined_as_its_unit_says,
    it_answers_on_loopback_alone,
    it_reports_a_denial,
    a_restart_resumes,
    a_stop_leaves_nothing_attached,
    purged_it_leaves_nothing,
)


def main() -> int:
    """Take the steps, up to the first that fails; 0 when all went well."""
    began = time.monotonic()
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": [], "properties": {}}
    for step in STEPS:
        start = time.monotonic()
        try:
            step()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            found["failed"].append(f"{Path(__file__).name}::{step.__name__}")
            break
        found["passed"] += 1
        print(f"{step.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    found["seconds"] = time.monotonic() - began
    code = int(bool(found["failed"]))
    print(json.dumps({"code": code, "modes": {"-": found}}))
    return code


if __name__ == "__main__":
    sys.exit(main())
