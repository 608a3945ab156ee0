"""From a real violation to the pager: daemon, Prometheus, rules, Alertmanager, webhook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from alertmanager import EXAMPLE, alertmanager, receiver
from prometheus import serving
from test_daemon import READY_SECONDS, Start, start

from monitor.evidence.cgroups import alerted_workload
from monitor.kernel.arch import NUMBERS
from monitor.provoke import table as provoke

__all__ = ["start"]

RULES = EXAMPLE.parent / "rules"
RUNBOOKS = "https://docs.example/runbooks"
# A scrape and two evaluations a second each, and what Alertmanager waits for more of the group.
SECONDS = 30.0


def until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return result


def configuration(target: str, manager: str) -> str:
    """Of a Prometheus that asks and evaluates every second."""
    managers = [{"static_configs": [{"targets": [manager.removeprefix("http://")]}]}]
    document = {
        "global": {
            "scrape_interval": "1s",
            "evaluation_interval": "1s",
            "external_labels": {"runbooks": RUNBOOKS},
        },
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "scrape_configs": [{"job_name": "seal-monitor", "static_configs": [{"targets": [target]}]}],
        "alerting": {
            "alert_relabel_configs": [{"regex": "runbooks", "action": "labeldrop"}],
            "alertmanagers": managers,
        },
    }
    return yaml.safe_dump(document)


def test_a_denial_is_one_page(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With workload, host and where to read on, from a Prometheus younger than the monitor."""
    daemon = start()
    url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
    target = url.removeprefix("http://").removesuffix("/metrics")
    with (
        receiver() as pager,
        alertmanager(tmp_path, pager) as manager,
        serving(tmp_path, configuration(target, manager)) as prometheus,
    ):
        until(lambda: prometheus.instant("up == 1", time.time()), "it is not scraped")
        began = time.monotonic()
        (denied,) = map(json.loads, provoke.run("mprotect").communicate()[0].splitlines())
        (page,) = until(lambda: pager.messages, "no alert came")
        seconds = time.monotonic() - began
        (known,) = until(
            lambda: prometheus.instant('ALERTS{alertname="SealDenial"}', time.time()),
            "SealDenial does not fire",
        )
        time.sleep(5)
        assert len(pager.messages) == 1

    event = daemon.wait_for(
        lambda event: event["kind"] == "denial" and event["process"]["pid"] == denied["pid"]
    )
    workload = alerted_workload(event["workload"]["cgroup"])
    assert (page.to, page.status) == ("/phone", "firing")
    assert page.group == {"alertname": "SealDenialNewWorkload", "workload": workload}
    (alert,) = page.alerts
    assert event["severity"] == "critical"
    assert alert["labels"] == {
        "alertname": "SealDenialNewWorkload",
        "instance": target,
        "job": "seal-monitor",
        "severity": "critical",
        "workload": workload,
    }
    assert alert["annotations"]["summary"] == (
        f"For the first time a seal refused {workload} on {target} a change of memory."
    )
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}#sealdenialnewworkload"
    assert known["metric"]["severity"] == "critical"
    daemon.stop()
    with capsys.disabled():
        print(f" [{seconds:.1f} s from the denial to the webhook]", end="")


def test_a_leak_calls_nobody(start: Start, tmp_path: Path) -> None:
    """4,096 calls of munmap, most of which the rate limit holds back: warnings, by day."""
    daemon = start()
    url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
    target = url.removeprefix("http://").removesuffix("/metrics")
    program = (
        "import ctypes, mmap, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "page = libc.mmap(None, 4096, 1, 34, -1, 0)\n"
        f"assert libc.syscall({NUMBERS['mseal']}, ctypes.c_void_p(page), 4096, 0) == 0\n"
        "for _ in range(4096):\n"
        "    assert libc.munmap(ctypes.c_void_p(page), 4096) == -1\n"
    )
    with (
        receiver() as pager,
        alertmanager(tmp_path, pager) as manager,
        serving(tmp_path, configuration(target, manager)) as prometheus,
    ):
        until(lambda: prometheus.instant("up == 1", time.time()), "it is not scraped")
        subprocess.run([sys.executable, "-c", program], check=True)
        judged = 'sum(seal_monitor_violations_total{kind="denial",severity="warning"})'
        until(
            lambda: (
                [each["value"][1] for each in prometheus.instant(judged, time.time())] == ["4096"]
            ),
            "not all are judged",
        )
        until(lambda: pager.to("/by-day"), "no alert came")
        time.sleep(5)
        assert pager.to("/phone") == []
        assert {each["labels"]["severity"] for each in pager.alerts} == {"warning"}
    daemon.stop()


def test_harmless_calls_do_not_hide_what_comes_after_them(start: Start) -> None:
    """200 harmless ones use up the limit of their place; the last, from there, is an attack."""
    daemon = start()
    daemon.health("started", READY_SECONDS)
    program = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "page = libc.mmap(None, 4096, 3, 34, -1, 0)\n"
        f"assert libc.syscall({NUMBERS['mseal']}, ctypes.c_void_p(page), 4096, 0) == 0\n"
        "for wanted in [1] * 200 + [7]:\n"
        "    assert libc.mprotect(ctypes.c_void_p(page), 4096, wanted) == -1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    daemon.wait_for(lambda event: event["kind"] == "suppression")
    severities = {
        event["severity"] for event in daemon.events("denial") if event["operation"] == "mprotect"
    }
    assert severities == {"warning"}
    text = daemon.get("/metrics")[1]
    found = {"warning": 0.0, "critical": 0.0}
    pattern = r'^seal_monitor_violations_total\{kind="denial",severity="(\w+)",.*\} (\S+)$'
    for severity, count in re.findall(pattern, text, re.MULTILINE):
        found[severity] = found.get(severity, 0.0) + float(count)
    assert found["critical"] >= 1
    assert found["critical"] + found["warning"] == 201
    daemon.stop()
