"""The text of /proc/PID/stat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.untrusted.process_stat import ProcessStat, parse_stat

REST = b" S 7 4242 4242 0 -1 4194560 1 0 0 0 2 1 0 0 20 0 1 0 88123 9 2 0 4096 0 65536"


@pytest.mark.parametrize("name", [b"worker", b"", b") R 1 (", b"a b\nc"])
def test_the_name_may_be_anything(name: bytes) -> None:
    text = b"4242 (" + name + b")" + REST
    assert parse_stat(text) == ProcessStat(name, b"S", 7, 4194560, 88123, 4096, 65536)


def test_this_process() -> None:
    stat = parse_stat(Path("/proc/self/stat").read_bytes())
    assert (stat.state, stat.parent) == (b"R", os.getppid())


@pytest.mark.parametrize("text", [b"", b"1 (x) S 7", b"1 (x)" + REST.replace(b"88123", b"soon")])
def test_other_texts(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"stat|literal"):
        parse_stat(text)
