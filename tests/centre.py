"""The databases of dashboards/fleet for a test, real ones: ClickHouse's engine, and PostgreSQL.

Both are of the test's own, in a directory that goes away with it. Nothing listens but on loopback,
or on a socket that only its owner may open.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest

from monitor.fleet import questions

__all__ = ["Centre", "ClickHouse", "PostgreSQL", "clickhouse", "postgresql", "statements"]

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "dashboards/fleet"
DEBIANS = Path("/usr/lib/postgresql")
ACCOUNT = "postgres"  # the server refuses to run as root
START_SECONDS = 60.0


class Centre(Protocol):
    """`url` is what `seal-monitor fleet --from` takes."""

    url: str

    def clear(self) -> None:
        """Remove all events."""

    def load(self, lines: Iterable[str]) -> None:
        """Insert lines as a collector does."""

    def ask(self, question: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows of a question; times are datetimes in UTC."""

    def rows(self, query: str) -> list[tuple[Any, ...]]: ...


def statements(file: Path) -> list[str]:
    """The statements of a file for ClickHouse, without comments at their beginning."""
    text = re.sub(r"^\s*--.*$", "", file.read_text("utf-8"), flags=re.M)
    return [each for each in re.split(r";\s*(?:\n|$)", text) if each.strip()]


# ---- ClickHouse ----------------------------------------------------------------------------------


def _written(value: object) -> str:
    """A value as clickhouse-client takes it for a parameter."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, list | tuple):
        return f"[{','.join(repr(each) for each in value)}]"
    return str(value)


def _read(name: str, value: Any) -> Any:
    if isinstance(value, str) and name.startswith("DateTime"):
        return datetime.fromisoformat(value[:26]).replace(tzinfo=UTC)
    return int(value) if name.startswith(("UInt", "Int")) else value


class ClickHouse:
    def __init__(self, url: str, folder: Path, pid: int) -> None:
        self.url, self._folder, self.pid = url, folder, pid

    def _post(self, query: str, values: Mapping[str, object]) -> bytes:
        given = {f"param_{name}": _written(value) for name, value in values.items()}
        asked = urllib.request.Request(
            f"{self.url}?{urllib.parse.urlencode(given)}", query.encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=600) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from error

    def execute(self, query: str) -> None:
        self._post(query, {})

    def clear(self) -> None:
        for table in ("records", "host_records"):
            self.execute(f"TRUNCATE TABLE seal_monitor.{table}")

    def rows(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        lines = self._post(f"{query}\nFORMAT JSONCompactEachRowWithNamesAndTypes", values)
        _, types, *rows = map(json.loads, lines.decode().splitlines())
        return [tuple(map(_read, types, row)) for row in rows]

    def ask(self, question: str, **values: object) -> list[tuple[Any, ...]]:
        return self.rows(questions.clickhouse(question), **values)

    def load(self, lines: Iterable[str]) -> None:
        file = self._folder / "lines"
        with file.open("w", encoding="utf-8", errors="surrogateescape") as out:
            out.writelines(f"{line}\n" for line in lines)
        self.execute(
            "INSERT INTO seal_monitor.inbox (Timestamp, Body) "
            f"SELECT now64(9), line FROM file('{file}', 'LineAsString')"
        )


@contextmanager
def clickhouse() -> Iterator[ClickHouse]:
    """ClickHouse's engine with the tables of clickhouse.sql."""
    if find_spec("chdb") is None:
        pytest.skip("chdb is not installed; run: make test")
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, str(ROOT / "tests/clickhouse_engine.py"), f"{folder}/data"]
        with subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as engine:
            assert engine.stdout is not None
            try:
                port = int(engine.stdout.readline())
                found = ClickHouse(f"http://127.0.0.1:{port}/", Path(folder), engine.pid)
                for statement in statements(SCHEMAS / "clickhouse.sql"):
                    found.execute(statement)
                yield found
            finally:
                engine.kill()  # its data is thrown away


# ---- PostgreSQL ----------------------------------------------------------------------------------


class PostgreSQL:
    def __init__(self, socket: Path, user: str) -> None:
        self.url = f"postgresql://{user}@/postgres?host={urllib.parse.quote(str(socket), safe='')}"

    def connect(self, user: str | None = None) -> Any:
        import psycopg  # noqa: PLC0415 - only these tests need it

        url = self.url if user is None else self.url.replace("//owner@", f"//{user}@")
        return psycopg.connect(url, autocommit=True)

    def clear(self) -> None:
        self.rows("TRUNCATE seal_monitor.records")

    def rows(
        self, query: str, values: Mapping[str, object] | Sequence[object] | None = None
    ) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            connection.execute("SET timezone = 'UTC'")
            found = connection.execute(query, values)
            return list(found.fetchall()) if found.description else []

    def ask(self, question: str, **values: object) -> list[tuple[Any, ...]]:
        given = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        return self.rows(questions.postgresql(question), given)

    def load(self, lines: Iterable[str]) -> None:
        with (
            self.connect() as connection,
            connection.cursor() as cursor,
            cursor.copy("COPY seal_monitor.inbox (line) FROM STDIN") as copy,
        ):
            for line in lines:
                copy.write_row((line,))

    def psql(self, *arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-At", *arguments, self.url],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _programs() -> Path:
    """Where the newest PostgreSQL's programs are. Skips the test where it is not installed."""
    found = sorted(DEBIANS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found or find_spec("psycopg") is None:
        pytest.skip("PostgreSQL or psycopg is not installed; run: make test")
    return found[-1].parent


def _as_account(command: Sequence[str]) -> list[str]:
    if os.geteuid():
        return list(command)
    account = pwd.getpwnam(ACCOUNT)
    ids = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    return ["setpriv", *ids, "--", *command]


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server with the tables of postgresql.sql and the roles."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT, ACCOUNT)
    data = folder / "data"
    make = (f"{programs}/initdb", "-D", str(data), "-U", "owner", "-A", "trust", "-N", "-E", "UTF8")
    serve = (f"{programs}/postgres", "-D", str(data), "-k", str(folder), "-c", "fsync=off")
    quick = ("-c", "listen_addresses=", "-c", "synchronous_commit=off", "-c", "max_wal_size=4GB")
    try:
        done = subprocess.run(
            _as_account([*make, "--locale=C"]), capture_output=True, text=True, cwd="/", check=False
        )
        assert done.returncode == 0, done.stderr
        with (folder / "log").open("wb") as log:
            command = _as_account([*serve, *quick])
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        try:
            _until_ready(programs, folder, server)
            found = PostgreSQL(folder, "owner")
            for name in ("postgresql.sql", "postgresql_roles.sql"):
                found.psql("-1", "-f", str(SCHEMAS / name))
            yield found
        finally:
            server.terminate()
            try:
                server.wait(60)
            finally:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder)


def _until_ready(programs: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    ask = [f"{programs}/pg_isready", "-q", "-h", str(folder)]
    while subprocess.run(ask, check=False).returncode:
        assert server.poll() is None, (folder / "log").read_text("utf-8")
        assert time.monotonic() < deadline, (folder / "log").read_text("utf-8")
        time.sleep(0.05)
