"""The rules for Prometheus: promtool's own tests of them, and what they name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from clocks import at_most
from fleet import MINUTE, exposition
from prometheus import Prometheus, backfilled

from monitor.metrics.table import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards/rules"
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text("utf-8")

BLOCK = 7200  # seconds: a server's blocks begin at multiples of two hours

Rule = dict[str, Any]


def rules(name: str) -> list[Rule]:
    document = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


ALERTS = rules("alerts.yml")
RECORDED = rules("recording.yml")
NAMES = [alert["alert"] for alert in ALERTS]


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_promtool_accepts_them() -> None:
    checked = promtool("check", "rules", *FOLDER.glob("*.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert f"{len(RECORDED)} rules found" in checked.stdout


def test_the_example_configuration_loads_them(tmp_path: Path) -> None:
    example = (ROOT / "dashboards/prometheus.example.yml").read_text("utf-8")
    configuration = tmp_path / "prometheus.yml"
    installed = "/usr/local/share/seal-monitor/rules"
    configuration.write_text(example.replace(installed, str(FOLDER)), "utf-8")
    checked = promtool("check", "config", configuration)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("rules found") == 2


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_they_fire_when_they_should(path: Path) -> None:
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_is_tested_firing_and_not_firing() -> None:
    checks = [
        check
        for path in TESTS
        for test in yaml.safe_load(path.read_text("utf-8"))["tests"]
        for check in test.get("alert_rule_test", ())
    ]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(NAMES)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(NAMES)


def test_every_alert_says_what_to_do() -> None:
    installed = "file:///usr/local/share/doc/seal-monitor/runbooks.md"
    for alert in ALERTS:
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        page, _, section = alert["annotations"]["runbook_url"].partition("#")
        assert page == f'{{{{ or $externalLabels.runbooks "{installed}" }}}}'
        assert section == alert["alert"].lower()
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == NAMES


def test_a_severity_is_the_alerts_own_or_that_of_the_events() -> None:
    for alert in ALERTS:
        if "labels" in alert:
            assert alert["labels"]["severity"] in ("critical", "warning")
        else:
            assert 'kind="' in alert["expr"]
            assert 'severity!="info"' in alert["expr"]


def test_a_section_fits_a_phone() -> None:
    """What it means in the first lines, then what to do, in one list."""
    parts = re.split(r"^## (\w+)$", RUNBOOKS, flags=re.MULTILINE)[1:]
    for name, section in zip(parts[::2], parts[1::2], strict=True):
        first = section.strip().split("\n\n")[0]
        assert len(first) <= 420, name
        assert len(section) <= 1500, name
        assert "\n|" not in section, name


def test_no_label_names_a_process() -> None:
    """One alert for a host or a workload, however many processes it has."""
    for rule in (*ALERTS, *RECORDED):
        assert not set(re.findall(r"\w+", rule["expr"])) & {"pid", "executable", "path", "comm"}


def test_they_name_metrics_and_label_values_that_there_are() -> None:
    known = {metric.full_name: metric for metric in METRICS}
    recorded = {rule["record"] for rule in RECORDED}
    for rule in (*ALERTS, *RECORDED):
        for name in re.findall(r"[\w:]*seal_monitor_[\w:]+", rule["expr"]):
            assert name in known or name in recorded, name
        for name, selectors in re.findall(r"([\w:]*seal_monitor_[\w:]+)\{(.*?)\}", rule["expr"]):
            metric = known.get(name) or known[f"{name.split(':')[1]}_total"]
            for label, values in re.findall(r'(\w+)!?=~?"(.*?)"', selectors):
                there = metric.labels[label]
                if not isinstance(there, str):
                    assert set(values.split("|")) <= set(there), (name, label)


def test_a_thousand_hosts_take_a_second_of_a_cpu(tmp_path: Path) -> None:
    """Prometheus's own, for one evaluation of all rules; a part of them, and for fewer hosts."""
    hosts, minutes, times = 200, 12, 5
    end = int(time.time()) // BLOCK * BLOCK - MINUTE  # all in one block, as all is in the head
    recording = tmp_path / "recording.yml"
    recording.write_text("groups: []\n")

    def evaluate(server: Prometheus, at: float) -> None:
        for _ in range(times):
            for rule in (*RECORDED, *ALERTS):
                server.instant(f"count({rule['expr']})", at)

    lines = exposition(hosts, minutes, end)
    with backfilled(tmp_path, lines, recording, end - minutes * MINUTE, end) as server:

        def cpu() -> float:
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
                text = answer.read().decode()
            return float(text.split("\nprocess_cpu_seconds_total ")[1].split()[0])

        began = cpu()
        evaluate(server, end - 86400)  # when there was nothing: what it takes to ask
        asking = cpu() - began
        allowed = asking + times * hosts / 1000
        with at_most(allowed, "a rule reads the series of hosts where nothing happened", cpu):
            evaluate(server, end - MINUTE)
