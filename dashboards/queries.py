"""PromQL: exact counts, hosts without their port, one number out of another."""

from __future__ import annotations

from dataclasses import dataclass

from model import Query

__all__ = [
    "CANARY_OVERDUE",
    "INTERVAL",
    "RANGE",
    "gained",
    "host",
    "out_of",
    "selected",
    "workloads_gained",
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


def _grouped(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


def _before(series: str, within: Window) -> str:
    """The last value before the window; of the last hour, for a host that was not scraped."""
    return f"last_over_time({series}[1h] offset {within.span})"


def gained(metric: str, where: str = "", by: str = "", within: Window = RANGE) -> str:
    """What counters gained within a window, exact: increase() would extrapolate.

    Bars stand side by side: what is in one is in no other. Only where the monitor was started
    within the window, or was seen for the first time, increase() estimates.
    """
    series = selected(metric, where)
    age = selected("time() - process_start_time_seconds")
    return (
        f"{_grouped(by)}({series} - {_before(series, within)} >= 0"
        f" and on (job, instance) {age} > {within.seconds}"
        f" or round(increase({series}[{within.span}])))"
    )


def workloads_gained(by: str, where: str, within: Window = RANGE) -> str:
    """As gained(), for counters that come into being with the first denial, within the window.

    All that one has counted is new where its host was seen before, or was started since. At least:
    what was counted before a restart within the window may be missing.
    """
    series = selected("~workload_denials_total", where)
    peak = f"max_over_time({series}[{within.span}])"
    seen = f"{selected('max_over_time(up')}[1h] offset {within.span}) == 1"
    started = f"{selected('time() - process_start_time_seconds')} < {within.seconds}"
    return (
        f"{_grouped(by)}({peak} - {_before(series, within)} >= 0"
        f" or {peak} and on (job, instance) ({seen} or {started}))"
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
