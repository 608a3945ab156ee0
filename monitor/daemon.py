"""The daemon's life: load, calibrate, prove itself, watch, drain, stop.

One thread does everything but answering HTTP and writing to sinks. It never waits for a process,
and for a sink only at the end, for seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitor import heap
from monitor.attach.attached import Replacing
from monitor.canary import Canary, Rounds
from monitor.configuration.config import Config, ConfigError
from monitor.evidence.events import clock_offset
from monitor.host import facts as host
from monitor.host.blind_spots import Sight
from monitor.incidents.opened import open_incidents
from monitor.keep.ledger import Ledger
from monitor.keep.record import CANARY_FAILED
from monitor.kernel import abi, privileges
from monitor.kernel.announced import Marks
from monitor.life import reports
from monitor.life.announcements import (
    Announcements,
    RuntimeDirectoryError,
    listen,
    own_directory,
)
from monitor.life.keeping import Keeping
from monitor.life.last_run import LastRun, state_directory
from monitor.life.reload import InForce, merge
from monitor.life.service import Service
from monitor.metrics import accounts, collector
from monitor.metrics.exposition import CollectorRegistry
from monitor.metrics.reading import KernelFacts
from monitor.metrics.source import NOTHING_REMOVED, KernelSource
from monitor.metrics.tally import Tally
from monitor.posture.rounds import PostureRounds
from monitor.provoke.child import nobody
from monitor.sinks.delivery import Delivery
from monitor.sinks.opened import open_otlp, open_sinks
from monitor.sinks.outputs import FileSink, Sink
from monitor.start import Start
from monitor.version import revision, version
from monitor.watch.pump import SWEEP_SECONDS
from monitor.watch.watcher import Watcher
from monitor.web import server as web
from monitor.web.configuration import WebConfiguration

if TYPE_CHECKING:
    from monitor.incidents.snapshot_thread import Snapshots
    from monitor.incidents.store import IncidentStore
    from monitor.sinks.otlp import OtlpSink

__all__ = ["Daemon", "run"]

MISSED_SECONDS = 10.0
FILE_REPORT_SECONDS = 3600.0
DRAIN_SECONDS = 2.0
SWITCH_SECONDS = 0.0005  # how long a storm may keep the interpreter from sinks and scrapes
FLUSH_SECONDS = 2.0  # at the end, for a sink to take the next waiting event, and
FLUSH_AT_MOST_SECONDS = 10.0  # for all of them, on a slow disk; TimeoutStopSec= allows for it
SNAPSHOT_SECONDS = 0.5  # for the snapshots that were asked for last
LAST_SECONDS = 1.0  # for the event with the final counts
POLL_SECONDS = 0.01  # while there is what cannot wake it up


def run(config: Config, reload: Callable[[], Config], start: Start) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns 0.

    `reload` reads the configuration again; `start` comes from start.begin().

    Raises HostError, LoadError, CalibrationError, ConfigError, WebError.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    heap.keep_small()
    faulthandler.enable(2)  # prints the stack when the watchdog ends it by SIGABRT
    last_run = LastRun(state_directory(config.state.directory), host.host_facts().boot_id)
    outputs = open_sinks(config)
    incidents = open_incidents(config.incidents, last_run.directory, last_run.problems.append)
    if incidents:
        outputs.append(incidents)
    otlp = open_otlp(config.otlp, last_run.directory)
    if otlp:
        outputs.append(otlp)
    with Daemon(
        config,
        outputs,
        reload,
        last_run,
        start,
        incidents=incidents,
        otlp=otlp,
        runtime=own_directory(),
        restricted=True,
    ) as daemon:
        daemon.watch_signals()
        daemon.loop()
        daemon.stop()
    return 0


def _clocks() -> tuple[float, float]:
    """The time now, in seconds: by the boot clock, and by the real-time clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.time()


class Daemon:
    """Everything that runs. Use as a context manager: leaving it detaches and closes all."""

    def __init__(
        self,
        config: Config,
        outputs: list[Sink],
        reload: Callable[[], Config] | None = None,
        last_run: LastRun | None = None,
        start: Start | None = None,
        *,
        incidents: IncidentStore | None = None,
        otlp: OtlpSink | None = None,
        runtime: Path | None = None,
        announce: Callable[[int], None] = nobody,
        restricted: bool = False,
    ) -> None:
        """`incidents` is their store, `otlp` what sends to a collector, if one of the outputs is.
        `runtime`: where announcements are taken; None: nowhere. `announce` is called with the pid
        of each process that is about to try something.

        `restricted`: once everything is open, give up all capabilities but those that read the
        identity of processes.
        """
        self._started = time.monotonic()
        self._config = config
        self._reload = reload
        self._last_run = last_run or LastRun(None, "")
        self._service = Service()
        self._wait_seconds = min(SWEEP_SECONDS, self._service.feeding_seconds or SWEEP_SECONDS)
        self._wakeup: int | None = None
        self._stopping, self._stopped_by = False, ""
        self._reload_asked = False
        self._has_started = False
        self._notes: list[str] = []
        self._missed_at = 0.0
        self._files = [output for output in outputs if isinstance(output, FileSink)]
        self._file_reported_at = float("-inf")
        self._incidents = incidents
        self._pending_health: deque[tuple[str, str]] = deque()
        ledger = self._ledger = start.ledger if start else Ledger()
        self._has_drained = False
        self.tally = Tally((output.name for output in outputs), ledger)
        self._otlp = otlp and otlp.counting_in(self.tally)
        self._keeping = Keeping(start, ledger, self.tally)
        self._show_intervals()
        self.delivery = Delivery(outputs, self.tally, self._on_sink)
        self._in_force = InForce(self.tally)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self.delivery.close)
            cleanup.callback(self._last_run.close)
            host.require()
            self.facts = host.host_facts(config.host.id)
            self._web = WebConfiguration(config.web.config_file)
            # Before anything is attached: whoever announces waits until it is.
            listening = cleanup.enter_context(self._listen(runtime))
            self.watcher = cleanup.enter_context(self._watch(start, announce))
            self._watching_since = _clocks()
            self._report = self.watcher.pipeline.health
            self._in_force.has_read("configuration", True)
            self._snapshots = self._make_snapshots() if incidents else None
            findings, kernel = self.watcher.findings, self.watcher.state.config
            self._announcements = self._take_announcements(*listening) if listening else None
            if self._announcements:
                cleanup.callback(self._announcements.close)
            self._canary = Canary(kernel, time.monotonic, findings.guard_regions, announce)
            cleanup.callback(self._canary.stop)
            self._rounds = Rounds(self._canary, self._started)
            self.server = web.listen(
                config.web.listen_address,
                self._registry(),
                self.not_ready,
                self._web.access,
                config.web.allowed_hosts,
            )
            cleanup.callback(self.server.close)
            self._posture = PostureRounds(self._last_run.directory, config.workloads.maximum)
            cleanup.callback(self._posture.stop)
            self._start(restricted)
            self._cleanup = cleanup.pop_all()

    def _watch(self, start: Start | None, announce: Callable[[int], None]) -> Watcher:
        """The programs, attached, and those of an earlier life as well as new ones kept."""
        if start and isinstance(start.programs, Replacing):
            start.programs.finish()  # a kill while they load says nothing about what was found
        with self._ledger.risk():
            watcher = Watcher(
                self._config,
                self.facts,
                self.delivery,
                self.tally,
                beginning=start.programs if start else None,
                take=self._take,
                ask_snapshot=self._ask_snapshot,
                announce=announce,
                is_prompt=True,
                ledger=self._ledger,
            )
            self._keeping.begin(watcher.attached, watcher.findings, watcher.severities)
        return watcher

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self, restricted: bool) -> None:
        """Called once everything is open: a thread started earlier would keep its capabilities."""
        if restricted:
            privileges.keep(privileges.IDENTITY)
        self._canary.start()
        self.server.start()
        for probe in self.watcher.loaded.probes:
            if probe.lost:
                self._report("probe_lost", f"{probe.probe}: {probe.error}")

    @contextlib.contextmanager
    def _listen(self, runtime: Path | None) -> Iterator[tuple[socket.socket, Path] | None]:
        """The socket for announcements, which is closed and removed unless it is taken over."""
        listening = None
        if runtime is not None:
            try:
                listening = listen(runtime)
            except RuntimeDirectoryError as error:
                self._notes.append(str(error))
        try:
            yield listening
        finally:
            if listening:
                listening[0].close()
                listening[1].unlink(missing_ok=True)

    def _take_announcements(self, listener: socket.socket, path: Path) -> Announcements:
        state = self.watcher.state

        def counted() -> int:
            return sum(accounts.violations(state.counters(abi.Bank.ANNOUNCED)).values())

        marks = Marks(state.config, self.watcher.loaded.maps["announced_cgroups"])
        return Announcements(listener, path, marks, counted, self._report)

    def _make_snapshots(self) -> Snapshots:
        from monitor.incidents import snapshot  # noqa: PLC0415 - where there is no store, nor is SQLite
        from monitor.incidents.snapshot_thread import Snapshots  # noqa: PLC0415

        kept = self._config.incidents
        size = min(snapshot.LIMITS.text_bytes, kept.max_size // 32)
        take = functools.partial(
            snapshot.take,
            start_offset_ns=clock_offset(),
            reports_guards=bool(self.watcher.state.config.maybe_guard_mask),
            limits=snapshot.LIMITS._replace(text_bytes=size),
        )
        return Snapshots(self.delivery, self.tally, take, kept.snapshots)

    def _registry(self) -> CollectorRegistry:
        watched, store = self.watcher, self._incidents
        source = KernelSource(
            *(watched.state, watched.loaded, watched.ring, watched.workloads),
            store.path if store else None,
            blind_spots=Sight(watched.loaded.probes).blind_spots,
            severities=watched.severities,
            missed_before=watched.missed_before,
            removed=store.removed if store else NOTHING_REMOVED,
        )
        partial_updates = watched.findings.partial_updates
        facts = KernelFacts(self.facts.kernel_release, True, partial_updates)
        return collector.build(source, self.tally, facts, version(), revision())

    @property
    def metrics_url(self) -> str:
        address, port = self.server.address
        shown = f"[{address}]" if ":" in address else address
        scheme = "https" if self._web.has_tls else "http"
        return f"{scheme}://{shown}:{port}/metrics"

    def not_ready(self) -> list[str]:
        """Why the daemon is not ready, one reason an item; empty when it is ready."""
        reasons = [
            f"probe {probe.probe} is not attached: {probe.error}"
            for probe in self.watcher.loaded.probes
            if probe.lost
        ]
        if self._stopping:
            reasons.append("it is stopping")
        if problem := self._rounds.problem:  # read once: the other thread may clear it
            reasons.append(f"canary: {problem}")
        return reasons

    # ---- the loop --------------------------------------------------------------------------------

    def watch_signals(self) -> None:
        """From now on SIGTERM and SIGINT stop the daemon, and SIGHUP reloads."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._cleanup.callback(os.close, reader)
        self._cleanup.callback(os.close, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._cleanup.callback(signal.set_wakeup_fd, -1)
        self._wakeup = reader

        def ask_stop(number: int, _: object) -> None:
            self._stopping = True
            self._stopped_by = signal.Signals(number).name

        def ask_reload(*_: object) -> None:
            self._reload_asked = True

        for number, handler in (
            (signal.SIGTERM, ask_stop),
            (signal.SIGINT, ask_stop),
            (signal.SIGHUP, ask_reload),
        ):
            self._cleanup.callback(signal.signal, number, signal.signal(number, handler))

    def loop(self, until: Callable[[], bool] = lambda: False) -> None:
        """Watch until a signal asks to stop, or `until` is true after a turn."""
        with select.epoll() as poll:
            poll.register(self.watcher.ring.descriptor, select.EPOLLIN)
            poll.register(self.delivery.descriptor, select.EPOLLIN)
            if self._announcements:
                poll.register(self._announcements.descriptor, select.EPOLLIN)
            if self._wakeup is not None:
                poll.register(self._wakeup, select.EPOLLIN)
            while not self._stopping and not until():
                is_busy = self._canary.running or self.watcher.ring.older  # which are not polled
                poll.poll(POLL_SECONDS if is_busy else self._wait_seconds)
                if self._wakeup is not None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 64)
                self.turn()

    def turn(self) -> None:
        """One turn of the loop: drain the ring, and do everything that is due."""
        now = time.monotonic()
        self._keeping.turned()
        is_drained = self._drain() > 0 or not self.watcher.ring.used_bytes
        if self._snapshots:
            self._snapshots.collect()
        self.delivery.collect()
        self._report_pending()
        if self._announcements:
            self._announcements.turn()
        self._run_canary(now)
        self._look_at_posture(now)
        self.watcher.pump.sweep_when_due(now)
        if now >= self._missed_at:
            self._missed_at = now + MISSED_SECONDS
            self._look_at_losses()
            self._look_at_files(now)
        if self._reload_asked:
            self._reload_asked = False
            with self._service.reloading():
                self.delivery.reopen()
                self._reload_configuration()
                self._web.reload(now)
        self._web.turn(now)
        self._service.turned(is_drained and not self._rounds.is_late, self._status)

    def _drain(self) -> int:
        if self._has_drained:
            return self.watcher.pump.drain()
        with self._ledger.risk():
            drained = self.watcher.pump.drain()
        self._has_drained = True
        self._ledger.survived()
        return drained

    def _take(self, records: Sequence[abi.Record]) -> None:
        others = []
        for record in records:
            if record.flags & abi.RecordFlag.CANARY:
                self._canary.collect(record)
            else:
                others.append(record)
        self.watcher.pipeline.take(others)

    def _ask_snapshot(self, event: Mapping[str, Any], record: abi.Record) -> None:
        if self._snapshots:
            self._snapshots.ask(event, record)

    def _run_canary(self, now: float) -> None:
        outcome = self._rounds.turn(now, self._config.canary.interval)
        if outcome is None:
            return
        self.tally.canary("failure" if outcome.problem else "success", time.time())
        self._ledger.doubt(CANARY_FAILED, bool(outcome.problem))
        if outcome.problem:
            self._report("canary_failed", outcome.problem)
        elif not self._has_started:
            self._has_started = True
            self._report_started()
        elif outcome.blind_seconds is not None:
            words = f"after {outcome.blind_seconds:.0f} s"
            self._report("canary_recovered", words, outcome.blind_seconds)

    def _show_intervals(self) -> None:
        self.tally.intervals(self._config.canary.interval, self._config.posture.interval)

    def _look_at_posture(self, now: float) -> None:
        outcome = self._posture.turn(now, self._config.posture.interval)
        if outcome is None:
            return
        if outcome.figures is not None:
            self.tally.posture_seen(outcome.figures)
        for problem in outcome.problems:
            self._report("state_failed" if outcome.figures else "posture_failed", problem)
        for change in outcome.changes:
            self._report(change.event, change.message, details=change.details)

    def _report_started(self) -> None:
        watched, counters = self.watcher, self.watcher.state.counters()
        self._say(
            "started",
            reports.started(
                ready_seconds=time.monotonic() - self._started,
                metrics_url=self.metrics_url,
                loaded=watched.loaded,
                partial_updates=watched.findings.partial_updates,
                keeping=self._keeping,
                counters=counters,
                last_run=self._last_run,
                boot_id=self.facts.boot_id,
                watching_since=self._watching_since,
                notes=self._notes,
            ),
        )
        self._last_run.alive(accounts.totals(counters))
        self._service.ready()
        heap.give_back()

    def _say(self, event: str, said: reports.Said) -> None:
        self._report(event, said.message, said.blind_seconds, said.details)

    def _look_at_losses(self) -> None:
        self.watcher.pump.look_at_losses()
        if self._has_started:
            self._last_run.alive(accounts.totals(self.watcher.state.counters()))

    def _look_at_files(self, now: float) -> None:
        removed = sum(file.removed_bytes for file in self._files)
        is_more = self.tally.removed_from_file(removed)
        if is_more and now - self._file_reported_at >= FILE_REPORT_SECONDS:
            self._file_reported_at = now
            bound = self._config.output.events_file_max_size
            self._report(
                "events_file_full",
                f"{removed} bytes of events between the oldest and the newest were removed so "
                f"far, to keep within {bound}; see output.events_file_max_size",
            )

    def _on_sink(self, name: str, error: OSError | None) -> None:
        if error is None:
            self._pending_health.append(("sink_recovered", f"{name} takes events again"))
        else:
            self._pending_health.append(("sink_failed", f"{name}: {error}"))

    def _report_web_configuration(self, error: web.WebError | None) -> None:
        """The web configuration was read again, most often by a thread that answers HTTP."""
        if error is None:
            said = ("reloaded", "the web configuration was read again and is in force")
        else:
            said = ("reload_failed", f"{error}; the web configuration stays as it was")
        self._in_force.has_read("web configuration", error is None)
        self._report(*said)

    def _report_pending(self) -> None:
        while self._last_run.problems:
            self._report("state_failed", self._last_run.problems.pop(0))
        while self._incidents and self._incidents.notices:
            self._report("incidents_removed", self._incidents.notices.popleft())
        while self._otlp and self._otlp.notices:
            notice = self._otlp.notices.popleft()
            self._report(notice.event, notice.message, details=dict(notice.details or {}))
        for outcome in self._web.outcomes():
            self._report_web_configuration(outcome)
        while self._pending_health:
            self._report(*self._pending_health.popleft())

    def _reload_configuration(self) -> None:
        if self._reload is None:
            return
        try:
            done = merge(self._config, self._reload())
            if self._otlp:
                self._otlp.reconfigure(done.config.otlp)
        except ConfigError as error:
            self._in_force.has_read("configuration", False)
            self._report("reload_failed", str(error))
            return
        self.watcher.reconfigure(done.config)
        if self._snapshots:
            self._snapshots.reconfigure(done.config.incidents.snapshots)
        self._config = done.config
        self._show_intervals()
        self._in_force.has_read("configuration", not done.refused)
        self._report("reloaded", done.message, details=done.details)

    # ---- the end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Detach, drain, deliver what waits, and report the final counts."""
        self._stopping = True
        self._service.stopping()
        try:
            self._keeping.stop()
        except OSError as error:
            self._report("state_failed", f"what is attached cannot be let go: {error}")
        self._canary.stop()
        self._posture.stop()
        self.watcher.loaded.detach()  # what is kept goes on
        if self._announcements:
            self._announcements.close()
        if self._has_started:  # else the file of the run before still holds
            self._last_run.alive(accounts.totals(self.watcher.state.counters()))
        self.watcher.pump.finish(DRAIN_SECONDS, detached=not self._keeping.is_kept)
        if self._snapshots:
            self._snapshots.finish(SNAPSHOT_SECONDS)
        self.delivery.finish(FLUSH_SECONDS, FLUSH_AT_MOST_SECONDS)
        counters = self.watcher.state.counters()
        reason = f"stopped by {self._stopped_by}" if self._stopped_by else "stopped"
        if self._has_started:
            self._last_run.end(reason, accounts.totals(counters))
        self._report_pending()
        seconds = time.monotonic() - self._started
        self._say(
            "stopped",
            reports.stopped(counters, self.tally, self._keeping, seconds, self._stopped_by),
        )
        self.delivery.finish(LAST_SECONDS)

    def _status(self) -> str:
        return reports.status(self.not_ready(), self.watcher.state.counters())
