"""The names of this server, by which it may be asked where nothing else protects it.

A page that a browser on this host shows may ask any server that this host reaches, under a name of
the page's own domain that resolves to the server's address (DNS rebinding), and read the answer.
The header Host has that name. An address there is harmless: no DNS server chose it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection
from pathlib import Path

__all__ = ["ANY", "Hosts", "names_of_host"]

ANY = "*"  # in web.allowed_hosts
_READ_LIMIT = 64 * 1024  # bytes of a file


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    family, text = socket.AF_INET, host
    if host.startswith("["):
        family, text = socket.AF_INET6, host[1:-1].partition("%")[0]
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _words(file: Path) -> list[list[str]]:
    """The words of each line, without comments; none if the file cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        text = opened.read(_READ_LIMIT).decode(errors="replace")
        return [line.partition("#")[0].split() for line in text.splitlines()]
    return []


def names_of_host(node: str, etc: Path = Path("/etc")) -> frozenset[str]:
    """The names that this host has by its own files: no DNS server is asked.

    `node` is its name in the kernel. The others stand beside it in /etc/hosts, or are made of it
    and a domain of /etc/resolv.conf.
    """
    node = _folded(node)
    names = {node, node.partition(".")[0]}
    for words in _words(etc / "hosts"):
        beside = {_folded(word) for word in words[1:]}
        if node in beside:
            names |= beside
    for words in _words(etc / "resolv.conf"):
        if words and words[0] in ("search", "domain"):
            names |= {f"{node}.{_folded(domain)}" for domain in words[1:]}
    return frozenset(name for name in names if name)


class Hosts:
    """Which Host a request may have: an address, localhost, a name of this host, one allowed."""

    def __init__(
        self, listens_on: str, allowed: Collection[str], names: frozenset[str] | None = None
    ) -> None:
        """`listens_on` is the configured address; `names` are those of this host."""
        if names is None:
            names = names_of_host(os.uname().nodename)
        self._any = ANY in allowed
        self._names = {"localhost", _folded(listens_on), *names, *map(_folded, allowed)}

    def know(self, host: str) -> bool:
        """Whether a Host, with or without a port, is one of them. One that is empty is: every
        browser sends it.
        """
        if self._any or not host:
            return True
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return _is_address(name) or _folded(name) in self._names
