from __future__ import annotations

from pathlib import Path

import pytest

from monitor.web.hosts import Hosts, names_of_host


def test_names_of_host_are_in_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "127.0.0.1 localhost\n10.0.0.3 Web-3.example.com. web-3 stats # evil.example\n"
        "10.0.0.4 web-4\n"
    )
    (tmp_path / "resolv.conf").write_bytes(b"search internal corp.example\nnameserver \xff\n")
    expected = {"web-3", "web-3.example.com", "stats", "web-3.internal", "web-3.corp.example"}
    assert names_of_host("WEB-3", tmp_path) == expected


def test_names_of_host_without_files(tmp_path: Path) -> None:
    assert names_of_host("web-3.example.com", tmp_path) == {"web-3.example.com", "web-3"}
    (tmp_path / "hosts").mkdir()
    assert names_of_host("", tmp_path) == frozenset()


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST.:10462", True),
        ("127.0.0.1:10462", True),
        ("192.0.2.7", True),  # an address in Host was not chosen by a DNS server
        ("[::1]:10462", True),
        ("[fe80::1%eth0]", True),
        ("web-3:80", True),
        ("stats.internal", True),
        ("monitor.example:1", True),
        ("evil.example", False),
        ("web-3.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[evil.example]", False),
        ("1.2.3", False),
        (":10462", False),
    ],
)
def test_known_hosts(host: str, known: bool) -> None:
    hosts = Hosts("stats.internal", ["Monitor.example."], frozenset({"web-3"}))
    assert hosts.know(host) == known
    assert Hosts("0.0.0.0", ["*"], frozenset()).know(host)
