"""Which kernels the guests of make test-kernels get."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "vm"))
from kernels import OTHERS, Kernel, Line, choose
from matrix import ported_jobs

CLOUD = ["6.12.9+deb13-cloud-arm64", "6.12.117+deb13-cloud-arm64", "7.3.4+deb13-cloud-arm64"]


def test_kernels_of_another_processor() -> None:
    found = choose(OTHERS["cloud-arm64"], CLOUD)
    assert [kernel.release for kernel in found] == CLOUD[1:]
    (pages,) = choose(OTHERS["arm64-16k"], ["6.12.117+deb13-arm64-16k"])
    assert (pages.release, pages.note) == ("6.12.117+deb13-arm64-16k", "")


def test_the_next_series_stands_in() -> None:
    (kernel,) = choose([Line("6.11 arm64", ("6.11",))], CLOUD)
    assert kernel.release == CLOUD[1]
    assert kernel.note == f"no suite offers 6.11 arm64 any more; {CLOUD[1]} instead"


@pytest.mark.parametrize(
    ("release", "architecture"),
    [
        ("6.1.0-50-cloud-amd64", "amd64"),
        ("6.12.117+deb13-cloud-arm64", "arm64"),
        ("6.12.117+deb13-arm64-16k", "arm64"),
    ],
)
def test_the_processor_of_a_kernel(release: str, architecture: str) -> None:
    assert Kernel("", True, release, "").architecture == architecture


def test_the_guests_of_another_processor() -> None:
    """Each way to attach has one."""
    found = [
        Kernel("", True, release, f"/{release}")
        for release in (CLOUD[1], "6.12.117+deb13-arm64-16k", CLOUD[2])
    ]
    jobs = [job for job in ported_jobs(found) if job.name == "port"]
    assert [(job.kernel.release, job.command.split()[-1]) for job in jobs] == [
        (CLOUD[1], "fexit,tracepoint"),
        ("6.12.117+deb13-arm64-16k", "raw_tracepoint"),
        (CLOUD[2], "fexit"),
    ]
