from __future__ import annotations

from collections.abc import Callable

import pytest

from monitor.metrics.tally import DELAY_BUCKETS, Tally


@pytest.mark.parametrize(
    "count",
    [
        lambda tally: tally.event("incident", "delivered"),
        lambda tally: tally.event("denial", "dropped"),
        lambda tally: tally.sink_error("journald"),
    ],
)
def test_an_unknown_series_is_refused(count: Callable[[Tally], None]) -> None:
    with pytest.raises(KeyError):
        count(Tally(["console"]))


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        (-1.0, 0),
        (0.001, 0),
        (0.0011, 1),
        (10.0, len(DELAY_BUCKETS) - 1),
        (10.1, len(DELAY_BUCKETS)),
    ],
)
def test_delays_are_counted_up_to_their_bound(seconds: float, place: int) -> None:
    tally = Tally()
    tally.delay(seconds)
    assert list(tally.delays).index(1) == place
    assert tally.delay_seconds == max(seconds, 0)


def test_a_failed_reload_keeps_the_time_of_the_last_good_one() -> None:
    tally = Tally()
    tally.reload(True, 100.0)
    tally.reload(False, 200.0)
    assert (tally.reload_successful, tally.reload_last_success) == (False, 100.0)


def test_a_failed_canary_keeps_the_time_of_the_last_good_one() -> None:
    tally = Tally()
    tally.canary("success", 100.0)
    tally.canary("failure", 200.0)
    assert tally.canary_runs == {"success": 1, "failure": 1}
    assert tally.canary_last_success == 100.0
