"""What an entry mutes: all that it asks for must be so, and known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.configuration.config import ConfigError, parse
from monitor.configuration.mutes import Mute, User, Violation

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOBODY = User(65534, "nobody")
ENGINE = Violation(
    what="munmap",
    executable="/opt/engine/engine",
    files="host",
    build_id="00ff",
    owner=User(0, "root"),
    user=User(998, "engine"),
    unit="engine.service",
)
KNOWN = {
    "executable": "/opt/engine/*",
    "owner": "root",
    "user": 998,
    "unit": "engine.service",
    "build_id": "00ff",
}


def mutes(violation: Violation, **asked: Any) -> bool:
    return Mute(reason="known", **asked).applies(violation, NOW)


@pytest.mark.parametrize(
    ("asked", "muted"),
    [
        ({"owner": "root"}, True),
        ({"owner": 0}, True),
        ({"owner": 998}, False),
        ({"owner": "engine"}, False),
        ({"user": "engine"}, True),
        ({"user": 998}, True),
        ({"user": 0}, False),
        ({"unit": "engine.service"}, True),
        ({"unit": "eng*.service"}, True),
        ({"unit": "Engine.service"}, False),
        ({"build_id": "00ff"}, True),
        ({"build_id": "00"}, False),
        (KNOWN, True),
        (KNOWN | {"operation": "munmap"}, True),
        (KNOWN | {"operation": "mmap"}, False),
    ],
)
def test_what_is_asked_for(asked: dict[str, Any], muted: bool) -> None:
    assert mutes(ENGINE, **asked) is muted


LOADED = ENGINE._replace(
    executable="/usr/lib/ld-linux-x86-64.so.2",
    program="/opt/engine/engine",
    program_files="host",
)


@pytest.mark.parametrize(
    ("asked", "muted"),
    [
        ({"program": "/opt/engine/engine"}, True),
        ({"program": "/opt/*"}, True),
        ({"program": "engine"}, True),
        ({"program": "/opt/other"}, False),
        ({"program": "other"}, False),
        ({"executable": "/opt/engine/engine"}, False),
        ({"program": "engine", "executable": "ld-linux-*"}, True),
        ({"program": "engine", "executable": "engine"}, False),
    ],
)
def test_the_program_that_a_loader_runs(asked: dict[str, Any], muted: bool) -> None:
    assert mutes(LOADED, **asked) is muted
    assert not mutes(ENGINE, **(asked | {"program": "engine"}))


@pytest.mark.parametrize("files", ["namespace", None])
def test_a_loaded_program_at_a_path_that_is_not_the_hosts(files: str | None) -> None:
    assert not mutes(LOADED._replace(program_files=files), program="/opt/engine/engine")


@pytest.mark.parametrize(
    "different",
    [
        {"executable": "/opt/other"},
        {"files": "namespace"},
        {"build_id": "00fe"},
        {"owner": NOBODY},
        {"user": NOBODY},
        {"unit": "session-3.scope"},
    ],
)
def test_one_that_differs_is_enough(different: dict[str, Any]) -> None:
    assert not mutes(ENGINE._replace(**different), **KNOWN)


@pytest.mark.parametrize(
    "unknown",
    [
        {"executable": None},
        {"files": None},
        {"build_id": None},
        {"owner": User()},
        {"user": User()},
        {"unit": None},
    ],
)
def test_what_is_not_known_matches_nothing(unknown: dict[str, Any]) -> None:
    assert not mutes(ENGINE._replace(**unknown), **KNOWN)


@pytest.mark.parametrize(
    ("pattern", "unit", "muted"),
    [
        ("nginx.service", "nginx.service", True),
        ("nginx.service", "user@1000.service/nginx.service", False),
        ("*.service", "user@1000.service/nginx.service", False),
        ("*nginx.service", "user@1000.service/nginx.service", False),
        ("user@1000.service/nginx.service", "user@1000.service/nginx.service", True),
        ("user@1000.service/nginx.service", "user@1001.service/nginx.service", False),
        ("user@*.service/*.scope", "user@1001.service/app.scope", True),
        ("user@*.service/*.scope", "nginx.service", False),
        ("[.service", "nginx.service", False),
    ],
)
def test_a_user_names_no_unit_of_the_system(pattern: str, unit: str, muted: bool) -> None:
    assert mutes(ENGINE._replace(unit=unit), unit=pattern) is muted


@pytest.mark.parametrize(
    ("asked", "words", "any_user"),
    [
        ({"operation": "munmap"}, "", True),
        ({"executable": "/opt/engine/*"}, "/opt/engine/*", True),
        ({"owner": 0, "build_id": "00ff"}, "build id 00ff, owner 0", True),
        ({"executable": "engine", "user": "engine"}, "engine, user engine", False),
        ({"unit": "engine.service"}, "unit engine.service", False),
    ],
)
def test_of_whom(asked: dict[str, Any], words: str, any_user: bool) -> None:
    mute = Mute(reason="known", **asked)
    assert (mute.whose, mute.is_for_any_user) == (words, any_user)


def read(line: str) -> Mute:
    (mute,) = parse(f"[[mute]]\nreason = 'r'\n{line}\n", "c").mutes
    return mute


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("owner = 'root'", "owner", "root"),
        ("owner = 0", "owner", 0),
        ("user = 'www-data'", "user", "www-data"),
        ("user = 'EXAMPLE\\ann'", "user", "EXAMPLE\\ann"),
        ("user = 'host$'", "user", "host$"),
        ("unit = 'nginx.service'", "unit", "nginx.service"),
        ("unit = 'getty@*.service'", "unit", "getty@*.service"),
        ("unit = 'user@1000.service/app.service'", "unit", "user@1000.service/app.service"),
        ("build_id = '00FF'", "build_id", "00ff"),
    ],
)
def test_it_is_read(line: str, name: str, value: object) -> None:
    expected: dict[str, Any] = {"reason": "r", name: value}
    assert read(line) == Mute(**expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("owner = '0'", "'0' is not the name of a user; write a name in quotes or a number"),
        ("owner = ''", "'' is not the name of a user"),
        ("owner = 'a b'", "'a b' is not the name of a user"),
        ("owner = true", "true is not an integer"),
        ("user = -1", "-1 is out of range"),
        ("user = 4294967295", "4294967295 is out of range"),
        ("unit = 'nginx'", "'nginx' is not a service, scope or slice of systemd; write its whole"),
        ("unit = '/system.slice/nginx.service'", "'/system.slice/nginx.service' is not a service"),
        ("unit = 'a.service/b.service'", "'a.service/b.service' is not a service"),
        ("unit = 3", "3 is not a string"),
        ("build_id = '0x00ff'", "'0x00ff' is not a build id; write all its hexadecimal digits"),
        ("build_id = '00f'", "'00f' is not a build id"),
        ("build_id = '00'", "'00' is not a build id"),
    ],
)
def test_a_mistake_is_explained(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match="c:3: key 'mute") as raised:
        read(line)
    assert message in str(raised.value)
