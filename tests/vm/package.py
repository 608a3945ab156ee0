"""The Debian package of another processor, on a kernel of that processor: it runs."""

from __future__ import annotations

import json
import subprocess

PROGRAM = "/usr/bin/seal-monitor"


def test_the_package_watches() -> None:
    """Started by nobody but this test: the canary's own violation comes back, and it ends well."""
    with subprocess.Popen(
        [PROGRAM, "run", "--output", "json"], stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        events = (json.loads(line) for line in daemon.stdout)
        started = next(event for event in events if event.get("event") == "started")
        daemon.terminate()
        daemon.communicate()
    assert started["details"]["probes"]["munmap"] == "fexit"
    assert daemon.returncode == 0
