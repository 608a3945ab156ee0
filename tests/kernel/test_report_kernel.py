"""The page and the archive of a real refusal, made while the daemon runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_daemon import Compile, Start, start
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
