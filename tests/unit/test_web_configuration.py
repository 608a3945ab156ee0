"""The web configuration as the daemon's loop sees it; what a file may say is in test_web_access."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor.web.access import SETTLE_SECONDS
from monitor.web.configuration import LOOK_SECONDS, WebConfiguration
from monitor.web.server import Access, WebError

DENY = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"


def test_without_a_file_there_are_no_conditions() -> None:
    configuration = WebConfiguration(None)
    configuration.reload(0.0)
    configuration.turn(LOOK_SECONDS)
    assert configuration.access() == Access()
    assert not configuration.has_tls
    assert list(configuration.outcomes()) == []


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WebError, match=r"missing\.yml"):
        WebConfiguration(tmp_path / "missing.yml")


def test_what_other_threads_read_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(DENY)
    configuration = WebConfiguration(file)
    assert configuration.access().headers == ("X-Frame-Options: deny",)
    assert list(configuration.outcomes()) == []
    file.write_text("no")
    time.sleep(SETTLE_SECONDS + 0.01)
    with ThreadPoolExecutor() as other:
        access = other.submit(configuration.access).result()
    assert access.headers == ("X-Frame-Options: deny",)
    (problem,) = configuration.outcomes()
    assert str(problem).startswith(f"{file}:1: ")
    assert list(configuration.outcomes()) == []


def test_a_reload_looks_again_once_the_file_has_settled(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text("")
    configuration = WebConfiguration(file)
    file.write_text(DENY)
    configuration.reload(100.0)  # it was written just now, and may be half a file
    assert list(configuration.outcomes()) == []
    time.sleep(SETTLE_SECONDS + 0.01)
    configuration.turn(100.0 + LOOK_SECONDS - 0.1)
    assert list(configuration.outcomes()) == []
    configuration.turn(100.0 + LOOK_SECONDS)
    assert list(configuration.outcomes()) == [None]
