"""What ends exec before its command runs."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import os, signal
from monitor.execute import run
end_if_asked = run._end_in_order()
end_if_asked()
os.register_at_fork(before=lambda: signal.raise_signal(signal.SIGTERM))
if not os.fork():
    os._exit(0)
os.wait()
print("forked", flush=True)
end_if_asked()
print("the command would run")
"""


def test_a_signal_that_comes_in_a_fork_is_not_lost() -> None:
    """Python ignores what is raised there."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "forked\n")
