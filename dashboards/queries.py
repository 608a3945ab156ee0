"""PromQL: exact counts, hosts without their port, one number out of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model import Query

__all__ = [
    "CANARY_OVERDUE",
    "INTERVAL",
    "RANGE",
    "all_or_each",
    "gained",
    "gained_by_all",
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

# The recorded gains of counters, of a host or of a job; of denials, those that a seal explains or
# may explain.
_GAINED: Mapping[str, str] = {
    "~denials_total": "_operation_verdict:~denials:gained",
    "~unverified_denials_total": "_reason:~unverified_denials:gained",
    "~partial_updates_total": "_operation:~partial_updates:gained",
    "~faults_total": "_cause_disposition:~faults:gained",
    "~bypasses_total": "_method:~bypasses:gained",
    "~workload_denials_total": "_workload_verdict:~workload_denials:gained",
    "~violations_total": "_workload_kind_severity:~violations:gained",
}

CANARY_OVERDUE = (
    "(~canary_last_success_timestamp_seconds{SELECT} > 0) < time() -"
    " clamp_min(10 * (~canary_interval_seconds{SELECT} > 0), 600)"
)


def selected(metric: str, where: str = "", hosts: str = "SELECT") -> str:
    return f"{metric}{{{f'{hosts},{where}' if where else hosts}}}"


def all_or_each(of_all: str, of_each: str) -> str:
    """What is recorded of all hosts together, or else is added up from the chosen ones.

    One of them reads nothing: `of_each` selects by EACH.
    """
    return f"({of_all} or {of_each})"


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

    A counter that gained nothing has no samples, and all hosts together have one for each time:
    so it costs nothing to ask ten thousand hosts. Without the rules there is no data, rather than
    a 0.
    """

    def gains(level: str, hosts: str) -> str:
        series = selected(level + _GAINED[metric], where, hosts)
        return f"sum_over_time({series}[{within.span}])"

    if "instance" in by:
        return f"sum by ({by}) ({gains('instance', 'SELECT')})"
    found = all_or_each(gains("job", "SELECT"), gains("instance", "EACH"))
    if by:
        return f"sum by ({by}) {found}"
    there = all_or_each(selected("job:~up:sum"), selected("instance:~up", hosts="EACH"))
    return f"(sum{found} or 0 * (sum{there} > 0))"


def gained_by_all(metric: str, within: Window = RANGE) -> str:
    """What a counter gained that all hosts have some of, as `gained` has it of chosen hosts."""
    series = selected(f"job:{metric.removesuffix('_total')}:gained")
    of_all = f"sum_over_time({series}[{within.span}])"
    return all_or_each(f"sum({of_all})", gained(metric, within=within).replace("SELECT", "EACH"))


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
