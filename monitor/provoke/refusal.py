"""Makes a call that is to be refused, and gives its facts as a monitor should report them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from monitor.kernel.syscalls import PAGE, call
from monitor.provoke.provocation import Facts, Pages, Unsupported, lay, mappings

__all__ = ["as_seen", "denial", "expect_eperm", "refused", "watching"]

PageState = tuple[int, str, int | None]


def denial(
    operation: str,
    arguments: tuple[int, ...],
    result: int,
    pages: Pages | None,
    **differing: object,
) -> Facts:
    """The facts of a refused call, as a monitor should report them.

    `arguments` begin with address and length of the range; else `differing` gives them. The
    verdict is sealed where `pages` has a seal, else not_sealed. `result` is the kernel's (-errno).
    The fact `errno` is 0 when the call returned no error.
    """
    sealed = pages is not None and pages.sealed_start < pages.sealed_end
    facts: Facts = {
        "operation": operation,
        "arguments": list(arguments) + [0] * (6 - len(arguments)),
        "address": arguments[0],
        "length": arguments[1] if len(arguments) > 1 else 0,
        "result": result,
        "errno": -result if -4096 < result < 0 else 0,
        "verdict": "sealed" if sealed else "not_sealed",
        "reason": "none",
        "role": "range",
        "hidden": False,
        "compat": False,
        "sealed_start": pages.sealed_start if pages and sealed else 0,
        "sealed_end": pages.sealed_end if pages and sealed else 0,
        "partial_start": 0,
        "partial_end": 0,
    }
    return facts | differing


def as_seen(facts: Facts, at_seal: bool) -> Facts | None:
    """What a monitor reports of a provocation; None: nothing.

    `at_seal`: the hook is the function in which a seal refuses. It does not see refusals with
    another cause, and each that it sees is proved. Only such a hook sees calls that are not in the
    table of operations.
    """
    if "verdict" not in facts:
        return facts
    if not at_seal:
        return None if facts["operation"] == "other" else facts
    if facts["kind"] == "other":
        return None
    return facts | {"verdict": "sealed", "reason": "none"}


def expect_eperm(operation: str, result: int) -> None:
    """Raise Unsupported unless the call was refused with EPERM."""
    if result != -errno.EPERM:
        how = os.strerror(-result) if result < 0 else f"not refused, returned {result}"
        raise Unsupported(f"{operation}: {how}")


def _states(start: int, end: int) -> list[PageState]:
    """Permissions and first byte of each mapped page: they show what a call has changed."""
    return [
        (page, mapping.permissions, _first_byte(page) if mapping.permissions[0] == "r" else None)
        for mapping in mappings()
        for page in range(max(start, mapping.start), min(end, mapping.end), PAGE)
    ]


def _first_byte(page: int) -> int:
    return ctypes.c_ubyte.from_address(page).value


def watching(pages: Pages, make: Callable[[], int]) -> tuple[int, dict[str, object]]:
    """Result of `make`, and the partial range if the pages before the seal were changed."""
    before = _states(pages.start, pages.sealed_start)
    result = make()
    if _states(pages.start, pages.sealed_start) == before:
        return result, {}
    return result, {"partial_start": pages.start, "partial_end": pages.sealed_start}


def refused(
    operation: str,
    layout: str,
    arguments: Callable[[int], tuple[int, ...]],
    **differing: object,
) -> Facts:
    """Make a call on a fresh `layout`; `arguments` gets the address of its first page."""
    pages = lay(layout)
    values = arguments(pages.start)
    result, partial = watching(pages, lambda: call(operation, *values))
    expect_eperm(operation, result)
    return denial(operation, values, result, pages, **(partial | differing))
