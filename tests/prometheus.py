"""A real Prometheus for a test, on loopback; with samples of the past if wanted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["Prometheus", "backfilled", "program", "running", "serving"]

START_SECONDS = 30.0


def program(name: str) -> str:
    """Path of a program. Skips the test where the program is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Prometheus:
    """A server's API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: object) -> Any:
        """`data` of the answer. Raises AssertionError, with Prometheus's words, for an error."""
        asked = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def instant(self, query: str, at: float) -> list[Any]:
        found: list[Any] = self.get("query", query=query, time=at)["result"]
        return found

    def over(self, query: str, start: float, end: float, step: float) -> list[Any]:
        found: list[Any] = self.get("query_range", query=query, start=start, end=end, step=step)[
            "result"
        ]
        return found


def _ready(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The URL on which it answers, from its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text("utf-8")
        found = re.search(r"Listening on\"? address=(127\.0\.0\.1:\d+)", log.read_text("utf-8"))
        if found:
            url = f"http://{found[1]}"
            try:
                with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                    return url
            except OSError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"it does not become ready: {log.read_text('utf-8')}")


@contextmanager
def running(log: Path, *command: str) -> Iterator[str]:
    """A server that listens on a port of its choice; the URL, once it is ready."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
    try:
        yield _ready(log, process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


@contextmanager
def serving(folder: Path, configuration: str) -> Iterator[Prometheus]:
    """Prometheus with its data in folder/data."""
    file = folder / "prometheus.yml"
    file.write_text(configuration, "utf-8")
    command = (
        *(program("prometheus"), f"--config.file={file}"),
        *(f"--storage.tsdb.path={folder / 'data'}", "--storage.tsdb.retention.time=30d"),
        "--web.listen-address=127.0.0.1:0",
    )
    with running(folder / "prometheus.log", *command) as url:
        yield Prometheus(url)


def _promtool(*arguments: object) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def backfilled(
    folder: Path, lines: Iterable[str], rules: Path, start: float, end: float
) -> Iterator[Prometheus]:
    """Prometheus with these samples and with what the recording rules had made of them.

    A rule may use what another has recorded: those are evaluated first.
    """
    exposition = folder / "samples.om"
    with exposition.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    data = folder / "data"
    _promtool(*("tsdb", "create-blocks-from", "openmetrics", "--quiet", exposition, data))
    exposition.unlink()
    part = folder / "part.yml"
    for recorded in _by_depth(rules):
        part.write_text(json.dumps({"groups": [{"name": "part", "rules": recorded}]}), "utf-8")
        with serving(folder, "") as server:
            _promtool(
                *("tsdb", "create-blocks-from", "rules", f"--url={server.url}"),
                *(f"--start={int(start)}", f"--end={int(end)}", "--eval-interval=60s"),
                *(f"--output-dir={data}", part),
            )
    with serving(folder, "") as server:
        yield server


def _by_depth(file: Path) -> list[list[dict[str, str]]]:
    """The rules that use no other; those that use only these; and so on."""
    document = yaml.safe_load(file.read_text("utf-8"))
    rules = {rule["record"]: rule for group in document["groups"] for rule in group["rules"]}

    def depth(name: str) -> int:
        used = set(re.findall(r"[\w:]+", rules[name]["expr"])) & rules.keys()
        return 1 + max(map(depth, used), default=-1)

    levels: dict[int, list[dict[str, str]]] = {}
    for name, rule in rules.items():
        levels.setdefault(depth(name), []).append(rule)
    return [levels[level] for level in sorted(levels)]
