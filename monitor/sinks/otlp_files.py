"""The files that [otlp] names: headers with credentials, certificates and a key.

They are read again when they have changed. No message has a word of what is in them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from monitor.configuration.config import ConfigError, Otlp
from monitor.untrusted.printable import printable

if TYPE_CHECKING:
    import ssl

__all__ = ["Files", "is_in_the_clear", "load", "signature"]

_LIMIT = 256 << 10  # bytes of a file
_MOST = 32  # headers
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # RFC 9110, token
_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]{0,8190}[\x21-\x7e])?")
_OURS = frozenset(
    ("host", "content-type", "content-length", "content-encoding", "transfer-encoding")
) | {"connection", "expect", "te", "trailer", "upgrade", "accept-encoding", "user-agent"}

Signature = tuple[tuple[int, int, int] | None, ...]


class Files(NamedTuple):
    """`context`: None for http."""

    headers: Mapping[str, str]
    context: ssl.SSLContext | None
    signature: Signature


def signature(otlp: Otlp) -> Signature:
    """Differs once one of the files is another one, or was written."""
    return tuple(
        _identity(path)
        for path in (otlp.headers_file, otlp.ca_file, otlp.certificate_file, otlp.key_file)
    )


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    # Not the time of the last write, which whoever writes can keep as it was.
    return status.st_ino, status.st_ctime_ns, status.st_size


def is_in_the_clear(endpoint: str) -> bool:
    """Whether others than this host's may read what is sent there."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return url.scheme == "http" and not is_here


def load(otlp: Otlp) -> Files:
    """What the files hold now. Raises ConfigError."""
    if bool(otlp.certificate_file) != bool(otlp.key_file):
        raise ConfigError(
            "otlp.certificate_file and otlp.key_file belong together; name both or none"
        )
    before = signature(otlp)  # first: what changes meanwhile is read again
    headers = _headers(otlp.headers_file) if otlp.headers_file else {}
    context = _context(otlp) if otlp.endpoint.lower().startswith("https:") else None
    return Files(headers, context, before)


def _read(path: Path, key: str, *, is_secret: bool) -> str:
    """Raises ConfigError."""
    shown = f"otlp.{key}: {printable(str(path), 300)}"
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{shown}: not a regular file; name another file")
            _require_trusted(status, shown, path, is_secret=is_secret)
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}; make it readable or name another") from None
    if len(data) > _LIMIT:
        raise ConfigError(f"{shown}: larger than {_LIMIT} bytes; is it the right file?")
    return data.decode("latin-1")


def _require_trusted(status: os.stat_result, shown: str, path: Path, *, is_secret: bool) -> None:
    """Whoever can write certificates of authorities can read what is sent, passwords among it."""
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{shown}: belongs to user {status.st_uid}; run: chown root {path}")
    if is_secret:
        forbidden, said, wanted = stat.S_IWGRP | stat.S_IRWXO, "read it, or its group write", "0640"
    else:
        forbidden, said, wanted = stat.S_IWGRP | stat.S_IWOTH, "write", "0644"
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"{shown}: mode {mode:04o} lets others {said} it; run: chmod {wanted} {path}"
        )


def _headers(path: Path) -> dict[str, str]:
    """Lines of `Name: value`; empty ones and those that begin with # are left out."""
    found: dict[str, str] = {}
    for number, line in enumerate(_read(path, "headers_file", is_secret=True).split("\n"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, value = text.partition(":")
        name, value = name.strip(), value.strip()
        place = f"{printable(str(path), 300)}:{number}"
        if not (colon and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ConfigError(f"{place}: not a header; write Name: value, in ASCII, on one line")
        if name.lower() in _OURS:
            raise ConfigError(f"{place}: the header {name} is set by the monitor; remove the line")
        if name.lower() in (known.lower() for known in found):
            raise ConfigError(f"{place}: the header {name} is there twice; leave one")
        found[name] = value
        if len(found) > _MOST:
            raise ConfigError(f"{place}: more than {_MOST} headers; remove some")
    if not found:  # most likely it is being written: without a password all would be refused
        raise ConfigError(
            f"otlp.headers_file: {printable(str(path), 300)}: no header is in it; write one, or "
            "leave the key out"
        )
    return found


def _context(otlp: Otlp) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - 3 MiB, for those who use it

    authorities = _read(otlp.ca_file, "ca_file", is_secret=False) if otlp.ca_file else None
    try:
        context = ssl.create_default_context(cadata=authorities)
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"otlp.ca_file: {otlp.ca_file} has no certificates in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if otlp.certificate_file and otlp.key_file:
        _read(otlp.key_file, "key_file", is_secret=True)
        _read(otlp.certificate_file, "certificate_file", is_secret=False)
        try:
            # With a password, so that OpenSSL never asks for one on the terminal.
            context.load_cert_chain(otlp.certificate_file, otlp.key_file, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not a PEM certificate and its key"
            raise ConfigError(
                f"otlp.certificate_file, otlp.key_file: {otlp.certificate_file}, "
                f"{otlp.key_file}: {printable(str(reason))}"
            ) from None
    return context
