"""The page and the archive of a real refusal, made while the daemon runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from test_daemon import Compile, Running, Start, start, storm
from test_incidents_kernel import incidents, state

__all__ = ["start", "state"]


def test_a_real_refusal(start: Start, compiled: Compile, state: Path, tmp_path: Path) -> None:
    daemon = start(f'[state]\ndirectory = "{state}"\n[events]\nseals = true\n')
    command = [str(compiled("frames")), "1", "outermost", "denied", "--wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        daemon.wait_for(lambda event: event["kind"] == "seal")  # now it knows the path
        process.communicate(b"x", timeout=20)
    event = daemon.wait_for(lambda event: event["kind"] == "denial")
    (refused,) = incidents(daemon, "list", "--executable", "frames")

    page, archive = tmp_path / "page.html", tmp_path / "incident.tar.gz"
    for verb, file in (("report", page), ("export", archive)):
        subprocess.run(
            [
                *(sys.executable, "-m", "monitor", "incidents", verb, refused["id"]),
                *("-o", file, "--config", daemon.configuration),
            ],
            check=True,
            timeout=60,
        )
    text = page.read_text()
    for function in ("violate", "descend", "outermost"):
        assert f"{function}+0x" in text
    for part in ("Proved in the kernel", "Sealed at 2", event["sealed"]["start"]):
        assert part in text
    subprocess.run(["tar", "xzf", archive, "-C", tmp_path], check=True)
    (folder,) = tmp_path.glob("seal-monitor-incident-*")
    names = {path.name for path in folder.iterdir()}
    assert {"incidents.db", "report.html", "SHA256SUMS"} < names
    assert (folder / "report.html").stat().st_mode & 0o777 == 0o600
    checked = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    subprocess.run(checked, cwd=folder, check=True)


def report(daemon: Running, identifier: str, page: Path) -> str:
    """The text of the page, without marks."""
    command = [sys.executable, "-m", "monitor", "incidents", "report", identifier, "-o", str(page)]
    subprocess.run([*command, "--config", daemon.configuration], check=True, timeout=60)
    found = page.read_text().partition("<main>")[2]
    return " ".join(re.sub("<[^>]*>", " ", found).split())


def test_eight_real_refusals(start: Start, compiled: Compile, state: Path, tmp_path: Path) -> None:
    """One page, of the last one, as all are alike: the story once, and no picture of a mapping."""
    daemon = start(f'[state]\ndirectory = "{state}"\n[incidents]\nsnapshots = false\n')
    storm(compiled("storm"), 1, 8, 0, "mprotect")
    deadline = time.monotonic() + 20
    while (found := incidents(daemon, "list", "--executable", "storm")) == [] or (
        found[0]["count"] < 8
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (refused,) = found
    text = report(daemon, refused["id"], tmp_path / "page.html")
    assert "It has happened 8 times" in text
    assert "All 8 events that are kept are alike." in text
    assert text.count("Nothing was changed.") == 1
    assert text.partition("The events themselves")[0].count("read-only data was to become") == 1
    assert "8 times , until" in text
    assert "Where in its memory" not in text
