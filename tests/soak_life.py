"""One life of a real daemon: what it prints, exports, writes and holds."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jsonschema
from harness import Cell

from monitor.evidence import events
from monitor.kernel.abi import Bucket, BucketKey, Workload
from monitor.kernel.counters import HashMap

__all__ = ["EventsFile", "Life", "Sample", "Scraper"]

ROOT = Path(__file__).parents[1]
VALIDATOR = jsonschema.Draft202012Validator(events.schema())
READY_SECONDS = 30.0
STOP_SECONDS = 30.0
SCRAPE_SECONDS = 1.0
_SERIES = re.compile(r"^(\w+?)(?:\{(.*)\})? (\S+)$")
_COUNTERS = ("_total", "_count", "_bucket", "_sum")


class Sample(NamedTuple):
    """What the daemon held, `at` seconds of the monotonic clock. Memory in MiB."""

    at: float
    rss: float
    anonymous: float
    descriptors: int
    threads: int


class Entries(NamedTuple):
    """`buckets`: the pid of each bucket's process."""

    buckets: list[int]
    workloads: int


class Printed:
    """The events that came on standard output, added up.

    `delays`: of the violations of programs whose name is in `timed`, seconds until they came here.
    """

    def __init__(self, timed: Collection[str] = ()) -> None:
        self._timed = timed
        self.delays: list[float] = []
        self.lines: Counter[str] = Counter()  # by kind
        self.by_process: Counter[tuple[str, int, Cell]] = Counter()  # executable, pid, cell
        self.suppressed: Counter[str] = Counter()
        self.health: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.problems: list[str] = []
        self._shapes: set[tuple[object, ...]] = set()

    def take(self, line: str) -> None:
        event = json.loads(line)
        kind = event["kind"]
        self.lines[kind] += 1
        if event["id"] in self.ids:
            self.problems.append(f"the id {event['id']} came twice")
        self.ids.add(event["id"])
        cell = self._cell(event)
        if cell:
            process = event["process"]
            name = (process["executable"] or "").rpartition("/")[2]
            self.by_process[name, process["pid"], cell] += 1
            if name in self._timed:
                passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - event["time_boot_ns"]
                self.delays.append(passed / 1e9)
        elif kind == "suppression":
            self.suppressed[event["of"]] += event["count"]
        elif kind == "health":
            self.health.append(event)
        shape = (kind, *(cell or ()), event.get("event"))
        if shape not in self._shapes:  # one of each: to validate all takes more than a core
            self._shapes.add(shape)
            self.problems += [f"schema: {e.message}" for e in VALIDATOR.iter_errors(event)]

    @staticmethod
    def _cell(event: dict[str, Any]) -> Cell | None:
        match event["kind"]:
            case "denial":
                return "denial", event["operation"], event["verdict"]
            case "fault":
                return "fault", event["cause"], event["disposition"]
            case "bypass":
                return "bypass", event["method"]
            case "seal":
                return ("seal",)
        return None


class Scraper:
    """Scrapes once a second, and looks whether a counter ever goes down."""

    def __init__(self, url: str, password: str = "") -> None:
        self.url = url
        user = base64.b64encode(f"prometheus:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {user}"} if password else {}
        self.scrapes = 0
        self.slowest = 0.0
        self.problems: list[str] = []
        self._last: dict[str, float] = {}
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="scraper")
        self._thread.start()

    def scrape(self) -> dict[str, float]:
        """Every series, as printed."""
        with self._lock:
            began = time.monotonic()
            request = urllib.request.Request(self.url, headers=self._headers)
            with urllib.request.urlopen(request, timeout=5) as answer:
                text = answer.read().decode()
            self.scrapes += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            series = {}
            for line in text.splitlines():
                if found := _SERIES.match(line):
                    name = f"{found[1]}{{{found[2]}}}" if found[2] else found[1]
                    series[name] = float(found[3])
            self._compare(series)
        return series

    def _compare(self, series: dict[str, float]) -> None:
        for name, value in series.items():
            # A fault whose handler fails may first be reported as handled: docs/metrics.md.
            is_counter = name.partition("{")[0].endswith(_COUNTERS)
            before = self._last.get(name, 0.0)
            if is_counter and value < before and 'disposition="handler"' not in name:
                self.problems.append(f"{name} went down from {before:g} to {value:g}")
        self._last = series

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody scrapes meanwhile; what follows is another process's."""
        with self._lock:
            yield
            # What it says of itself begins again.
            self._last = {
                name: value for name, value in self._last.items() if not name.startswith("process_")
            }

    def ready(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                self.url.replace("/metrics", "/-/ready"), timeout=5
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def _run(self) -> None:
        while not self._ends.wait(SCRAPE_SECONDS):
            try:
                self.scrape()
            except (OSError, ValueError) as error:
                self.problems.append(f"a scrape failed: {error}")

    def close(self) -> None:
        self._ends.set()
        self._thread.join()


class EventsFile:
    """Reads the events file behind the daemon's back, and rotates it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[str] = []
        self.rotations = 0
        self.problems: list[str] = []
        self._file: BinaryIO = path.open("a+b")
        self._end = 0

    def read(self) -> None:
        """Take the whole lines that have come."""
        data = os.pread(self._file.fileno(), 1 << 26, self._end)
        whole = data[: data.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            try:
                self.ids.append(json.loads(line)["id"])
            except ValueError as error:
                self.problems.append(f"a line of the events file is not JSON: {error}")

    def rotate(self) -> None:
        """Move it away; `follow` has to be called until the daemon has made a new one."""
        self.path.rename(self.path.with_suffix(".old"))
        self.rotations += 1

    def follow(self) -> None:
        """Go on with the new file, if the daemon has made one; the old one is removed."""
        old = self.path.with_suffix(".old")
        if old.exists() and self.path.exists():
            self.read()
            self._file.close()
            old.unlink()
            self._file, self._end = self.path.open("rb"), 0
        self.read()

    def close(self) -> None:
        self._file.close()


class Life:
    """A daemon from its start to its end; `started` is the event of its last start. With kills it
    is several processes, one after another, of which each goes on with what the one before had
    attached; `ready` has for each after how many seconds it was ready.

    `timed`: the programs whose events' delays are wanted. `password`: that of the web
    configuration, if `flags` name one that has a user prometheus.
    """

    def __init__(
        self,
        configuration: Path,
        *flags: str,
        prefix: Sequence[str] = (),
        command: Sequence[str] = ("-m", "monitor", "run"),
        timed: Collection[str] = (),
        password: str = "",
    ) -> None:
        self.printed = Printed(timed)
        self.samples: list[Sample] = []
        self.ready: list[float] = []
        self.began = time.monotonic()
        self._cpu_before = 0.0
        self._command = [
            *(*prefix, sys.executable, *command, "--config", str(configuration)),
            *("--output", "json", "--web.listen-address", "127.0.0.1:0", *flags),
        ]
        self._launch()
        self.scraper = Scraper(self.started["details"]["metrics"], password)

    def _launch(self) -> None:
        """Start a process, and wait until it is ready."""
        before = len(self.reports("started"))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="reader")
        self._reader.start()
        try:
            self.started = self.wait_for("started", before, READY_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.ready.append(self.started["details"]["ready_seconds"])

    @property
    def kills(self) -> int:
        return len(self.ready) - 1

    def revive(self) -> None:
        """SIGKILL, and another process in its place."""
        with self.scraper.held():
            self._cpu_before = self.cpu_seconds()
            self._end()
            self._launch()
            self.scraper.url = self.started["details"]["metrics"]

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if not line.endswith("\n"):
                continue  # it was killed while it wrote
            try:
                self.printed.take(line)
            except (ValueError, KeyError) as error:
                self.printed.problems.append(f"standard output: {line[:200]!r}: {error!r}")

    def reports(self, name: str) -> list[dict[str, Any]]:
        """Health events of this name so far."""
        return [event for event in self.printed.health if event["event"] == name]

    def wait_for(self, name: str, before: int, seconds: float) -> dict[str, Any]:
        """The first health event of this name after so many of them. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while len(found := self.reports(name)) <= before:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no event {name} within {seconds:.0f} s")
            time.sleep(0.02)
        return found[before]

    def hangup(self) -> None:
        self._process.send_signal(signal.SIGHUP)

    def sample(self) -> Sample:
        status = Path(f"/proc/{self.pid}/status").read_text()

        def figure(name: str) -> int:
            return int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0])

        sample = Sample(
            time.monotonic(),
            figure("VmRSS") / 1024,
            figure("RssAnon") / 1024,
            len(os.listdir(f"/proc/{self.pid}/fd")),
            figure("Threads"),
        )
        self.samples.append(sample)
        return sample

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return self._cpu_before + seconds

    def map_entries(self) -> Entries:
        """What is in the two hash maps that grow with what happens."""
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        wanted: dict[tuple[int, int], tuple[str, Any, Any]] = {
            (ctypes.sizeof(BucketKey), ctypes.sizeof(Bucket)): ("buckets", BucketKey, Bucket),
            (8, ctypes.sizeof(Workload)): ("workloads", ctypes.c_uint64, Workload),
        }
        keys: dict[str, list[Any]] = {}
        for path in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            try:
                text = path.read_text()
            except OSError:
                continue
            facts = dict(re.findall(r"^(\w+):\s+(\d+)$", text, re.MULTILINE))
            if facts.get("map_type") != "1":
                continue
            known = wanted.get((int(facts["key_size"]), int(facts["value_size"])))
            if known is None:
                continue
            name, key, value = known
            descriptor = library.bpf_map_get_fd_by_id(int(facts["map_id"]))
            try:
                keys[name] = [element for element, _ in HashMap(descriptor, key, value).items()]
            finally:
                os.close(descriptor)
        return Entries([element.pid for element in keys["buckets"]], len(keys["workloads"]))

    def stop(self) -> dict[str, Any]:
        """SIGTERM; the last event, of the final counts. Raises RuntimeError."""
        self.scraper.close()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_SECONDS)
        self._reader.join(10)
        if code:
            raise RuntimeError(f"the daemon ended with {code}")
        (stopped,) = self.reports("stopped")
        return stopped

    def kill(self) -> None:
        """SIGKILL, if it lives; nothing of it is left."""
        if hasattr(self, "scraper"):
            self.scraper.close()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()
