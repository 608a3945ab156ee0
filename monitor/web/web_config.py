"""The web config file: TLS, headers, users and a rate limit, in the format of the Prometheus
exporter toolkit (docs/web-configuration.md of github.com/prometheus/exporter-toolkit).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import bcrypt
import yaml

from monitor.untrusted.printable import joined, printable
from monitor.web.errors import WebError
from monitor.web.server import Tls
from monitor.web.tls import tls_server
from monitor.web.yaml_values import Mistakes, boolean, compose, entries, is_null, known, string

__all__ = ["RateLimit", "WebConfig", "digest_of", "load_web_config"]

_FILE_LIMIT = 256 * 1024  # bytes of a web config file, a certificate or a key
_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
# The headers that may be set, and their valid values; () for any.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
# The cost is bounded: a check has to end within the time of a request.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|µs|ms|s|m|h))+|0")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class RateLimit:
    """A token bucket: a request each `interval` seconds in the long run, `burst` at once."""

    interval: float
    burst: int


@dataclass(frozen=True)
class WebConfig:
    """What a web config file asks for; `users` are bcrypt hashes by name.

    `files` are the digests of all files that were read for it, itself among them.
    """

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, bytes] = field(default_factory=dict)
    rate_limit: RateLimit | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict, compare=False)


# ---- Files ---------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """Raises WebError."""
    shown = printable(str(path))
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise WebError(f"cannot use {shown}: not a regular file; name another file")
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        text = f"cannot use {shown}: {error.strerror}; correct it or name another file"
        raise WebError(text) from None
    except ValueError:  # a NUL, or a character that cannot be encoded
        text = f"cannot use {shown}: not the name of a file; correct it or name another file"
        raise WebError(text) from None
    if len(data) > _FILE_LIMIT:
        raise WebError(f"{shown}: larger than {_FILE_LIMIT} bytes; is it the right file?")
    return data


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def digest_of(path: Path) -> bytes:
    """The digest, as in `WebConfig.files`; empty if the file cannot be read."""
    try:
        return _digest(_read(path))
    except WebError:
        return b""


# ---- Sections ------------------------------------------------------------------------------------


def _users(node: yaml.Node, mistakes: Mistakes) -> dict[str, bytes]:
    users = {}
    for name, dotted, key, value in entries(node, "basic_auth_users", mistakes):
        hashed = string(value, dotted, mistakes)
        if ":" in name:
            mistakes.add(key, dotted, "a user name cannot hold a colon; choose another")
        elif not _valid_hash(hashed):
            text = "not a bcrypt hash of cost 4 to 15; make one with: htpasswd -nBC 10 NAME"
            mistakes.add(value, dotted, text)
        users[name] = hashed.encode()
    return users


def _valid_hash(hashed: str) -> bool:
    if not _BCRYPT.fullmatch(hashed):
        return False
    try:  # the salt, at the lowest cost
        bcrypt.hashpw(b"", b"$2b$04$" + hashed[7:29].encode())
    except ValueError:
        return False
    return True


def _http(node: yaml.Node, mistakes: Mistakes) -> dict[str, str]:
    """The headers. `http2` is checked but changes nothing: the server only speaks HTTP/1.1."""
    name = "http_server_config"
    nodes = known(node, name, ("http2", "headers"), mistakes)
    if "http2" in nodes:
        boolean(nodes["http2"], f"{name}.http2", mistakes)
    headers: dict[str, str] = {}
    if "headers" not in nodes:
        return headers
    name = f"{name}.headers"
    for header, value in known(nodes["headers"], name, tuple(_HEADERS), mistakes).items():
        text = string(value, f"{name}.{header}", mistakes)
        valid = _HEADERS[header]
        if not (text.isascii() and text.isprintable()):
            mistakes.add(value, f"{name}.{header}", "a header is one line of printable ASCII")
        elif valid and text and text not in valid:
            shown = f"{joined(text)!r} is not supported; choose {' or '.join(valid)}"
            mistakes.add(value, f"{name}.{header}", shown)
        elif text:
            headers[header] = text
    return headers


def _rate_limit(node: yaml.Node, mistakes: Mistakes) -> RateLimit | None:
    """The rate limit; None if an interval of 0 switches it off."""
    name = "rate_limit"
    nodes = known(node, name, ("interval", "burst"), mistakes)
    values = {
        key: value.value if isinstance(value, yaml.ScalarNode) else ""
        for key, value in nodes.items()
    }
    interval, burst = values.get("interval", "0"), values.get("burst", "0")
    if not _DURATION.fullmatch(interval):
        mistakes.add(nodes["interval"], f"{name}.interval", "not a duration, such as 1s or 500ms")
    elif not re.fullmatch("[0-9]{1,9}", burst):
        mistakes.add(nodes["burst"], f"{name}.burst", "not a number of requests")
    elif seconds := _seconds(interval):
        if not int(burst):
            mistakes.add(node, f"{name}.burst", "it is missing or 0: no request would be answered")
        return RateLimit(seconds, int(burst))
    return None


def _seconds(duration: str) -> float:
    """Seconds of a duration as Go writes it."""
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", duration)
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


def load_web_config(path: Path) -> WebConfig:
    """What the file at `path` asks for; file names in it are relative to its directory.

    Certificates and keys are read at once. Raises WebError with all mistakes in the file, or with
    the reason why it or a file that it names cannot be used.
    """
    files: dict[Path, bytes] = {}

    def read(name: str) -> bytes:
        data = _read(path.parent / name)
        files[path.parent / name] = _digest(data)
        return data

    data = _read(path)
    files[path] = _digest(data)
    try:
        root = compose(data.decode(), path)
    except UnicodeDecodeError:
        raise WebError(f"{path}: not UTF-8; save the file as UTF-8") from None
    mistakes = Mistakes(path)
    sections = known(root, "", _SECTIONS, mistakes) if root and not is_null(root) else {}
    limit, users = sections.get("rate_limit"), sections.get("basic_auth_users")
    http, tls = sections.get("http_server_config"), sections.get("tls_server_config")
    config = WebConfig(
        headers=_http(http, mistakes) if http else {},
        users=_users(users, mistakes) if users else {},
        rate_limit=_rate_limit(limit, mistakes) if limit else None,
        tls=tls_server(tls, path, read, mistakes) if tls else None,
        files=MappingProxyType(files),
    )
    mistakes.check()
    return config
