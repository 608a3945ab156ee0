"""Discarding advice: most of it is known to be harmless without a look at the mappings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Harness, Made

Compile = Callable[[str], Path]


def discarded(harness: Harness, program: Path, what: str, count: int) -> tuple[Made, int, int]:
    """What was made, how many bypasses were counted, and how many runs were missed. A missed run
    may be a bypass that was not counted.
    """
    missed = harness.missed()
    with harness.configured(emit_seals=0):
        made = harness.run([program, what, count, "--wait"])
    assert made.exits == [0]
    return made, made.counted["bypass", "madvise_discard"], harness.missed() - missed


@pytest.mark.parametrize(
    ("what", "count", "around"),
    [
        ("turns", 211, 3 * 211),
        ("later", 307, 2 * 307),
        ("forks", 401, 5 * 200),
        ("exec", 101, 5 * 51),
    ],
)
def test_no_seal_is_overlooked(
    harness: Harness, compiled: Compile, what: str, count: int, around: int
) -> None:
    """Several mappings in turn; a seal after the look; a process or program in another's place."""
    made, counted, missed = discarded(harness, compiled("discards"), what, count)
    assert made.line["around"] == around
    assert around - missed <= counted <= around


def test_a_seal_by_another_thread(harness: Harness, compiled: Compile) -> None:
    """A discard that began after mseal was back is counted; one that ended before mseal is not."""
    made, counted, missed = discarded(harness, compiled("discards"), "race", 997)
    around, unsure = made.line["around"], made.line["unsure"]
    assert around == 5 * 997
    assert around - missed <= counted <= around + unsure
