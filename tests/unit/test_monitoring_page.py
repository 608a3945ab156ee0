"""docs/monitoring.md by the letter: its commands on Debian's own files, its YAML by servers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from alertmanager import alertmanager, binary, post, receiver
from prometheus import program, running, serving

ROOT = Path(__file__).parents[2]
DEBIAN = Path(sys.prefix) / "share/prometheus/etc"  # of the packages, as they come
PAGE = (ROOT / "docs/monitoring.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SERVERS = ("apt", "systemctl")  # what is only noted here


def blocks(language: str, having: str = "") -> list[str]:
    return [text for name, text in BLOCKS if name == language and having in text]


class Host:
    """A directory with what Debian's packages and ours have installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not DEBIAN.exists():
            pytest.skip("Debian's configuration of Prometheus is not here: make test fetches it")
        shutil.copytree(DEBIAN, root / "etc")
        for path in (ROOT / "dashboards").rglob("*.yml"):
            if "tests" not in path.parts:
                ours = root / "usr/share/seal-monitor" / path.relative_to(ROOT / "dashboards")
                ours.parent.mkdir(parents=True, exist_ok=True)
                ours.write_text(self.moved(path.read_text("utf-8").replace("/usr/local", "/usr")))
        stubs = root / "stubs"
        stubs.mkdir()
        for name in SERVERS:
            (stubs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{root}/asked\n')
            (stubs / name).chmod(0o755)

    def moved(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(?=(etc|usr/share)/)", f"{self.root}/", text)

    def run(self, script: str) -> str:
        """Output of a block of the page, each line of which has to succeed."""
        paths = (self.root / "stubs", Path(program("promtool")).parent, os.environ["PATH"])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.moved(script)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": ":".join(map(str, paths))},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def read(self, path: str) -> str:
        return (self.root / path).read_text("utf-8")

    def check(self, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        """What promtool says of a configuration."""
        file = self.root / "checked.yml"
        file.write_text(self.moved(text))
        return subprocess.run(
            [program("promtool"), "check", "config", *options, file],
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_every_block_is_tried_here() -> None:
    assert {name for name, _ in BLOCKS} <= {"sh", "yaml", "toml"}
    assert (len(blocks("sh")), len(blocks("yaml")), len(blocks("toml"))) == (4, 8, 1)


def test_debians_prometheus_gets_the_rules_and_the_job(host: Host) -> None:
    (script,) = blocks("sh", "prometheus.yml")
    before: Any = yaml.safe_load(host.read("etc/prometheus/prometheus.yml"))
    said = host.run(script)
    assert "SUCCESS: 2 rule files found" in said
    after: Any = yaml.safe_load(host.read("etc/prometheus/prometheus.yml"))
    assert after.pop("rule_files") == [f"{host.root}/usr/share/seal-monitor/rules/*.yml"]
    own, *others = after.pop("scrape_configs")
    assert (own["job_name"], others) == ("seal-monitor", before.pop("scrape_configs"))
    assert own["static_configs"] == [
        {"targets": ["127.0.0.1:10462"], "labels": {"instance": os.uname().nodename}}
    ]
    assert before.pop("rule_files") is None
    assert after == before
    assert host.read("asked").splitlines() == [
        "apt install prometheus prometheus-alertmanager",
        "systemctl reload prometheus",
    ]
    # One that runs in a directory of its own has all groups.
    text = host.read("etc/prometheus/prometheus.yml")
    with serving(host.root, text) as server:
        groups = {group["name"] for group in server.get("rules")["groups"]}
    files = (ROOT / "dashboards/rules").glob("*.yml")
    ours = [yaml.safe_load(file.read_text("utf-8"))["groups"] for file in files]
    assert groups == {group["name"] for group in chain.from_iterable(ours)}
    assert len(groups) == 6


def test_a_second_time_says_that_it_is_there(host: Host) -> None:
    (script,) = blocks("sh", "prometheus.yml")
    host.run(script)
    with pytest.raises(
        AssertionError, match='multiple scrape configs with job name "seal-monitor"'
    ):
        host.run(script)


def test_what_is_appended_is_refused(host: Host) -> None:
    """As the page says: so that nobody thinks that it did something."""
    both = host.read("etc/prometheus/prometheus.yml") + host.read(
        "usr/share/seal-monitor/scrape.yml"
    )
    checked = host.check(both)
    assert checked.returncode == 1
    assert "field scrape_configs already set" in checked.stderr


def test_a_file_for_scrape_config_files(host: Host) -> None:
    """It may hold nothing else. Prometheus 2.42 does not know the key, and says so."""
    (block,) = blocks("yaml", "scrape_config_files")
    (path,) = yaml.safe_load(block)["scrape_config_files"]
    text = (host.root / path.removeprefix("/")).read_text("utf-8")
    assert list(yaml.safe_load(text)) == ["scrape_configs"]
    assert host.check(text).returncode == 0
    checked = host.check(block)
    assert checked.returncode == 0 or "field scrape_config_files not found" in checked.stderr


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_part_of_a_configuration(host: Host, block: str) -> None:
    document: Any = yaml.safe_load(block)
    if "scrape_config_files" in document or "kubernetes_sd_configs" in block:
        return  # each has its test
    if isinstance(document, list):
        (job,) = blocks("yaml", "file_sd_configs")
        targets = host.root / "etc/prometheus/seal-monitor/hosts.yml"
        targets.parent.mkdir()
        targets.write_text(block)
        for name in ("seal-monitor-ca.pem", "seal-monitor-password"):
            (host.root / "etc/prometheus" / name).touch()
        checked = host.check(job)
    else:
        checked = host.check(block, "--syntax-only")
    assert checked.returncode == 0, checked.stderr


def found_targets(host: Host, document: Any, targets: str, number: int) -> list[dict[str, str]]:
    """Labels of what a server finds in the file of targets; it does not have to reach them."""
    file = host.root / "etc/prometheus/seal-monitor/hosts.yml"
    file.parent.mkdir()
    file.write_text(targets)
    with serving(host.root, yaml.safe_dump(document)) as server:
        deadline = time.monotonic() + 30
        while len(found := server.get("targets")["activeTargets"]) < number:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return sorted((each["labels"] for each in found), key=lambda labels: labels["instance"])


def test_targets_in_a_file_are_found(host: Host) -> None:
    (job,) = blocks("yaml", "file_sd_configs")
    (targets,) = blocks("yaml", "datacenter")
    document: Any = yaml.safe_load(host.moved(job))
    for secret in ("tls_config", "basic_auth"):  # of files that are not here
        del document["scrape_configs"][0][secret]
    labels = {"job": "seal-monitor", "datacenter": "north"}
    assert found_targets(host, document, targets, 2) == [
        labels | {"instance": "web-1.example:10462"},
        labels | {"instance": "web-2.example:10462"},
    ]


def test_pods_have_the_name_of_their_node(host: Host) -> None:
    """Debian's Prometheus is built without Kubernetes, and says so: pods come from a file here."""
    (job,) = blocks("yaml", "kubernetes_sd_configs")
    checked = host.check(job)
    assert checked.returncode == 0 or "field kubernetes_sd_configs not found" in checked.stderr
    (daemons,) = yaml.safe_load_all((ROOT / "systemd/kubernetes/daemonset.yaml").read_text("utf-8"))
    template = daemons["spec"]["template"]
    (container,) = template["spec"]["containers"]
    meta = "__meta_kubernetes_pod_"
    pods = [
        {
            "targets": ["10.1.0.7:10462"],
            "labels": {
                f"{meta}label_app_kubernetes_io_name": name,
                f"{meta}container_port_name": container["ports"][0]["name"],
                f"{meta}node_name": "node-7",
            },
        }
        for name in (template["metadata"]["labels"]["app.kubernetes.io/name"], "another")
    ]
    document: Any = yaml.safe_load(job)
    (scrape,) = document["scrape_configs"]
    del scrape["kubernetes_sd_configs"]
    scrape["file_sd_configs"] = [{"files": [f"{host.root}/etc/prometheus/seal-monitor/*.yml"]}]
    assert found_targets(host, document, yaml.safe_dump(pods), 1) == [
        {"job": "seal-monitor", "instance": "node-7"}
    ]


def test_debians_alertmanager_listens_on_loopback_alone(host: Host) -> None:
    (script,) = blocks("sh", "alertmanager.example.yml")
    assert " - 2 inhibit rules\n" in host.run(script)
    assert host.read("asked").splitlines() == ["systemctl restart prometheus-alertmanager"]
    environment = host.read("etc/default/prometheus-alertmanager")
    (arguments,) = re.findall(r'^ARGS="(.*)"$', environment, re.MULTILINE)
    log = host.root / "log"
    command = (
        *binary(),
        f"--config.file={host.root}/etc/prometheus/alertmanager.yml",
        f"--storage.path={host.root}/data",
        *arguments.replace("127.0.0.1:9093", "127.0.0.1:0").split(),
    )
    with running(log, *command):
        pass
    assert "gossip" not in log.read_text()


def test_a_known_bug_is_silenced_but_no_attack_on_the_same_workload(tmp_path: Path) -> None:
    (script,) = blocks("sh", "amtool silence")
    leak = {"alertname": "SealDenial", "severity": "warning", "workload": "web.service"}
    job = {"job": "seal-monitor", "instance": "web-1"}
    with receiver() as to, alertmanager(tmp_path, to) as url:
        subprocess.run(
            ["bash", "-euc", script.replace("http://127.0.0.1:9093", url)],
            check=True,
            capture_output=True,
            env={"PATH": f"{Path(program('amtool')).parent}:{os.environ['PATH']}"},
        )
        post(url, [leak | job, leak | job | {"severity": "critical"}])
        post(url, [leak | job | {"workload": "cron.service"}])
        deadline = time.monotonic() + 30
        while len(to.messages) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert sorted((one.to, one.group["workload"]) for one in to.messages) == [
        ("/by-day", "cron.service"),
        ("/phone", "web.service"),
    ]


@contextmanager
def ports(number: int) -> Iterator[list[int]]:
    """Ports of loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    yield found


def test_two_alertmanagers_send_a_message_once(tmp_path: Path) -> None:
    (script,) = blocks("sh", "--cluster.peer")
    words = [word for word in shlex.split(script) if word.startswith("--")]
    assert len(words) == 4
    with receiver() as to, ports(4) as (web, cluster, other_web, other_cluster):
        with alertmanager(tmp_path, to):
            pass  # writes the configuration
        commands = []
        for own, peer, number in (
            ((web, cluster), other_cluster, 1),
            ((other_web, other_cluster), cluster, 2),
        ):
            text = " ".join(words).replace("10.0.0.5:9093", f"127.0.0.1:{own[0]}")
            text = text.replace("10.0.0.5:9094", f"127.0.0.1:{own[1]}")
            text = text.replace("10.0.0.6:9094", f"127.0.0.1:{peer}")
            text = text.replace("/etc/prometheus", str(tmp_path))
            more = (f"--storage.path={tmp_path}/{number}", "--cluster.peer-timeout=3s")
            commands.append((*binary(), *text.split(), *more, "--cluster.settle-timeout=5s"))
        with (
            running(tmp_path / "one", *commands[0]) as one,
            running(tmp_path / "two", *commands[1]) as two,
        ):
            deadline = time.monotonic() + 30
            while not all("settled" in (tmp_path / name).read_text() for name in ("one", "two")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            alert = {"alertname": "SealMonitorDown", "severity": "critical"}
            for url in (one, two):
                post(url, [alert | {"job": "seal-monitor", "instance": "web-1"}])
            while not to.messages:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(5)
    assert [message.name for message in to.messages] == ["SealMonitorDown"]
