"""What a collector answers: OTLP/HTTP, "Response" and "Failures"."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from monitor.untrusted.printable import printable

__all__ = ["MESSAGE", "RETRIED", "Answer", "partial_success", "seconds"]

RETRIED = (429, 502, 503, 504)  # "Retryable Response Codes"; all others are final
_OF_CONTENT = (400, 413, 422)  # what is wrong is what was sent, not who sent it or where to
MESSAGE = 200  # characters of a collector's words


class Answer(NamedTuple):
    """`retry_after`: seconds that the collector asks to wait; `rejected`: records of a partial
    success; `message` is the collector's, made safe.
    """

    status: int
    retry_after: float | None = None
    rejected: int = 0
    message: str = ""

    @classmethod
    def of_success(cls, status: int, body: bytes) -> Answer:
        return cls(status, None, *partial_success(body))

    @classmethod
    def of_failure(cls, status: int, reason: str, retry_after: str | None) -> Answer:
        return cls(status, seconds(retry_after), 0, printable(reason or "", MESSAGE))

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_for_later(self) -> bool:
        return self.status in RETRIED

    @property
    def is_of_content(self) -> bool:
        return self.status in _OF_CONTENT


def partial_success(text: bytes) -> tuple[int, str]:
    """How many records the collector refused, and its words: ExportLogsServiceResponse."""
    try:
        partial = json.loads(text or b"{}").get("partialSuccess") or {}
        rejected = int(partial.get("rejectedLogRecords") or 0)
        words = partial.get("errorMessage") or ""
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError):
        return 0, ""  # no JSON: it was taken all the same
    return max(rejected, 0), printable(words, MESSAGE) if isinstance(words, str) else ""


def seconds(
    value: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float | None:
    """Retry-After: seconds or a date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:10])
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - http.client has it already

    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for a zone of many digits
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max((at - now()).total_seconds(), 0.0)
