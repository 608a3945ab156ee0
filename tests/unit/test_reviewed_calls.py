from __future__ import annotations

from collections import Counter

import pytest

from monitor.kernel import reviewed_calls
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.reviewed_calls import REVIEWED, Effect, calls, unreviewed


def test_the_watched_calls_are_those_of_the_operations() -> None:
    own = [operation.name for operation in OPERATIONS if operation.number is not None]
    assert calls(Effect.WATCHED) == sorted([*own, "ipc", "mmap_pgoff", "mseal"])


def test_a_call_is_reviewed_once() -> None:
    counted = Counter(name for _, _, names in reviewed_calls._GROUPS for name in names.split())
    assert [name for name, number in counted.items() if number > 1] == []


def test_what_a_refusal_hides_in() -> None:
    assert calls(Effect.HIDDEN) == [
        *("arch_prctl", "close", "close_range", "dup2", "dup3", "exit", "io_destroy"),
        "uselib",
    ]


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("munmap", Effect.WATCHED),
        ("brk", Effect.WATCHED),
        ("io_destroy", Effect.HIDDEN),
        ("ptrace", Effect.BYPASS),
        ("ftruncate", Effect.BYPASS),
        ("execve", Effect.ENDS),
        ("process_mrelease", Effect.ENDS),
        ("mlock", Effect.NONE),
        ("process_vm_writev", Effect.NONE),
        ("fchroot", Effect.NONE),
    ],
)
def test_effects(name: str, effect: Effect) -> None:
    assert REVIEWED[name].effect is effect
    assert REVIEWED[name].why


def test_tomorrows_call_is_named() -> None:
    assert unreviewed(["vma_swap", "munmap", "mseal", "map_merge", "vma_swap"]) == [
        "map_merge",
        "vma_swap",
    ]
    assert unreviewed(REVIEWED) == []
