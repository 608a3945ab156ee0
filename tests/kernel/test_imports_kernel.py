"""What a real daemon has imported when it ends."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from imports import COMMAND, HEAVY, OF_INCIDENTS, culprits
from test_daemon import Start, start

from monitor.provoke import table as provoke

__all__ = ["start"]


@pytest.mark.parametrize("incidents", [False, True])
def test_a_daemon_imports_nothing_heavy(start: Start, tmp_path: Path, incidents: bool) -> None:
    """Though there was a violation, a scrape in each format and a reload."""
    file, state = tmp_path / "imports.json", tmp_path / "state"
    state.mkdir(mode=0o700)
    configuration = f"""
state.directory = "{state}"
incidents.enabled = {json.dumps(incidents)}
"""
    daemon = start(configuration, command=(*COMMAND, str(file), "run"))
    provoke.run("mprotect").communicate()
    daemon.wait_for(lambda event: event["kind"] == "denial")
    address = daemon.health("started")["details"]["metrics"]
    for accept in ("text/plain", "application/openmetrics-text;version=1.0.0"):
        request = urllib.request.Request(address, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith(accept.partition(";")[0])
    daemon.process.send_signal(1)
    daemon.health("reloaded")
    daemon.stop()
    found = json.loads(file.read_text())
    assert culprits(found, HEAVY if incidents else HEAVY | OF_INCIDENTS) == []
    assert ("sqlite3" in found) == incidents
