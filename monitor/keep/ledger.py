"""The daemon's own counts, in a page of memory that outlives the process.

A count is stored by one instruction, so that a SIGKILL leaves it as it was or as it is to be. Rows
of a table become valid by the last word that is written of them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import NamedTuple, TypeVar
from zlib import crc32

from monitor.keep import memory

__all__ = ["Counts", "Joined", "Ledger", "LedgerError", "Numbers", "Table", "restored"]

_Key = TypeVar("_Key")
_WORD = 8
_ODD = "surrogateescape"  # for names of cgroups that are no UTF-8

# Words by what they count; whoever uses an area says which word is what.
_AREAS = {
    "format": 1,
    "set": 1,  # whose: the same number is in the record of the set
    "attempts": 1,  # see risk()
    "doubts": 1,  # see doubt()
    "starts": 4,
    "unread_ms": 1,  # in which nobody read the ring
    "records_found": 1,  # which waited in it then
    "read_boot_ns": 1,  # when the ring was last read
    "sequence": 1,  # of events
    "taken": 16,  # from the ring
    "made": 16,  # events, by kind
    "events": 64,
    "gaps": 16,  # suppressed events that were reported, by kind
    "judged": 16,  # events, and suppressed ones, whose severity is counted, by kind
    "delays": 32,
    "delay_seconds": 1,
    "canary": 8,
    "lookups": 8,
    "snapshots": 16,
    "decode_errors": 1,
    "removed_bytes": 1,
    "incidents_removed": 8,
    "sent": 4,  # to the collector
    "spool_dropped": 8,  # events that waited for it, by severity
    "dropped": 1,  # events without room in the ring, as reported
    "missed": 256,  # runs, by probe, as reported
    "missed_before": 256,  # those of them at hooks that are not used any more
}


class _Shape(NamedTuple):
    """`key`: bytes of the longest; `values`: words."""

    rows: int
    key: int
    values: int

    @property
    def row_words(self) -> int:
        return 1 + self.values + (self.key + _WORD - 1) // _WORD

    @property
    def words(self) -> int:
        return 1 + self.rows * self.row_words


# Sparse: a row takes memory once it is used. What finds no row is kept in memory alone.
_TABLES = {
    "sinks": _Shape(32, 64, 1),
    "suppressed": _Shape(8192, 24, 2),
    "violations": _Shape(4096, 280, 1),
    "retired": _Shape(1024, 256, 3),
    "workloads": _Shape(2048, 280, 1),
}


def _places() -> Iterator[tuple[str, int, int]]:
    """Name, first word and words of each area and table."""
    start = 0
    for name, words in _AREAS.items():
        yield name, start, words
        start += words
    for name, shape in _TABLES.items():
        start = -(-start * _WORD // mmap.PAGESIZE) * mmap.PAGESIZE // _WORD
        yield name, start, shape.words
        start += shape.words


_PLACES = {name: (start, words) for name, start, words in _places()}
_USED = max(start + words for start, words in _PLACES.values()) * _WORD
_SIZE = -(-_USED // mmap.PAGESIZE) * mmap.PAGESIZE
_FORMAT = crc32(repr((2, _AREAS, _TABLES, _PLACES)).encode())


class LedgerError(Exception):
    """It is no ledger of this format."""


class Counts(MutableMapping[_Key, int]):
    """Numbers by keys that are all known before, each in a word."""

    def __init__(self, words: memoryview, keys: Iterable[_Key]) -> None:
        self._words = words
        self._index = {key: index for index, key in enumerate(keys)}
        assert len(self._index) <= len(words)

    def __getitem__(self, key: _Key) -> int:
        value: int = self._words[self._index[key]]
        return value

    def __setitem__(self, key: _Key, value: int) -> None:
        self._words[self._index[key]] = value

    def __delitem__(self, key: _Key) -> None:
        raise TypeError("its keys are fixed")

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return repr(dict(self))


class Table(MutableMapping[bytes, tuple[int, ...]]):
    """A few words by keys that come and go. A key without a row lives in this process alone.

    The first word is the number of rows that were ever used: to look at a row takes memory.
    """

    def __init__(self, words: memoryview, shape: _Shape) -> None:
        self._words = words
        self._bytes = words.cast("B")
        self._shape = shape
        self._values: dict[bytes, tuple[int, ...]] = {}
        self._rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._used = words[0]
        if self._used > shape.rows:
            raise LedgerError("a table has too many rows")
        self._load()

    def _load(self) -> None:
        key_words = 1 + self._shape.values
        for row in range(self._used):
            start = self._start(row)
            length = self._words[start]
            if not length:
                continue
            if length - 1 > self._shape.key:
                raise LedgerError("a key is too long")
            at = (start + key_words) * _WORD
            key = bytes(self._bytes[at : at + length - 1])
            self._values[key] = tuple(self._words[start + 1 : start + key_words])
            self._rows[key] = row
        self._free = sorted(set(range(self._used)) - set(self._rows.values()), reverse=True)

    def _start(self, row: int) -> int:
        return 1 + row * self._shape.row_words

    def __getitem__(self, key: bytes) -> tuple[int, ...]:
        return self._values[key]

    def __setitem__(self, key: bytes, values: tuple[int, ...]) -> None:
        self._values[key] = values
        row = self._rows.get(key)
        if row is None:
            row = self._new_row(key)
            if row is None:
                return
        start = self._start(row)
        for index, value in enumerate(values):
            self._words[start + 1 + index] = value
        if not self._words[start]:
            at = (start + 1 + self._shape.values) * _WORD
            self._bytes[at : at + len(key)] = key
            self._words[start] = len(key) + 1  # last: from now on it is there

    def _new_row(self, key: bytes) -> int | None:
        if len(key) > self._shape.key:
            return None
        if self._free:
            row = self._free.pop()
        elif self._used < self._shape.rows:
            row = self._used
            self._used += 1
            self._words[0] = self._used
        else:
            return None
        self._rows[key] = row
        return row

    def __delitem__(self, key: bytes) -> None:
        del self._values[key]
        row = self._rows.pop(key, None)
        if row is not None:
            self._words[self._start(row)] = 0
            self._free.append(row)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def copy(self) -> dict[bytes, tuple[int, ...]]:
        return dict(self._values)  # one step of the interpreter


class Joined(MutableMapping[tuple[str, ...], int]):
    """A table of one number for each combination of names."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __getitem__(self, names: tuple[str, ...]) -> int:
        return self._table[_joined(names)][0]

    def __setitem__(self, names: tuple[str, ...], value: int) -> None:
        self._table[_joined(names)] = (value,)

    def __delitem__(self, names: tuple[str, ...]) -> None:
        del self._table[_joined(names)]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self._table)

    def copy(self) -> dict[tuple[str, ...], int]:
        """All of one moment, whatever another thread does."""
        return {
            tuple(key.decode("utf-8", _ODD).split("\0")): value
            for key, (value,) in self._table.copy().items()
        }


def _joined(names: tuple[str, ...]) -> bytes:
    return "\0".join(names).encode("utf-8", _ODD)


class Numbers(MutableMapping[str, int]):
    """A table of one number for each name."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __getitem__(self, name: str) -> int:
        return self._table[name.encode()][0]

    def __setitem__(self, name: str, value: int) -> None:
        self._table[name.encode()] = (value,)

    def __delitem__(self, name: str) -> None:
        del self._table[name.encode()]

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return repr(dict(self))


class Ledger:
    """`descriptor`: of the memory, -1 for that of this process alone. It lives as long as the
    process, or longer.
    """

    def __init__(self) -> None:
        """One that ends with the process."""
        self.descriptor = -1
        self._map(mmap.mmap(-1, _SIZE))
        self.words("format")[0] = _FORMAT

    def _map(self, mapped: mmap.mmap) -> None:
        self._words = memoryview(mapped).cast("Q")
        self._tables: dict[str, Table] = {}

    @classmethod
    def shared(cls, allocate: Callable[[int], int] = memory.anonymous) -> Ledger:
        """A new one, behind a descriptor of so many bytes that `allocate` makes. Raises OSError."""
        descriptor = allocate(_SIZE)
        try:
            made = cls._of(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        made.words("format")[0] = _FORMAT
        made.words("set")[0] = int.from_bytes(os.urandom(8), "little") | 1
        return made

    @classmethod
    def found(cls, descriptor: int) -> Ledger:
        """The one behind a descriptor, which belongs to it from now on. Raises LedgerError."""
        try:
            is_fixed = memory.has_fixed_size(descriptor, _SIZE)
        except OSError as error:
            raise LedgerError(f"it is no memory ({error.strerror})") from error
        if not is_fixed:
            raise LedgerError("its size is another or not fixed")
        found = cls._of(descriptor)
        if found.words("format")[0] != _FORMAT:
            raise LedgerError("its format is another")
        return found

    @classmethod
    def _of(cls, descriptor: int) -> Ledger:
        made = cls.__new__(cls)
        made._map(mmap.mmap(descriptor, _SIZE))
        made.descriptor = descriptor
        return made

    def words(self, area: str) -> memoryview:
        start, count = _PLACES[area]
        return self._words[start : start + count]

    def number(self, area: str) -> int:
        value: int = self.words(area)[0]
        return value

    def table(self, name: str) -> Table:
        """Raises LedgerError."""
        if name not in self._tables:
            start, count = _PLACES[name]
            self._tables[name] = Table(self._words[start : start + count], _TABLES[name])
        return self._tables[name]

    @contextlib.contextmanager
    def risk(self) -> Iterator[None]:
        """Around work with what was found that may be wrong: an attempt that does not come to its
        end counts for the next life. A kill from outside seldom comes just then.
        """
        attempts = self.words("attempts")
        attempts[0] += 1
        yield
        attempts[0] -= 1

    def survived(self) -> None:
        """What was found is no reason to end."""
        self.words("attempts")[0] = 0

    def doubt(self, bit: int, is_doubted: bool) -> None:
        """Whether there is this reason not to go on with the programs in the next life."""
        words = self.words("doubts")
        words[0] = words[0] | bit if is_doubted else words[0] & ~bit

    def check(self) -> None:
        """Raises LedgerError when a table cannot be read."""
        for name in _TABLES:
            self.table(name)


def restored(counts: MutableMapping[_Key, int], wanted: Mapping[_Key, int]) -> None:
    """Have exactly the wanted keys; those that are there already keep their numbers."""
    for key in list(counts):
        if key not in wanted:
            del counts[key]
    for key, value in wanted.items():
        counts.setdefault(key, value)
