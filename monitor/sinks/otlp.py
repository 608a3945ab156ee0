"""Events to an OpenTelemetry collector: OTLP/HTTP, at least once.

The sink's thread writes events to the spool, and counts on nothing else. A thread of its own sends
them: the worst first, of those the oldest, a segment a request, until the collector has it. The id
in each record makes duplicates known.
"""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, MutableMapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from monitor.configuration.config import ConfigError, Otlp
from monitor.evidence.events import encode
from monitor.formats.opentelemetry import SCHEMA_URL, log_record, resource
from monitor.metrics.tally import Tally
from monitor.sinks import otlp_files
from monitor.sinks.otlp_answer import Answer
from monitor.sinks.outputs import SinkError
from monitor.sinks.spool import DIRECTORY, RANKS, Spool
from monitor.version import version

if TYPE_CHECKING:
    from monitor.sinks.otlp_client import Client

__all__ = ["NAME", "TIMES", "Notice", "OtlpSink", "Times", "request", "wait_seconds"]

NAME = "otlp"  # of the sink
_POLL_SECONDS = 60.0
_REQUESTS = 24  # at most for a batch: enough to find one event of SEGMENT_EVENTS
_BETWEEN = b"\t"  # no JSON has one
_SCHEMA = b'"schemaUrl":%s' % json.dumps(SCHEMA_URL).encode()
_SCOPE = encode({"name": "seal-monitor", "version": version()})


class Times(NamedTuple):
    """In seconds."""

    gather: float = 1.0  # events of one moment share a request
    first: float = 1.0  # to wait at most, after the first failure; doubles with each
    most: float = 60.0
    asked: float = 300.0  # at most, if the collector asks for it
    failing: float = 30.0  # without an answer, before that is reported
    notice: float = 3600.0  # between two reports of lost events
    end: float = 2.0  # for what waits when the monitor stops


TIMES = Times()


class Notice(NamedTuple):
    """For an event of kind health."""

    event: str
    message: str
    details: Mapping[str, object] | None = None


class _Running(NamedTuple):
    """What is in force; replaced as a whole."""

    otlp: Otlp
    client: Client
    files: otlp_files.Files

    @property
    def where(self) -> str:
        return _where(self.otlp)


class _Outcome(NamedTuple):
    """`later`: the answer that asks to try again; else how many events were refused, and why."""

    later: Answer | None
    refused: int = 0
    why: str = ""
    is_any_taken: bool = False


def _where(otlp: Otlp) -> str:
    """The collector, without a path, which may hold a token."""
    scheme, _, rest = otlp.endpoint.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _running(otlp: Otlp) -> _Running:
    """Raises ConfigError."""
    from monitor.sinks.otlp_client import Client  # noqa: PLC0415

    files = otlp_files.load(otlp)
    client = Client(otlp.endpoint, files.headers, files.context, otlp.timeout)
    return _Running(otlp, client, files)


def wait_seconds(failures: int, asked: float | None, times: Times = TIMES) -> float:
    """Until the next try, after this many failures in a row: full jitter, so that ten thousand
    hosts do not come back at once, after what the collector asks for.
    """
    most = min(times.first * 2 ** min(failures - 1, 32), times.most)
    return min(asked or 0.0, times.asked) + random.uniform(0.0, most)


def request(events: Iterable[bytes]) -> bytes:
    """The body for rendered events: those of one resource together."""
    split = (event.split(_BETWEEN, 1) for event in events)
    parts = [
        b'{"resource":%s,"scopeLogs":[{"scope":%s,"logRecords":[%s],%s}],%s}'
        % (of, _SCOPE, b",".join(record for _, record in group), _SCHEMA, _SCHEMA)
        for of, group in groupby(split, key=lambda pair: pair[0])
    ]
    return b'{"resourceLogs":[%s]}' % b",".join(parts)


def _gzip(body: bytes) -> bytes:
    compress = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compress.compress(body) + compress.flush()


class OtlpSink:
    """A sink that takes events as soon as they are in the spool."""

    name = NAME

    def __init__(self, otlp: Otlp, directory: Path, times: Times = TIMES) -> None:
        """`directory`: the state directory. Raises ConfigError."""
        self._running = _running(otlp)
        self._times = times
        self.sent: MutableMapping[str, int] = Counter()  # records `accepted` and `refused`
        self.spool = Spool(directory / DIRECTORY, otlp.spool_max_size, gather=times.gather)
        self.notices: deque[Notice] = deque(maxlen=64)
        self._thread: threading.Thread | None = None
        self._again = threading.Event()  # ends a wait
        self._end_at: float | None = None  # monotonic
        self._failures = 0
        self._failing_since: float | None = None
        self._is_reported = False
        self._said: dict[str, float] = {}
        self._lost: Counter[str] = Counter()

    def counting_in(self, tally: Tally) -> OtlpSink:
        """This sink, which counts there from now on. Called before the first event."""
        for mine, theirs in ((self.sent, tally.sent), (self.spool.dropped, tally.spool_dropped)):
            for key, number in mine.items():
                theirs[key] += number
        self.sent, self.spool.dropped = tally.sent, tally.spool_dropped
        tally.spools[NAME] = self.spool
        self._lost = Counter(tally.spool_dropped)
        return self

    # ---- the sink --------------------------------------------------------------------------------

    def render(self, event: dict[str, object]) -> bytes:
        """The event itself: it becomes a record in the sink's thread."""
        return encode(event)

    def write(self, data: bytes) -> None:
        """Raises SinkError when the spool has no room, FormatError for what is no event."""
        event = json.loads(data)
        record = _BETWEEN.join((encode(resource(event)), encode(log_record(event))))
        self.spool.add(event["severity"], record)
        self._start()

    def _start(self) -> None:
        """Have a sender: called with each event, as a thread may be refused, or end by a bug.

        Not called before: a thread that started earlier would keep the monitor's capabilities.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._seldom("sink_failed", f"{NAME}: it gets no thread, and events wait: {error}", {})
        else:
            self._thread = thread

    def reopen(self) -> None:
        """Nothing to open; but what waits to be tried again is tried now."""
        self._wake()

    def close(self) -> None:
        """Send what waits, for a moment; the rest stays in the spool."""
        self._end_at = time.monotonic() + self._times.end
        self.spool.wake(for_the_end=True)
        self._again.set()
        if self._thread is not None:
            self._thread.join(self._times.end)
            if self._thread.is_alive():
                self._running.client.interrupt()
                self._thread.join(self._times.end)
        # A sender that still waits for the resolver finds the spool closed, and leaves all there.
        self.spool.close(self._times.end)

    def reconfigure(self, otlp: Otlp) -> None:
        """Send by this configuration from now on: what waits as well. Raises ConfigError."""
        self._running = _running(otlp)
        self.spool.most = otlp.spool_max_size
        self._wake()

    def _wake(self) -> None:
        self._again.set()
        self.spool.wake()

    # ---- the sender ------------------------------------------------------------------------------

    def _run(self) -> None:
        used: _Running | None = None
        while not self._is_over():
            self._again.clear()
            if used is not self._running:
                if used is not None:
                    used.client.close()
                used = self._running
            batch = self.spool.take(_POLL_SECONDS if self._end_at is None else 0.0)
            self._report_lost()
            self._report_disk()
            if batch is None:
                # What has just come is sent in a moment, by the connection that is open.
                if self._end_at is not None or not self.spool.used_bytes:
                    used.client.close()
                if self._end_at is not None:
                    break
                continue
            events = [event for event in batch.events if _BETWEEN in event]
            try:
                used = self._fresh(used)
                outcome = self._send(used, events)
            except (SinkError, ConfigError) as error:
                self.spool.put_back()
                self._failed(used, str(error), None)
            except Exception as error:  # no memory, or a bug: tried again, and reported
                self.spool.put_back()
                self._failed(used, repr(error), None)
            else:
                if later := outcome.later:
                    self.spool.put_back()
                    self._failed(used, _words(later), later.retry_after)
                    continue
                self._answered(used, outcome, len(events))
                self.spool.done(batch, len(batch.events) - len(events))
                if not outcome.is_any_taken:
                    # Slowly: a wrong password must not empty the spool.
                    self._pause(wait_seconds(self._failures, None, self._times))

    def _is_over(self) -> bool:
        return self._end_at is not None and time.monotonic() >= self._end_at

    def _fresh(self, used: _Running) -> _Running:
        """With the files as they are now. Raises ConfigError."""
        if otlp_files.signature(used.otlp) == used.files.signature:
            return used
        fresh = _running(used.otlp)
        used.client.close()
        if self._running is used:
            self._running = fresh
        return fresh

    def _send(self, used: _Running, events: list[bytes]) -> _Outcome:
        """Of a part that the collector finds wrong both halves are sent: one event, whose maker
        can choose what is in it, takes no others with it.
        """
        left = [events] if events else []
        refused, why, requests, is_any_taken = 0, "", 0, not events
        while left:
            part = left.pop()
            answer = self._post(used, part)
            requests += 1
            if answer.is_for_later:
                return _Outcome(answer)
            if answer.is_taken:
                is_any_taken = True
                refused += min(answer.rejected, len(part))
            elif answer.is_of_content and len(part) > 1 and requests < _REQUESTS:
                left += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            else:
                refused += len(part)
            if answer.message or not answer.is_taken:
                why = _words(answer)
        return _Outcome(None, refused, why, is_any_taken)

    def _post(self, used: _Running, events: list[bytes]) -> Answer:
        body = request(events)
        if used.otlp.compression == "gzip":
            return used.client.post(_gzip(body), "gzip")
        return used.client.post(body, None)

    def _answered(self, used: _Running, outcome: _Outcome, events: int) -> None:
        """Count and report what became of a batch that has an answer for good."""
        self.sent["accepted"] += events - outcome.refused
        self.sent["refused"] += outcome.refused
        self._failures = 0 if outcome.is_any_taken else self._failures + 1
        self._failing_since = None
        if self._is_reported:
            self._is_reported = False
            text = f"{NAME}: {used.where} takes events again"
            self.notices.append(Notice("sink_recovered", text))
        if outcome.why:
            text = f"{used.where} refused {outcome.refused} of {events} events for good"
            details = {"refused": self.sent["refused"]}
            self._seldom("collector_refused", f"{text}: {outcome.why}", details)

    def _failed(self, used: _Running, why: str, asked: float | None) -> None:
        now = time.monotonic()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        if not self._is_reported and now - self._failing_since >= self._times.failing:
            self._is_reported = True
            waiting = f"{self.spool.used_bytes} bytes of events wait"
            self.notices.append(Notice("sink_failed", f"{NAME}: {used.where}: {why}; {waiting}"))
        self._pause(wait_seconds(self._failures, asked, self._times))

    def _pause(self, seconds: float) -> None:
        if self._end_at is not None:  # it is tried by the next run
            self._end_at = 0.0
            return
        self._again.wait(seconds)

    # ---- reports ---------------------------------------------------------------------------------

    def _report_lost(self) -> None:
        lost = {rank: self.spool.dropped.get(rank, 0) - self._lost[rank] for rank in RANKS}
        if not any(lost.values()):
            return
        words = ", ".join(f"{number} {rank}" for rank, number in lost.items() if number)
        text = f"the spool had no room or was damaged, and events were never sent: {words}"
        if self._seldom("spool_dropped", text, {"dropped": lost}):
            self._lost = Counter(self.spool.dropped)

    def _report_disk(self) -> None:
        if problem := self.spool.problem:
            text = (
                f"the spool: {problem}; it is tried again, and what the disk does not take is kept "
                "in memory, 4 MiB at most"
            )
            self._seldom("state_failed", text, {})

    def _seldom(self, event: str, message: str, details: Mapping[str, object]) -> bool:
        """Report it, unless the same was reported a short time ago; returns whether it was."""
        now = time.monotonic()
        if now - self._said.get(event, float("-inf")) < self._times.notice:
            return False
        self._said[event] = now
        self.notices.append(Notice(event, message, details))
        return True


def _words(answer: Answer) -> str:
    said = f" ({answer.message})" if answer.message else ""
    return f"it answered {answer.status}{said}"
