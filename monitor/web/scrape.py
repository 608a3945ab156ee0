"""Answers scrapes: one computation for all who ask at about the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from monitor.metrics.exposition import CollectorRegistry, Format, choose_format
from monitor.metrics.negotiation import wants_gzip
from monitor.web.message import Headers, Response, answer, gzipped

__all__ = ["Scrapes"]

KEPT_SECONDS = 1.0  # at most
SHARE = 0.05  # of a CPU
WAIT_SECONDS = 5.0  # for another that is being computed


@dataclass
class _Kept:
    """The text of a format, and in gzip once somebody asked; `until` is of the monotonic clock."""

    plain: bytes
    until: float
    packed: bytes = b""


class Scrapes:
    """Call it with the headers of a request for the response.

    What was computed is kept for 20 times the CPU time that this took, a second at most. So all
    scrapes together take a twentieth of a CPU for computing, however many come; and who comes now
    and then gets the counts of that moment.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._kept: dict[object, _Kept] = {}  # by the function that encodes the format
        self._lock = threading.Lock()  # one at a time: collectors need not be thread-safe

    def __call__(self, headers: Headers) -> Response:
        form = choose_format(headers.get("accept", ""))
        packs = wants_gzip(headers.get("accept-encoding", ""))
        more: tuple[str, ...] = ("Vary: Accept, Accept-Encoding",)
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, "another scrape is still running")
        try:
            kept = self._current(form)
            if not packs:
                return Response(HTTPStatus.OK, kept.plain, form.content_type, more)
            kept.packed = kept.packed or gzipped(kept.plain)
            more += ("Content-Encoding: gzip",)
            return Response(HTTPStatus.OK, kept.packed, form.content_type, more)
        finally:
            self._lock.release()

    def _current(self, form: Format) -> _Kept:
        kept = self._kept.get(form.encode)
        if kept is None or self._clock() >= kept.until:
            began = self._cpu_clock()
            text = form.encode(self._registry)
            took = self._cpu_clock() - began
            kept = _Kept(text, self._clock() + min(KEPT_SECONDS, took / SHARE))
            self._kept[form.encode] = kept
        return kept
