"""Sizes in words."""

from __future__ import annotations

import pytest

from monitor.sizes import exact, kibibytes, mebibytes, rough, rounded


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (4097, "4097 bytes"),
        (12288, "12 KiB"),
        (3 << 19, "1536 KiB"),
        (5 << 20, "5 MiB"),
        (1 << 40, "1024 GiB"),
    ],
)
def test_exact(size: int, expected: str) -> None:
    assert exact(size) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, "1 byte"),
        (4095, "4.0 KiB"),
        (4096, "4 KiB"),
        (4096 * 3, "12 KiB"),
        ((1 << 20) + 4096, "1.0 MiB"),
        (10 << 30, "10 GiB"),
        (0x7FFF_0000_0000, "128.0 TiB"),
    ],
)
def test_rounded(length: int, expected: str) -> None:
    assert rounded(length) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "none"),
        (512, "512 B"),
        (4096, "4 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024 + 1023, "10 KiB"),
        ((1 << 20) - 1, "1023 KiB"),
        (3 << 40, "3 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_rough(count: int, expected: str) -> None:
    assert rough(count) == expected


def test_of_one_unit() -> None:
    assert (mebibytes(0), mebibytes(3 << 19)) == ("0.0 MiB", "1.5 MiB")
    assert (kibibytes(0), kibibytes(8191), kibibytes(1 << 30)) == ("0", "7 KiB", "1,048,576 KiB")
