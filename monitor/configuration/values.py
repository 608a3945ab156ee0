"""Checks of single configuration values: each returns the value as the program uses it."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = [
    "Check",
    "Invalid",
    "absolute_path",
    "base_url",
    "build_id",
    "host_id",
    "host_names",
    "integer",
    "listen_address",
    "non_empty",
    "one_of",
    "optional_path",
    "ring_size",
    "some_of",
    "string",
    "switch",
    "unit",
    "until",
    "user",
]


class Invalid(Exception):
    """What is wrong with a value, and the way out."""


Check = Callable[[object], Any]  # returns the value as the program uses it, or raises Invalid


def _shown(value: object) -> str:
    """Any value as a short, printable text for a message."""
    match value:
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 64:
            return "a number beyond 64 bits"
        case str():
            return repr(value if len(value) <= 80 else value[:77] + "...")
        case list() | dict():
            return "a list" if isinstance(value, list) else "a table"
    return str(value)


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def string(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{_shown(value)} is not a string; write it in quotes")
    return value


def switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{_shown(value)} is not a switch; write true or false")
    return value


def one_of(*valid: str) -> Check:
    def check(value: object) -> str:
        if value not in valid:
            raise Invalid(f"{_shown(value)} is not valid; choose {_listed(valid)}")
        return string(value)

    return check


def some_of(*valid: str) -> Check:
    one = one_of(*valid)

    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise Invalid(f"{_shown(value)} is not a list; write [] or a list of {_listed(valid)}")
        return tuple(dict.fromkeys(one(item) for item in value))

    return check


def integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"{_shown(value)} is not an integer; write one from {low} to {high}")
        if not low <= value <= high:
            raise Invalid(f"{_shown(value)} is out of range; write {low} to {high}")
        return value

    return check


def ring_size(value: object) -> int:
    size: int = integer(64 * 1024, 64 * 1024 * 1024)(value)
    if size & (size - 1):  # a power of two in this range is a multiple of every page size
        raise Invalid(f"{size} is not a power of two; the next one is {1 << size.bit_length()}")
    return size


def optional_path(value: object) -> Path | None:
    text = string(value)
    if "\0" in text:
        raise Invalid(f"{_shown(value)} has a NUL character; no file has such a name")
    return Path(text) if text else None


def host_id(value: object) -> str:
    text = string(value)
    if not re.fullmatch(r"[0-9A-Za-z._:-]{0,128}", text):
        raise Invalid(
            f"{_shown(value)} is no id of a host; write up to 128 letters, digits, and . _ : -"
        )
    return text


def absolute_path(value: object) -> Path | None:
    path = optional_path(value)
    if path and not path.is_absolute():
        raise Invalid(f"{_shown(value)} is no absolute path; write it from / on")
    return path


def non_empty(value: object) -> str:
    text = string(value)
    if not text.strip():
        raise Invalid("it is empty; write some text")
    return text


_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")


def _valid_host(host: str) -> bool:
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        elif re.fullmatch(r"[0-9.]+", host):
            ipaddress.IPv4Address(host)
        else:
            return len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None
    except ValueError:
        return False
    return True


def host_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Invalid(f"{_shown(value)} is not a list; write [] or a list of names of hosts")
    for item in value:
        if item != "*" and not (isinstance(item, str) and _valid_host(item)):
            raise Invalid(
                f'{_shown(item)} is not the name of a host; write it without a port, or "*"'
            )
    return tuple(value)


def listen_address(value: object) -> tuple[str, int]:
    text = string(value)
    form = "write ADDR:PORT, as in 127.0.0.1:10462, [::1]:10462 or 0.0.0.0:10462"
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Invalid(f"{_shown(text)} has no port from 0 to 65535; {form}")
    if not _valid_host(host):
        raise Invalid(f"{_shown(text)} has no valid address; {form}")
    if host.startswith("["):
        host = host[1:-1]
    return host, int(port)


def base_url(value: object) -> str:
    """A URL of http or https without credentials, or an empty text."""
    text = string(value)
    form = "write a base URL, as in https://collector.example:4318 or http://[::1]:4318"
    if not text:
        return text
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > 2048:
        raise Invalid(f"{_shown(text)} is not a URL; {form}")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise Invalid(f"it is not a URL; {form}") from None
    if "@" in url.netloc or url.query or url.fragment:  # not shown: it may hold a password
        raise Invalid(
            f"it has a user, a query or a fragment; put credentials into a file of "
            f"headers, and {form}"
        )
    shown = f"[{host}]" if host and ":" in host else host
    if url.scheme not in ("http", "https") or not shown or not _valid_host(shown) or port == 0:
        raise Invalid(f"{_shown(text)} is not a URL of http or https; {form}")
    if url.path.rstrip("/").endswith("/v1/logs"):
        raise Invalid(f"{_shown(text)} ends with /v1/logs, which is added; {form}")
    return text


def until(value: object) -> datetime.datetime:
    """The end of a date, or a time; without a zone it is UTC."""
    match value:
        case datetime.datetime():
            return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        case datetime.date():
            return datetime.datetime.combine(value, datetime.time.max, datetime.UTC)
    raise Invalid(f"{_shown(value)} is not a date; write 2030-12-31 or 2030-12-31T18:00:00Z")


_USER_NAME = re.compile(r"(?![0-9]+$)[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,254}\$?")
_NO_USER = 2**32 - 1  # (uid_t) -1


def user(value: object) -> int | str:
    """A uid, or a name of a user; whether there is one of that name is known only later."""
    if isinstance(value, str):
        if not _USER_NAME.fullmatch(value):
            raise Invalid(
                f"{_shown(value)} is not the name of a user; write a name in quotes or a number "
                'without, as in "root" or 0'
            )
        return value
    number: int = integer(0, _NO_USER - 1)(value)
    return number


_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice)")
_UNIT_OF_USER = re.compile(r"user@[^/]+\.service/" + _UNIT.pattern)


def unit(value: object) -> str:
    text = string(value)
    if len(text) > 512 or not (_UNIT.fullmatch(text) or _UNIT_OF_USER.fullmatch(text)):
        raise Invalid(
            f"{_shown(text)} is not a service, scope or slice of systemd; write its whole name, as "
            "in nginx.service, or user@1000.service/app.service for one of a user's"
        )
    return text


def build_id(value: object) -> str:
    text = string(value)
    if not re.fullmatch(r"([0-9A-Fa-f]{2}){2,64}", text):
        raise Invalid(
            f"{_shown(text)} is not a build id; write all its hexadecimal digits, as "
            "executable_build_id in an event has them"
        )
    return text.lower()
