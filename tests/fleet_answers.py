"""What each question of dashboards/fleet/questions must answer, computed from facts in Python.

An answer is as the databases give it: rows in order, times as datetimes in UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fleet_events import Fact

__all__ = ["ANY", "KINDS", "OF_THE_COMMAND", "Answers", "comparable", "once"]

KINDS = ("denial", "fault", "bypass")
ANY = dict.fromkeys(("host", "executable", "workload", "verdict", "likely", "operation"), "") | {
    "fingerprint": "%"
}
OF_THE_COMMAND = {"facets", "last", "recent"}  # tested by what seal-monitor fleet makes of them
# Columns of long rows that the answers have as well.
KEPT = {"timeline": (0, 1, 3, 10), "user": (0, 1, 4, 8)}
RANKS = {"info": 0, "warning": 1, "critical": 2}
Row = tuple[Any, ...]


def comparable(question: str, rows: Iterable[Row]) -> list[Row]:
    """A database's rows with the columns that the answers have."""
    kept = KEPT.get(question)
    return [tuple(row[number] for number in kept) if kept else tuple(row) for row in rows]


def once(facts: Iterable[Fact]) -> list[Fact]:
    """Each event once, in the order of its time."""
    return sorted({fact.id: fact for fact in facts}.values())


def _time(us: int) -> datetime:
    seconds, rest = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _us(time: datetime) -> int:
    return int(time.replace(microsecond=0).timestamp()) * 1_000_000 + time.microsecond


def _grouped(facts: Iterable[Fact], key: Callable[[Fact], Any]) -> dict[Any, list[Fact]]:
    found: dict[Any, list[Fact]] = defaultdict(list)
    for fact in facts:
        found[key(fact)].append(fact)
    return found


def _first(facts: Sequence[Fact]) -> datetime:
    return _time(min(fact.time_us for fact in facts))


def _last(facts: Sequence[Fact]) -> datetime:
    return _time(max(fact.time_us for fact in facts))


def _hosts(facts: Iterable[Fact]) -> int:
    return len({fact.host_id for fact in facts})


def _counts(facts: Sequence[Fact]) -> tuple[int, int]:
    return sum(fact.events for fact in facts), sum(fact.suppressed for fact in facts)


def _worst(facts: Iterable[Fact]) -> int:
    return max(RANKS[fact.severity] for fact in facts)


class Answers:
    """To be asked as the databases are, by the name of the question and its parameters."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.facts = once(facts)
        self._by_fingerprint = _grouped(self.facts, lambda fact: fact.fingerprint)

    def ask(self, question: str, **values: Any) -> list[Row]:
        rows: list[Row] = getattr(self, f"_{question}")(**values)
        return rows[: values.get("limit", len(rows))]

    def _incidents(
        self, *, kinds: Sequence[str], since: datetime, until: datetime, rank: int, **values: Any
    ) -> list[Row]:
        patterns: Mapping[str, Any] = {
            name: values[name] for name in ("host", "executable", "workload", "verdict", "likely")
        }
        rows = []
        for fingerprint, facts in self._by_fingerprint.items():
            if (
                facts[0].kind in kinds
                and values["operation"] in ("", facts[0].what)
                and _last(facts) >= since
                and _first(facts) <= until
                and _worst(facts) >= rank
                and all(
                    any(given in ("", getattr(fact, name)) for fact in facts)
                    for name, given in patterns.items()
                )
            ):
                seen = (_first(facts), _last(facts), *_counts(facts), _hosts(facts))
                rows.append((fingerprint, facts[0].kind, facts[0].what, _worst(facts), *seen))
        return sorted(rows, key=lambda row: (-row[3], -_us(row[5]), row[0]))

    def _hosts(self, *, fingerprint: str, **_: object) -> list[Row]:
        groups = _grouped(self._by_fingerprint[fingerprint], lambda fact: (fact.host, fact.host_id))
        rows = [
            (*host, _first(facts), _last(facts), *_counts(facts)) for host, facts in groups.items()
        ]
        return sorted(rows, key=lambda row: (row[2], row[0]))

    def _radius(self, *, fingerprint: str) -> list[Row]:
        facts = self._by_fingerprint[fingerprint]
        columns = ("workload", "executable", "user_name")
        sizes = (len({getattr(fact, name) for fact in facts}) for name in columns)
        return [(_hosts(facts), *sizes, _first(facts), _last(facts), *_counts(facts))]

    def _spread(self, *, fingerprint: str, **_: object) -> list[Row]:
        facts = self._by_fingerprint[fingerprint]
        by_host = _grouped(facts, lambda fact: fact.host_id)
        begun = {host: _hour(_first(of_host)) for host, of_host in by_host.items()}
        rows = []
        for hour, of_hour in _grouped(facts, lambda fact: _hour(_time(fact.time_us))).items():
            new = {fact.host_id for fact in of_hour if begun[fact.host_id] == hour}
            rows.append((hour, _hosts(of_hour), len(new), sum(fact.violations for fact in of_hour)))
        return sorted(rows, reverse=True)

    def _new(
        self, *, kinds: Sequence[str], since: datetime, until: datetime, **_: object
    ) -> list[Row]:
        rows = [
            (
                *(fingerprint, facts[0].kind, facts[0].what, _worst(facts), _first(facts)),
                *(_hosts(facts), sum(fact.violations for fact in facts)),
            )
            for fingerprint, facts in self._by_fingerprint.items()
            if facts[0].kind in kinds and since <= _first(facts) <= until
        ]
        return sorted(rows, key=lambda row: (-_us(row[4]), row[0]))

    def _timeline(self, *, host: str, since: datetime, until: datetime, **_: object) -> list[Row]:
        return [
            (_time(fact.time_us), fact.kind, fact.fingerprint, fact.id)
            for fact in self.facts
            if fact.host == host and since <= _time(fact.time_us) <= until
        ]

    def _user(self, *, user: str, since: datetime, until: datetime, **_: object) -> list[Row]:
        return [
            (_time(fact.time_us), fact.host, fact.fingerprint, fact.id)
            for fact in self.facts
            if fact.user_name == user and since <= _time(fact.time_us) <= until
        ]

    def _build_id(self, *, build_id: str, **_: object) -> list[Row]:
        facts = [fact for fact in self.facts if build_id in fact.build_ids]
        rows = [
            (
                *(executable, _hosts(of_it), len({fact.fingerprint for fact in of_it})),
                *(sum(fact.events for fact in of_it), _first(of_it), _last(of_it)),
            )
            for executable, of_it in _grouped(facts, lambda fact: fact.executable).items()
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def _similar(self, *, fingerprint: str, **_: object) -> list[Row]:
        executables = {fact.executable for fact in self._by_fingerprint[fingerprint]} - {""}
        rows = []
        for other, of_it in self._by_fingerprint.items():
            facts = [fact for fact in of_it if fact.executable in executables]
            if facts and other != fingerprint:
                count = sum(fact.violations for fact in facts)
                seen = (_first(facts), _last(facts))
                what = (facts[0].kind, facts[0].what, _worst(facts))
                rows.append((other, *what, _hosts(facts), count, *seen))
        return sorted(rows, key=lambda row: (-row[4], row[0]))


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)
