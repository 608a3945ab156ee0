"""The whole daemon, as a user runs it: a process, its events, its metrics, its end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jsonschema
import pytest

from monitor.configuration import config
from monitor.daemon import Daemon
from monitor.evidence import events
from monitor.host.blind_spots import memory_file_overrides
from monitor.kernel.probes import PROBES, Hook
from monitor.kernel.sight import BLIND_SPOTS
from monitor.provoke import table as provoke
from monitor.sinks.outputs import encode

Compile = Callable[[str], Path]
Event = dict[str, Any]
VALIDATOR = jsonschema.Draft202012Validator(events.schema())
READY_SECONDS = 60.0
RUN = ("-m", "monitor", "run")
SUCCESSFUL = "seal_monitor_config_last_reload_successful"
RUN_APART = (str(Path(__file__).parents[1] / "apart.py"), "run")


class Running:
    """A daemon in another process; its events are read from its standard output.

    It sees only the cgroup of the tests, unless it is to see the whole host. `prefix` are words
    before its command. Standard output goes through a process of the command `through`.
    """

    def __init__(
        self,
        folder: Path,
        configuration: str,
        *flags: str,
        prefix: Sequence[str] = (),
        through: Sequence[str] = (),
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        whole_host: bool = False,
    ) -> None:
        self.configuration = folder / "config.toml"
        self.configuration.write_text(configuration, "utf-8")
        self._output = folder / "events.jsonl"
        self.errors = folder / "stderr"
        self.reader: subprocess.Popen[bytes] | None = None
        with contextlib.ExitStack() as opened:
            output: IO[bytes] = opened.enter_context(self._output.open("wb"))
            errors = opened.enter_context(self.errors.open("wb"))
            if through:
                self.reader = subprocess.Popen(through, stdin=subprocess.PIPE, stdout=output)
                assert self.reader.stdin
                output = opened.enter_context(self.reader.stdin)
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(command or (sys.executable, *(RUN if whole_host else RUN_APART))),
                    *("--config", str(self.configuration), "--output", "json"),
                    *("--web.listen-address", "127.0.0.1:0", *flags),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def events(self, kind: str | None = None) -> list[Event]:
        """Every whole line so far, each valid by the schema."""
        text = self._output.read_text("utf-8")
        found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        for event in found:
            VALIDATOR.validate(event)
        return [event for event in found if kind in (None, event["kind"])]

    def wait_for(self, wanted: Callable[[Event], bool], seconds: float = 20.0) -> Event:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events():
                if wanted(event):
                    return event
            assert self.process.poll() is None, self.errors.read_text("utf-8")
            time.sleep(0.02)
        raise AssertionError(f"no such event among {self.events()}")

    def wait_for_line(self, part: bytes, seconds: float = 20.0) -> None:
        """Until the text is in what it wrote, which may be too much to be read as events."""
        deadline = time.monotonic() + seconds
        seen = b""
        with self._output.open("rb") as written:
            while part not in (seen := seen[-len(part) :] + written.read()):
                assert time.monotonic() < deadline, part
                assert self.process.poll() is None, self.errors.read_text("utf-8")
                time.sleep(0.02)

    def health(self, name: str, seconds: float = 20.0) -> Event:
        return self.wait_for(
            lambda event: event["kind"] == "health" and event["event"] == name, seconds
        )

    def get(self, path: str) -> tuple[int, str]:
        root = self.health("started", READY_SECONDS)["details"]["metrics"].removesuffix("/metrics")
        try:
            with urllib.request.urlopen(root + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The value of one series, written as in the exposition."""
        _, text = self.get("/metrics")
        for line in text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {name} in:\n{text}")

    def wait_for_metric(self, name: str, value: float, seconds: float = 20.0) -> None:
        """Wait for the series to have the value: events are counted a moment after a write."""
        deadline = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}"
            time.sleep(0.05)

    def stop(self) -> Event:
        """Send SIGTERM; return the last event, once it has ended well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.errors.read_text("utf-8")
        last = self.events()[-1]
        assert last["event"] == "stopped"
        return last


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, require_bpf: None) -> Iterator[Start]:
    """Starts a daemon with a configuration and flags, and waits until it is ready."""
    running: list[Running] = []

    def _start(configuration: str = "", *flags: str, **options: Any) -> Running:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        daemon = Running(folder, configuration, *flags, **options)
        running.append(daemon)
        daemon.health("started", READY_SECONDS)
        return daemon

    yield _start
    for daemon in running:
        for process in filter(None, (daemon.process, daemon.reader)):
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, require_bpf: None) -> Iterator[Running]:
    """One daemon for all cases that look only at the events of their own process."""
    running = Running(tmp_path_factory.mktemp("daemon"), "")
    try:
        running.health("started", READY_SECONDS)
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def assert_conserved(stopped: Event) -> None:
    for kind, numbers in stopped["details"].items():
        results = sum(value for name, value in numbers.items() if name != "counted")
        assert numbers["counted"] == results, (kind, numbers)


def storm(program: Path, *arguments: object) -> dict[str, Any]:
    output = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, check=True, timeout=120
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def test_denial_and_fault_become_events_and_counts(start: Start) -> None:
    daemon = start()
    child = provoke.run("mprotect", "guard_region_write")
    denied, fault = (json.loads(line) for line in child.communicate()[0].splitlines())

    event = daemon.wait_for(
        lambda event: event["kind"] == "fault" and event["process"]["pid"] == fault["pid"]
    )
    assert event["cause"] == "guard_region"
    assert event["access"] == "write"
    assert event["disposition"] == "default"
    assert event["address"] == hex(fault["address"])

    event = daemon.wait_for(
        lambda event: event["kind"] == "denial" and event["process"]["pid"] == denied["pid"]
    )
    assert event["operation"] == "mprotect"
    assert event["verdict"] == "sealed"
    assert event["sealed"]["start"] == hex(denied["sealed_start"])
    assert event["sealed"]["end"] == hex(denied["sealed_end"])
    assert event["process"]["parent_pid"] == os.getpid()
    assert event["process"]["user_name"] == "root"

    assert daemon.metric('seal_monitor_denials_total{operation="mprotect",verdict="sealed"}') == 1
    assert daemon.metric('seal_monitor_denials_total{operation="munmap",verdict="sealed"}') == 0
    assert (
        daemon.metric('seal_monitor_faults_total{cause="guard_region",disposition="default"}') == 1
    )
    daemon.wait_for_metric('seal_monitor_events_total{kind="denial",result="delivered"}', 1)
    assert_conserved(daemon.stop())


def test_ready_only_after_the_canary(start: Start) -> None:
    daemon = start()
    assert daemon.get("/-/ready") == (200, "ready\n")
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.metric('seal_monitor_canary_runs_total{result="success"}') == 1
    assert daemon.metric('seal_monitor_canary_runs_total{result="failure"}') == 0


def test_canary_is_in_no_public_count(start: Start) -> None:
    daemon = start("[canary]\ninterval = 1\n[events]\nseals = true\n")
    success = 'seal_monitor_canary_runs_total{result="success"}'
    deadline = time.monotonic() + 30
    while daemon.metric(success) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert daemon.metric(success) >= 3
    assert daemon.metric('seal_monitor_canary_runs_total{result="failure"}') == 0
    stopped = daemon.stop()
    assert [numbers["counted"] for numbers in stopped["details"].values()] == [0, 0, 0, 0]
    assert daemon.events("denial") == daemon.events("fault") == daemon.events("seal") == []


@pytest.mark.host_wide
@pytest.mark.parametrize("attach", ["tracepoint", "raw_tracepoint"])
def test_storm_is_counted_exactly(start: Start, compiled: Compile, attach: str) -> None:
    daemon = start("", "--attach", attach, whole_host=True)
    done = storm(compiled("storm"), 8, 0, 2, "mixed")
    for operation in ("mprotect", "munmap", "madvise"):
        series = f'seal_monitor_denials_total{{operation="{operation}",verdict="sealed"}}'
        assert daemon.metric(series) == done[operation] > 0
    stopped = daemon.stop()
    assert stopped["details"]["denial"]["counted"] == done["total"]
    assert stopped["details"]["denial"]["suppressed"] > 0
    assert_conserved(stopped)

    reported = sum(event["count"] for event in daemon.events("suppression"))
    assert reported == stopped["details"]["denial"]["suppressed"]


def test_sigterm_in_a_storm(start: Start, compiled: Compile) -> None:
    daemon = start()
    with subprocess.Popen([compiled("storm"), "2", "0", "4", "mprotect"]) as child:
        time.sleep(1)
        stopped = daemon.stop()
        assert child.poll() is None
        child.kill()
    assert stopped["details"]["denial"]["counted"] > 0
    assert_conserved(stopped)


def test_a_thousand_processes_die_at_once(start: Start, compiled: Compile) -> None:
    daemon = start()
    assert storm(compiled("crowd"), 1000) == {"mprotect": 1000}
    stopped = daemon.stop()
    assert stopped["details"]["denial"]["counted"] == 1000
    assert_conserved(stopped)
    denials = daemon.events("denial")
    assert len(denials) == stopped["details"]["denial"]["delivered"] > 0
    for event in denials:
        assert event["process"]["name"] == "crowd"
        assert event["process"]["executable"].rpartition("/")[2] == "crowd"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb", "a\\x0ab"),
        (b'"quoted"', "\\x22quoted\\x22"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_hostile_process_names(daemon: Running, compiled: Compile, name: bytes, shown: str) -> None:
    with subprocess.Popen([compiled("names"), name.hex()], stdout=subprocess.PIPE) as child:
        assert json.loads(child.communicate()[0]) == {"errno": errno.EPERM}
    event = daemon.wait_for(
        lambda event: event["kind"] == "denial" and event["process"]["pid"] == child.pid
    )
    assert event["process"]["name"] == shown


def test_mute_filters_the_event_and_keeps_the_count(start: Start) -> None:
    daemon = start('[[mute]]\noperation = "munmap"\nreason = "a known leak"\n')
    provoke.run("munmap", "mprotect").communicate()
    daemon.wait_for(lambda event: event["kind"] == "denial")
    assert daemon.metric('seal_monitor_denials_total{operation="munmap",verdict="sealed"}') == 1
    assert daemon.metric('seal_monitor_events_total{kind="denial",result="filtered"}') == 1
    assert [event["operation"] for event in daemon.events("denial")] == ["mprotect"]
    assert_conserved(daemon.stop())


def test_seal_events_when_asked_for(start: Start, compiled: Compile) -> None:
    daemon = start("[events]\nseals = true\n")
    done = storm(compiled("seals"), 7)
    stopped = daemon.stop()
    assert len(daemon.events("seal")) == 7
    assert stopped["details"]["seal"]["delivered"] == 7
    assert done == {"seals": 7, "bytes": 7 * 4096}


def test_reload(start: Start) -> None:
    daemon = start()
    daemon.configuration.write_text("[rate_limit]\nburst = 0\n", "utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    assert "burst" in daemon.health("reload_failed")["message"]
    daemon.wait_for_metric(SUCCESSFUL, 0)  # one scrape's answer is kept for those just after it

    daemon.configuration.write_text("[events]\ndenials = []\n[ring]\nsize = 65536\n", "utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    reloaded = daemon.health("reloaded")
    assert reloaded["message"].endswith(
        "changed events.denials; refused until a restart: ring.size"
    )
    assert reloaded["details"] == {"changed": ["events.denials"], "refused": ["ring.size"]}
    daemon.wait_for_metric(SUCCESSFUL, 0)

    daemon.configuration.write_text("[events]\ndenials = []\n", "utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda event: event.get("details") == {"changed": [], "refused": []})
    daemon.wait_for_metric(SUCCESSFUL, 1)

    drop_in = daemon.configuration.with_suffix(".d") / "10-fleet.toml"
    drop_in.parent.mkdir(mode=0o755)
    drop_in.write_text("canary.interval = 30\n", "utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    added = {"changed": ["canary.interval"], "refused": []}
    daemon.wait_for(lambda event: event.get("details") == added)
    daemon.wait_for_metric("seal_monitor_canary_interval_seconds", 30)
    drop_in.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for_metric("seal_monitor_canary_interval_seconds", 60)
    provoke.run("munmap").communicate()
    stopped = daemon.stop()
    assert stopped["details"]["denial"] == {
        **dict.fromkeys(("delivered", "suppressed", "dropped", "failed"), 0),
        "counted": 1,
        "filtered": 1,
    }


def test_the_web_configuration_is_read_again(start: Start, tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
    daemon = start("", "--web.config.file", str(web))
    successful = "seal_monitor_config_last_reload_successful"
    assert daemon.metric(successful) == 1
    web.write_text("users: {}\n")
    daemon.wait_for_metric(successful, 0)
    assert daemon.health("reload_failed")["message"] == (
        f"{web}:1: key 'users': it is not supported; the nearest that is: 'basic_auth_users'; "
        "the web configuration stays as it was"
    )
    web.write_text("http_server_config:\n  headers:\n    X-Frame-Options: sameorigin\n")
    daemon.process.send_signal(signal.SIGHUP)  # without a connection
    message = "the web configuration was read again and is in force"
    daemon.wait_for(lambda event: event.get("message") == message)
    assert daemon.metric(successful) == 1
    daemon.stop()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_is_counted_and_recovers(disk: Path, start: Start) -> None:
    daemon = start("", "--events-file", str(disk / "events.jsonl"))
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(disk).f_bfree == 0
    for _ in range(8):  # the file's last page has room for some
        provoke.run("munmap").communicate()
    daemon.health("sink_failed")
    assert daemon.metric('seal_monitor_sink_errors_total{sink="file"}') >= 1
    filler.unlink()
    provoke.run("munmap").communicate()
    daemon.health("sink_recovered")
    stopped = daemon.stop()
    assert stopped["details"]["denial"]["delivered"] == 9  # standard output took all
    for line in (disk / "events.jsonl").read_text("utf-8").splitlines():
        VALIDATOR.validate(json.loads(line))


def test_port_taken(start: Start) -> None:
    daemon = start()
    address = daemon.health("started")["details"]["metrics"].split("/")[2]
    second = subprocess.run(
        [sys.executable, "-m", "monitor", "run", "--web.listen-address", address],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 1  # it may be free later
    assert f"cannot listen on {address}: address already in use" in second.stderr.lower()
    assert "Traceback" not in second.stderr


@pytest.mark.host_wide
def test_demo_shows_every_violation_right(require_bpf: None) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "monitor", "demo"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert demo.returncode == 0, demo.stdout
    cases, verdict, rest = re.split(r"^(\d+ violations in .*)\n", demo.stdout, flags=re.MULTILINE)
    assert verdict.endswith(" s, all reported correctly.")
    assert "WRONG" not in cases
    assert cases.count("\n* ") == int(verdict.split()[0]) > 60
    assert re.search(r"^  seal_monitor_denials_total +\d+ sealed, ", rest, re.MULTILINE)
    assert rest.endswith("while 'seal-monitor run' runs.\n")


class Collected:
    """A sink that keeps the events."""

    name = "collected"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def render(self, event: dict[str, object]) -> bytes:
        return encode(event)

    def write(self, data: bytes) -> None:
        self.events.append(json.loads(data))

    def reopen(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("attach", ["auto", "tracepoint", "raw_tracepoint"])
def test_what_a_mode_cannot_see_is_no_lost_probe(attach: str, require_bpf: None) -> None:
    settings = config.load(
        None, {"attach": attach, "web.listen_address": "127.0.0.1:0"}, default=Path("/none")
    )
    with Daemon(settings, [Collected()]) as daemon:
        daemon.loop(until=lambda: not daemon.not_ready())
        address, port = daemon.server.address
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=30) as answer:
            metrics = answer.read().decode()
    shown = re.findall(r"^seal_monitor_probe_attached\{(.*)\} (.*)$", metrics, re.MULTILINE)
    assert shown
    assert [labels for labels, value in shown if value != "1.0"] == []
    pattern = r'^seal_monitor_blind_spot\{name="(.*)"\} (.*)$'
    blind = {name: value == "1.0" for name, value in re.findall(pattern, metrics, re.MULTILINE)}
    doctor = subprocess.run(
        [sys.executable, "-m", "monitor", "doctor", "--json", "--attach", attach],
        capture_output=True,
        check=True,
    )
    rows = {row["check"]: row["status"] for row in json.loads(doctor.stdout)["rows"]}
    assert blind == {name: rows[name] == "blind" for name in BLIND_SPOTS}
    if attach == "tracepoint":
        assert blind["32-bit callers"]
        assert blind["/proc/PID/mem"] is memory_file_overrides()
        assert blind["userfaultfd"]


def test_a_lost_probe_is_reported(monkeypatch: pytest.MonkeyPatch, require_bpf: None) -> None:
    lost = Hook("tracepoint", "syscalls:sys_exit_no_such_call", "exit_shmat", "exit_call", 7)
    table = [p._replace(hooks=(lost,)) if p.name == "shmat" else p for p in PROBES]
    monkeypatch.setattr("monitor.kernel.attacher.PROBES", table)
    settings = config.load(
        None, {"attach": "tracepoint", "web.listen_address": "127.0.0.1:0"}, default=Path("/none")
    )
    collected = Collected()
    with Daemon(settings, [collected]) as daemon:
        daemon.loop(until=lambda: len(daemon.not_ready()) == 1)
        (reason,) = daemon.not_ready()
        assert reason.startswith("probe shmat is not attached: cannot attach to syscalls:sys_exit")
        address, port = daemon.server.address
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://{address}:{port}/-/ready", timeout=30)
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=30) as answer:
            metrics = answer.read().decode()
        assert daemon.delivery.wait(5)
    assert 'seal_monitor_probe_attached{mode="tracepoint",probe="shmat"} 0.0' in metrics
    assert 'seal_monitor_probe_attached{mode="tracepoint",probe="munmap"} 1.0' in metrics
    reported = [event for event in collected.events if event.get("event") == "probe_lost"]
    assert [event["message"].partition(":")[0] for event in reported] == ["shmat"]
