"""Sizes in bytes, as words for people. The forms differ in how much they round."""

from __future__ import annotations

__all__ = ["exact", "kibibytes", "mebibytes", "rough", "rounded"]

_UNITS = ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))


def exact(size: int) -> str:
    """In the largest unit up to GiB that needs no fraction."""
    for shift, unit in _UNITS[2:]:
        if size and not size & ((1 << shift) - 1):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def rounded(size: int) -> str:
    """In the largest unit that gives at least 1; without a fraction where it is whole."""
    for shift, unit in _UNITS:
        if size >= 1 << shift:
            if not size & ((1 << shift) - 1):
                return f"{size >> shift} {unit}"
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} byte{'s' if size != 1 else ''}"


def rough(size: int) -> str:
    """For a column: at least two digits, rounded down, in units up to TiB."""
    if size < 1024:
        return f"{size} B" if size else "none"
    shift, unit = next(each for each in _UNITS[1:] if size >= 1 << each[0])
    number = size / (1 << shift)
    return f"{int(number)} {unit}" if number >= 10 else f"{int(number * 10) / 10:g} {unit}"


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def kibibytes(size: int) -> str:
    return f"{size // 1024:,} KiB" if size else "0"
