"""PromQL: exact counts, hosts without their port, one number out of another."""

from __future__ import annotations

from dataclasses import dataclass

from model import Query

__all__ = [
    "CANARY_OVERDUE",
    "INTERVAL",
    "RANGE",
    "born_gained",
    "gained",
    "host",
    "out_of",
    "selected",
]


@dataclass(frozen=True)
class Window:
    """Grafana's variable for a span of time, and how many seconds it has."""

    span: str
    seconds: str


RANGE = Window("$__range", "$__range_s")  # all that is shown
INTERVAL = Window("$__interval", "$__interval_ms / 1000")  # a bar

CANARY_OVERDUE = (
    "(~canary_last_success_timestamp_seconds{SELECT} > 0) < time() -"
    " clamp_min(10 * (~canary_interval_seconds{SELECT} > 0), 600)"
)


def selected(metric: str, where: str = "") -> str:
    return f"{metric}{{{f'SELECT,{where}' if where else 'SELECT'}}}"


def _before(series: str, within: Window) -> str:
    """The last value before the window; of the last hour, for a host that was not scraped."""
    return f"last_over_time({series}[1h] offset {within.span})"


def _age(comparison: str, within: Window) -> str:
    """Selects the hosts whose monitor was started before (>) or within (<=) the window."""
    age = selected("time() - process_start_time_seconds")
    return f"on (job, instance) {age} {comparison} {within.seconds}"


def _since_start(series: str, within: Window) -> str:
    """All that a young monitor has counted, where it is the window's first.

    Whether it is, its own time says: resets() would read all samples of every counter.
    """
    restarted = f"changes({selected('process_start_time_seconds')}[{within.span}]) > 0"
    return f"{series} and {_age('<=', within)} unless on (job, instance) {restarted}"


def _summed(by: str, gains: str) -> str:
    """A number is 0 where hosts are scraped and nothing happened; a group is left out."""
    return f"sum by ({by}) ({gains})" if by else f"(sum({gains}) or 0 * sum({selected('up')}))"


def gained(metric: str, where: str = "", by: str = "", within: Window = RANGE) -> str:
    """What counters gained within a window, exact: increase() would extrapolate.

    Bars stand side by side: what is in one is in no other. Only where the monitor was restarted
    within the window, or Prometheus did not know the host before, increase() estimates. What is
    still 0, as most of a fleet's counters, is left out at once: to match series takes most of the
    time.
    """
    series = selected(metric, where)
    counted = f"({series} > 0)"
    return _summed(
        by,
        f"{counted} - {_before(series, within)} >= 0 and {_age('>', within)}"
        f" or {_since_start(counted, within)}"
        f" or round(increase({series}[{within.span}]) > 0)",
    )


def born_gained(metric: str, where: str = "", by: str = "", within: Window = RANGE) -> str:
    """As gained(), for counters that come into being with what they count first: of workloads.

    By the first that applies, a counter has gained

      1. where the monitor was started within the window: all of it, or an estimate;
      2. where it was there before: what came to that;
      3. where its host was seen before, or within the window, without it: all of it;
      4. where Prometheus did not know the host before: what came to the first that it saw.
    """
    series = selected(metric, where)
    counted = f"({series} > 0)"
    peak = f"(max_over_time({series}[{within.span}]) > 0)"
    up = selected("up")
    before = f"max_over_time({up}[1h] offset {within.span}) == 1"
    without = (
        f"count_over_time({series}[{within.span}])"
        f" < on (job, instance) group_left () sum_over_time({up}[{within.span}])"
    )
    return _summed(
        by,
        f"{_since_start(counted, within)}"
        f" or round(increase({series}[{within.span}]) > 0) and {_age('<=', within)}"
        f" or {peak} - {_before(series, within)} >= 0"
        f" or {peak} and on (job, instance) {before}"
        f" or {peak} and {without}"
        f" or {peak} - min_over_time({series}[{within.span}])",
    )


def host(expression: str) -> str:
    """With a label `host`: the instance without its port."""
    return f'label_replace({expression}, "host", "$1", "instance", "(.+?)(:[0-9]+)?")'


def out_of(part: str, whole: str) -> Query:
    """What is missing of the whole, named "99 of 100".

    A number of Grafana's shows one value: both are labels here, and the name has them.
    """
    return Query(
        f'count_values("part", {part}) * on () group_left (whole) count_values("whole", {whole})'
        f" * (scalar({whole}) - scalar({part}))",
        "{{part}} of {{whole}}",
    )
