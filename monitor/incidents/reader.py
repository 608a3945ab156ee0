"""The database of incidents, read-only, as a file that a stranger may have made.

Its schema is ours to the letter before anything is asked of it; its values have bounded sizes, and
each answer a bounded size and time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monitor.incidents.schema import READABLE, VERSION, rows_of, schema_of
from monitor.untrusted.printable import printable
from monitor.untrusted.regular import open_regular

__all__ = ["IncidentError", "Reader"]

_NOT_PERMITTED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY)
_VALUE_LIMIT = 8 << 20  # bytes: of a snapshot, the largest that there is
_ANSWER_LIMIT = 64 << 20  # bytes of all values of an answer
_ROW = 512  # bytes that a row takes beside its texts, at most
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_LIMIT),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1 << 16),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
)
_OPENING_SECONDS = 1.0  # of CPU time, and so much more for each query: most take less than 1 ms
_QUERY_SECONDS = 0.01
_OWN = 10  # the daemon's own database is not hostile, but may be large
_STEPS = 1000  # of SQLite's machine between two looks at the clock
_FILE_LIMIT = 1 << 40
# What the file format says of the first page.
_PAGE = 4096
_ROOT, _LEAF, _INTERIOR = 100, 0x0D, 0x05
_SCHEMA_PAGES = 8


class IncidentError(OSError):
    """Why the incidents cannot be shown, and the way out."""


class _NoIncidents(Exception):
    """A database of something else."""


class _NothingYet(Exception):
    """A database without a table."""


def _connect(path: Path, mode: str) -> tuple[sqlite3.Connection, int]:
    database = sqlite3.connect(
        f"file:{quote(str(path))}?{mode}", timeout=5.0, uri=True, isolation_level=None
    )
    try:
        return database, _begin(path, database)
    except BaseException:
        database.close()
        raise


def _begin(path: Path, database: sqlite3.Connection) -> int:
    """Begin to read, once the tables are known to be ours; the version of the schema."""
    for limit, most in _LIMITS:
        database.setlimit(limit, most)
    guard = _Guard(_OPENING_SECONDS)
    database.set_progress_handler(guard.is_over, _STEPS)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
        database.execute(f"PRAGMA {setting}")
    database.execute("BEGIN")  # all answers describe the same moment
    (version,) = database.execute("PRAGMA user_version").fetchone()
    found = rows_of(database)
    if not found and version not in READABLE:  # the daemon is about to make them
        raise _NothingYet
    if version not in READABLE and any(row[1] == "incidents" for row in found):
        raise IncidentError(
            f"{path}: its schema is of version {version}, not {VERSION}; "
            "use the version of seal-monitor that wrote it"
        )
    if version not in READABLE or found != schema_of(version):
        raise _NoIncidents("it has other tables")
    return int(version)


class _Guard:
    """Ends a query that takes too much CPU time: the pages of a hostile file can make any query
    endless. `is_over` is SQLite's progress handler.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._since = time.thread_time()

    def allow(self, seconds: float) -> None:
        """Begin a query, which gets so many seconds more."""
        self._left += seconds
        self._since = time.thread_time()

    def ended(self) -> None:
        self._left -= time.thread_time() - self._since

    def is_over(self) -> bool:
        return time.thread_time() - self._since > self._left


def _look_at_pages(path: Path) -> None:
    """Refuse a file whose schema is larger than any of ours, before SQLite reads all of it.

    The first page holds the schema, or says in which pages it is
    (https://www.sqlite.org/fileformat2.html).
    """
    with open_regular(path, _FILE_LIMIT) as file:
        page = file.read(_PAGE)
    size = int.from_bytes(page[16:18])
    if len(page) < _PAGE or not page.startswith(b"SQLite format 3\0"):
        return  # SQLite says what is wrong
    if size != _PAGE:
        raise _NoIncidents(f"its pages are not of {_PAGE} bytes")
    if page[_ROOT] not in (_LEAF, _INTERIOR) or (
        page[_ROOT] == _INTERIOR and int.from_bytes(page[_ROOT + 3 : _ROOT + 5]) > _SCHEMA_PAGES
    ):
        raise _NoIncidents("it has other tables")


def _open(path: Path, own: bool) -> tuple[sqlite3.Connection, int]:
    """Raises IncidentError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if not own:
            raise IncidentError(f"there is no {path}") from None
        raise IncidentError(
            f"there are no incidents: no {path}; 'seal-monitor run' makes it if that directory is "
            "there: see state.directory and incidents.enabled"
        ) from None
    except OSError as error:
        raise IncidentError(f"cannot read {path}: {error.strerror}; run as root") from error
    if not stat.S_ISREG(status.st_mode):
        raise IncidentError(f"{path} is not an incidents database: not a regular file")
    try:
        return _connect_somehow(path, status.st_size)
    except _NothingYet:
        # New rows stay in the log beside a database until there are enough of them.
        copied = f"; if it is a copy, also copy {path.name}-wal, or use 'incidents backup'"
        raise IncidentError(
            f"there are no incidents in {path} yet{'' if own else copied}"
        ) from None
    except (sqlite3.Error, _NoIncidents) as error:
        raise _unreadable(path, own, error) from error


def _connect_somehow(path: Path, size: int) -> tuple[sqlite3.Connection, int]:
    if not size:
        raise _NothingYet
    with contextlib.suppress(PermissionError):  # SQLite says so
        _look_at_pages(path)
    try:
        return _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # A reader needs files beside the database. This user may not make them, so read the
        # database without them, which is safe while nobody has it open.
        if not _is_whole(path) or error.sqlite_errorcode & 0xFF not in _NOT_PERMITTED:
            raise
        return _connect(path, "mode=ro&immutable=1")


def _is_whole(path: Path) -> bool:
    """Whether the database has everything, and its log nothing more."""
    try:
        return not path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return True


def _explained(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
        return "it takes too long to read, as a damaged or hostile one does"
    return printable(str(error))  # it may quote what the database holds


def _unreadable(path: Path, own: bool, error: sqlite3.Error | _NoIncidents) -> IncidentError:
    """The error to raise. It advises to remove a file only if that file is the daemon's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    why = str(error) if isinstance(error, _NoIncidents) else _explained(error)
    if code in _NOT_PERMITTED:
        return IncidentError(f"cannot read {path}: {why}; run as root")
    if own:
        return IncidentError(
            f"cannot read {path}: {why}; the daemon sets a broken database aside when it meets the "
            "damage, or remove it"
        )
    if code == sqlite3.SQLITE_NOTADB or isinstance(error, _NoIncidents):
        return IncidentError(f"{path} is not an incidents database: {why}")
    return IncidentError(f"cannot read {path}: {why}; if it is a copy, copy it again")


class Reader:
    """An open database of incidents. Every method raises IncidentError."""

    def __init__(self, path: Path, own: bool) -> None:
        """`own`: the database is the daemon's, and may be removed."""
        self._path = path
        self._own = own
        self._database, version = _open(path, own)
        self.tables = {name for kind, name, *_ in schema_of(version) if kind == "table"}
        times = _OWN if own else 1
        self._seconds = _QUERY_SECONDS * times
        self._guard = _Guard(_OPENING_SECONDS * times)
        self._database.set_progress_handler(self._guard.is_over, _STEPS)

    def close(self) -> None:
        self._database.close()

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of the answer."""
        found, size = [], 0
        self._guard.allow(self._seconds)
        try:
            for row in self._database.execute(query, tuple(values)):
                size += _ROW + sum(len(each) for each in row if isinstance(each, str | bytes))
                if size > _ANSWER_LIMIT:
                    raise IncidentError(
                        f"{self._path}: an answer has more than {_ANSWER_LIMIT >> 20} MiB; ask for "
                        "less, as with --limit or --since"
                    )
                found.append(row)
        except sqlite3.Error as error:
            raise _unreadable(self._path, self._own, error) from error
        finally:
            self._guard.ended()
        return found

    def copy(self) -> bytes:
        """The bytes of a file with the whole database, and with what is still in its log."""
        try:
            return self._database.serialize()
        except sqlite3.Error as error:
            raise _unreadable(self._path, self._own, error) from error
