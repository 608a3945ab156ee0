"""Databases that a stranger made: each is refused at once, whatever is in it."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_incidents import Make, denial, make

from monitor.incidents.schema import SCHEMA, VERSION

__all__ = ["make"]

MIB = 1 << 20
MEMORY = 100 * MIB
SECONDS = 2.0

PROGRAM = """
import resource, sys, time
from pathlib import Path
from monitor.incidents.search import Filter, IncidentError, Incidents
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
before = time.process_time()
try:
    with Incidents(Path(sys.argv[1])) as incidents:
        for found in incidents.search(Filter(), 50):
            incidents.events(found)
            incidents.snapshots(found)
        print("read")
except IncidentError as error:
    print(str(error).removeprefix(sys.argv[1]))
print(time.process_time() - before)
"""


def read(path: Path) -> tuple[str, float]:
    """What a reader with little memory says, and the CPU seconds that it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, str(MEMORY)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    said, seconds = done.stdout.splitlines()
    return said, float(seconds)


def with_schema(path: Path, replaced: str, by: str) -> None:
    """Another statement in place of the one that begins so."""
    path.unlink()
    with sqlite3.connect(path) as database:
        for statement in SCHEMA:
            if statement.startswith(replaced):
                database.executescript(by)
            elif f" ON {replaced.rpartition(' ')[2]} " not in statement:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")
    database.close()


def endless_view(path: Path) -> None:
    with_schema(
        path,
        "CREATE TABLE incidents",
        "CREATE VIEW incidents AS WITH RECURSIVE n (number) AS "
        "(SELECT 1 UNION ALL SELECT number + 1 FROM n) SELECT number FROM n",
    )


def triggers(path: Path) -> None:
    with sqlite3.connect(path) as database:
        for one, other in (("facets", "events"), ("events", "facets")):
            database.execute(
                f"CREATE TRIGGER on_{one} AFTER DELETE ON {one} BEGIN DELETE FROM {other}; END"
            )
    database.close()


def another_index(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE INDEX more ON events (length(event))")
    database.close()


def large_values(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE incidents SET summary = CAST(zeroblob(300 * 1024 * 1024) AS TEXT) "
            "WHERE number = (SELECT min(number) FROM incidents)"
        )
    database.close()


def many_values(path: Path) -> None:
    """Each within its bound; 600 MiB together."""
    with sqlite3.connect(path) as database:
        database.execute(
            "WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 180) "
            "INSERT INTO events SELECT i, 1, 1, 'b', 1, 1, CAST(zeroblob(7000000) AS TEXT) FROM n"
        )
    database.close()


def large_schema(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("BEGIN")
        for number in range(3000):
            database.execute(f"CREATE VIEW v{number} AS SELECT {'1, ' * 200} 1")
    database.close()


def large_pages(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA page_size = 65536")
        database.execute("VACUUM")
    database.close()


def endless_tree(path: Path) -> None:
    """Interior pages whose children are all the same page, some levels deep: rows without end."""
    with sqlite3.connect(path, isolation_level=None) as database:
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'facets'"
        ).fetchone()
        database.execute("DELETE FROM facets WHERE incident > 1")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = bytearray(path.read_bytes())
    leaf = data[(root - 1) * 4096 : root * 4096]
    children = 12
    pages = len(data) // 4096
    levels = [pages + 1 + n for n in range(12)]
    # Cells of an index's interior page: a child, then the key, here that of the leaf's first cell.
    at = int.from_bytes(leaf[8:10])
    size = leaf[at]
    cell = bytes(leaf[at : at + 1 + size])
    data += leaf
    for number, page in enumerate([*levels[1:], None]):
        made = bytearray(4096)
        child = levels[number]
        place = 4096
        for index in range(children):
            one = child.to_bytes(4) + cell
            place -= len(one)
            made[place : place + len(one)] = one
            made[12 + 2 * index : 14 + 2 * index] = place.to_bytes(2)
        made[0:12] = (
            b"\x02\0\0" + children.to_bytes(2) + place.to_bytes(2) + b"\0" + child.to_bytes(4)
        )
        if page is None:
            data[(root - 1) * 4096 : root * 4096] = made
        else:
            data += made
    data[28:32] = (len(data) // 4096).to_bytes(4)
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (endless_view, " is not an incidents database: it has other tables"),
        (triggers, " is not an incidents database: it has other tables"),
        (another_index, " is not an incidents database: it has other tables"),
        (large_schema, " is not an incidents database: it has other tables"),
        (large_pages, " is not an incidents database: its pages are not of 4096 bytes"),
        (large_values, ": string or blob too big"),
        (many_values, ": an answer has more than 64 MiB"),
        (endless_tree, ": it takes too long to read, as a damaged or hostile one does"),
        (cut, ": database disk image is malformed"),
    ],
)
def test_it_is_refused(make: Make, damage: Callable[[Path], None], said: str) -> None:
    store = make()
    store.take(*(denial(caller=n) for n in range(20)))
    store.sink.close()
    damage(store.path)
    found, seconds = read(store.path)
    assert said in found
    assert seconds < SECONDS
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_one_of_ours_is_read(make: Make) -> None:
    store = make()
    store.take(*(denial(caller=n) for n in range(100)))
    store.sink.close()
    assert read(store.path)[0] == "read"
