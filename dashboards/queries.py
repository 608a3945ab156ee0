"""PromQL: exact counts, hosts without their port, one number out of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model import Query

__all__ = [
    "CANARY_OVERDUE",
    "INTERVAL",
    "RANGE",
    "gained",
    "host",
    "out_of",
    "recorded",
    "selected",
]


@dataclass(frozen=True)
class Window:
    """Grafana's variable for a span of time, and how many seconds it has."""

    span: str
    seconds: str


RANGE = Window("$__range", "$__range_s")  # all that is shown
INTERVAL = Window("$__interval", "$__interval_ms / 1000")  # a bar

# The recorded gains of counters; of denials, those that a seal explains or may explain.
_GAINED: Mapping[str, str] = {
    "~denials_total": "instance_operation_verdict:~denials:gained",
    "~unverified_denials_total": "instance_reason:~unverified_denials:gained",
    "~partial_updates_total": "instance_operation:~partial_updates:gained",
    "~faults_total": "instance_cause_disposition:~faults:gained",
    "~bypasses_total": "instance_method:~bypasses:gained",
    "~workload_denials_total": "instance_workload_verdict:~workload_denials:gained",
    "~violations_total": "instance_workload_kind_severity:~violations:gained",
}

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


def recorded(metric: str, where: str = "", by: str = "", within: Window = RANGE) -> str:
    """What counters gained within a window, exact, as the recording rules have added it up.

    A counter that gained nothing has no samples, so that it costs nothing to ask ten thousand
    hosts. Without the rules there is no data, rather than a 0.
    """
    gains = f"sum_over_time({selected(_GAINED[metric], where)}[{within.span}])"
    if by:
        return f"sum by ({by}) ({gains})"
    return f"(sum({gains}) or 0 * sum({selected('instance:~up')}))"


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
