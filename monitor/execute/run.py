"""`seal-monitor exec`: runs a command and reports its violations and those of its children.

The command is in a separate cgroup, and the kernel counts only what happens there: its counters are
the command's. One thread does everything but writing to sinks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from monitor.configuration.config import Config, RateLimit, Ring, Watch
from monitor.execute.cgroup import CommandCgroup, Member
from monitor.execute.command import (
    FORWARDED,
    Command,
    Signals,
    Start,
    User,
    environment,
    user_named,
)
from monitor.execute.files import Nearby
from monitor.execute.names import Names
from monitor.execute.remains import new_prefix, remove_directories
from monitor.execute.sink import CommandSink, Event
from monitor.execute.summary import Result, document, live, summary, violations
from monitor.host import facts as host
from monitor.incidents.search import Filter, Incident, Incidents
from monitor.incidents.store import FILE, IncidentStore, Retention
from monitor.kernel.probes import OPTIONAL
from monitor.metrics.tally import Tally
from monitor.provoke.announce import Announcer
from monitor.report.private_file import PrivateFile
from monitor.sinks.delivery import Delivery
from monitor.symbols.resolver import Resolver
from monitor.watch.pump import SWEEP_SECONDS
from monitor.watch.watcher import Watcher

__all__ = ["ExecError", "Options", "run"]

FAILED_ON = 4  # exit code

BACKLOG_SECONDS = 0.5  # to wait for the sink, between two parts of the ring
ENDING_SECONDS = 0.2  # processes that end so soon after the command are not reported
DRAIN_SECONDS = 10.0
FLUSH_SECONDS = 10.0
# Every place gets events, and a storm at one place leaves room for the others.
RATE_LIMIT = RateLimit(per_caller=1, burst=20, host=0)
IDLE_NS = 2_000_000_000  # then a bucket is free again: thousands of short processes find one
RING_SIZE = 16 << 20
RETENTION = Retention(age=1, size=1 << 30, events=RATE_LIMIT.burst)
CALLERS = 1 << 16  # whose suppressed events find their incident
INCIDENTS_MOST = 1000


class ExecError(OSError):
    """Why the command was not run, and the way out."""


@dataclass(frozen=True)
class Options:
    """`user`: None for the user of sudo, else the caller. `fail_on`: kinds of violations."""

    words: Sequence[str]
    user: str | None
    fail_on: Sequence[str]
    json: str | None
    report: str | None


# ---- Where results go ----------------------------------------------------------------------------


def _may_write(directory: os.stat_result, user: User) -> bool:
    if directory.st_uid == user.uid:
        return bool(directory.st_mode & stat.S_IWUSR)
    own = stat.S_IWGRP if directory.st_gid in user.groups else stat.S_IWOTH
    return bool(directory.st_mode & own)


class _Output:
    """Standard output for "-", else a file. A context manager.

    The file belongs to the command's user if that user may write to the directory, else to the
    caller: the directory may be a link that an earlier command has left. A file that is there stays
    as it is until there is something to write: the command may fail to start.
    """

    def __init__(self, name: str, user: User | None) -> None:
        """Raises OSError, ExecError, so that a mistake is found before the command runs."""
        self._owner: tuple[int, int] | None = None
        self._file = None if name == "-" else PrivateFile(Path(name))
        if self._file and user and _may_write(self._file.directory(), user):
            self._owner = user.uid, user.gid
        if self._file is None and sys.stdout is None:
            raise ExecError("standard output is closed; name a file instead of -")

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data, self._owner)
        else:
            with contextlib.suppress(BrokenPipeError):  # its reader has had enough
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _page(database: Path) -> bytes:
    """Every incident of the database as an HTML page."""
    from monitor.report import page as report  # noqa: PLC0415 - Jinja2, only needed for a page

    page = io.BytesIO()
    with Incidents(database, own=True) as incidents:
        report.write(incidents, incidents.search(Filter(), INCIDENTS_MOST), page)
    return page.getvalue()


def _json(result: Result) -> bytes:
    text = json.dumps(document(result), indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


# ---- The life of the command ---------------------------------------------------------------------


class _Terminal:
    """Standard error, which the command writes to as well: each text is one write."""

    def __init__(self, stream: TextIO | None) -> None:
        is_terminal = stream is not None and stream.isatty()
        self.colours = is_terminal and "NO_COLOR" not in os.environ
        self._stream = stream
        self._width = shutil.get_terminal_size((100, 24)).columns if is_terminal else 120

    def show(self, event: Event) -> None:
        self.write(live(event, colours=self.colours, width=self._width))

    def problem(self, text: str) -> None:
        self.write(f"seal-monitor: {text}\n")

    def write(self, text: str) -> None:
        if self._stream is None:  # the caller has closed it
            return
        with contextlib.suppress(OSError):  # the reader has gone: the command goes on
            self._stream.write(text)
            self._stream.flush()


class _Watch:
    """Everything from loading to the last event. Use as a context manager."""

    def __init__(
        self, config: Config, directory: Path, terminal: _Terminal, announcer: Announcer
    ) -> None:
        """`directory` is where the incidents are kept."""
        self._announcer = announcer
        self.notes: list[str] = []
        self.left: list[Member] = []
        with contextlib.ExitStack() as cleanup:
            search: list[Path] = []
            resolver = cleanup.enter_context(Resolver(os.environ, search=search))
            names = Names(resolver, search, Nearby(Path()))
            store = IncidentStore(directory, RETENTION, self.notes.append, callers=CALLERS)
            sink = CommandSink(store, names.named, terminal.show)
            self._tally = Tally([sink.name])
            self._delivery = Delivery([sink], self._tally, self._on_sink)
            cleanup.callback(self._delivery.close)
            self.watcher = cleanup.enter_context(
                Watcher(
                    config,
                    host.host_facts(config.host.id),
                    self._delivery,
                    self._tally,
                    idle_ns=IDLE_NS,
                    has_room=self._is_taken,
                    report=self._note_health,
                    announce=announcer.process,
                )
            )
            for probe in self.watcher.loaded.probes:
                if not (probe.attached or probe.probe in OPTIONAL):
                    self.notes.append(f"probe {probe.probe} is not attached: {probe.error}")
            self._signals = Signals()  # only now: until here Ctrl-C ends this process
            cleanup.callback(self._signals.close)
            self._cgroup = CommandCgroup()
            cleanup.callback(self._cgroup.close)
            self.watcher.state.watch_cgroup(self._cgroup.descriptor)
            announcer.cgroup(self._cgroup.descriptor)
            while self.watcher.ring.drain().records:
                pass  # records of other processes, from before
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def run(self, words: Sequence[str], user: User | None) -> int:
        """How the command ended, as Command.wait() returns it. Raises CannotStart."""
        command = Command(
            Start(list(words), environment(user), user, self._signals.before), self._cgroup.entry
        )
        # The command may be a shell that gives the terminal to its jobs: writing must not stop us.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with select.epoll() as poll:
            for descriptor in (
                *(command.descriptor, self._signals.descriptor),
                *(self.watcher.ring.descriptor, self._delivery.descriptor),
            ):
                poll.register(descriptor, select.EPOLLIN)
            has_ended = False
            while not has_ended:
                ready = {descriptor for descriptor, _ in poll.poll(SWEEP_SECONDS)}
                has_ended = command.descriptor in ready
                for number in self._signals.take():
                    command.send(number)
                self._turn()
        status = command.wait()
        self._wait_for_children()
        return status

    def _wait_for_children(self) -> None:
        deadline = time.monotonic() + ENDING_SECONDS
        while (members := self._cgroup.members()) and time.monotonic() < deadline:
            self._turn()
            time.sleep(0.01)
        self.left = members

    def _turn(self) -> None:
        self.watcher.pump.drain()
        self._delivery.collect()
        self.watcher.pump.sweep_when_due(time.monotonic())
        self._announcer.again(self._cgroup.descriptor)

    def _is_taken(self) -> bool:
        """Whether the sink has nothing left to do: until then events wait in the larger ring."""
        return self._delivery.wait(BACKLOG_SECONDS)

    def finish(self) -> None:
        """Detach; afterwards the counters are final, and the store has all events."""
        self.watcher.loaded.detach()
        self.watcher.pump.finish(DRAIN_SECONDS)
        self._delivery.finish(FLUSH_SECONDS)
        if self._tally.decode_errors:
            self._note(f"{self._tally.decode_errors} records could not be read")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _note_health(
        self, name: str, message: str, *, details: dict[str, object] | None = None
    ) -> None:
        del details
        if name != "records_corrupt":  # finish() notes how many there were in all
            self._note(message)

    def _on_sink(self, name: str, error: OSError | None) -> None:
        if error is not None:
            self._note(f"{name}: {error}")


# ---- What came of it -----------------------------------------------------------------------------


def _found(database: Path) -> list[tuple[Incident, list[Event]]]:
    """Every incident with its kept events; the incident that was last seen comes last."""
    if not database.exists():  # no event has opened it
        return []
    with Incidents(database, own=True) as incidents:
        found = incidents.search(Filter(), INCIDENTS_MOST)
        return [(each, incidents.events(each)) for each in reversed(found)]


def _user(name: str | None) -> User | None:
    """The user to run the command as; None: the caller."""
    name = name or (os.environ.get("SUDO_USER") if os.geteuid() == 0 else None)
    return user_named(name) if name else None


def _settings(config: Config) -> Config:
    """The configuration with everything watched, nothing muted, and room for a storm."""
    return replace(
        config,
        watch=Watch(compat=True, io_uring=True),
        ring=Ring(size=RING_SIZE),
        rate_limit=RATE_LIMIT,
        mutes=(),
    )


def _end_in_order() -> Callable[[], None]:
    """Make signals that would end this process raise SystemExit, so that nothing is left behind.

    Signals that the caller ignores stay ignored; once the command runs, signals go to the command.
    Call the returned function to exit if a signal came before: Python ignores exceptions in the
    functions that a fork calls.
    """
    codes: list[int] = []

    def end(number: int, _: object) -> None:
        codes.append(128 + number)
        sys.exit(codes[0])

    def end_if_asked() -> None:
        if codes:
            sys.exit(codes[0])

    for number in FORWARDED:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)
    return end_if_asked


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """A temporary directory. No signal ends this process between making it and arranging for its
    removal.
    """
    remove_directories(Path(tempfile.gettempdir()))
    with contextlib.ExitStack() as cleanup:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix=new_prefix()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield Path(folder)


def _watched(
    config: Config,
    options: Options,
    user: User | None,
    directory: Path,
    terminal: _Terminal,
    *,
    announcer: Announcer,
    end_if_asked: Callable[[], None],
) -> Result:
    with _Watch(_settings(config), directory, terminal, announcer) as watch:
        end_if_asked()  # from here on signals are the command's
        began = time.monotonic()
        status = watch.run(options.words, user)
        seconds = time.monotonic() - began
        watch.finish()
        counters = watch.watcher.state.counters()
    made = violations(counters)
    failed_on = [kind for kind in options.fail_on if made[kind]]
    return Result(
        words=options.words,
        status=status,
        code=FAILED_ON if failed_on else status if status >= 0 else 128 - status,
        failed_on=failed_on,
        seconds=seconds,
        counters=counters,
        incidents=_found(directory / FILE),
        left=watch.left,
        notes=watch.notes,
    )


def run(config: Config, options: Options) -> int:
    """Run the command and report its violations; returns the exit code.

    Raises what starting the daemon raises, and ExecError, UserError, CannotStart, CgroupError.
    """
    end_if_asked = _end_in_order()
    user = _user(options.user)
    with contextlib.ExitStack() as cleanup:
        as_json, as_page = (
            cleanup.enter_context(_Output(name, user)) if name is not None else None
            for name in (options.json, options.report)
        )
        host.require()
        terminal = _Terminal(sys.stderr)
        directory = cleanup.enter_context(_directory())
        with Announcer(
            f"exec {os.path.basename(options.words[0])}", problem=terminal.problem
        ) as announcer:
            result = _watched(
                *(config, options, user, directory, terminal),
                announcer=announcer,
                end_if_asked=end_if_asked,
            )
        terminal.write(summary(result, colours=terminal.colours))
        if as_json:
            as_json.write(_json(result))
        if as_page and result.incidents:
            as_page.write(_page(directory / FILE))
        elif as_page:
            terminal.write("seal-monitor: no report: there was no violation\n")
    return result.code
