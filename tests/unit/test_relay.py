"""Events from one journal to another, by systemd's own programs as docs/many-hosts.md has them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from journald import Journald, journald

from monitor.sinks.journal import JournalSink
from monitor.sinks.outputs import encode

PAGE = (Path(__file__).parents[2] / "docs/many-hosts.md").read_text("utf-8")
FETCHED = Path(sys.prefix) / "lib/relay"
PROGRAMS = FETCHED / "lib/systemd"
SECONDS = 20.0


def block(section: str) -> str:
    (found,) = re.findall(rf"^```ini\n(\[{section}\]\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, and a key and a certificate of its for each name, as the page calls them."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(*words: object) -> None:
        command = ["openssl", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    authority = ("-keyout", "ca.key", "-out", "fleet-ca.pem", "-subj", "/CN=fleet", "-days", "2")
    openssl("req", "-x509", *new_key, *authority)
    for name in ("host", "centre"):
        asked = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("req", *new_key, *asked)
        signed = ("-CA", "fleet-ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        given = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "names")
        openssl("x509", "-req", *signed, *given)
    return {path.name: path for path in folder.iterdir()}


class Relay:
    """A centre and what sends a journal to it."""

    def __init__(self, own: Journald, folder: Path) -> None:
        self._own, self._folder = own, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.received = folder / "remote"
        self.received.mkdir()
        keys = folder / "keys"
        keys.mkdir()
        made = certificates(keys)
        for section, name in (("Upload", "journal-upload"), ("Remote", "journal-remote")):
            text = block(section).replace("centre.example:19532", f"127.0.0.1:{self._port}")
            text = re.sub(r"/etc/ssl/\w+/([\w.-]+)", lambda named: str(made[named[1]]), text)
            assert "/etc/" not in text
            place = own.socket.parents[1] / f"{name}.conf.d"
            place.mkdir()
            (place / "seal-monitor.conf").write_text(text)
        (self.journal,) = (own.socket.parents[2] / "log/journal").iterdir()

    @contextmanager
    def _running(self, name: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        libraries = next(FETCHED.glob("usr/lib/*/libmicrohttpd.so.*")).parent
        command = self._own.command(
            *("env", f"LD_LIBRARY_PATH={libraries}", PROGRAMS / name), *flags
        )
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def centre(self) -> Iterator[subprocess.Popen[bytes]]:
        flags = (f"--listen-https=127.0.0.1:{self._port}", f"--output={self.received}/")
        with self._running("systemd-journal-remote", *flags) as process:
            deadline = time.monotonic() + SECONDS
            while True:
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", self._port)):
                        break
                assert process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.05)
            yield process

    def sender(self) -> Any:
        flags = (f"--directory={self.journal}", f"--save-state={self._folder / 'state'}")
        return self._running("systemd-journal-upload", *flags)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def events(self) -> list[bytes]:
        flags = ("--output=json", "--all", "--quiet", "--identifier=seal-monitor")
        command = ["journalctl", f"--directory={self.received}", *flags]
        done = subprocess.run(command, check=True, capture_output=True)
        found = (json.loads(line)["SEAL_MONITOR_EVENT"] for line in done.stdout.splitlines())
        return [bytes(one) if isinstance(one, list) else one.encode() for one in found]

    def wait_for(self, sent: list[bytes]) -> list[bytes]:
        """All that has arrived, once all that was sent has."""
        deadline = time.monotonic() + SECONDS
        while not set(sent) <= set(found := self.events()):
            assert time.monotonic() < deadline, f"{len(found)} of {len(sent)}\n{self.log()}"
            time.sleep(0.1)
        return found


@pytest.fixture
def own() -> Iterator[Journald]:
    if not (PROGRAMS / "systemd-journal-upload").exists():
        pytest.skip("systemd-journal-remote is not here: make test fetches it")
    with journald() as found:
        yield found


def event(number: int, more: str = "") -> dict[str, object]:
    return {
        "id": f"relayed-{number}",
        "kind": "denial",
        "severity": "critical",
        "summary": f"refused \u202e\x1b[31m é {number}",
        "more": more,
    }


def test_events_arrive_whole_and_once_and_again_after_a_kill(own: Journald, tmp_path: Path) -> None:
    sink = JournalSink(own.socket)
    sent: list[bytes] = []

    def send(*events: dict[str, object]) -> None:
        for one in events:
            sink.write(sink.render(one))
            sent.append(encode(one))

    send(event(0), event(1, "x" * 9000), event(2, "\0\x01\t\r\n\x7f\ud800\u2028'\"\\" * 99))
    send(event(3, "y" * 60_000))
    relay = Relay(own, tmp_path)
    with relay.centre() as centre, ExitStack() as senders:
        sender = senders.enter_context(relay.sender())
        assert sorted(relay.wait_for(sent)) == sorted(sent)
        send(*map(event, range(4, 24)))
        assert sorted(relay.wait_for(sent)) == sorted(sent)
        centre.kill()
        centre.wait()
        send(*map(event, range(24, 44)))
        assert sender.wait(SECONDS) == 1  # why the page has systemd start it for ever
        assert len(set(relay.events())) == 24
    with relay.centre(), relay.sender():
        found = relay.wait_for(sent)
    assert {json.loads(one)["id"] for one in found} == {f"relayed-{n}" for n in range(44)}
    assert set(found) == set(sent)
