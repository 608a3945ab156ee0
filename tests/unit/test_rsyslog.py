"""Events from a journal to a centre by rsyslog and RELP, as docs/many-hosts.md configures them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from journald import Journald, journald

from monitor.sinks.journal import JournalSink
from monitor.sinks.outputs import encode

PAGE = (Path(__file__).parents[2] / "docs/many-hosts.md").read_text("utf-8")
FETCHED = Path(sys.prefix) / "lib/relay"
PROGRAM = FETCHED / "usr/sbin/rsyslogd"
SECONDS = 30.0
# The host's own journal is read as well, were it not hidden.
HIDDEN = ("sh", "-c", 'mount -t tmpfs none /var/log && exec "$@"', "sh")


def configurations() -> tuple[str, str, str]:
    """Of the page: what must come first on a host, the rest of it, and that of the centre."""
    section = PAGE.split("### rsyslog\n")[1].split("\n## ")[0]
    (first,) = re.findall(r"`(global\(workDirectory.*?\))`", section, re.DOTALL)
    host, centre = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return first, host, centre


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay:
    """A centre and a host that sends it what journald has; neither runs yet."""

    def __init__(self, own: Journald, folder: Path) -> None:
        self._own, self._folder = own, folder
        self._port = free_port()
        self.received = folder / "received.jsonl"
        self._sink = JournalSink(own.socket)
        self.sent: list[bytes] = []
        work = folder / "work"
        work.mkdir()
        first, host, centre = configurations()
        host = f"{first}\n{host}".replace("/var/spool/rsyslog", str(work))
        host = host.replace('"centre.example" port="2514"', f'"127.0.0.1" port="{self._port}"')
        host = host.replace('resumeInterval="5"', 'resumeInterval="1"')
        centre = centre.replace('port="2514"', f'port="{self._port}" address="127.0.0.1"')
        centre = centre.replace("/var/log/seal-monitor-fleet.jsonl", str(self.received))
        for name, text in (("host", host), ("centre", centre)):
            assert str(self._port) in text
            assert "/var/" not in text
            (folder / f"{name}.conf").write_text(text)

    @contextmanager
    def _running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        (libraries,) = FETCHED.glob("usr/lib/*/rsyslog")
        command = self._own.command(
            *(*HIDDEN, "env", f"LD_LIBRARY_PATH={libraries.parent}", PROGRAM, "-n"),
            *("-M", libraries, "-f", self._folder / f"{name}.conf"),
            *("-i", self._folder / f"{name}.pid"),
        )
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            (self._folder / f"{name}.pid").unlink(missing_ok=True)

    @contextmanager
    def centre(self) -> Iterator[subprocess.Popen[bytes]]:
        with self._running("centre") as process:
            self._until(lambda: self._listens(process), "the centre listens")
            yield process

    @contextmanager
    def host(self) -> Iterator[subprocess.Popen[bytes]]:
        with self._running("host") as process:
            yield process

    def _listens(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.log()
        with socket.socket() as probe:
            return not probe.connect_ex(("127.0.0.1", self._port))

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def send(self, count: int, more: str = "") -> list[str]:
        """Their ids."""
        numbers = range(len(self.sent), len(self.sent) + count)
        for number in numbers:
            one: dict[str, object] = {
                "id": f"relayed-{number}",
                "kind": "denial",
                "severity": "critical",
                "summary": f"refused \u202e\x1b[31m é {number}",
                "more": more,
            }
            self._sink.write(self._sink.render(one))
            self.sent.append(encode(one))
        return [f"relayed-{number}" for number in numbers]

    def lines(self) -> list[bytes]:
        return self.received.read_bytes().splitlines() if self.received.exists() else []

    def ids(self) -> list[str]:
        return [json.loads(line)["id"] for line in self.lines()]

    def wait_for(self, wanted: list[str]) -> None:
        self._until(lambda: set(wanted) <= set(self.ids()), "all arrive")

    def wait_until_read(self) -> None:
        """The host's state says that it has read the last event that was sent."""
        entries = self._own.wait_for(len(self.sent), "SYSLOG_IDENTIFIER=seal-monitor")
        last = entries[-1]["__CURSOR"]
        state = self._folder / "work/journal"
        self._until(
            lambda: state.exists() and state.read_text() == last, "the host reads its journal"
        )


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    if not PROGRAM.exists():
        pytest.skip("rsyslog is not here: make test fetches it")
    with journald() as own:
        yield Relay(own, tmp_path)


def test_whole_lines_arrive_once_although_the_centre_is_killed(relay: Relay) -> None:
    with relay.host():
        with relay.centre() as centre:
            relay.send(2)
            relay.send(1, "x" * 9000)
            relay.send(1, "\0\x01\t\r\n\x7f\u2028'\"\\" * 99)
            relay.send(1, "y" * 60_000)
            relay.wait_for(relay.send(20))
            centre.kill()
            centre.wait()
        away = relay.send(30)
        relay.wait_until_read()
        with relay.centre():
            relay.wait_for([*away, *relay.send(5)])
    assert sorted(relay.lines()) == sorted(relay.sent)


def test_a_host_that_is_stopped_while_the_centre_is_away_loses_nothing(relay: Relay) -> None:
    with relay.host() as host:
        waiting = relay.send(50)
        relay.wait_until_read()
        host.terminate()
        assert host.wait(SECONDS) == 0
    with relay.centre(), relay.host():
        relay.wait_for([*waiting, *relay.send(1)])
    assert sorted(relay.lines()) == sorted(relay.sent)


def test_a_host_that_is_killed_while_the_centre_is_away_loses_what_it_has_read(
    relay: Relay,
) -> None:
    with relay.host() as host:
        relay.send(50)
        relay.wait_until_read()
        host.kill()
        host.wait()
    with relay.centre(), relay.host():
        after = relay.send(1)
        relay.wait_for(after)
    assert relay.ids() == after
