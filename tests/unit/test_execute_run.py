"""What exec does before its command runs and after; the rest needs a kernel."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.attach.attached import configure
from monitor.configuration.config import parse
from monitor.execute.command import User
from monitor.execute.run import ExecError, _Output, _settings
from monitor.kernel import abi

NOBODY = User("nobody", 65534, 65534, [65534, 65533], "/")
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


def test_a_storm_leaves_room_for_the_events_of_others() -> None:
    """Twenty at once and one a second of each caller, whatever the file says; no limit in all."""
    kernel = abi.Config()
    configure(kernel, _settings(parse("rate_limit = {per_caller = 7, burst = 7, host = 7}", "")))
    assert (kernel.event_interval_ns, kernel.event_burst_ns) == (10**9, 19 * 10**9)
    assert (kernel.host_interval_ns, kernel.host_burst_ns) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(
    ("uid", "gid", "mode", "owner"),
    [
        (0, 0, 0o755, (0, 0)),
        (0, 0, 0o775, (0, 0)),
        (0, 0, 0o1777, (65534, 65534)),
        (65534, 0, 0o700, (65534, 65534)),
        (65534, 0, 0o577, (0, 0)),
        (0, 65533, 0o770, (65534, 65534)),
        (0, 65533, 0o757, (0, 0)),
    ],
)
def test_whose_a_result_is(
    tmp_path: Path, uid: int, gid: int, mode: int, owner: tuple[int, int]
) -> None:
    os.chown(tmp_path, uid, gid)
    tmp_path.chmod(mode)
    file = tmp_path / "found.json"
    with _Output(str(file), NOBODY) as output:
        assert not file.exists()
        output.write(b"{}")
    status = file.stat()
    assert (status.st_uid, status.st_gid) == owner
    assert (stat.S_IMODE(status.st_mode), file.read_bytes()) == (0o600, b"{}")


def test_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with _Output("-", NOBODY) as output:
        output.write(b"{}")
    assert capsysbinary.readouterr().out == b"{}"


def test_a_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ExecError, match="standard output is closed; name a file instead of -"):
        _Output("-", None)
