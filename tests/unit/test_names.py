"""Names of users and groups: those of the host however busy it is, the others in time."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.evidence.names import AGAIN_SECONDS, FILE_LIMIT, FRESH_SECONDS, Names, name_in
from monitor.evidence.waiting import TooLong, Waiting

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/:\nbob:x:1000:0::/:\n\xff\x1b:x:7:7:::\n"


class Patience(Waiting):
    """Its time can be spent; counts how often something was asked."""

    is_spent = False
    asked = 0

    def run(self, user: int, work: Callable[[], Any], place: str = "") -> Any:
        self.asked += 1
        if self.is_spent:
            raise TooLong("look-ups of this user's have taken too long before")
        return work()


class Setting:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "passwd"
        self.file.write_bytes(PASSWD)
        self.now = 100.0
        self.patience = Patience()
        self.served = {2000: "eve"}
        self.names = Names(self.file, self.served.__getitem__, self.patience, lambda: self.now)

    def get(self, number: int) -> str | None:
        return self.names.get(number, number)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_those_of_the_host_wait_for_nobody(setting: Setting) -> None:
    setting.patience.is_spent = True
    assert [setting.get(number) for number in (0, 1000, 7)] == ["root", "ann", "\\xff\\x1b"]
    assert setting.patience.asked == 0


def test_the_host_has_them() -> None:
    for each in pwd.getpwall():
        if each.pw_name == pwd.getpwuid(each.pw_uid).pw_name:
            assert name_in(Path("/etc/passwd"), each.pw_uid) in (each.pw_name.encode(), None)
    assert name_in(Path("/etc/passwd"), 0) == name_in(Path("/etc/group"), 0) == b"root"


def test_of_the_others_a_server_is_asked(setting: Setting) -> None:
    assert setting.get(2000) == "eve"
    assert setting.get(2001) is None  # it has none
    setting.served[2001] = "late"
    setting.now += FRESH_SECONDS - 1
    assert (setting.get(2001), setting.patience.asked) == (None, 2)
    setting.now += 1
    assert setting.get(2001) == "late"


def test_what_took_too_long_is_asked_again_in_a_second(setting: Setting) -> None:
    """It was null for a minute, in all events of that user's."""
    setting.patience.is_spent = True
    assert [setting.get(2000) for _ in range(100)] == [None] * 100
    assert setting.patience.asked == 1
    setting.patience.is_spent = False
    setting.now += AGAIN_SECONDS
    assert setting.get(2000) == "eve"
    # Meanwhile the name that it had is given.
    setting.patience.is_spent = True
    setting.now += FRESH_SECONDS
    assert (setting.get(2000), setting.patience.asked) == ("eve", 3)


def test_a_file_that_is_none(setting: Setting) -> None:
    setting.file.unlink()
    assert name_in(setting.file, 0) is None
    os.mkfifo(setting.file)
    assert name_in(setting.file, 0) is None  # and nothing waits for it
    setting.file.unlink()
    setting.file.write_bytes(b"\n:::\nshort:x\n:x:0:\n" + PASSWD)
    assert (name_in(setting.file, 0), name_in(setting.file, 1000)) == (None, b"ann")
    setting.file.write_bytes(PASSWD + b"\n" * FILE_LIMIT)
    assert name_in(setting.file, 0) is None
    assert setting.get(2000) == "eve"
