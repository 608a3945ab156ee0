"""How much of the ring ordinary events may fill."""

from __future__ import annotations

import pytest

from monitor.kernel.abi import Config
from monitor.watch.backlog import LATE_NS, RECOVERY_NS, Backlog

SIZE = 1 << 21
LATE, SOON = LATE_NS + 1, LATE_NS


@pytest.mark.parametrize(
    ("ages", "rooms"),
    [
        ([SOON, SOON], [2, 2]),
        ([LATE, LATE, LATE, LATE], [4, 8, 8, 8]),
        ([LATE, SOON], [4, 4]),  # it has not lasted
    ],
)
def test_room_follows_the_delay(ages: list[int], rooms: list[int]) -> None:
    config = Config()
    backlog = Backlog(config, SIZE)
    now, found = 100 * RECOVERY_NS, []
    backlog.look(now, now)
    for age in ages:
        now += 1
        backlog.look(now - age, now)
        found.append(SIZE // config.ordinary_ring)
    assert found == rooms


def test_room_comes_back() -> None:
    config = Config()
    backlog = Backlog(config, SIZE)
    now, found = 100 * RECOVERY_NS, []
    for _ in range(3):
        backlog.look(now - LATE, now)
    for _ in range(4):
        now += RECOVERY_NS + 1
        backlog.look(now, now)
        backlog.look(now, now)  # once in all that time
        found.append(SIZE // config.ordinary_ring)
    assert found == [4, 2, 2, 2]
