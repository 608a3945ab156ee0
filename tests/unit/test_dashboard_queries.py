"""What the dashboards count of a host that is new, restarts or is not reached; on a Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from fleet import JOB, MINUTE
from panels import BAR, FOLDER, RANGE, interpolated
from prometheus import Prometheus, backfilled

END = 1_800_000_000
BEGIN = END - 2 * RANGE
MIDDLE = END - RANGE // 2  # of what is shown
Value = Callable[[int], float | None]


class Case(NamedTuple):
    """A host: when its monitor was started, whether it is scraped, its counter; what it gained."""

    started: Value
    up: Value
    counter: Value
    gained: float


def after(at: int, value: float, before: float | None = None) -> Value:
    return lambda time: value if time > at else before


LONG_AGO: Value = lambda _: BEGIN - 864_000  # noqa: E731
UP: Value = lambda _: 1  # noqa: E731
NEW = END - RANGE + 20 * MINUTE  # when Prometheus first scrapes some
YOUNG: Value = lambda time: 1 if time >= NEW else None  # noqa: E731


def only(is_there: Value, value: Value) -> Value:
    return lambda time: value(time) if is_there(time) == 1 else None


CASES = {
    "nothing": Case(LONG_AGO, UP, lambda _: 4096, 0),
    "more": Case(LONG_AGO, UP, after(MIDDLE, 5000, 904), 4096),
    "begins": Case(LONG_AGO, UP, after(MIDDLE, 4096, 0), 4096),
    "young-prometheus-begins": Case(LONG_AGO, YOUNG, only(YOUNG, after(MIDDLE, 3, 0)), 3),
    "young-prometheus-old-count": Case(LONG_AGO, YOUNG, only(YOUNG, lambda _: 700), 0),
    "young-prometheus-more": Case(LONG_AGO, YOUNG, only(YOUNG, after(MIDDLE, 707, 700)), 7),
    "new-monitor": Case(lambda _: NEW - 5, YOUNG, only(YOUNG, after(MIDDLE, 11, 0)), 11),
    "new-monitor-at-once": Case(lambda _: NEW - 5, YOUNG, only(YOUNG, lambda _: 4096), 4096),
    "unreached": Case(
        LONG_AGO,
        lambda time: 0 if abs(time - MIDDLE) < 8 * MINUTE else 1,
        lambda time: None if abs(time - MIDDLE) < 8 * MINUTE else 50.0 if time > MIDDLE else 20.0,
        30,
    ),
    "restart": Case(after(MIDDLE, MIDDLE, BEGIN), UP, after(MIDDLE, 2, 9), 2),
}


def samples() -> Iterator[str]:
    names = {
        "up": ("gauge", "up"),
        "process_start_time_seconds": ("gauge", "started"),
        "seal_monitor_denials_total": ("counter", "counter"),
    }
    for name, (kind, field) in names.items():
        yield f"# TYPE {name.removesuffix('_total')} {kind}\n"
        for host, case in CASES.items():
            for time in range(BEGIN, END + 1, MINUTE):
                is_scraped = field == "up" or case.up(time) == 1
                value = getattr(case, field)(time)
                if is_scraped and value is not None:
                    yield f'{name}{{job="{JOB}",instance="{host}"}} {value} {time}\n'
    yield "# EOF\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    rules = folder / "rules.yml"
    rules.write_text("groups: [{name: none, rules: [{record: one, expr: vector(1)}]}]", "utf-8")
    with backfilled(folder, samples(), rules, BEGIN, END) as server:
        yield server


@pytest.fixture(scope="module")
def generate() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import generate as module  # noqa: PLC0415

        yield module


@pytest.mark.parametrize("host", CASES)
def test_a_number_is_what_was_gained(filled: Prometheus, generate: Any, host: str) -> None:
    query = generate.queries.gained("~denials_total", by="instance")
    found = filled.instant(interpolated(generate.expanded(query)), END)
    shown = {series["metric"]["instance"]: float(series["value"][1]) for series in found}
    assert shown.get(host, 0) == CASES[host].gained


@pytest.mark.parametrize("host", CASES)
def test_bars_add_up_to_the_number(filled: Prometheus, generate: Any, host: str) -> None:
    bar = generate.queries.INTERVAL
    query = generate.queries.gained("~denials_total", by="instance", within=bar)
    found = filled.over(interpolated(generate.expanded(query)), END - RANGE + BAR, END, BAR)
    shown = {
        series["metric"]["instance"]: sum(float(value) for _, value in series["values"])
        for series in found
    }
    assert shown.get(host, 0) == CASES[host].gained
