"""PostgreSQL by psycopg, which only these commands need."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from monitor.fleet import questions
from monitor.fleet.answer import ANSWER_LIMIT, SECONDS, CentreError, Row, within
from monitor.untrusted.printable import printable

__all__ = ["PostgreSQL"]

_CONNECT_SECONDS = 10
_ROW_BYTES = 64  # that a row counts for, whatever is in it


class PostgreSQL:
    """A connection that may not write. Without a password the driver looks where libpq does: in
    PGPASSWORD and ~/.pgpass.
    """

    def __init__(self, url: str, password: str | None) -> None:
        try:
            import psycopg  # noqa: PLC0415 - an optional dependency
        except ImportError as error:
            raise CentreError(
                "this needs psycopg; run: apt-get install python3-psycopg, or: pip install "
                "'seal-monitor[fleet]'"
            ) from error
        self._error: type[Exception] = psycopg.Error
        parts = urllib.parse.urlsplit(url)
        self.name = (
            f"postgresql://{printable(parts.netloc.rpartition('@')[2])}{printable(parts.path)}"
        )
        options = f"-c statement_timeout={int(SECONDS * 1000)} -c default_transaction_read_only=on"
        given: dict[str, Any] = {} if password is None else {"password": password}
        try:
            self._connection = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                options=f"{options} -c timezone=UTC",
                tcp_user_timeout=int(SECONDS * 1000),
                application_name="seal-monitor",
                **given,
            )
        except psycopg.Error as error:
            raise self._failed(error) from error

    def text(self, question: str) -> str:
        return questions.postgresql(question)

    def ask(self, text: str, values: Mapping[str, object]) -> list[Row]:
        given = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        rows: list[Row] = []
        size = 0
        try:
            with within(SECONDS, self._connection.fileno), self._connection.cursor() as cursor:
                # Row by row, so that no more is read than is wanted.
                for row in cursor.stream(text.encode(), given):
                    rows.append(row)
                    size += sum(len(value) for value in row if isinstance(value, str)) + _ROW_BYTES
                    if size > ANSWER_LIMIT:
                        raise CentreError(f"{self.name} answers with over {ANSWER_LIMIT:,} bytes")
        except self._error as error:
            raise self._failed(error) from error
        return rows

    def _failed(self, error: Exception) -> CentreError:
        words = " ".join(str(error).split())
        return CentreError(f"{self.name}: {printable(words, 500)}")

    def close(self) -> None:
        self._connection.close()
